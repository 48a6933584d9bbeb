package collateral

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

const (
	tempPrefix = ".tmp-"
	fileSuffix = ".json"
	// maxEntryFile is room for one set with every artefact at its limit, in base64.
	maxEntryFile = 4 << 20
)

// store keeps one file for each key, DIR/KEY.json: a bundle of one entry. A file is replaced whole, by renaming: symbolic links, which would
// allow directories to be replaced whole, do not work inside an enclave. The zero store, without a directory, keeps nothing.
type store struct {
	dir   string
	files fileSystem
}

// openStore makes the directory if need be, and removes what crashed writers left.
func openStore(dir string, files fileSystem) (store, error) {
	s := store{dir, files}
	if dir == "" {
		return s, nil
	}
	if err := files.mkdir(dir); err != nil {
		return s, fmt.Errorf("collateral cache: %w", err)
	}
	if err := files.syncDir(filepath.Dir(dir)); err != nil {
		return s, fmt.Errorf("collateral cache: %w", err)
	}
	names, err := files.list(dir)
	if err != nil {
		return s, fmt.Errorf("collateral cache: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			if err := s.discard(filepath.Join(dir, name)); err != nil {
				return s, fmt.Errorf("collateral cache: %w", err)
			}
		}
	}
	return s, nil
}

// keys are those that there are files of.
func (s store) keys() ([]Key, error) {
	if s.dir == "" {
		return nil, nil
	}
	names, err := s.files.list(s.dir)
	if err != nil {
		return nil, fmt.Errorf("collateral cache: %w", err)
	}
	var keys []Key
	for _, name := range names {
		base, isEntry := strings.CutSuffix(name, fileSuffix)
		if key, err := ParseKey(base); isEntry && err == nil {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func (s store) path(key Key) string { return filepath.Join(s.dir, key.String()+fileSuffix) }

// load reads one set. It may have been damaged, or put there by anybody.
func (s store) load(key Key) (Entry, error) {
	raw, err := s.files.read(s.path(key), maxEntryFile+1)
	if err != nil {
		return Entry{}, err
	}
	if len(raw) > maxEntryFile {
		return Entry{}, tooLarge(len(raw), maxEntryFile)
	}
	entries, err := decodeBundle(raw)
	switch {
	case err != nil:
		return Entry{}, err
	case len(entries) != 1 || entries[0].Key != key:
		return Entry{}, fmt.Errorf("%w: found another content than the entry of %v alone", ErrBundle, key)
	}
	return entries[0], nil
}

// save writes a file beside the old one, makes it durable, and only then gives it the old one's name.
func (s store) save(e Entry) error {
	if s.dir == "" {
		return nil
	}
	raw, err := encodeBundle([]Entry{e})
	if err != nil {
		return err
	}
	temp := filepath.Join(s.dir, tempPrefix+rand.Text())
	if err := s.write(temp, raw); err != nil {
		return errors.Join(err, s.discard(temp))
	}
	if err := s.files.rename(temp, s.path(e.Key)); err != nil {
		return errors.Join(err, s.discard(temp))
	}
	return s.files.syncDir(s.dir)
}

func (s store) write(path string, raw []byte) error {
	f, err := s.files.create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(raw); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// remove forgets a set. There may be none.
func (s store) remove(key Key) error {
	if s.dir == "" {
		return nil
	}
	if err := s.discard(s.path(key)); err != nil {
		return err
	}
	return s.files.syncDir(s.dir)
}

func (s store) discard(path string) error {
	if err := s.files.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
