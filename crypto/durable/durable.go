// Package durable replaces files whole, so that a crash leaves the old content or the new one: what sealed storage, the cache of collateral and the
// chain of receipts write by. Nothing here keeps a file secret or authentic; that is for those who call.
package durable

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// tempPrefix begins the names of files that are being written. No other file of a directory that Sweep looks at may begin so.
const tempPrefix = ".tmp-"

// FileSystem is what writing needs of a disk; a test puts crashdisk.Disk in its place. Files are made with mode 0600, directories with 0700.
type FileSystem interface {
	Mkdir(dir string) error
	// Create makes a file that must not exist.
	Create(path string) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	// Read returns the first limit bytes of a file, or all of it.
	Read(path string, limit int) ([]byte, error)
	List(dir string) ([]string, error)
	// SyncDir makes what was created, renamed and removed in dir outlive a crash.
	SyncDir(dir string) error
}

// File is a file that is being written.
type File interface {
	io.WriteCloser
	Sync() error
}

// MakeDir makes a directory, if it is not there, and its own entry outlive a crash.
func MakeDir(files FileSystem, dir string) error {
	if err := files.Mkdir(dir); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(dir))
}

// Sweep removes what crashed writers left in dir: it was never acknowledged.
func Sweep(files FileSystem, dir string) error {
	names, err := files.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			if err := Discard(files, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Put writes a file beside its place, makes it durable, and only then gives it its name, replacing the one that has it. After an error the directory
// has the old file or the new one.
func Put(files FileSystem, dir, name string, content []byte) error {
	temp := filepath.Join(dir, tempPrefix+rand.Text())
	if err := write(files, temp, content); err != nil {
		return errors.Join(err, Discard(files, temp))
	}
	if err := files.Rename(temp, filepath.Join(dir, name)); err != nil {
		return errors.Join(err, Discard(files, temp))
	}
	return files.SyncDir(dir)
}

func write(files FileSystem, path string, content []byte) error {
	f, err := files.Create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// Discard removes a file that need not be there. SyncDir makes that outlive a crash.
func Discard(files FileSystem, path string) error {
	if err := files.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
