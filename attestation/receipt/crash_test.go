package receipt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// crashDisk is a fileSystem that remembers what a power cut would leave. A file's data is durable once the file was synced, a directory's entries
// once the directory was. It can stop at any operation, and fail at any one. Sealed storage counts its writes here too.
type crashDisk struct {
	dirs map[string]*crashDir
	ops  int
	// crashAt is the operation (from 1) at which everything stops, and fails from then on; failAt the one that fails alone. 0: none.
	crashAt, failAt int
	// What a chain that forgets to sync would do.
	noFileSync, noDirSync bool
}

type crashDir struct{ entries, durable map[string]*crashFile }

type crashFile struct {
	d             *crashDisk
	data, durable []byte
}

var (
	errCrashed = errors.New("crashed")
	errFault   = errors.New("input/output error")
)

func newCrashDisk() *crashDisk { return &crashDisk{dirs: map[string]*crashDir{}} }

func (d *crashDisk) op() error {
	d.ops++
	switch {
	case d.crashAt > 0 && d.ops >= d.crashAt:
		return errCrashed
	case d.ops == d.failAt:
		return errFault
	}
	return nil
}

// mkdir makes durable directories: this package makes them once, and syncs their parents.
func (d *crashDisk) mkdir(dir string) error {
	if d.dirs[dir] != nil {
		return nil
	}
	if err := d.op(); err != nil {
		return err
	}
	d.dirs[dir] = &crashDir{entries: map[string]*crashFile{}, durable: map[string]*crashFile{}}
	return nil
}

func (d *crashDisk) at(name string) (*crashDir, string) {
	return d.dirs[path.Dir(name)], path.Base(name)
}

func (d *crashDisk) create(name string) (file, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	dir, base := d.at(name)
	if dir.entries[base] != nil {
		return nil, fs.ErrExist
	}
	f := &crashFile{d: d}
	dir.entries[base] = f
	return f, nil
}

func (d *crashDisk) rename(from, to string) error {
	if err := d.op(); err != nil {
		return err
	}
	a, nameA := d.at(from)
	b, nameB := d.at(to)
	b.entries[nameB] = a.entries[nameA]
	delete(a.entries, nameA)
	return nil
}

func (d *crashDisk) remove(name string) error {
	if err := d.op(); err != nil {
		return err
	}
	dir, base := d.at(name)
	if dir.entries[base] == nil {
		return fs.ErrNotExist
	}
	delete(dir.entries, base)
	return nil
}

func (d *crashDisk) read(name string, limit int) ([]byte, error) {
	dir, base := d.at(name)
	if dir == nil || dir.entries[base] == nil {
		return nil, fs.ErrNotExist
	}
	data := dir.entries[base].data
	return bytes.Clone(data[:min(limit, len(data))]), nil
}

func (d *crashDisk) list(dir string) ([]string, error) {
	names := slices.Sorted(maps.Keys(d.dirs[dir].entries))
	for other := range d.dirs {
		if path.Dir(other) == dir {
			names = append(names, path.Base(other))
		}
	}
	return names, nil
}

func (d *crashDisk) syncDir(dir string) error {
	if err := d.op(); err != nil {
		return err
	}
	if known := d.dirs[dir]; known != nil && !d.noDirSync {
		known.durable = maps.Clone(known.entries)
	}
	return nil
}

func (f *crashFile) Write(p []byte) (int, error) {
	if err := f.d.op(); err != nil {
		f.data = append(f.data, p[:len(p)/2]...)
		return len(p) / 2, err
	}
	f.data = append(f.data, p...)
	return len(p), nil
}

func (f *crashFile) Sync() error {
	if err := f.d.op(); err != nil {
		return err
	}
	if !f.d.noFileSync {
		f.durable = bytes.Clone(f.data)
	}
	return nil
}

func (f *crashFile) Close() error { return f.d.op() }

// survivors are the disks that a machine may find when it starts again: after a crash of the process alone, everything; after a power cut, of
// the entries and of the data what was durable, or more.
func (d *crashDisk) survivors() map[string]*crashDisk {
	out := map[string]*crashDisk{}
	for _, entries := range []bool{true, false} {
		for _, data := range []bool{true, false} {
			c := newCrashDisk()
			for name, dir := range d.dirs {
				kept := &crashDir{entries: map[string]*crashFile{}}
				from := dir.durable
				if entries {
					from = dir.entries
				}
				for base, f := range from {
					content := f.durable
					if data {
						content = f.data
					}
					kept.entries[base] = &crashFile{d: c, data: bytes.Clone(content), durable: bytes.Clone(content)}
				}
				kept.durable = maps.Clone(kept.entries)
				c.dirs[name] = kept
			}
			out[fmt.Sprintf("unsynced entries kept %t, data kept %t", entries, data)] = c
		}
	}
	return out
}

// bench is a chain on a crashDisk that gets a receipt: its first, with the collateral, or one more.
type bench struct {
	old []*Entry
	add *Entry
}

func benches(t *testing.T) map[string]*bench {
	t.Helper()
	r := newRig(t)
	first, second := r.entry(t, r.migrate(t)), r.entry(t, r.migrate(t))
	return map[string]*bench{"the first receipt": {nil, first}, "the second": {[]*Entry{first}, second}}
}

func openOn(t *testing.T, d *crashDisk, m *marks) (*Chain, error) {
	t.Helper()
	return openChain(t.Context(), shelf{"/receipts", d}, m, options())
}

// prepare makes a disk with the old receipts on it.
func (b *bench) prepare(t *testing.T) (*crashDisk, *marks) {
	t.Helper()
	d, m := newCrashDisk(), &marks{}
	if len(b.old) > 0 {
		c, err := openOn(t, d, m)
		must(t, err)
		for _, e := range b.old {
			c.add(t, e)
		}
	}
	d.ops = 0
	return d, m
}

// violations opens the chain and appends a receipt, crashes at every operation, and returns what is not as promised. A write of sealed storage is
// two operations: the crash comes before it has taken effect, or after.
func (b *bench) violations(t *testing.T, spoil func(*crashDisk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d, m := b.prepare(t)
		spoil(d)
		d.crashAt = crashAt
		m.op, m.after = d.op, d.op
		acknowledged := false
		c, err := openOn(t, d, m)
		if err == nil {
			_, err = c.Append(t.Context(), b.add)
			acknowledged = err == nil
		}
		if err != nil && !errors.Is(err, errCrashed) {
			t.Fatalf("operation %d: %v", crashAt, err)
		}
		for how, disk := range d.survivors() {
			if v := b.inspect(t, disk, &marks{content: bytes.Clone(m.content)}, acknowledged); v != "" {
				found = append(found, fmt.Sprintf("operation %d, %s: %s", crashAt, how, v))
			}
		}
		if acknowledged {
			return found, crashAt - 1
		}
	}
}

// inspect says what is wrong with a chain that was found after a crash.
func (b *bench) inspect(t *testing.T, d *crashDisk, m *marks, acknowledged bool) string {
	c, err := openOn(t, d, m)
	if err != nil {
		return err.Error()
	}
	if err := c.VerifyChain(t.Context()); err != nil {
		return err.Error()
	}
	n, before := c.Len(), len(b.old)
	if n != before && n != before+1 || acknowledged && n != before+1 {
		return fmt.Sprintf("found %d receipts, acknowledged is %t", n, acknowledged)
	}
	for _, e := range b.old {
		if _, err := c.Get(ID(e.Record)); err != nil {
			return err.Error()
		}
	}
	link, err := c.Append(t.Context(), b.add)
	if err != nil || link.Number != uint64(before)+1 {
		return fmt.Sprintf("the next append: number %d, %v", link.Number, err)
	}
	if err := c.VerifyChain(t.Context()); err != nil {
		return err.Error()
	}
	for dir := range d.dirs {
		names, _ := d.list(dir)
		if slices.ContainsFunc(names, func(s string) bool { return strings.HasPrefix(s, tempPrefix) }) {
			return "a temporary file is left"
		}
	}
	return ""
}

func TestACrashLeavesTheChainWithTheReceiptOrWithoutIt(t *testing.T) {
	for name, b := range benches(t) {
		t.Run(name, func(t *testing.T) {
			found, points := b.violations(t, func(*crashDisk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 10 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
			t.Logf("%d operations, 4 outcomes each", points)
		})
	}
}

func TestTheCrashTestNoticesAChainThatDoesNotSync(t *testing.T) {
	for name, b := range benches(t) {
		if found, _ := b.violations(t, func(d *crashDisk) { d.noDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing directories passes", name)
		}
		if found, _ := b.violations(t, func(d *crashDisk) { d.noFileSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing files passes", name)
		}
	}
}

// TestAFaultIsSettledByTheNextAppend fails one operation at a time, without a crash: the chain in memory goes on.
func TestAFaultIsSettledByTheNextAppend(t *testing.T) {
	for name, b := range benches(t) {
		t.Run(name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				d, m := b.prepare(t)
				c, err := openOn(t, d, m)
				must(t, err)
				d.ops, d.failAt = 0, failAt
				m.op, m.after = d.op, d.op
				_, failed := c.Append(t.Context(), b.add)
				if failed == nil {
					if failAt < 10 {
						t.Errorf("found %d operations, expected more", failAt-1)
					}
					return
				}
				if !errors.Is(failed, errFault) {
					t.Errorf("operation %d: found %v, expected %v", failAt, failed, errFault)
				}
				link, err := c.Append(t.Context(), b.add)
				if err != nil || link.Number != uint64(len(b.old))+1 || c.Len() != len(b.old)+1 {
					t.Errorf("operation %d: the next append: number %d, %v", failAt, link.Number, err)
				}
				if err := c.VerifyChain(t.Context()); err != nil {
					t.Errorf("operation %d: %v", failAt, err)
				}
			}
		})
	}
}
