package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/durable"
	"github.com/safeconduct/safeconduct/crypto/durable/crashdisk"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPutReplacesAFileWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	must(t, durable.MakeDir(durable.Disk{}, dir))
	for _, content := range []string{"a first content", "another"} {
		must(t, durable.Put(durable.Disk{}, dir, "file", []byte(content)))
		got, err := durable.Disk{}.Read(filepath.Join(dir, "file"), 1000)
		if err != nil || string(got) != content {
			t.Errorf("found %q, %v; expected %q", got, err, content)
		}
	}
	if names, err := (durable.Disk{}).List(dir); err != nil || !slices.Equal(names, []string{"file"}) {
		t.Errorf("found %q, %v", names, err)
	}
	for path, mode := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, filepath.Join(dir, "file"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: found %v, %v; expected %v", path, info.Mode(), err, mode)
		}
	}
	if got, err := (durable.Disk{}).Read(filepath.Join(dir, "file"), 3); err != nil || string(got) != "ano" {
		t.Errorf("a limited read: found %q, %v", got, err)
	}
}

func TestSweepTakesWhatACrashedWriterLeftAndNothingElse(t *testing.T) {
	d := crashdisk.New()
	must(t, durable.MakeDir(d, "/dir"))
	must(t, durable.Put(d, "/dir", "old", []byte("old")))
	d.Ops, d.CrashAt = 0, 2 // the file is there, its content is not
	if err := durable.Put(d, "/dir", "new", []byte("new")); !errors.Is(err, crashdisk.ErrCrashed) {
		t.Fatalf("found %v", err)
	}
	after := d.Copy()
	if names, err := after.List("/dir"); err != nil || len(names) != 2 {
		t.Fatalf("found %q, %v; expected the old file and half of the new one", names, err)
	}
	must(t, durable.Sweep(after, "/dir"))
	if names, err := after.List("/dir"); err != nil || !slices.Equal(names, []string{"old"}) {
		t.Errorf("found %q, %v", names, err)
	}
}

func TestDiscardNeedsNoFile(t *testing.T) {
	d := crashdisk.New()
	must(t, durable.Discard(d, "/none"))
	must(t, durable.Put(d, "/", "one", nil))
	d.FailAt = d.Ops + 1
	if err := durable.Discard(d, "/one"); !errors.Is(err, crashdisk.ErrFault) {
		t.Errorf("found %v, expected the disk's fault", err)
	}
}
