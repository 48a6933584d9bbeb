package sealed

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// crashDisk is a fileSystem that remembers what a power cut would leave. A file's data is durable once the file was synced, a
// directory's entries once the directory was. It can stop at any operation, and fail at any one.
type crashDisk struct {
	root *node
	ops  int
	// crashAt is the operation (from 1) at which everything stops, and fails from then on. A write is applied by half. 0: never.
	crashAt int
	// failAt is the operation that fails alone. 0: none.
	failAt int
	// What a store that forgets to sync would do.
	noFileSync, noDirSync bool
}

type node struct {
	dir                     bool
	data, durableData       []byte
	entries, durableEntries map[string]*node
}

var (
	errCrashed = errors.New("crashed")
	errFault   = errors.New("input/output error")
)

func newDir() *node {
	return &node{dir: true, entries: map[string]*node{}, durableEntries: map[string]*node{}}
}

func newCrashDisk() *crashDisk { return &crashDisk{root: newDir()} }

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

func (d *crashDisk) find(path string) (*node, error) {
	n := d.root
	for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
		if part == "" {
			continue
		}
		next, ok := n.entries[part]
		if !ok {
			return nil, fs.ErrNotExist
		}
		n = next
	}
	return n, nil
}

// parent finds the directory of a path and the entry's name. In these tests every directory exists when it is needed.
func (d *crashDisk) parent(path string) (*node, string) {
	n, err := d.find(filepath.Dir(path))
	if err != nil {
		panic("no directory " + filepath.Dir(path))
	}
	return n, filepath.Base(path)
}

func (d *crashDisk) mkdir(path string) error {
	if _, err := d.find(path); err == nil {
		return nil
	}
	if err := d.op(); err != nil {
		return err
	}
	n, name := d.parent(path)
	n.entries[name] = newDir()
	return nil
}

func (d *crashDisk) create(path string) (file, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	n, name := d.parent(path)
	if _, ok := n.entries[name]; ok {
		return nil, fs.ErrExist
	}
	f := &node{}
	n.entries[name] = f
	return &crashFile{d, f}, nil
}

func (d *crashDisk) rename(from, to string) error {
	if err := d.op(); err != nil {
		return err
	}
	a, nameA := d.parent(from)
	b, nameB := d.parent(to)
	b.entries[nameB] = a.entries[nameA]
	delete(a.entries, nameA)
	return nil
}

func (d *crashDisk) remove(path string) error {
	if err := d.op(); err != nil {
		return err
	}
	n, name := d.parent(path)
	if _, ok := n.entries[name]; !ok {
		return fs.ErrNotExist
	}
	delete(n.entries, name)
	return nil
}

func (d *crashDisk) read(path string, _ int) ([]byte, error) {
	n, err := d.find(path)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(n.data), nil
}

func (d *crashDisk) list(dir string) ([]string, error) {
	n, err := d.find(dir)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

func (d *crashDisk) syncDir(dir string) error {
	if err := d.op(); err != nil {
		return err
	}
	n, err := d.find(dir)
	if err == nil && !d.noDirSync {
		n.durableEntries = maps.Clone(n.entries)
	}
	return err
}

type crashFile struct {
	d *crashDisk
	n *node
}

func (f *crashFile) Write(p []byte) (int, error) {
	if err := f.d.op(); err != nil {
		if f.d.ops == f.d.crashAt || f.d.ops == f.d.failAt {
			f.n.data = append(f.n.data, p[:len(p)/2]...)
		}
		return len(p) / 2, err
	}
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *crashFile) Sync() error {
	if err := f.d.op(); err != nil {
		return err
	}
	if !f.d.noFileSync {
		f.n.durableData = bytes.Clone(f.n.data)
	}
	return nil
}

func (f *crashFile) Close() error { return f.d.op() }

// survivors are the disks that a machine may find when it starts again: after a crash of the process alone, everything; after a power cut, of
// the entries and of the data what was durable, or more.
func (d *crashDisk) survivors() map[string]*crashDisk {
	out := make(map[string]*crashDisk)
	for _, entries := range []bool{true, false} {
		for _, data := range []bool{true, false} {
			out[fmt.Sprintf("unsynced entries kept: %v, unsynced data kept: %v", entries, data)] =
				&crashDisk{root: d.root.survive(entries, data)}
		}
	}
	return out
}

func (n *node) survive(entries, data bool) *node {
	if !n.dir {
		kept := n.durableData
		if data {
			kept = n.data
		}
		return &node{data: bytes.Clone(kept), durableData: bytes.Clone(kept)}
	}
	kept := n.durableEntries
	if entries {
		kept = n.entries
	}
	c := newDir()
	for name, child := range kept {
		c.entries[name] = child.survive(entries, data)
	}
	c.durableEntries = maps.Clone(c.entries)
	return c
}

const absent = "\x00absent"

// content is what a fresh store on d has under the name a. A blob that does not open is a violation by itself.
func content(t *testing.T, d *crashDisk) (string, error) {
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		return "", err
	}
	got, err := s.Get(t.Context(), "escrow", "a")
	if errors.Is(err, ErrNotFound) {
		return absent, nil
	}
	return string(got), err
}

// scenario is a change of one blob.
type scenario struct {
	name, before, after string
}

var scenarios = []scenario{
	{"the first put", absent, "new"},
	{"a put over an old one", "old", "new"},
	{"a delete", "old", absent},
}

// prepare makes a disk on which everything of before is durable.
func (c scenario) prepare(t *testing.T) *crashDisk {
	t.Helper()
	d := newCrashDisk()
	if c.before == absent {
		return d
	}
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "escrow", "a", []byte(c.before)); err != nil {
		t.Fatal(err)
	}
	d.ops = 0
	return d
}

// run makes the change on d, from opening the store on.
func (c scenario) run(t *testing.T, d *crashDisk) error {
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		return err
	}
	if c.after == absent {
		_, err = s.Delete(t.Context(), "escrow", "a")
		return err
	}
	return s.Put(t.Context(), "escrow", "a", []byte(c.after))
}

// violations crashes the change at every operation and returns what is not as promised.
func (c scenario) violations(t *testing.T, spoil func(*crashDisk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d := c.prepare(t)
		spoil(d)
		d.crashAt = crashAt
		err := c.run(t, d)
		if err != nil && !errors.Is(err, errCrashed) {
			t.Fatalf("%s, operation %d: %v", c.name, crashAt, err)
		}
		for how, disk := range d.survivors() {
			got, openErr := content(t, disk)
			switch {
			case openErr != nil:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: %v", c.name, crashAt, how, openErr))
			case got != c.before && got != c.after:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: found %q", c.name, crashAt, how, got))
			case err == nil && got != c.after:
				found = append(found, fmt.Sprintf("%s was acknowledged, %s: found %q", c.name, how, got))
			}
		}
		if err == nil {
			return found, crashAt - 1
		}
	}
}

func TestACrashLeavesTheOldBlobOrTheNewOne(t *testing.T) {
	for _, c := range scenarios {
		t.Run(c.name, func(t *testing.T) {
			found, points := c.violations(t, func(*crashDisk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 3 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
			t.Logf("%d operations, 4 outcomes each", points)
		})
	}
}

func TestTheCrashTestNoticesAStoreThatDoesNotSync(t *testing.T) {
	for _, c := range scenarios {
		if found, _ := c.violations(t, func(d *crashDisk) { d.noDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing directories passes", c.name)
		}
		if found, _ := c.violations(t, func(d *crashDisk) { d.noFileSync = true }); len(found) == 0 && c.after != absent {
			t.Errorf("%s without syncing the file passes", c.name)
		}
	}
}

// TestAFaultLeavesTheOldBlobOrTheNewOneAndTheStoreGoesOn fails one operation at a time, without a crash.
func TestAFaultLeavesTheOldBlobOrTheNewOneAndTheStoreGoesOn(t *testing.T) {
	for _, c := range scenarios[:2] {
		t.Run(c.name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				d := c.prepare(t)
				s, err := newStore("/sealed", newKeys(ModeSimulated), d)
				if err != nil {
					t.Fatal(err)
				}
				d.ops, d.failAt = 0, failAt
				failed := s.Put(t.Context(), "escrow", "a", []byte(c.after))
				if failed == nil {
					if failAt < 6 {
						t.Errorf("found %d operations, expected more", failAt-1)
					}
					return
				}
				if !errors.Is(failed, errFault) {
					t.Errorf("operation %d: found %v, expected %v", failAt, failed, errFault)
				}
				// Another store looks, so that this one learns nothing by it.
				got, err := content(t, &crashDisk{root: d.root.survive(true, true)})
				if err != nil || got != c.before && got != c.after {
					t.Errorf("operation %d: found %q, %v", failAt, got, err)
				}
				maybe := d.root.survive(true, true)
				if err := s.Put(t.Context(), "escrow", "a", []byte("newer")); err != nil {
					t.Fatalf("operation %d: the next put: %v", failAt, err)
				}
				checkNoLeftovers(t, d)
				// Whatever the failed put has left, put back, is older than the newer one.
				d.root = maybe
				if got, err := s.Get(t.Context(), "escrow", "a"); !errors.Is(err, ErrRollback) && !errors.Is(err, ErrNotFound) {
					t.Errorf("operation %d: the blob of the failed put is accepted again: %q, %v", failAt, got, err)
				}
			}
		})
	}
}

func checkNoLeftovers(t *testing.T, d *crashDisk) {
	t.Helper()
	names, err := d.list("/sealed/escrow")
	if err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("found %q, %v; expected one blob and no temporary file", names, err)
	}
}
