// Package statestream encrypts one blob of a migration (a vTPM state, an image, a secret) as a stream of authenticated records, in constant
// memory. It implements docs/protocol.md, "Transfer".
//
// It is the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its
// Nonce-Reuse Misuse-Resistance" (CRYPTO 2015), over AES-256-GCM, as in age, with an end record that repeats the length:
//
//	stream  = header  data*  end                      every integer big-endian
//	header  = "SCST" || version (1) || kind (1) || type (1) || direction (1) || segment size (4) || session (16) || salt (16)
//	data    = prefix || AES-256-GCM(segment)          prefix = sequence (8) || last flag (1 bit), length of the plaintext (31 bits)
//	end     = prefix || AES-256-GCM(total length (8)) the one record with the last flag
//	key     = HKDF-Expand(SHA-384, session key, "safeconduct/v1/statestream" || header, 32)
//	nonce   = 24 zero bits || sequence || last flag (8 bits)
//	AAD     = header || prefix
//
// Every data record but the last is a whole segment. The records of a stream of no bytes are its end record alone. The salt is random: two
// streams have different keys even if a caller, in error, gives both the same session key and header, so that no nonce repeats under a key. The
// session names the VM, both hosts and the attempt (it is a hash over them); the header needs no other name for them.
//
// A Reader returns no byte that it has not authenticated, and io.EOF only after the end record with nothing behind it. What it
// returned before is authentic but may be a part of the whole: whoever must not act on a part waits for io.EOF.
//
// A stream decrypts once. A Reader cannot know that it is given a stream for the second time: that is the caller's bookkeeping, by session and
// type.
//
// Non-goals: no random access, no compression, no hiding of lengths, no flushing of short segments (a live migration stream
// wants that; this is not for it).
package statestream

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
	// KeySize is the size of a session key.
	KeySize = 32
	// HeaderSize is what a stream begins with.
	HeaderSize = 44
	// DefaultSegment is the plaintext of a whole data record. Measured (BenchmarkStatestream), the throughput is the same from 32 KiB to
	// 256 KiB and lower at 16 KiB, where the cost of a record shows; the memory that a stream holds grows with the segment.
	DefaultSegment = 64 << 10
	// MinSegment and MaxSegment bound what a header may ask a Reader to hold in memory.
	MinSegment = 4 << 10
	MaxSegment = 256 << 10

	prefixSize = 12
	tagSize    = 16
	endSize    = prefixSize + 8 + tagSize
	saltSize   = 16
	version    = 1
	magic      = "SCST"
	keyLabel   = "safeconduct/v1/statestream"
	lastFlag   = 1 << 31
)

// Errors of a stream. Each names one reason; test with errors.Is.
var (
	// ErrKey: the session key has the wrong size or is all zero.
	ErrKey = errors.New("invalid session key")
	// ErrHeader: a header has a field that does not exist, such as a segment size out of bounds.
	ErrHeader = errors.New("invalid stream header")
	// ErrVersion: the stream is of a version that this package does not know.
	ErrVersion = errors.New("unknown version of a record stream")
	// ErrWrongStream: the header names another session, kind, type or direction. The header is not authenticated when this is said.
	ErrWrongStream = errors.New("record stream of something else")
	// ErrNotAuthentic: a record was altered, or is of another stream, or the session key is another.
	ErrNotAuthentic = errors.New("record is not authentic")
	// ErrReordered: a record is authentic but not the next one: records were reordered, repeated or left out.
	ErrReordered = errors.New("record is out of order")
	// ErrTruncated: the stream ends before its end record.
	ErrTruncated = errors.New("record stream is truncated")
	// ErrTrailing: something follows the end record.
	ErrTrailing = errors.New("bytes after the end of a record stream")
	// ErrTooLong: the plaintext is longer than the kind allows (Kind.MaxPlaintext).
	ErrTooLong = errors.New("record stream is too long")
	// ErrMalformed: the records are authentic, and not as a Writer writes them: the sender is faulty.
	ErrMalformed = errors.New("malformed record stream")
	// ErrClosed: the stream was closed or aborted.
	ErrClosed = errors.New("record stream is closed")
)

// Kind says what a stream carries. The zero value is none.
type Kind uint8

// The kinds. Each is used with the session key of the same name.
const (
	KindState  Kind = 1
	KindImage  Kind = 2
	KindSecret Kind = 3
)

// MaxPlaintext is the most that a stream of the kind carries, in bytes; 0 for a kind that does not exist. An image's bound, 2^36 blocks
// of AES, keeps an attacker's advantage over an ideal cipher below 2^-55.
func (k Kind) MaxPlaintext() int64 {
	switch k {
	case KindState:
		return 8 << 20
	case KindImage:
		return 1 << 40
	case KindSecret:
		return 4 << 10
	default:
		return 0
	}
}

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindState:
		return "state"
	case KindImage:
		return "image"
	case KindSecret:
		return "secret"
	default:
		return fmt.Sprintf("kind %d", uint8(k))
	}
}

// Direction of a stream. The zero value is none.
type Direction uint8

// The directions.
const (
	SourceToDestination Direction = 1
	DestinationToSource Direction = 2
)

// String returns "S->D" or "D->S".
func (d Direction) String() string {
	switch d {
	case SourceToDestination:
		return "S->D"
	case DestinationToSource:
		return "D->S"
	default:
		return fmt.Sprintf("direction %d", uint8(d))
	}
}

// Header says what a stream is. It travels in clear and is authenticated with every record.
type Header struct {
	Kind Kind
	// Type is the kind's own numbering, such as swtpm's blob types; 0 where there is none.
	Type      byte
	Direction Direction
	// Session is the public id of the session.
	Session [16]byte
	// SegmentSize in bytes, a multiple of 1024. 0 stands for DefaultSegment with a Writer, and for whatever the stream says with a Reader.
	SegmentSize int
}

func (h Header) check() error {
	switch {
	case h.Kind.MaxPlaintext() == 0:
		return fmt.Errorf("%w: %v does not exist", ErrHeader, h.Kind)
	case h.Direction != SourceToDestination && h.Direction != DestinationToSource:
		return fmt.Errorf("%w: %v does not exist", ErrHeader, h.Direction)
	case h.SegmentSize < MinSegment || h.SegmentSize > MaxSegment || h.SegmentSize%1024 != 0:
		return fmt.Errorf("%w: segments of %d bytes, expected a multiple of 1024 from %d to %d", ErrHeader, h.SegmentSize, MinSegment, MaxSegment)
	}
	return nil
}

func (h Header) encode(salt [saltSize]byte) [HeaderSize]byte {
	b := make([]byte, 0, HeaderSize)
	b = append(b, magic...)
	b = append(b, version, byte(h.Kind), h.Type, byte(h.Direction))
	b = binary.BigEndian.AppendUint32(b, uint32(h.SegmentSize))
	b = append(b, h.Session[:]...)
	b = append(b, salt[:]...)
	return [HeaderSize]byte(b)
}

// parseHeader reads a header and checks each field. The salt is part of the raw bytes only: it means nothing by itself.
func parseHeader(raw [HeaderSize]byte) (Header, error) {
	if string(raw[:4]) != magic {
		return Header{}, fmt.Errorf("%w: begins with %x, expected %x", ErrHeader, raw[:4], magic)
	}
	if raw[4] != version {
		return Header{}, fmt.Errorf("%w: found %d, expected %d", ErrVersion, raw[4], version)
	}
	h := Header{
		Kind: Kind(raw[5]), Type: raw[6], Direction: Direction(raw[7]),
		SegmentSize: int(binary.BigEndian.Uint32(raw[8:12])), Session: [16]byte(raw[12:28]),
	}
	return h, h.check()
}

// match says whether h is the stream that is wanted.
func (h Header) match(want Header) error {
	differs := func(field string, found, expected any) error {
		return fmt.Errorf("%w: %s is %v, expected %v", ErrWrongStream, field, found, expected)
	}
	switch {
	case h.Kind != want.Kind:
		return differs("kind", h.Kind, want.Kind)
	case h.Type != want.Type:
		return differs("type", h.Type, want.Type)
	case h.Direction != want.Direction:
		return differs("direction", h.Direction, want.Direction)
	case h.Session != want.Session:
		return differs("session", fmt.Sprintf("%x", h.Session), fmt.Sprintf("%x", want.Session))
	case want.SegmentSize != 0 && h.SegmentSize != want.SegmentSize:
		return differs("segment size", h.SegmentSize, want.SegmentSize)
	}
	return nil
}

// SealedSize is the length in bytes of the stream that carries plain bytes in segments of DefaultSegment. plain is not negative.
func SealedSize(plain int64) int64 { return sealedSize(plain, DefaultSegment) }

func sealedSize(plain, segment int64) int64 {
	records := plain / segment
	if plain%segment != 0 {
		records++
	}
	return HeaderSize + plain + records*(prefixSize+tagSize) + endSize
}

// records is what Writer and Reader share: the cipher of one stream.
type records struct {
	aead cipher.AEAD
	// The header, with room behind it for a prefix: the AAD of the record at hand.
	aad   [HeaderSize + prefixSize]byte
	nonce [12]byte
}

func newRecords(key []byte, header [HeaderSize]byte) (*records, error) {
	var all byte
	for _, b := range key {
		all |= b
	}
	if len(key) != KeySize || all == 0 {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d, not all zero", ErrKey, len(key), KeySize)
	}
	streamKey, err := hkdf.Expand(sha512.New384, key, keyLabel+string(header[:]), KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the stream's key: %w", err)
	}
	defer clear(streamKey)
	block, err := aes.NewCipher(streamKey)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	r := &records{aead: aead}
	copy(r.aad[:], header[:])
	return r, nil
}

// begin puts a record's prefix into the AAD and returns the nonce. A sequence number and the flag are one nonce: a data record and an end
// record of the same number differ in it.
func (r *records) begin(prefix [prefixSize]byte) []byte {
	copy(r.aad[HeaderSize:], prefix[:])
	copy(r.nonce[3:11], prefix[:8])
	r.nonce[11] = prefix[8] >> 7
	return r.nonce[:]
}

func encodePrefix(sequence uint64, last bool, length int) (p [prefixSize]byte) {
	binary.BigEndian.PutUint64(p[:8], sequence)
	field := uint32(length)
	if last {
		field |= lastFlag
	}
	binary.BigEndian.PutUint32(p[8:], field)
	return p
}

func decodePrefix(p [prefixSize]byte) (sequence uint64, last bool, length int) {
	field := binary.BigEndian.Uint32(p[8:])
	return binary.BigEndian.Uint64(p[:8]), field&lastFlag != 0, int(field &^ lastFlag)
}
