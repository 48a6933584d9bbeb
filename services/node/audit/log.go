package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/safeconduct/safeconduct/crypto/sealed"
)

// Marks is sealed storage; crypto/sealed.Store is one. Get answers sealed.ErrNotFound for what is not there.
type Marks interface {
	Get(ctx context.Context, kind, name string) ([]byte, error)
	Put(ctx context.Context, kind, name string, plaintext []byte) error
}

// Kind and name under which the head is sealed.
const (
	markKind = "audit"
	markName = "head"
)

// Defaults and pauses.
const (
	// DefaultMaxFile is the size at which a file is rotated, in bytes.
	DefaultMaxFile = 64 << 20
	// settle is how long the head is sealed after a record, so that a burst costs one sealing.
	settle = 200 * time.Millisecond
	// retry is the pause after a failure.
	retry = 5 * time.Second
)

// Options of a log.
type Options struct {
	Dir string
	// Host and Mode are in every record.
	Host, Mode string
	// MaxFile is the size at which a file is rotated; zero means DefaultMaxFile.
	MaxFile int64
	// MaxFiles is how many are kept; zero means all.
	MaxFiles int
	Now      func() time.Time
	// Observe is told of each record (written, nil), and of each attempt to make records durable (not written, nil), or of what went wrong with either. All is
	// well again with the latter. It must not block or call back; nil: nobody.
	Observe func(written bool, err error)
}

// Log is the audit log of one node. One process owns its directory. It is safe for concurrent use.
type Log struct {
	o     Options
	marks Marks
	wake  chan struct{}

	mu     sync.Mutex
	file   *os.File
	size   int64
	files  []segment
	head   Head
	sealed Head
	// lost counts records that could not be written since the last that could.
	lost uint64
}

// Open opens the log in o.Dir, which is made if it does not exist, drops a last line that a crash has cut short, and holds the log to its sealed head. A log
// that lacks records, or holds others than were sealed, is an error: it is evidence. Move the directory away together with the sealed head, and a new log
// begins.
func Open(ctx context.Context, marks Marks, o Options) (*Log, error) {
	if o.MaxFile <= 0 {
		o.MaxFile = DefaultMaxFile
	}
	if o.Observe == nil {
		o.Observe = func(bool, error) {}
	}
	l := &Log{o: o, marks: marks, wake: make(chan struct{}, 1)}
	if err := l.open(ctx); err != nil {
		return nil, fmt.Errorf("audit log %s: %w", o.Dir, err)
	}
	return l, nil
}

func (l *Log) open(ctx context.Context) error {
	if err := makeDir(l.o.Dir); err != nil {
		return err
	}
	raw, err := l.marks.Get(ctx, markKind, markName)
	switch {
	case errors.Is(err, sealed.ErrNotFound):
	case err != nil:
		return fmt.Errorf("its sealed head: %w", err)
	default:
		if err := json.Unmarshal(raw, &l.sealed); err != nil {
			return fmt.Errorf("its sealed head: %w", err)
		}
	}
	if l.files, err = segments(l.o.Dir); err != nil {
		return err
	}
	// What lies before the file with the sealed head was chained when it was written; Verify reads all of it.
	from := len(l.files) - 1
	for from > 0 && l.files[from].first > l.sealed.Sequence {
		from--
	}
	w := &walker{}
	if l.sealed.Sequence > 0 {
		w.anchor = &l.sealed
	}
	w.pruned = from > 0
	if err := w.walk(l.files[max(0, from):]); err != nil {
		return l.damaged(err)
	}
	if err := w.conclude(); err != nil {
		return l.damaged(err)
	}
	l.head = w.report.Head
	if !w.started {
		l.head = l.sealed
	}
	if len(l.files) == 0 {
		return l.begin()
	}
	last := l.files[len(l.files)-1]
	if l.size, err = lines(last.path, func(int, []byte) error { return nil }); err != nil && !errors.Is(err, errPartial) {
		return err
	}
	if l.file, err = os.OpenFile(last.path, os.O_RDWR, 0o600); err != nil {
		return err
	}
	return l.file.Truncate(l.size)
}

func (l *Log) damaged(err error) error {
	return fmt.Errorf("it is not what this node has written: %w; keep it as evidence: move %s and state_dir/sealed/%s/%s away, and a new log begins", err, l.o.Dir, markKind, markName)
}

// begin begins a file with the next record.
func (l *Log) begin() error {
	next := segment{segmentPath(l.o.Dir, l.head.Sequence+1), l.head.Sequence + 1}
	f, err := os.OpenFile(next.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(l.o.Dir); err != nil {
		return errors.Join(err, f.Close(), os.Remove(next.path))
	}
	if l.file != nil {
		if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
			return errors.Join(err, f.Close(), os.Remove(next.path))
		}
	}
	l.file, l.size, l.files = f, 0, append(l.files, next)
	return nil
}

// Append writes a record. When it returns without an error, the record outlives the process; it is durable, and its head sealed, a moment later.
func (l *Log) Append(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.appendLocked(&r)
	l.o.Observe(err == nil, err)
	select {
	case l.wake <- struct{}{}:
	default: // it is awake
	}
	return err
}

func (l *Log) appendLocked(r *Record) error {
	if l.lost > 0 {
		gap := &Record{Event: EventGap, Lost: l.lost}
		if err := l.writeLocked(gap); err != nil {
			l.lost++
			return err
		}
		l.lost = 0
	}
	if err := l.writeLocked(r); err != nil {
		l.lost++
		return err
	}
	return nil
}

func (l *Log) writeLocked(r *Record) error {
	if l.file == nil {
		return os.ErrClosed
	}
	r.Version, r.Sequence, r.Time, r.Host, r.Mode, r.Previous = Version, l.head.Sequence+1, l.o.Now().UTC().Round(0), l.o.Host, l.o.Mode, l.head.Digest
	line, err := r.encode()
	if err != nil {
		return err
	}
	if l.size > 0 && l.size+int64(len(line))+1 > l.o.MaxFile {
		if err := l.begin(); err != nil {
			return fmt.Errorf("rotation: %w", err)
		}
	}
	if _, err := l.file.WriteAt(append(line, '\n'), l.size); err != nil {
		_ = l.file.Truncate(l.size) // the next record is written over what is left
		return err
	}
	l.size += int64(len(line)) + 1
	l.head = Head{r.Sequence, digestOf(line)}
	return nil
}

// Head is the last record that was written.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Run makes records durable and seals the head, until ctx ends. After a failure it tries again by itself.
func (l *Log) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			timer.Reset(settle)
		case <-timer.C:
			if err := l.flush(ctx); err != nil && ctx.Err() == nil {
				timer.Reset(retry)
			}
		}
	}
}

// flush makes what was written durable, seals the head and removes files that are no longer kept. It does not hold up who appends.
func (l *Log) flush(ctx context.Context) error {
	err := l.settleRecords(ctx)
	l.o.Observe(false, err)
	return err
}

func (l *Log) settleRecords(ctx context.Context) error {
	l.mu.Lock()
	file, doomed, err := l.file, []segment(nil), error(nil)
	if file == nil {
		err = os.ErrClosed
	}
	if err == nil && l.lost > 0 {
		if err = l.writeLocked(&Record{Event: EventGap, Lost: l.lost}); err == nil {
			l.lost = 0
		}
	}
	if err == nil {
		doomed, err = l.ownUpLocked()
	}
	file, head, sealedBefore := l.file, l.head, l.sealed
	l.mu.Unlock()
	if err != nil || head == sealedBefore {
		return err
	}
	if err := file.Sync(); err != nil && !l.rotatedFrom(file) {
		return err
	}
	raw, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if err := l.marks.Put(ctx, markKind, markName, raw); err != nil {
		return fmt.Errorf("its head cannot be sealed: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealed = head
	for _, s := range doomed {
		if err := os.Remove(s.path); err != nil && !isNotExist(err) {
			return err
		}
		l.files = l.files[1:]
	}
	return nil
}

// rotatedFrom says that a file was rotated away, which has synced it.
func (l *Log) rotatedFrom(file *os.File) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file != file
}

// ownUpLocked records that files are going to be removed, and returns them.
func (l *Log) ownUpLocked() ([]segment, error) {
	if l.o.MaxFiles <= 0 || len(l.files) <= l.o.MaxFiles {
		return nil, nil
	}
	doomed := slices.Clone(l.files[:len(l.files)-l.o.MaxFiles])
	var last Digest
	if _, err := lines(doomed[len(doomed)-1].path, func(_ int, line []byte) error { last = digestOf(line); return nil }); err != nil {
		return nil, err
	}
	through := Head{l.files[len(doomed)].first - 1, last}
	return doomed, l.writeLocked(&Record{Event: EventPruned, Through: &through})
}

// Close flushes and closes the log.
func (l *Log) Close(ctx context.Context) error {
	err := l.flush(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return err
	}
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}
