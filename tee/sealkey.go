package tee

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// SealKeySize is the size of a sealing key in bytes (SGX EGETKEY: 128 bits).
const SealKeySize = 16

const redacted = "[sealing key]"

// SealKey is a sealing key. It does not print, log or marshal its bytes. The zero value holds no key.
type SealKey struct {
	// Two pointers away: fmt does not call methods on unexported fields of other structs, prints arrays, and for a verb that does not
	// fit also what one pointer leads to.
	box *keyBox
}

type keyBox struct{ key *[SealKeySize]byte }

// NewSealKey copies what the hardware returned. It refuses a key that no hardware makes: of another size, or all zero. Error:
// ErrUnusableKey, with no byte of the key.
func NewSealKey(raw []byte) (SealKey, error) {
	if len(raw) != SealKeySize {
		return SealKey{}, fmt.Errorf("%w: found %d bytes, expected %d", ErrUnusableKey, len(raw), SealKeySize)
	}
	if subtle.ConstantTimeCompare(raw, make([]byte, SealKeySize)) == 1 {
		return SealKey{}, fmt.Errorf("%w: it is all zero, as outside an enclave", ErrUnusableKey)
	}
	key := [SealKeySize]byte(raw)
	return SealKey{box: &keyBox{key: &key}}, nil
}

// Bytes returns the key itself, not a copy: SealKeySize bytes until Clear is called, nil if there is no key.
func (k SealKey) Bytes() []byte {
	if k.box == nil {
		return nil
	}
	return k.box.key[:]
}

// Clear overwrites the key, in every copy of k.
func (k SealKey) Clear() { clear(k.Bytes()) }

// Equal compares two keys in constant time. No key equals no key.
func (k SealKey) Equal(other SealKey) bool {
	return k.box != nil && other.box != nil && subtle.ConstantTimeCompare(k.Bytes(), other.Bytes()) == 1
}

// String, GoString, Format, LogValue and MarshalText all say that this is a key, and nothing else.
func (k SealKey) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (k SealKey) GoString() string { return redacted }

// Format implements fmt.Formatter for every verb.
func (k SealKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue implements slog.LogValuer.
func (k SealKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and with it JSON's.
func (k SealKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// SealKeys shows an Enclave as a source of sealing keys in plain types, as crypto/sealed wants it (sealed.KeySource); crypto and tee
// do not know each other.
type SealKeys struct{ Enclave Enclave }

// Mode is the enclave's.
func (s SealKeys) Mode() string { return string(s.Enclave.Mode()) }

// SealKey is Enclave.SealKey; the caller clears the key.
func (s SealKeys) SealKey(ctx context.Context) (key, keyInfo []byte, err error) {
	k, keyInfo, err := s.Enclave.SealKey(ctx)
	return k.Bytes(), keyInfo, err
}

// RecoverSealKey is Enclave.RecoverSealKey; the caller clears the key.
func (s SealKeys) RecoverSealKey(ctx context.Context, keyInfo []byte) ([]byte, error) {
	k, err := s.Enclave.RecoverSealKey(ctx, keyInfo)
	return k.Bytes(), err
}
