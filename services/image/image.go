// Package image takes a file of any size across the two enclaves: the paper's non-volatile vTPM image on shared storage, or any other file of a
// VM. Protect encrypts it under the VM's armed session at the source, Unprotect decrypts it at the destination. Both work in parts, so that
// one that broke off goes on where it stopped, and in constant memory.
//
// The protected file is a container:
//
//	file = "SCIMAGE1" part*
//	part = offset (8) || last (1) || length (8) || record stream (length bytes)      integers big-endian
//
// The frame is for finding the parts; what a part is, its record stream proves (docs/protocol.md, "Transfer").
//
// Non-goals: it does not copy the container between hosts, and it cannot see that a file changes while it is read: the caller stops its writers.
package image

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

const (
	// DefaultPart is the plaintext of one part, in bytes: what is done again after a break.
	DefaultPart = 64 << 20
	magic       = "SCIMAGE1"
	frameSize   = 17
	chunk       = 256 << 10
)

// Errors of this package.
var (
	// ErrChanged: the input is not the file that an earlier, unfinished run began with.
	ErrChanged = errors.New("the file changed since the transfer began")
	// ErrContainer: the input is not a container, or is cut short.
	ErrContainer = errors.New("not a whole protected image")
	// ErrAnswer: the node service's answer was not a whole part.
	ErrAnswer = errors.New("incomplete answer of the node service")
)

// Options of a transfer.
type Options struct {
	// Instance is the UUID of the VM.
	Instance string
	// Name of the file, the same on both sides.
	Name string
	// In and Out are paths. Out appears when it is whole; until then Out.part and Out.progress hold what there is.
	In, Out string
	// Part is the plaintext of one part in bytes; DefaultPart if 0. Protect only.
	Part int64
	// Progress, if not nil, is called after each part with the bytes of the input that are done and all of them.
	Progress func(done, all int64)
}

// progress is what survives a break: written after each whole part.
type progress struct {
	// The input, to notice that it changed.
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modified"`
	// Read is the position in the input, Written the length of the output, after the last whole part. Plain is the offset in the file.
	Read    int64 `json:"read"`
	Written int64 `json:"written"`
	Plain   int64 `json:"plain"`
	Done    bool  `json:"done"`
}

// transfer is one run.
type transfer struct {
	opts Options
	in   *os.File
	out  *os.File
	at   progress
}

// open opens both files and finds where an earlier run stopped.
func open(opts Options) (*transfer, error) {
	in, err := os.Open(opts.In)
	if err != nil {
		return nil, err
	}
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", opts.In)
	}
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	t := &transfer{opts: opts, in: in}
	begun := progress{Size: info.Size(), ModTime: info.ModTime().UTC()}
	if t.at, err = t.resume(begun); err == nil {
		t.out, err = os.OpenFile(opts.Out+".part", os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err == nil {
		err = t.out.Truncate(t.at.Written) // what a part that broke off has left
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *transfer) resume(begun progress) (progress, error) {
	raw, err := os.ReadFile(t.opts.Out + ".progress")
	if errors.Is(err, fs.ErrNotExist) {
		return begun, nil
	}
	var at progress
	if err == nil {
		err = json.Unmarshal(raw, &at)
	}
	if err != nil {
		return begun, fmt.Errorf("%s.progress: %w; remove it to begin anew", t.opts.Out, err)
	}
	if at.Size != begun.Size || !at.ModTime.Equal(begun.ModTime) {
		return begun, fmt.Errorf("%w: %s; remove %s.progress to begin anew", ErrChanged, t.opts.In, t.opts.Out)
	}
	info, err := os.Stat(t.opts.Out + ".part")
	if err != nil || info.Size() < at.Written {
		return begun, nil // what was written is gone
	}
	return at, nil
}

// restart forgets what an earlier run did: its session is over, and its parts are of no use under another.
func (t *transfer) restart() error {
	t.at = progress{Size: t.at.Size, ModTime: t.at.ModTime}
	return t.out.Truncate(0)
}

// save makes what was written durable and then says so.
func (t *transfer) save() error {
	if err := t.out.Sync(); err != nil {
		return err
	}
	raw, err := json.Marshal(t.at)
	if err != nil {
		return err
	}
	path := t.opts.Out + ".progress"
	if err := writeSynced(path+".new", raw); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	if t.opts.Progress != nil {
		t.opts.Progress(t.at.Read, t.at.Size)
	}
	return nil
}

func writeSynced(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

// finish gives the whole output its name.
func (t *transfer) finish() error {
	if err := os.Rename(t.opts.Out+".part", t.opts.Out); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(t.opts.Out))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close(), os.Remove(t.opts.Out+".progress"))
}

func (t *transfer) close() error {
	err := t.in.Close()
	if t.out != nil {
		err = errors.Join(err, t.out.Close())
	}
	return err
}

// frame precedes a part in the container.
type frame struct {
	offset uint64
	last   bool
	length int64
}

func (f frame) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, frameSize), f.offset)
	last := byte(0)
	if f.last {
		last = 1
	}
	return binary.BigEndian.AppendUint64(append(b, last), uint64(f.length))
}

// readFrame reads the frame at a position of a container of the given size.
func readFrame(r io.ReaderAt, at, size int64) (frame, error) {
	var b [frameSize]byte
	if _, err := r.ReadAt(b[:], at); err != nil {
		return frame{}, fmt.Errorf("%w: no part at byte %d: %w", ErrContainer, at, err)
	}
	f := frame{offset: binary.BigEndian.Uint64(b[:]), last: b[8] == 1, length: int64(binary.BigEndian.Uint64(b[9:]))}
	if b[8] > 1 || f.length <= 0 || f.length > size-at-frameSize {
		return frame{}, fmt.Errorf("%w: the part at byte %d has an impossible frame", ErrContainer, at)
	}
	return f, nil
}

// exchange is one streaming call: it sends a header and data, and hands on what comes back.
type exchange struct {
	send      func(*v1.ImageHeader, []byte) error
	closeSend func() error
	recv      func() (data []byte, done bool, err error)
}

// run sends length bytes of in, writes the answer to out and returns its length. The answer is whole when run returns nil.
func (e *exchange) run(ctx context.Context, header *v1.ImageHeader, in io.Reader, out io.Writer) (written int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	sent := make(chan error, 1)
	go func() { sent <- e.feed(ctx, header, in) }()
	defer func() {
		cancel()
		if failed := <-sent; err == nil {
			err = failed
		}
	}()
	for {
		data, done, err := e.recv()
		if errors.Is(err, io.EOF) {
			return written, fmt.Errorf("%w: it ended before done", ErrAnswer)
		}
		if err != nil {
			return written, err
		}
		n, err := out.Write(data)
		clear(data)
		written += int64(n)
		if err != nil {
			return written, err
		}
		if done {
			return written, nil
		}
	}
}

func (e *exchange) feed(ctx context.Context, header *v1.ImageHeader, in io.Reader) error {
	if err := e.send(header, nil); err != nil {
		return ignoreEOF(err)
	}
	buf := make([]byte, chunk)
	defer clear(buf)
	for ctx.Err() == nil {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if err := e.send(nil, buf[:n]); err != nil {
				return ignoreEOF(err)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return e.closeSend()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ignoreEOF drops what Send says when the service has answered already: the answer has the reason.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
