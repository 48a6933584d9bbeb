package collateral

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// crashDisk is a fileSystem of one directory that remembers what a power cut would leave. A file's data is durable once the file was synced, an
// entry once the directory was. It can stop at any operation, and fail at any one.
type crashDisk struct {
	entries, durable map[string]*crashFile
	ops              int
	// crashAt is the operation (from 1) from which on everything fails; a write is applied by half. 0: never.
	crashAt int
	// failAt is the operation that fails alone. 0: none.
	failAt int
	// What a store that forgets to sync would do.
	noFileSync, noDirSync bool
}

type crashFile struct {
	disk          *crashDisk
	data, durable []byte
}

var (
	errCrashed = errors.New("crashed")
	errFault   = errors.New("input/output error")
)

const crashDir = "/cache"

func newCrashDisk() *crashDisk {
	return &crashDisk{entries: map[string]*crashFile{}, durable: map[string]*crashFile{}}
}

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

func (d *crashDisk) mkdir(string) error { return nil }

func (d *crashDisk) create(path string) (file, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	f := &crashFile{disk: d}
	d.entries[filepath.Base(path)] = f
	return f, nil
}

func (d *crashDisk) rename(from, to string) error {
	if err := d.op(); err != nil {
		return err
	}
	d.entries[filepath.Base(to)] = d.entries[filepath.Base(from)]
	delete(d.entries, filepath.Base(from))
	return nil
}

func (d *crashDisk) remove(path string) error {
	if err := d.op(); err != nil {
		return err
	}
	if _, ok := d.entries[filepath.Base(path)]; !ok {
		return fs.ErrNotExist
	}
	delete(d.entries, filepath.Base(path))
	return nil
}

func (d *crashDisk) read(path string, _ int) ([]byte, error) {
	f, ok := d.entries[filepath.Base(path)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data), nil
}

func (d *crashDisk) list(string) ([]string, error) { return slices.Sorted(maps.Keys(d.entries)), nil }

func (d *crashDisk) syncDir(dir string) error {
	if dir != crashDir {
		return nil
	}
	if err := d.op(); err != nil {
		return err
	}
	if !d.noDirSync {
		d.durable = maps.Clone(d.entries)
	}
	return nil
}

func (f *crashFile) Write(p []byte) (int, error) {
	if err := f.disk.op(); err != nil {
		f.data = append(f.data, p[:len(p)/2]...)
		return len(p) / 2, err
	}
	f.data = append(f.data, p...)
	return len(p), nil
}

func (f *crashFile) Sync() error {
	if err := f.disk.op(); err != nil {
		return err
	}
	if !f.disk.noFileSync {
		f.durable = bytes.Clone(f.data)
	}
	return nil
}

func (f *crashFile) Close() error { return f.disk.op() }

// survivors are the disks that may be found after it: after a crash of the process alone, everything; after a power cut, of the entries and
// of the data what was durable, or more.
func (d *crashDisk) survivors() map[string]*crashDisk {
	out := make(map[string]*crashDisk)
	for _, allEntries := range []bool{true, false} {
		for _, allData := range []bool{true, false} {
			after, kept := newCrashDisk(), d.durable
			if allEntries {
				kept = d.entries
			}
			for name, f := range kept {
				data := f.durable
				if allData {
					data = f.data
				}
				after.entries[name] = &crashFile{disk: after, data: bytes.Clone(data), durable: bytes.Clone(data)}
			}
			after.durable = maps.Clone(after.entries)
			out[fmt.Sprintf("unsynced entries kept: %v, unsynced data kept: %v", allEntries, allData)] = after
		}
	}
	return out
}

const absent = "(absent)"

func cacheOn(t *testing.T, d *crashDisk, source Source) *Cache[string] {
	t.Helper()
	c, err := newCache(Config[string]{Dir: crashDir, Check: toyCheck, Source: source, Now: func() time.Time { return day }}, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// content is what a new cache on d gives, and the files it has.
func content(t *testing.T, d *crashDisk) (name string, files []string) {
	t.Helper()
	c := cacheOn(t, d, nil)
	name, _, err := c.Get(t.Context(), keyA)
	if err != nil {
		name = absent
	}
	return name, slices.Sorted(maps.Keys(d.entries))
}

// crashScenario is a change of what is kept.
type crashScenario struct {
	name, before, after string
}

var crashScenarios = []crashScenario{
	{"the first set", absent, "new"},
	{"a newer set over an old one", "old", "new"},
	{"forgetting", "old", absent},
}

func (s crashScenario) prepare(t *testing.T) *crashDisk {
	t.Helper()
	d := newCrashDisk()
	if s.before != absent {
		gets(t, cacheOn(t, d, &toySource{fetch: always(toySet(s.before, 1, day, month))}), keyA, s.before)
	}
	d.ops = 0
	return d
}

// run makes the change, and says whether it is on disk. Opening a clean directory is no operation that counts.
func (s crashScenario) run(t *testing.T, d *crashDisk) error {
	t.Helper()
	c := cacheOn(t, d, &toySource{fetch: always(toySet("new", 2, day, month))})
	if s.after == absent {
		return c.Forget(keyA)
	}
	if err := c.Refresh(t.Context(), keyA); err != nil {
		t.Fatalf("%s: a disk that fails keeps a valid set from being used: %v", s.name, err)
	}
	gets(t, c, keyA, "new")
	return c.Status()[0].Unsaved
}

func (s crashScenario) violations(t *testing.T, spoil func(*crashDisk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d := s.prepare(t)
		spoil(d)
		d.crashAt = crashAt
		err := s.run(t, d)
		if err != nil && !errors.Is(err, errCrashed) {
			t.Fatalf("%s, operation %d: %v", s.name, crashAt, err)
		}
		for how, after := range d.survivors() {
			got, files := content(t, after)
			switch {
			case got != s.before && got != s.after:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: found %q", s.name, crashAt, how, got))
			case err == nil && got != s.after:
				found = append(found, fmt.Sprintf("%s was done, %s: found %q", s.name, how, got))
			case len(files) > 1:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: leftovers %q", s.name, crashAt, how, files))
			}
		}
		if err == nil {
			return found, crashAt - 1
		}
	}
}

func TestACrashLeavesTheOldSetOrTheNewOne(t *testing.T) {
	for _, s := range crashScenarios {
		t.Run(s.name, func(t *testing.T) {
			found, points := s.violations(t, func(*crashDisk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 2 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
		})
	}
}

func TestTheCrashTestNoticesAStoreThatDoesNotSync(t *testing.T) {
	for _, s := range crashScenarios {
		if found, _ := s.violations(t, func(d *crashDisk) { d.noDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing the directory passes", s.name)
		}
		if found, _ := s.violations(t, func(d *crashDisk) { d.noFileSync = true }); len(found) == 0 && s.after != absent {
			t.Errorf("%s without syncing the file passes", s.name)
		}
	}
}

// TestAFaultLeavesTheOldSetOrTheNewOneAndTheCacheGoesOn fails one operation at a time, without a crash.
func TestAFaultLeavesTheOldSetOrTheNewOneAndTheCacheGoesOn(t *testing.T) {
	s := crashScenarios[1]
	for failAt := 1; ; failAt++ {
		d := s.prepare(t)
		source := &toySource{fetch: always(toySet("new", 2, day, month))}
		c := cacheOn(t, d, source)
		d.ops, d.failAt = 0, failAt
		if err := c.Refresh(t.Context(), keyA); err != nil {
			t.Fatal(err)
		}
		gets(t, c, keyA, "new")
		unsaved := c.Status()[0].Unsaved
		if unsaved == nil {
			if failAt < 6 {
				t.Errorf("found %d operations, expected more", failAt-1)
			}
			return
		}
		if !errors.Is(unsaved, errFault) {
			t.Errorf("operation %d: %v", failAt, unsaved)
		}
		if got, _ := content(t, d.survivors()["unsynced entries kept: true, unsynced data kept: true"]); got != "old" && got != "new" {
			t.Errorf("operation %d: found %q", failAt, got)
		}
		source.answer(always(toySet("newer", 3, day, month)))
		if err := c.Refresh(t.Context(), keyA); err != nil {
			t.Fatal(err)
		}
		if got, files := content(t, d); got != "newer" || len(files) != 1 || c.Status()[0].Unsaved != nil {
			t.Errorf("operation %d, the next refresh: found %q, %q", failAt, got, files)
		}
	}
}
