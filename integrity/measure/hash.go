package measure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	// chunk is read between two looks at the context, in bytes.
	chunk = 256 << 10
	// changeAttempts bounds how often a file that changed is hashed again: a package upgrade replaces a file within milliseconds.
	changeAttempts = 3
	// settled is the age that a file's times must have for its digest to be kept. A file that is written twice within one tick of the
	// file system's clock (up to 10 ms; 2 s on old ones) has the same times twice.
	settled = 2 * time.Second
)

// identity is what changes when a file's content does, by the host's word. ctime cannot be set back by an ordinary program, mtime can.
type identity struct {
	dev, inode   uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// digest of a whole file; size is in bytes.
type digest struct {
	sum  [sha256.Size]byte
	size int64
}

// notMeasurable is an error that says something stable about the file, rather than about the reading of it.
type notMeasurable string

func (e notMeasurable) Error() string { return string(e) }

// absence is the text for the log if err says that there is nothing to measure, else "".
func absence(err error) string {
	var reason notMeasurable
	switch {
	case errors.As(err, &reason):
		return string(reason)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "no such file"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, syscall.ENXIO):
		return "not a regular file"
	}
	return ""
}

// hasher hashes files and remembers their digests. It is not safe for concurrent use.
type hasher struct {
	max   int64
	now   func() time.Time
	cache map[identity]digest
	used  map[identity]bool
	buf   []byte
	// read counts the bytes hashed since it was made, and whileReading is called after each chunk: both for tests.
	read         int64
	whileReading func()
}

func newHasher(limit int64, now func() time.Time) *hasher {
	if now == nil {
		now = time.Now
	}
	return &hasher{max: limit, now: now, cache: map[identity]digest{}, used: map[identity]bool{}, buf: make([]byte, chunk)}
}

// begin starts a measurement.
func (h *hasher) begin() { clear(h.used) }

// forgetUnused drops the digests that the measurement did not need, so that the cache is never larger than the list of items.
func (h *hasher) forgetUnused() {
	for id := range h.cache {
		if !h.used[id] {
			delete(h.cache, id)
		}
	}
}

// hash returns the digest of the file at path.
func (h *hasher) hash(ctx context.Context, path string) (digest, error) {
	var err error
	for range changeAttempts {
		var d digest
		if d, err = h.once(ctx, path); !errors.Is(err, ErrChanged) {
			return d, err
		}
	}
	return digest{}, err
}

func (h *hasher) once(ctx context.Context, path string) (digest, error) {
	// Without O_NONBLOCK, opening a FIFO that someone put in a file's place would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return digest{}, err
	}
	defer func() { _ = f.Close() }()
	before, err := identify(f)
	if err != nil {
		return digest{}, err
	}
	if before.size > h.max {
		return digest{}, notMeasurable(fmt.Sprintf("%d bytes, more than the %d that are measured", before.size, h.max))
	}
	if d, ok := h.cache[before]; ok {
		h.used[before] = true
		return d, nil
	}
	limit := h.now().Add(-settled) // taken before reading: a slow read must not age the file
	d, err := h.stream(ctx, f, before.size)
	if err != nil {
		return digest{}, err
	}
	after, err := identify(f)
	if err != nil {
		return digest{}, err
	}
	if after != before {
		return digest{}, ErrChanged
	}
	if timeOf(before.mtime).Before(limit) && timeOf(before.ctime).Before(limit) {
		h.cache[before], h.used[before] = d, true
	}
	return d, nil
}

// stream hashes exactly size bytes; more or fewer mean that the file has changed.
func (h *hasher) stream(ctx context.Context, f io.Reader, size int64) (digest, error) {
	sum := sha256.New()
	d := digest{}
	for {
		if err := ctx.Err(); err != nil {
			return digest{}, context.Cause(ctx)
		}
		n, err := f.Read(h.buf)
		sum.Write(h.buf[:n])
		d.size += int64(n)
		h.read += int64(n)
		if d.size > size {
			return digest{}, ErrChanged
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return digest{}, err
		}
		if h.whileReading != nil {
			h.whileReading()
		}
	}
	if d.size != size {
		return digest{}, ErrChanged
	}
	sum.Sum(d.sum[:0])
	return d, nil
}

// identify stats an open file. What is not a regular file is not measurable.
func identify(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	if !info.Mode().IsRegular() {
		return identity{}, notMeasurable("not a regular file: " + info.Mode().String())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, errors.New("no file identity on this platform")
	}
	return identity{dev: st.Dev, inode: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func timeOf(t syscall.Timespec) time.Time { return time.Unix(t.Unix()) }
