package livestream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Writer encrypts what is written to it and sends it at once. It is not safe for concurrent use.
type Writer struct {
	w      io.Writer
	cipher *cipherState
	buf    []byte // one record
	total  uint64
	err    error // sticky
}

// NewWriter returns a Writer of one direction of a connection. key is the tunnel key and is not kept. Error: ErrKey.
func NewWriter(w io.Writer, key []byte, connection [ConnectionSize]byte, direction Direction) (*Writer, error) {
	c, err := newCipherState(key, connection, direction)
	if err != nil {
		return nil, err
	}
	return &Writer{w: w, cipher: c, buf: make([]byte, prefixSize+MaxRecord+tagSize)}, nil
}

// Write sends p in as few records as hold it. Errors: ErrClosed and those of the underlying writer; after one, every call fails.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		size := copy(w.Payload(), p)
		if err := w.Send(size); err != nil {
			return n, err
		}
		n, p = n+size, p[size:]
	}
	return n, w.err
}

// Payload is where the data of the next record goes, MaxRecord bytes, for a caller that reads into it and so saves a copy; Send then sends the first
// n bytes of it, which must be 1 at least. What is in it is lost with the next call of the Writer.
func (w *Writer) Payload() []byte { return w.buf[prefixSize : prefixSize+MaxRecord] }

// Send sends the first n bytes of Payload. Errors are those of Write.
func (w *Writer) Send(n int) error {
	if err := w.record(kindData, n); err != nil {
		return err
	}
	w.total += uint64(n)
	return nil
}

// Alive sends a record without data, for a stream on which there is nothing to send for now. Errors are those of Write.
func (w *Writer) Alive() error { return w.record(kindAlive, 0) }

// ReadFrom implements io.ReaderFrom without another copy: each read of r becomes a record. It returns nil when r ends; the caller then calls
// Close.
func (w *Writer) ReadFrom(r io.Reader) (total int64, err error) {
	for {
		if w.err != nil {
			return total, w.err
		}
		size, err := r.Read(w.Payload())
		if size > 0 {
			if err := w.Send(size); err != nil {
				return total, err
			}
			total += int64(size)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Close sends the end record and wipes the key. It does not close the underlying writer. A caller whose input failed does not call it: the peer is to
// see that the stream was cut.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	binary.BigEndian.PutUint64(w.buf[prefixSize:], w.total)
	if err := w.record(kindEnd, endSize); err != nil {
		return err
	}
	_ = w.fail(ErrClosed) // that is what it is
	return nil
}

// Abort wipes the key; the peer sees that the stream was cut. After Close it does nothing.
func (w *Writer) Abort() {
	if w.err == nil {
		_ = w.fail(ErrClosed) // that is what it is
	}
}

// record encrypts the first size bytes of the payload in place and sends it in one call.
func (w *Writer) record(k kind, size int) error {
	if w.err != nil {
		return w.err
	}
	nonce, err := w.cipher.next()
	if err != nil {
		return w.fail(err)
	}
	prefix := encodePrefix(k, size)
	copy(w.buf, prefix[:])
	payload := w.buf[prefixSize : prefixSize+size]
	w.cipher.aead.Seal(payload[:0], nonce, payload, w.buf[:prefixSize])
	out := w.buf[:prefixSize+size+tagSize]
	n, err := w.w.Write(out)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return w.fail(fmt.Errorf("writing to the tunnel: %w", err))
	}
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	w.cipher.wipe()
	clear(w.buf)
	return err
}

// Format implements fmt.Formatter: the buffer may hold plaintext.
func (w *Writer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[tunnel writer]") }
