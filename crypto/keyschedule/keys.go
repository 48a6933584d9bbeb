package keyschedule

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// ErrPurpose says that a key was to be exported without saying for what.
var ErrPurpose = errors.New("an exported key needs a purpose")

// Keys are the keys of the transfer. docs/keys.md says who uses which. No two are for the same purpose.
type Keys struct {
	// State protects the vTPM's state blobs.
	State *Secret
	// Image protects images of disks or memory that travel as record streams.
	Image *Secret
	// Secret protects the escrowed passphrase where it travels as a record stream.
	Secret *Secret
	// Stream protects the migration stream in the tunnel.
	Stream *Secret
	// Close authenticates the session's end.
	Close *Secret

	exporter *Secret
}

func deriveKeys(p []byte, th3 [48]byte) (*Keys, error) {
	k := new(Keys)
	for purpose, key := range map[string]**Secret{
		"state": &k.State, "image": &k.Image, "secret": &k.Secret, "stream": &k.Stream, "close": &k.Close, "exporter": &k.exporter,
	} {
		var err error
		if *key, err = expand(p, purpose, th3[:]); err != nil {
			k.Wipe()
			return nil, err
		}
	}
	return k, nil
}

// Export derives a key for a purpose that has no key of its own, such as one that a helper outside the enclave may hold: it
// reveals nothing of the other keys. Both enclaves get the same key for the same purpose and context.
//
//	HKDF-Expand(exporter, "safeconduct/v1/export" || H384("safeconduct/v1/export", purpose, context), 32)
//
// Errors: ErrPurpose, ErrWiped.
func (k *Keys) Export(purpose string, context []byte) (*Secret, error) {
	if purpose == "" {
		return nil, ErrPurpose
	}
	key := k.exporter.Bytes()
	if key == nil {
		return nil, fmt.Errorf("exporter: %w", ErrWiped)
	}
	h := transcript.H384(labelPrefix+"export", []byte(purpose), context)
	return expand(key, "export", h[:])
}

// ImagePart derives the key of one part of an image: what the part is hangs on its key, so that no part passes for another.
//
//	HKDF-Expand(image, "safeconduct/v1/image-part" || H384("safeconduct/v1/image-part", name, offset (8 bytes, big-endian), last (1 byte)), 32)
//
// Error: ErrWiped.
func (k *Keys) ImagePart(name string, offset uint64, last bool) (*Secret, error) {
	key := k.Image.Bytes()
	if key == nil {
		return nil, fmt.Errorf("image: %w", ErrWiped)
	}
	end := []byte{0}
	if last {
		end[0] = 1
	}
	h := transcript.H384(labelPrefix+"image-part", []byte(name), binary.BigEndian.AppendUint64(nil, offset), end)
	return expand(key, "image-part", h[:])
}

// Wipe destroys every key. It may be called again.
func (k *Keys) Wipe() {
	for _, key := range []*Secret{k.State, k.Image, k.Secret, k.Stream, k.Close, k.exporter} {
		key.Wipe()
	}
}
