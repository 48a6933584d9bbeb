package collateral

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/safeconduct/safeconduct/crypto/durable"
)

const (
	fileSuffix = ".json"
	// maxEntryFile is room for one set with every artefact at its limit, in base64.
	maxEntryFile = 4 << 20
)

// store keeps one file for each key, DIR/KEY.json: a bundle of one entry. A file is replaced whole, by renaming: symbolic links, which would
// allow directories to be replaced whole, do not work inside an enclave. The zero store, without a directory, keeps nothing.
type store struct {
	dir   string
	files durable.FileSystem
}

// openStore makes the directory if need be, and removes what crashed writers left.
func openStore(dir string, files durable.FileSystem) (store, error) {
	s := store{dir, files}
	if dir == "" {
		return s, nil
	}
	if err := durable.MakeDir(files, dir); err != nil {
		return s, fmt.Errorf("collateral cache: %w", err)
	}
	if err := durable.Sweep(files, dir); err != nil {
		return s, fmt.Errorf("collateral cache: %w", err)
	}
	return s, nil
}

// keys are those that there are files of.
func (s store) keys() ([]Key, error) {
	if s.dir == "" {
		return nil, nil
	}
	names, err := s.files.List(s.dir)
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
	raw, err := s.files.Read(s.path(key), maxEntryFile+1)
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

// save replaces a set's file whole.
func (s store) save(e Entry) error {
	if s.dir == "" {
		return nil
	}
	raw, err := encodeBundle([]Entry{e})
	if err != nil {
		return err
	}
	return durable.Put(s.files, s.dir, e.Key.String()+fileSuffix, raw)
}

// remove forgets a set. There may be none.
func (s store) remove(key Key) error {
	if s.dir == "" {
		return nil
	}
	if err := durable.Discard(s.files, s.path(key)); err != nil {
		return err
	}
	return s.files.SyncDir(s.dir)
}
