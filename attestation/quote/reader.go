package quote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// The two kinds of parse error.
var (
	// ErrMalformed: lengths or encodings are not those of a quote.
	ErrMalformed = errors.New("malformed quote")
	// ErrUnsupported: a quote of a kind that is not read, such as an EPID quote or one without its certificate chain.
	ErrUnsupported = errors.New("unsupported quote")
)

// Error says what is wrong with which field of a quote. It wraps ErrMalformed or ErrUnsupported.
type Error struct {
	Field           string
	Found, Expected string
	kind            error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%v: %s: found %s, expected %s", e.kind, e.Field, e.Found, e.Expected)
}

// Unwrap returns ErrMalformed or ErrUnsupported.
func (e *Error) Unwrap() error { return e.kind }

func malformed(field, found, expected string) error {
	return &Error{Field: field, Found: found, Expected: expected, kind: ErrMalformed}
}

func unsupported(field, found, expected string) error {
	return &Error{Field: field, Found: found, Expected: expected, kind: ErrUnsupported}
}

func bytesFound[T ~int | ~uint32](n T) string { return strconv.FormatInt(int64(n), 10) + " bytes" }

func number(n uint16) string { return strconv.FormatUint(uint64(n), 10) }

// reader takes fields off the front of a quote. After the first shortage err is set and every field is zero.
type reader struct {
	rest []byte
	err  error
}

// take returns n bytes, n being a constant of the layout or at most 65535.
func (r *reader) take(n int, what string) []byte {
	if r.err == nil && n > len(r.rest) {
		r.err = malformed(what, bytesFound(len(r.rest)), bytesFound(n))
	}
	if r.err != nil {
		return make([]byte, n)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u16(what string) uint16 { return binary.LittleEndian.Uint16(r.take(2, what)) }

func (r *reader) u32(what string) uint32 { return binary.LittleEndian.Uint32(r.take(4, what)) }

// end checks that a length read before says exactly what is left.
func (r *reader) end(n uint32, what string) {
	if r.err == nil && int64(n) != int64(len(r.rest)) {
		r.err = malformed(what, bytesFound(len(r.rest)), bytesFound(n)+", as its length says")
	}
}
