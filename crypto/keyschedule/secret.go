package keyschedule

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// SecretSize is the size of a Secret in bytes.
const SecretSize = 32

const redacted = "[redacted]"

// Errors of secrets.
var (
	// ErrSecretSize: the bytes given for a secret are not SecretSize many.
	ErrSecretSize = errors.New("wrong size of a secret")
	// ErrZeroSecret: the bytes given for a secret are all zero, which no honest source of randomness returns.
	ErrZeroSecret = errors.New("all-zero secret")
	// ErrNotSerializable: something tried to serialise a secret.
	ErrNotSerializable = errors.New("a secret does not serialise")
)

// Secret is a key or a seed of 32 bytes that does not print. Every way in which package fmt, log/slog and encoding/... show a value
// shows "[redacted]" or fails; Bytes is the one way to the bytes. The zero value holds no bytes and serves no purpose: Bytes
// returns nil.
//
// A Secret is not safe for concurrent use with its own Wipe.
type Secret struct {
	// The bytes are behind a function because fmt calls no method of a value in an unexported field of somebody else's struct: it
	// prints what it finds by reflection, following some pointers as it goes. It cannot look into a function.
	reveal func() *[SecretSize]byte
}

func hold(b *[SecretSize]byte) *Secret {
	return &Secret{reveal: func() *[SecretSize]byte { return b }}
}

// NewSecret draws a secret from random; nil means crypto/rand.
func NewSecret(random io.Reader) (*Secret, error) {
	if random == nil {
		random = rand.Reader
	}
	b := new([SecretSize]byte)
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("drawing a secret: %w", err)
	}
	if isZero(b[:]) {
		return nil, fmt.Errorf("drawing a secret: %w", ErrZeroSecret)
	}
	return hold(b), nil
}

// SecretFrom copies b into a secret. The caller wipes b. Errors: ErrSecretSize, ErrZeroSecret.
func SecretFrom(b []byte) (*Secret, error) {
	if len(b) != SecretSize {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrSecretSize, len(b), SecretSize)
	}
	if isZero(b) {
		return nil, ErrZeroSecret
	}
	c := [SecretSize]byte(b)
	return hold(&c), nil
}

// Bytes returns the bytes of the secret, not a copy: they are cleared by Wipe, and the caller neither keeps nor changes them. It
// returns nil for a secret that is nil, zero or wiped.
func (s *Secret) Bytes() []byte {
	if s == nil || s.reveal == nil {
		return nil
	}
	return s.reveal()[:]
}

// Clone returns a copy with its own bytes, which the caller wipes. A copy of a wiped secret is a wiped secret.
func (s *Secret) Clone() *Secret {
	b := s.Bytes()
	if b == nil {
		return &Secret{}
	}
	c := [SecretSize]byte(b)
	return hold(&c)
}

// Equal compares in constant time. A wiped secret equals nothing, itself included.
func (s *Secret) Equal(t *Secret) bool {
	a, b := s.Bytes(), t.Bytes()
	return a != nil && b != nil && subtle.ConstantTimeCompare(a, b) == 1
}

// Wipe clears the bytes. Copies that the runtime or a cipher's key expansion has made are beyond its reach; see the package
// documentation. It may be called again, and on nil.
func (s *Secret) Wipe() {
	if b := s.Bytes(); b != nil {
		clear(b)
		s.reveal = nil
	}
}

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]"; encoding/json and encoding/xml use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalBinary refuses with ErrNotSerializable; encoding/gob uses it. What would be read back is not the secret, so that it
// is better to fail than to redact.
func (s Secret) MarshalBinary() ([]byte, error) { return nil, ErrNotSerializable }

func isZero(b []byte) bool {
	var all byte
	for _, x := range b {
		all |= x
	}
	return all == 0
}
