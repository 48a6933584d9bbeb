package statestream

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
)

// Writer encrypts what is written to it. It is not safe for concurrent use.
type Writer struct {
	w       io.Writer
	records *records
	// One record: prefix, plaintext (then ciphertext in its place), tag.
	buf      []byte
	segment  int
	filled   int // bytes of plaintext in buf
	sequence uint64
	total    int64
	limit    int64
	err      error // sticky
	closed   bool
}

// NewWriter writes the header to w and returns a Writer for what follows. key is the session key of the header's kind, KeySize bytes, and is
// not kept. Errors: ErrKey, ErrHeader, and those of w.
func NewWriter(w io.Writer, key []byte, header Header) (*Writer, error) {
	var salt [saltSize]byte
	rand.Read(salt[:]) // never fails: it would end the process
	return newWriter(w, key, header, salt)
}

func newWriter(w io.Writer, key []byte, header Header, salt [saltSize]byte) (*Writer, error) {
	if header.SegmentSize == 0 {
		header.SegmentSize = DefaultSegment
	}
	if err := header.check(); err != nil {
		return nil, err
	}
	raw := header.encode(salt)
	r, err := newRecords(key, raw)
	if err != nil {
		return nil, err
	}
	out := &Writer{
		w: w, records: r, segment: header.SegmentSize, limit: header.Kind.MaxPlaintext(),
		buf: make([]byte, prefixSize+header.SegmentSize+tagSize),
	}
	if err := out.write(raw[:]); err != nil {
		return nil, err
	}
	return out, nil
}

// Write encrypts p. Whole segments go out at once, the rest waits for more or for Close. Errors: ErrTooLong, ErrClosed, and those of
// the underlying writer; after one, every call fails.
func (w *Writer) Write(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.closed {
		return 0, ErrClosed
	}
	if int64(len(p)) > w.limit-w.total {
		return 0, w.fail(fmt.Errorf("%w: more than %d bytes", ErrTooLong, w.limit))
	}
	for len(p) > 0 {
		taken := min(len(p), w.segment-w.filled)
		segment := p[:taken]
		if taken < w.segment {
			copy(w.buf[prefixSize+w.filled:], segment)
			segment = w.buf[prefixSize : prefixSize+w.filled+taken]
		} // else a whole segment is encrypted from where it is: a copy first would cost a fifth of the throughput
		w.filled += taken
		w.total += int64(taken)
		n += taken
		p = p[taken:]
		if w.filled == w.segment {
			if err := w.record(segment, false); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// Close writes what waits and the end record, and clears the buffer. It does not close the underlying writer. A stream that is not
// closed is truncated to its reader. A second Close does nothing. A caller whose plaintext failed half-way calls Abort, not
// Close: Close would make a whole stream of a part.
func (w *Writer) Close() error {
	if w.err != nil || w.closed {
		return w.err
	}
	if w.filled > 0 {
		if err := w.record(w.buf[prefixSize:prefixSize+w.filled], false); err != nil {
			return err
		}
	}
	binary.BigEndian.PutUint64(w.buf[prefixSize:], uint64(w.total))
	w.filled = 8
	if err := w.record(w.buf[prefixSize:prefixSize+w.filled], true); err != nil {
		return err
	}
	w.closed = true
	w.wipe()
	return nil
}

// Abort ends the stream without an end record and clears the buffer. After Close it does nothing, so that it can be deferred.
func (w *Writer) Abort() {
	if w.err == nil && !w.closed {
		_ = w.fail(fmt.Errorf("%w: aborted", ErrClosed))
	}
}

// record encrypts plaintext, which is the filled part of buf or the caller's, into buf, and writes it in one call.
func (w *Writer) record(plaintext []byte, last bool) error {
	prefix := encodePrefix(w.sequence, last, len(plaintext))
	nonce := w.records.begin(prefix)
	out := w.records.aead.Seal(append(w.buf[:0], prefix[:]...), nonce, plaintext, w.records.aad[:])
	w.sequence++
	w.filled = 0
	return w.write(out)
}

func (w *Writer) write(b []byte) error {
	n, err := w.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return w.fail(fmt.Errorf("writing a record stream: %w", err))
	}
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	w.wipe()
	return err
}

func (w *Writer) wipe() {
	clear(w.buf)
	w.records = nil
}

// Format implements fmt.Formatter: the buffer holds plaintext, which is not to be printed.
func (w *Writer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[record stream writer]") }
