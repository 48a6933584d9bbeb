package sealed

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := NewStore(dir, newKeys(ModeSimulated))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, name, plaintext string) {
	t.Helper()
	if err := s.Put(t.Context(), "escrow", name, []byte(plaintext)); err != nil {
		t.Fatal(err)
	}
}

func wantGet(t *testing.T, s *Store, name, expected string) {
	t.Helper()
	if got, err := s.Get(t.Context(), "escrow", name); err != nil || string(got) != expected {
		t.Errorf("found %q, %v; expected %q", got, err, expected)
	}
}

func wantError(t *testing.T, s *Store, name string, expected error) {
	t.Helper()
	got, err := s.Get(t.Context(), "escrow", name)
	if got != nil {
		t.Errorf("found %q with an error", got)
	}
	checkError(t, err, expected)
}

func TestWhatIsPutIsThereAlsoAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sealed")
	s := openStore(t, dir)
	put(t, s, "a", "one")
	put(t, s, "a", "two")
	put(t, s, "b", "")
	for range 2 {
		wantGet(t, s, "a", "two")
		wantGet(t, s, "b", "")
		wantError(t, s, "c", ErrNotFound)
		if names, err := s.List("escrow"); err != nil || !slices.Equal(names, []string{"a", "b"}) {
			t.Errorf("found %q, %v", names, err)
		}
		if names, err := s.List("receipt"); err != nil || len(names) != 0 {
			t.Errorf("found %q, %v", names, err)
		}
		s = openStore(t, dir)
	}
	put(t, s, "a", "three")
	wantGet(t, s, "a", "three")
}

func TestADeletedBlobIsGone(t *testing.T) {
	s := openStore(t, t.TempDir())
	put(t, s, "a", "one")
	if found, err := s.Delete(t.Context(), "escrow", "a"); !found || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
	wantError(t, s, "a", ErrNotFound)
	if found, err := s.Delete(t.Context(), "escrow", "a"); found || err != nil {
		t.Errorf("a second time: found %v, %v", found, err)
	}
	put(t, s, "a", "two")
	wantGet(t, s, "a", "two")
}

func TestFilesAreOfTheOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sealed")
	s := openStore(t, dir)
	put(t, s, "a", "one")
	for path, mode := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "escrow"): 0o700, filepath.Join(dir, "escrow", "a"): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: found %v, %v; expected %v", path, info.Mode().Perm(), err, mode)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "escrow", "a"))
	if err != nil || bytes.Contains(raw, []byte("one")) {
		t.Errorf("the plaintext is on disk, or %v", err)
	}
}

func TestWhatTheHostDoesToTheFiles(t *testing.T) {
	swap := func(t *testing.T, s *Store, a, b string) {
		t.Helper()
		pa, pb, tmp := s.path(ID{"escrow", a}), s.path(ID{"escrow", b}), filepath.Join(s.dir, "swap")
		if err := errors.Join(os.Rename(pa, tmp), os.Rename(pb, pa), os.Rename(tmp, pb)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(t *testing.T, s *Store, name string) []byte {
		t.Helper()
		raw, err := os.ReadFile(s.path(ID{"escrow", name}))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	write := func(t *testing.T, s *Store, name string, raw []byte) {
		t.Helper()
		if err := os.WriteFile(s.path(ID{"escrow", name}), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("swapping two is noticed", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		put(t, s, "b", "two")
		swap(t, s, "a", "b")
		wantError(t, s, "a", ErrWrongBlob)
		wantError(t, s, "b", ErrWrongBlob)
	})
	t.Run("putting an old one back is noticed by the store that wrote the new one, and can be repaired", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		old := read(t, s, "a")
		put(t, s, "a", "two")
		write(t, s, "a", old)
		wantError(t, s, "a", ErrRollback)
		put(t, s, "a", "three")
		wantGet(t, s, "a", "three")
	})
	t.Run("putting an old one back is noticed by a store that has read the new one", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		old := read(t, s, "a")
		put(t, s, "a", "two")
		s = openStore(t, s.dir)
		wantGet(t, s, "a", "two")
		write(t, s, "a", old)
		wantError(t, s, "a", ErrRollback)
	})
	t.Run("putting an old one back is not noticed after a restart, as documented", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		old := read(t, s, "a")
		put(t, s, "a", "two")
		write(t, s, "a", old)
		wantGet(t, openStore(t, s.dir), "a", "one")
	})
	t.Run("putting a deleted one back is noticed, and again after a new one was put", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		put(t, s, "a", "two")
		s = openStore(t, s.dir) // the store that deletes has not seen it before
		deleted := read(t, s, "a")
		if found, err := s.Delete(t.Context(), "escrow", "a"); !found || err != nil {
			t.Fatal(found, err)
		}
		write(t, s, "a", deleted)
		wantError(t, s, "a", ErrRollback)
		put(t, s, "a", "three")
		wantGet(t, s, "a", "three")
		write(t, s, "a", deleted)
		wantError(t, s, "a", ErrRollback)
		if found, err := s.Delete(t.Context(), "escrow", "a"); !found || err != nil {
			t.Errorf("deleting the one put back: found %v, %v", found, err)
		}
	})
	t.Run("a damaged one is not replaced, and can be deleted", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		raw := read(t, s, "a")
		raw[len(raw)-1] ^= 1
		write(t, s, "a", raw)
		s = openStore(t, s.dir)
		wantError(t, s, "a", ErrNotAuthentic)
		checkError(t, s.Put(t.Context(), "escrow", "a", nil), ErrNotAuthentic)
		if found, err := s.Delete(t.Context(), "escrow", "a"); !found || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
		put(t, s, "a", "two")
		wantGet(t, s, "a", "two")
	})
	t.Run("a huge one is refused without being read", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		if err := os.Truncate(s.path(ID{"escrow", "a"}), 1<<40); err != nil {
			t.Fatal(err)
		}
		wantError(t, s, "a", ErrMalformed)
	})
	t.Run("files of others are neither listed nor touched", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"ledger", "Other"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := openStore(t, dir)
		put(t, s, "a", "one")
		write(t, s, "not a name", nil)
		if names, err := s.List("escrow"); err != nil || !slices.Equal(names, []string{"a"}) {
			t.Errorf("found %q, %v", names, err)
		}
		s = openStore(t, dir)
		if raw := read(t, s, "not a name"); len(raw) != 0 {
			t.Error("touched")
		}
	})
	t.Run("leftovers of a crash are removed", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		put(t, s, "a", "one")
		write(t, s, ".tmp-0123", []byte("half"))
		s = openStore(t, s.dir)
		if _, err := os.Stat(s.path(ID{"escrow", ".tmp-0123"})); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("found %v, expected it to be gone", err)
		}
		wantGet(t, s, "a", "one")
	})
}

func TestABlobOfTheOtherModeIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	put(t, openStore(t, dir), "a", "one")
	keys := newKeys(ModeIntel)
	s, err := NewStore(dir, keys)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, s, "a", ErrMode)
	checkError(t, s.Put(t.Context(), "escrow", "a", []byte("two")), ErrMode)
	found, err := s.Delete(t.Context(), "escrow", "a")
	checkError(t, err, ErrMode)
	if found || keys.asked != 0 {
		t.Errorf("deleted is %v, a key was asked for %d times", found, keys.asked)
	}
	wantGet(t, openStore(t, dir), "a", "one")
	if _, err := NewStore(dir, newKeys("")); !errors.Is(err, ErrMode) {
		t.Errorf("found %v, expected %v", err, ErrMode)
	}
}

func TestNothingIsDeletedWhenTheHardwareFails(t *testing.T) {
	dir := t.TempDir()
	put(t, openStore(t, dir), "a", "one")
	keys := newKeys(ModeSimulated)
	s, err := NewStore(dir, keys)
	if err != nil {
		t.Fatal(err)
	}
	keys.err = errors.ErrUnsupported
	if found, err := s.Delete(t.Context(), "escrow", "a"); found || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("found %v, %v", found, err)
	}
	keys.err = nil
	wantGet(t, s, "a", "one")
}

func TestBadNamesNeverReachTheDisk(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, id := range []ID{{"escrow", "../../x"}, {"..", "x"}, {"escrow", ""}, {"", "x"}, {"escrow", ".tmp-1"}} {
		checkError(t, s.Put(t.Context(), id.Kind, id.Name, nil), ErrID)
		_, err := s.Get(t.Context(), id.Kind, id.Name)
		checkError(t, err, ErrID)
		_, err = s.Delete(t.Context(), id.Kind, id.Name)
		checkError(t, err, ErrID)
	}
	_, err := s.List("..")
	checkError(t, err, ErrID)
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("found %v, %v", entries, err)
	}
}

func TestConcurrentPutsLeaveOneOfThem(t *testing.T) {
	s := openStore(t, t.TempDir())
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 5 {
				if err := s.Put(t.Context(), "escrow", "a", []byte{byte(i)}); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(t.Context(), "escrow", "a"); err != nil || len(got) != 1 || got[0] > 7 {
					t.Errorf("found %x, %v", got, err)
				}
			}
		})
	}
	group.Wait()
	raw, err := os.ReadFile(s.path(ID{"escrow", "a"}))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := parse(raw); err != nil || b.generation != 40 {
		t.Errorf("found generation %d, %v; expected 40", b.generation, err)
	}
}
