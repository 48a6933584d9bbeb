// Package livestream encrypts a connection that lives: the migration stream that QEMU writes and reads at its own pace, in both directions, for
// hours. It implements docs/protocol.md, "Tunnel". What is written goes out at once; memory is constant; the end of each direction is
// authenticated, so that a connection that was cut does not look like one that ended.
//
//	key_0     = HKDF-Expand(SHA-384, tunnel key, "safeconduct/v1/livestream" || direction (1) || connection (32), 32)
//	key_(i+1) = HKDF-Expand(SHA-384, key_i, "safeconduct/v1/livestream-next", 32)
//	record    = prefix || AES-256-GCM(payload)         prefix = kind (1) || length of the payload (3), big-endian
//	nonce     = 32 zero bits || number of the record under its key (8)
//	AAD       = prefix
//
// Kinds: data (0), of 1 byte to MaxRecord; end (1), whose payload is the number of bytes of data before it (8), after which nothing comes; alive (2),
// of no bytes, which says that the sender is there and that what it sent before has arrived whole: a record that somebody took out is noticed
// with the next one, whatever it is. The tunnel key is exported from an attested session for one purpose, the connection id is fresh randomness of both sides, and each direction
// has keys of its own: so no nonce repeats under a key, and no record passes for one of another connection, direction or session. A key
// serves 65,536 records, at most 16 GiB, then the next takes its place: an attacker's advantage over an ideal cipher stays below 2^-57
// under each, and a key that leaks does not open what was sent before it.
//
// Non-goals: it opens no connection and proves no peer's identity; it hides neither lengths nor times.
package livestream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes.
const (
	// KeySize is the size of a tunnel key.
	KeySize = 32
	// ConnectionSize is the size of a connection's id.
	ConnectionSize = 32
	// MaxRecord is the most data in one record.
	MaxRecord = 256 << 10

	prefixSize = 4
	tagSize    = 16
	endSize    = 8
	// recordsPerKey is how often a key is used.
	recordsPerKey = 1 << 16

	firstLabel = "safeconduct/v1/livestream"
	nextLabel  = "safeconduct/v1/livestream-next"
)

// kind of a record.
type kind uint8

const (
	kindData  kind = 0
	kindEnd   kind = 1
	kindAlive kind = 2
)

// Errors of a stream. Each names one reason; test with errors.Is.
var (
	// ErrKey: the tunnel key has the wrong size or is all zero.
	ErrKey = errors.New("invalid tunnel key")
	// ErrNotAuthentic: a record was altered, is not the next one, or is of another connection, direction or session.
	ErrNotAuthentic = errors.New("tunnel record is not authentic")
	// ErrTruncated: the connection ended before the end record.
	ErrTruncated = errors.New("tunnel was cut before its end")
	// ErrTrailing: something follows the end record.
	ErrTrailing = errors.New("bytes after the end of a tunnel's stream")
	// ErrMalformed: a record is authentic, and not as a Writer writes it: the sender is faulty.
	ErrMalformed = errors.New("malformed tunnel record")
	// ErrClosed: the stream was closed.
	ErrClosed = errors.New("tunnel stream is closed")
)

// Direction of a stream: from the side that connected, or to it. The zero value is none.
type Direction uint8

// The directions.
const (
	FromInitiator Direction = 1
	ToInitiator   Direction = 2
)

// cipherState is the key in use and how often it was.
type cipherState struct {
	key   [KeySize]byte
	aead  cipher.AEAD
	nonce [12]byte
	used  uint64
}

func newCipherState(tunnelKey []byte, connection [ConnectionSize]byte, direction Direction) (*cipherState, error) {
	var all byte
	for _, b := range tunnelKey {
		all |= b
	}
	if len(tunnelKey) != KeySize || all == 0 {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d, not all zero", ErrKey, len(tunnelKey), KeySize)
	}
	if direction != FromInitiator && direction != ToInitiator {
		return nil, fmt.Errorf("%w: direction %d does not exist", ErrKey, direction)
	}
	c := new(cipherState)
	return c, c.derive(tunnelKey, firstLabel+string([]byte{byte(direction)})+string(connection[:]))
}

func (c *cipherState) derive(from []byte, info string) error {
	key, err := hkdf.Expand(sha512.New384, from, info, KeySize)
	if err != nil {
		return fmt.Errorf("deriving a tunnel's key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if c.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	c.key, c.used = [KeySize]byte(key), 0
	return nil
}

// next returns the nonce of the next record, under the next key if this one has served.
func (c *cipherState) next() ([]byte, error) {
	if c.used == recordsPerKey {
		if err := c.derive(c.key[:], nextLabel); err != nil {
			return nil, err
		}
	}
	binary.BigEndian.PutUint64(c.nonce[4:], c.used)
	c.used++
	return c.nonce[:], nil
}

func (c *cipherState) wipe() {
	clear(c.key[:])
	c.aead = nil
}

func encodePrefix(k kind, length int) (p [prefixSize]byte) {
	binary.BigEndian.PutUint32(p[:], uint32(k)<<24|uint32(length))
	return p
}

// decodePrefix checks what can be checked before the record is authentic: that it is not longer than a record can be.
func decodePrefix(p []byte) (kind, int, error) {
	field := binary.BigEndian.Uint32(p)
	k, length := kind(field>>24), int(field&0xffffff)
	if k == kindData && length > 0 && length <= MaxRecord || k == kindEnd && length == endSize || k == kindAlive && length == 0 {
		return k, length, nil
	}
	return 0, 0, fmt.Errorf("%w: a record of kind %d claims %d bytes", ErrNotAuthentic, k, length)
}
