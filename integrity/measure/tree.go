package measure

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// maxTree bounds the files of one tree.
const maxTree = 50_000

// tree measures everything under a directory as one digest: SHA-256 over one line for each file and link, sorted by path as bytes,
//
//	file DIGEST SIZE PATH\n
//	link TARGET PATH\n
//
// with the SHA-256 of the file in hex, and paths relative to the directory and quoted as Go does. Nothing is left out: a file that the host makes
// by itself (Python's compiled modules) is a part of what runs, so a tree that is to be the same on every host is installed without.
// Anything but directories, files and links makes the tree unmeasurable.
func (m *Measurer) tree(ctx context.Context, name, dir string) ([]*v1.IntegrityEntry, error) {
	resolved, err := resolve(m.root, dir)
	if err != nil {
		return m.unreadable(name, dir, err)
	}
	top := filepath.Join(m.root, resolved)
	sum, size, files := sha256.New(), uint64(0), 0
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if path == top {
			return notMeasurable("not a directory")
		}
		if files++; files > maxTree {
			return notMeasurable(fmt.Sprintf("more than %d files", maxTree))
		}
		relative := strings.TrimPrefix(strings.TrimPrefix(path, top), "/")
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(sum, "link %q %q\n", target, relative)
			return err
		case !d.Type().IsRegular():
			return notMeasurable(fmt.Sprintf("%s is %s", relative, d.Type()))
		}
		h, err := m.hasher.hash(ctx, path)
		if err != nil {
			return err
		}
		size += uint64(h.size)
		_, err = fmt.Fprintf(sum, "file %s %d %q\n", hex.EncodeToString(h.sum[:]), h.size, relative)
		return err
	})
	if err != nil {
		return m.unreadable(name, dir, err)
	}
	if files == 0 {
		return []*v1.IntegrityEntry{absent(name, resolved, "nothing is in it")}, nil
	}
	return []*v1.IntegrityEntry{{
		Name: name, Path: resolved, DigestAlgorithm: hostlog.SHA256, Digest: sum.Sum(nil),
		Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Size: size,
	}}, nil
}
