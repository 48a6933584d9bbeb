package sealed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/safeconduct/safeconduct/crypto/durable"
)

// Errors of a Store.
var (
	// ErrNotFound: there is no such blob.
	ErrNotFound = errors.New("no such sealed blob")
	// ErrRollback: the blob on disk is older than the one that this Store has written, read or deleted: somebody put it back.
	ErrRollback = errors.New("sealed blob was rolled back")
)

// Store keeps blobs as files, DIR/KIND/NAME. A Put that returned is on disk; one that a crash cut short leaves the old blob
// or the new one, whole. One process owns a directory. A Store is safe for concurrent use.
type Store struct {
	dir   string
	keys  KeySource
	files durable.FileSystem

	mu sync.Mutex
	// One entry for each blob that was touched in the life of this Store, the deleted ones included: some 200 bytes each.
	known map[ID]generations
}

// generations of one blob. Zero is below every generation.
type generations struct {
	// least is the oldest generation that is still accepted from disk.
	least uint64
	// used is the newest that was given out, whether or not writing it succeeded: no two blobs of a name share a generation.
	used uint64
}

// NewStore opens the store in dir, which is made with mode 0700 if it does not exist, and removes what crashed writers left. It asks for no
// key. Errors: ErrMode, and those of the file system.
func NewStore(dir string, keys KeySource) (*Store, error) { return newStore(dir, keys, durable.Disk{}) }

func newStore(dir string, keys KeySource, files durable.FileSystem) (*Store, error) {
	if err := checkMode(keys.Mode()); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, keys: keys, files: files, known: make(map[ID]generations)}
	if err := durable.MakeDir(files, dir); err != nil {
		return nil, fmt.Errorf("sealed storage: %w", err)
	}
	kinds, err := files.List(dir)
	if err != nil {
		return nil, fmt.Errorf("sealed storage: %w", err)
	}
	for _, kind := range kinds {
		if err := s.sweep(kind); err != nil {
			return nil, fmt.Errorf("sealed storage: %w", err)
		}
	}
	return s, nil
}

// sweep removes temporary files. They hold ciphertext, and were never acknowledged.
func (s *Store) sweep(kind string) error {
	if checkKind(kind) != nil {
		return nil // not ours
	}
	err := durable.Sweep(s.files, filepath.Join(s.dir, kind))
	if errors.Is(err, syscall.ENOTDIR) {
		return nil // a file of somebody else
	}
	return err
}

func (s *Store) path(id ID) string { return filepath.Join(s.dir, id.Kind, id.Name) }

// Put seals plaintext and replaces the blob of that kind and name. A blob that is there and does not open is not replaced: it may be worth
// something to somebody who can open it; Delete removes it. Errors: ErrID, ErrMode, ErrTooLong, ErrRollback, ErrSealKey and the rest of
// Open's, and those of the file system.
func (s *Store) Put(ctx context.Context, kind, name string, plaintext []byte) error {
	id := ID{kind, name}
	if err := id.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[id]; !ok {
		old, err := s.get(ctx, id)
		clear(old)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	g := s.known[id]
	g.used++
	raw, err := Seal(ctx, s.keys, id, g.used, plaintext)
	if err != nil {
		return err
	}
	// If replace fails, the disk may hold the old generation or the new one: until one is seen, both are accepted.
	s.known[id] = g
	if err := s.replace(id, raw); err != nil {
		return fmt.Errorf("sealed storage: %v: %w", id, err)
	}
	s.known[id] = generations{least: g.used, used: g.used}
	return nil
}

// replace makes the kind's directory, if it is new, and replaces the file whole.
func (s *Store) replace(id ID, raw []byte) error {
	dir := filepath.Join(s.dir, id.Kind)
	if err := durable.MakeDir(s.files, dir); err != nil {
		return err
	}
	return durable.Put(s.files, dir, id.Name, raw)
}

// Get opens a blob. The caller clears what it returns. Errors: ErrNotFound, ErrRollback, and those of Open and of the file system.
func (s *Store) Get(ctx context.Context, kind, name string) ([]byte, error) {
	id := ID{kind, name}
	if err := id.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(ctx, id)
}

// get opens a blob and notes its generation.
func (s *Store) get(ctx context.Context, id ID) ([]byte, error) {
	raw, err := s.files.Read(s.path(id), maxBlob+1) // one more than parse accepts
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %v", ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("sealed storage: %v: %w", id, err)
	}
	plaintext, generation, err := Open(ctx, s.keys, id, raw)
	if err != nil {
		return nil, fmt.Errorf("sealed storage: %v: %w", id, err)
	}
	g := s.known[id]
	if generation < g.least {
		clear(plaintext)
		return nil, fmt.Errorf("%w: %v: found generation %d, expected %d", ErrRollback, id, generation, g.least)
	}
	s.known[id] = generations{least: generation, used: max(generation, g.used)}
	return plaintext, nil
}

// Delete removes a blob and says whether there was one. A blob that is damaged is removed too; one of the other mode is not (ErrMode), nor
// one that cannot be judged because the disk or the KeySource fails. Of a blob that opened, no copy is accepted again in the life
// of the Store. Errors: ErrID, ErrMode, and those of the file system and the KeySource.
func (s *Store) Delete(ctx context.Context, kind, name string) (bool, error) {
	id := ID{kind, name}
	if err := id.check(); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Opening it tells which generations, not seen yet, must not come back.
	old, err := s.get(ctx, id)
	clear(old)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil && !damaged(err):
		return false, err
	}
	g := s.known[id]
	s.known[id] = generations{least: g.used + 1, used: g.used}
	if err := s.files.Remove(s.path(id)); err != nil {
		return false, fmt.Errorf("sealed storage: %v: %w", id, err)
	}
	if err := s.files.SyncDir(filepath.Join(s.dir, id.Kind)); err != nil {
		return true, fmt.Errorf("sealed storage: %v: %w", id, err)
	}
	return true, nil
}

// damaged says whether err condemns the blob itself, as opposed to a failure to judge it.
func damaged(err error) bool {
	for _, e := range []error{ErrMalformed, ErrVersion, ErrWrongBlob, ErrNotAuthentic, ErrRollback} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// List returns the names of a kind's blobs, sorted. It opens none of them: a name in it may be the host's invention. Errors: ErrID, and those
// of the file system.
func (s *Store) List(kind string) ([]string, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.files.List(filepath.Join(s.dir, kind))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sealed storage: %w", err)
	}
	names := make([]string, 0, len(found))
	for _, name := range found {
		if (ID{kind, name}).check() == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
