package sealed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Limits in bytes.
const (
	// MaxPlaintext is the largest thing that is sealed.
	MaxPlaintext = 4 << 20
	// MaxName and MaxKind bound an ID.
	MaxName = 128
	MaxKind = 32
	// MaxKeyInfo bounds what the hardware needs in order to derive a seal key again (SGX: a key request of 512 bytes).
	MaxKeyInfo = 4096

	// Magic is what every sealed blob begins with.
	Magic = "SCSEALED"

	version   = 1
	maxMode   = 16
	saltSize  = 32
	tagSize   = 16
	maxHeader = len(Magic) + 1 + (1 + maxMode) + (1 + MaxKind) + (1 + MaxName) + 8 + (2 + MaxKeyInfo) + saltSize
	maxBlob   = maxHeader + MaxPlaintext + tagSize
)

// Errors of sealing and opening. Each names one reason; test with errors.Is.
var (
	// ErrID: a kind or a name has a character or a length that is not allowed.
	ErrID = errors.New("invalid kind or name")
	// ErrMalformed: the bytes are no blob.
	ErrMalformed = errors.New("malformed sealed blob")
	// ErrVersion: the blob is of a version that this package does not know.
	ErrVersion = errors.New("unknown version of a sealed blob")
	// ErrMode: the blob was sealed by a simulation and this is hardware, or the reverse, or the mode is neither.
	ErrMode = errors.New("sealed in another mode")
	// ErrWrongBlob: the blob is of another kind or name: files were swapped.
	ErrWrongBlob = errors.New("sealed blob of something else")
	// ErrSealKey: the hardware gave no usable seal key: too short, or all zero as outside an enclave.
	ErrSealKey = errors.New("unusable seal key")
	// ErrNotAuthentic: the blob was altered, or was sealed by another enclave or machine.
	ErrNotAuthentic = errors.New("sealed blob is not authentic")
	// ErrTooLong: more than MaxPlaintext.
	ErrTooLong = errors.New("too long to seal")
)

// ID names a blob.
type ID struct {
	// Kind is what sort of thing it is, such as "escrow": 1 to MaxKind of a-z, 0-9 and "-", the first a letter.
	Kind string
	// Name is which one, such as a VM's UUID: 1 to MaxName of a-z, A-Z, 0-9, ".", "_" and "-", the first not a dot.
	Name string
}

// String returns kind/name.
func (id ID) String() string { return id.Kind + "/" + id.Name }

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
)

func (id ID) check() error {
	if err := checkKind(id.Kind); err != nil {
		return err
	}
	allowed := lower + strings.ToUpper(lower) + digits + "._-"
	if id.Name == "" || len(id.Name) > MaxName || id.Name[0] == '.' || strings.Trim(id.Name, allowed) != "" {
		return fmt.Errorf("%w: name %.140q", ErrID, id.Name)
	}
	return nil
}

func checkKind(kind string) error {
	if kind == "" || len(kind) > MaxKind || !strings.Contains(lower, kind[:1]) || strings.Trim(kind, lower+digits+"-") != "" {
		return fmt.Errorf("%w: kind %.40q", ErrID, kind)
	}
	return nil
}

func checkMode(mode string) error {
	if mode != ModeIntel && mode != ModeSimulated {
		return fmt.Errorf("%w: found %.40q, expected %q or %q", ErrMode, mode, ModeIntel, ModeSimulated)
	}
	return nil
}

// blob is a parsed blob. raw is its header as it stands, which is the AAD.
type blob struct {
	mode       string
	id         ID
	generation uint64
	keyInfo    []byte
	salt       [saltSize]byte
	header     []byte
	ciphertext []byte
}

func (b *blob) encodeHeader() []byte {
	h := make([]byte, 0, maxHeader-MaxKeyInfo+len(b.keyInfo))
	h = append(h, Magic...)
	h = append(h, version)
	for _, s := range []string{b.mode, b.id.Kind, b.id.Name} {
		h = append(h, byte(len(s)))
		h = append(h, s...)
	}
	h = binary.BigEndian.AppendUint64(h, b.generation)
	h = binary.BigEndian.AppendUint16(h, uint16(len(b.keyInfo)))
	h = append(h, b.keyInfo...)
	return append(h, b.salt[:]...)
}

// parse reads a blob without any key: nothing in it is authenticated yet. One blob has one encoding: a field out of bounds is
// refused, and the ciphertext is all that remains. The slices of the result are raw's.
func parse(raw []byte) (*blob, error) {
	c := cursor{rest: raw}
	if found := c.take(len(Magic)); c.short || string(found) != Magic {
		return nil, fmt.Errorf("%w: does not begin with %s", ErrMalformed, Magic)
	}
	if v := c.take(1); !c.short && v[0] != version {
		return nil, fmt.Errorf("%w: found %d, expected %d", ErrVersion, v[0], version)
	}
	b := &blob{mode: c.text(), id: ID{Kind: c.text(), Name: c.text()}}
	generation := c.take(8)
	keyInfoSize := c.take(2)
	if c.short {
		return nil, fmt.Errorf("%w: its header is cut", ErrMalformed)
	}
	b.generation = binary.BigEndian.Uint64(generation)
	b.keyInfo = c.take(int(binary.BigEndian.Uint16(keyInfoSize)))
	salt := c.take(saltSize)
	if c.short || len(c.rest) < tagSize {
		return nil, fmt.Errorf("%w: it is cut", ErrMalformed)
	}
	b.salt = [saltSize]byte(salt)
	b.header, b.ciphertext = raw[:len(raw)-len(c.rest)], c.rest
	switch {
	case checkMode(b.mode) != nil, b.id.check() != nil:
		return nil, fmt.Errorf("%w: mode %.20q, kind %.40q, name %.140q", ErrMalformed, b.mode, b.id.Kind, b.id.Name)
	case len(b.keyInfo) > MaxKeyInfo, len(b.ciphertext) > MaxPlaintext+tagSize, b.generation == 0:
		return nil, fmt.Errorf("%w: a field is out of bounds", ErrMalformed)
	}
	return b, nil
}

// cursor takes bytes from the front; once short, it stays short and returns nothing.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || n > len(c.rest) {
		c.short = true
		return nil
	}
	taken := c.rest[:n:n]
	c.rest = c.rest[n:]
	return taken
}

func (c *cursor) text() string {
	size := c.take(1)
	if c.short {
		return ""
	}
	return string(c.take(int(size[0])))
}
