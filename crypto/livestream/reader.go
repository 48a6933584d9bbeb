package livestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Reader decrypts one direction of a connection. It is not safe for concurrent use.
type Reader struct {
	r      io.Reader
	cipher *cipherState
	// buf[from:to] was read and not yet decrypted: usually whole records and the beginning of the next.
	buf      []byte
	from, to int
	unread   []byte // authentic plaintext, in buf
	total    uint64
	err      error
}

// NewReader returns a Reader of one direction of a connection. key is the tunnel key and is not kept. Error: ErrKey.
func NewReader(r io.Reader, key []byte, connection [ConnectionSize]byte, direction Direction) (*Reader, error) {
	c, err := newCipherState(key, connection, direction)
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, cipher: c, buf: make([]byte, 2*(prefixSize+MaxRecord+tagSize))}, nil
}

// Read returns authentic plaintext as soon as there is some. io.EOF means that the sender ended the stream and that nothing follows; to know
// the last, Read waits for the end of the underlying reader. Errors: ErrNotAuthentic, ErrTruncated, ErrTrailing, ErrMalformed and those of the
// underlying reader; the first is final.
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
	for r.err == nil && len(r.unread) == 0 {
		r.err = r.next()
	}
	if r.err != nil {
		r.unread = nil
		clear(r.buf)
		r.cipher.wipe()
	}
	return r.err
}

// next decrypts one record, which has data or not.
func (r *Reader) next() error {
	if err := r.need(prefixSize); err != nil {
		return err
	}
	prefix := r.buf[r.from : r.from+prefixSize]
	k, length, err := decodePrefix(prefix)
	if err != nil {
		return err
	}
	if err := r.need(prefixSize + length + tagSize); err != nil {
		return err
	}
	prefix = r.buf[r.from : r.from+prefixSize] // need may have moved it
	ciphertext := r.buf[r.from+prefixSize : r.from+prefixSize+length+tagSize]
	nonce, err := r.cipher.next()
	if err != nil {
		return err
	}
	plaintext, err := r.cipher.aead.Open(ciphertext[:0], nonce, ciphertext, prefix)
	if err != nil {
		return ErrNotAuthentic
	}
	r.from += prefixSize + length + tagSize
	if k == kindEnd {
		return r.end(binary.BigEndian.Uint64(plaintext))
	}
	r.total += uint64(length)
	r.unread = plaintext
	return nil
}

// need reads until n bytes are there, in front of which there is room for them.
func (r *Reader) need(n int) error {
	if r.to-r.from >= n {
		return nil
	}
	if len(r.buf)-r.from < n || r.from == r.to {
		copy(r.buf, r.buf[r.from:r.to])
		r.from, r.to = 0, r.to-r.from
	}
	for r.to-r.from < n {
		read, err := r.r.Read(r.buf[r.to:])
		r.to += read
		if r.to-r.from >= n {
			return nil // an error comes again
		}
		if errors.Is(err, io.EOF) {
			return ErrTruncated
		}
		if err != nil {
			return fmt.Errorf("reading from the tunnel: %w", err)
		}
	}
	return nil
}

// end judges what follows the end record. It returns io.EOF if all is well.
func (r *Reader) end(total uint64) error {
	if total != r.total {
		return fmt.Errorf("%w: the end says %d bytes, found %d", ErrMalformed, total, r.total)
	}
	if r.to > r.from {
		return ErrTrailing
	}
	var one [1]byte
	switch n, err := io.ReadFull(r.r, one[:]); {
	case n > 0:
		return ErrTrailing
	case errors.Is(err, io.EOF):
		return io.EOF
	default:
		return fmt.Errorf("reading from the tunnel: %w", err)
	}
}

// Format implements fmt.Formatter: the buffer may hold plaintext.
func (r *Reader) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[tunnel reader]") }
