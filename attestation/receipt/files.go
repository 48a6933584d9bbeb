package receipt

import (
	"errors"
	"io"
	"os"
)

// fileSystem is what a Chain needs of a disk; a test puts one in its place that crashes. Files are made with mode 0600, directories with 0700.
type fileSystem interface {
	mkdir(dir string) error
	// create makes a file that must not exist.
	create(path string) (file, error)
	rename(from, to string) error
	remove(path string) error
	// read returns the first limit bytes of a file, or all of it.
	read(path string, limit int) ([]byte, error)
	list(dir string) ([]string, error)
	// syncDir makes what was created, renamed and removed in dir outlive a crash.
	syncDir(dir string) error
}

type file interface {
	io.WriteCloser
	Sync() error
}

// disk is the operating system's file system.
type disk struct{}

func (disk) mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

func (disk) create(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (disk) rename(from, to string) error { return os.Rename(from, to) }
func (disk) remove(path string) error     { return os.Remove(path) }

func (disk) read(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}

func (disk) list(dir string) ([]string, error) {
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

func (disk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
