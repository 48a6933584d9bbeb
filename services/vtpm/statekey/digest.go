package statekey

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// label begins what is hashed: docs/keys.md, "State at rest".
const label = "safeconduct/v1/state-at-rest"

// maxFile bounds one file of swtpm's state, in bytes. The largest seen has some 10 KiB.
const maxFile = 8 << 20

// ErrTooLarge says that a file is no state of swtpm's.
var ErrTooLarge = errors.New("larger than any state of swtpm")

// files of swtpm's state, sorted: TPM 1.2, then TPM 2.0.
var files = [...]string{
	"tpm-00.permall", "tpm-00.savestate", "tpm-00.volatilestate", "tpm2-00.permall", "tpm2-00.savestate", "tpm2-00.volatilestate",
}

// isState says whether a path is one of them. swtpm writes to other names and renames.
func isState(path string) bool {
	for _, name := range files {
		if filepath.Base(path) == name {
			return true
		}
	}
	return false
}

// Digest names the state in a directory: nil if there is none.
func Digest(dir string) ([]byte, error) { return digest(dir, func(*os.File) error { return nil }) }

// settle is Digest of a state that is on the disk for good by then: what is recorded must not be lost when the host crashes.
func settle(dir string) ([]byte, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it was removed, with all that there was to record
	}
	if err != nil {
		return nil, err
	}
	out, err := digest(dir, (*os.File).Sync)
	if err == nil {
		err = d.Sync()
	}
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	return out, nil
}

func digest(dir string, each func(*os.File) error) ([]byte, error) {
	whole := sha256.New()
	whole.Write([]byte(label))
	found := false
	for _, name := range files {
		sum, err := hashFile(filepath.Join(dir, name), each)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = true
		whole.Write([]byte{byte(len(name))})
		whole.Write([]byte(name))
		whole.Write(sum)
	}
	if !found {
		return nil, nil
	}
	return whole.Sum(nil), nil
}

func hashFile(path string, each func(*os.File) error) (sum []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if n > maxFile {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrTooLarge, maxFile)
	}
	return h.Sum(nil), each(f)
}
