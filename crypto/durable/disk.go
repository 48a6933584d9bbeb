package durable

import (
	"errors"
	"io"
	"os"
)

// Disk is the operating system's file system.
type Disk struct{}

// Mkdir makes dir and its parents.
func (Disk) Mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

// Create makes a file that must not exist.
func (Disk) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// Rename gives a file another's name.
func (Disk) Rename(from, to string) error { return os.Rename(from, to) }

// Remove removes a file.
func (Disk) Remove(path string) error { return os.Remove(path) }

// Read returns the first limit bytes of a file, or all of it.
func (Disk) Read(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}

// List returns the names in dir.
func (Disk) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// SyncDir makes what was created, renamed and removed in dir outlive a crash.
func (Disk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
