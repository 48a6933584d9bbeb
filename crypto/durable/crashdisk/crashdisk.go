// Package crashdisk is a disk for tests of what a crash leaves: it stops or fails at the operation that the test names, and says what a machine may
// find when it starts again.
package crashdisk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safeconduct/safeconduct/crypto/durable"
)

// Disk is a durable.FileSystem that remembers what a power cut would leave. A file's data is durable once the file was synced, a
// directory's entries once the directory was. It can stop at any operation, and fail at any one.
type Disk struct {
	root *node
	// Ops counts the operations that change the disk.
	Ops int
	// CrashAt is the operation (from 1) at which everything stops, and fails from then on. A write is applied by half. 0: never.
	CrashAt int
	// FailAt is the operation that fails alone. 0: none.
	FailAt int
	// What a store that forgets to sync would do.
	NoFileSync, NoDirSync bool
}

type node struct {
	dir                     bool
	data, durableData       []byte
	entries, durableEntries map[string]*node
}

// What operations of a Disk fail with.
var (
	ErrCrashed = errors.New("crashed")
	ErrFault   = errors.New("input/output error")
)

func newDir() *node {
	return &node{dir: true, entries: map[string]*node{}, durableEntries: map[string]*node{}}
}

// New is an empty disk.
func New() *Disk { return &Disk{root: newDir()} }

// Op counts an operation, and fails if it is its turn. A test of something that is not on the disk, but crashes with it, calls it.
func (d *Disk) Op() error {
	d.Ops++
	switch {
	case d.CrashAt > 0 && d.Ops >= d.CrashAt:
		return ErrCrashed
	case d.Ops == d.FailAt:
		return ErrFault
	}
	return nil
}

func (d *Disk) find(path string) (*node, error) {
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
func (d *Disk) parent(path string) (*node, string) {
	n, err := d.find(filepath.Dir(path))
	if err != nil {
		panic("no directory " + filepath.Dir(path))
	}
	return n, filepath.Base(path)
}

// Mkdir makes one directory; one that is there is no operation.
func (d *Disk) Mkdir(path string) error {
	if _, err := d.find(path); err == nil {
		return nil
	}
	if err := d.Op(); err != nil {
		return err
	}
	n, name := d.parent(path)
	n.entries[name] = newDir()
	return nil
}

// Create makes a file that must not exist.
func (d *Disk) Create(path string) (durable.File, error) {
	if err := d.Op(); err != nil {
		return nil, err
	}
	n, name := d.parent(path)
	if _, ok := n.entries[name]; ok {
		return nil, fs.ErrExist
	}
	f := &node{}
	n.entries[name] = f
	return &openFile{d, f}, nil
}

// Rename replaces what has the new name.
func (d *Disk) Rename(from, to string) error {
	if err := d.Op(); err != nil {
		return err
	}
	a, nameA := d.parent(from)
	b, nameB := d.parent(to)
	b.entries[nameB] = a.entries[nameA]
	delete(a.entries, nameA)
	return nil
}

// Remove removes a file.
func (d *Disk) Remove(path string) error {
	if err := d.Op(); err != nil {
		return err
	}
	n, name := d.parent(path)
	if _, ok := n.entries[name]; !ok {
		return fs.ErrNotExist
	}
	delete(n.entries, name)
	return nil
}

// Read returns the first limit bytes of a file; it is no operation.
func (d *Disk) Read(path string, limit int) ([]byte, error) {
	n, err := d.find(path)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(n.data[:min(limit, len(n.data))]), nil
}

// List returns the names in a directory, sorted; it is no operation.
func (d *Disk) List(dir string) ([]string, error) {
	n, err := d.find(dir)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

// SyncDir makes a directory's entries durable.
func (d *Disk) SyncDir(dir string) error {
	if err := d.Op(); err != nil {
		return err
	}
	n, err := d.find(dir)
	if err == nil && !d.NoDirSync {
		n.durableEntries = maps.Clone(n.entries)
	}
	return err
}

type openFile struct {
	d *Disk
	n *node
}

func (f *openFile) Write(p []byte) (int, error) {
	if err := f.d.Op(); err != nil {
		if f.d.Ops == f.d.CrashAt || f.d.Ops == f.d.FailAt {
			f.n.data = append(f.n.data, p[:len(p)/2]...)
		}
		return len(p) / 2, err
	}
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *openFile) Sync() error {
	if err := f.d.Op(); err != nil {
		return err
	}
	if !f.d.NoFileSync {
		f.n.durableData = bytes.Clone(f.n.data)
	}
	return nil
}

func (f *openFile) Close() error { return f.d.Op() }

// Survivors are the disks that a machine may find when it starts again: after a crash of the process alone, everything; after a power cut, of
// the entries and of the data what was durable, or more.
func (d *Disk) Survivors() map[string]*Disk {
	out := make(map[string]*Disk)
	for _, entries := range []bool{true, false} {
		for _, data := range []bool{true, false} {
			out[fmt.Sprintf("unsynced entries kept: %v, unsynced data kept: %v", entries, data)] = &Disk{root: d.root.survive(entries, data)}
		}
	}
	return out
}

// Copy is the disk as it is, with everything on it durable.
func (d *Disk) Copy() *Disk { return &Disk{root: d.root.survive(true, true)} }

// Restore puts the content of another disk on this one.
func (d *Disk) Restore(from *Disk) { d.root = from.Copy().root }

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
