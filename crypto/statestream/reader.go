package statestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Reader decrypts a stream. It is not safe for concurrent use.
type Reader struct {
	r       io.Reader
	records *records
	prefix  [prefixSize]byte // of the record at hand
	// Ciphertext of the record at hand, decrypted in place.
	buf      []byte
	unread   []byte // authentic plaintext in buf that is not yet returned
	segment  int
	sequence uint64
	total    int64
	limit    int64
	short    bool // a data record shorter than a segment has passed: only the end record may follow
	err      error
}

// NewReader reads the header from r, checks that it is the stream that want names, and returns a Reader for what follows. key is the session
// key of the header's kind, KeySize bytes, and is not kept. It reads nothing more of r yet. Errors: ErrKey, ErrHeader,
// ErrVersion, ErrWrongStream, ErrTruncated, and those of r.
func NewReader(r io.Reader, key []byte, want Header) (*Reader, error) {
	var raw [HeaderSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return nil, cut("header", err)
	}
	header, err := parseHeader(raw)
	if err != nil {
		return nil, err
	}
	if err := header.match(want); err != nil {
		return nil, err
	}
	records, err := newRecords(key, raw)
	if err != nil {
		return nil, err
	}
	return &Reader{
		r: r, records: records, segment: header.SegmentSize, limit: header.Kind.MaxPlaintext(),
		buf: make([]byte, header.SegmentSize+tagSize),
	}, nil
}

// Read returns authenticated plaintext. io.EOF means that the end record was read, that its length is right and that nothing follows; to know
// the last, Read waits for the end of the underlying reader. Errors: ErrNotAuthentic, ErrReordered, ErrTruncated,
// ErrTrailing, ErrTooLong, ErrMalformed, and those of the underlying reader; the first one is final, and says of what was
// returned before only that it is a part.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// WriteTo is Read for io.Copy, without another copy of the plaintext in between. It returns nil where Read returns io.EOF.
func (r *Reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(r.unread)
		total += int64(n)
		r.unread = r.unread[n:]
		if err == nil && len(r.unread) > 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}

// fill leaves at least one byte in unread, or returns the final error.
func (r *Reader) fill() error {
	if len(r.unread) > 0 {
		return nil
	}
	if r.err != nil {
		return r.err
	}
	if err := r.next(); err != nil {
		r.err = err
		r.unread = nil
		clear(r.buf)
		r.records = nil
		return err
	}
	return nil
}

// next reads one record: data, or the end and what may not follow it.
func (r *Reader) next() error {
	if _, err := io.ReadFull(r.r, r.prefix[:]); err != nil {
		return cut(fmt.Sprintf("record %d", r.sequence), err)
	}
	sequence, last, length := decodePrefix(r.prefix)
	if last && length != 8 || !last && (length == 0 || length > r.segment) {
		return fmt.Errorf("%w: record %d claims %d bytes", ErrNotAuthentic, r.sequence, length)
	}
	ciphertext := r.buf[:length+tagSize]
	if _, err := io.ReadFull(r.r, ciphertext); err != nil {
		return cut(fmt.Sprintf("record %d", r.sequence), err)
	}
	nonce := r.records.begin(r.prefix)
	plaintext, err := r.records.aead.Open(ciphertext[:0], nonce, ciphertext, r.records.aad[:])
	if err != nil {
		return fmt.Errorf("%w: record %d", ErrNotAuthentic, r.sequence)
	}
	// The record was tried under the number that it claims, so that a misplaced one is known for what it is.
	if sequence != r.sequence {
		return fmt.Errorf("%w: found record %d, expected %d", ErrReordered, sequence, r.sequence)
	}
	r.sequence++
	if last {
		return r.end(binary.BigEndian.Uint64(plaintext))
	}
	if r.short {
		return fmt.Errorf("%w: record %d follows a short one", ErrMalformed, sequence)
	}
	if int64(length) > r.limit-r.total {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLong, r.limit)
	}
	r.short = length < r.segment
	r.total += int64(length)
	r.unread = plaintext
	return nil
}

// end judges what follows the end record. It returns io.EOF if all is well.
func (r *Reader) end(total uint64) error {
	if total != uint64(r.total) {
		return fmt.Errorf("%w: the end record says %d bytes, found %d", ErrMalformed, total, r.total)
	}
	var one [1]byte
	switch n, err := io.ReadFull(r.r, one[:]); {
	case n > 0:
		return ErrTrailing
	case errors.Is(err, io.EOF):
		return io.EOF
	default:
		return fmt.Errorf("reading a record stream: %w", err)
	}
}

// cut turns the end of the input into ErrTruncated. io.EOF itself is not wrapped: to a caller it would mean that all is well.
func cut(where string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w in its %s", ErrTruncated, where)
	}
	return fmt.Errorf("reading a record stream: %w", err)
}

// Format implements fmt.Formatter: the buffer holds plaintext, which is not to be printed.
func (r *Reader) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[record stream reader]") }
