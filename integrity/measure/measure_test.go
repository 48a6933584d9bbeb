package measure

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// later is a clock by which every file of a test has settled.
func later() time.Time { return time.Now().Add(time.Hour) }

// host lays out files under a root of its own: path to content, or to "-> target" for a symbolic link.
func host(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func measurer(t testing.TB, c Config) *Measurer {
	t.Helper()
	if c.Now == nil {
		c.Now = later
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// measured runs a measurement, checks that it can stand in a log, and returns the entries by name.
func measured(t testing.TB, m *Measurer) map[string]*v1.IntegrityEntry {
	t.Helper()
	entries, err := m.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hostlog.Build("host", time.Now(), entries, nil); err != nil {
		t.Fatal(err)
	}
	out := map[string]*v1.IntegrityEntry{}
	for _, e := range entries {
		out[e.GetName()] = e
	}
	return out
}

func check(t testing.TB, e *v1.IntegrityEntry, path, content string) {
	t.Helper()
	if sum := sha256.Sum256([]byte(content)); string(e.GetDigest()) != string(sum[:]) || e.GetPath() != path || e.GetSize() != uint64(len(content)) {
		t.Errorf("got %v, want the digest of %q at %s", e, content, path)
	}
}

func checkAbsent(t testing.TB, e *v1.IntegrityEntry, reason string) {
	t.Helper()
	if e == nil || !strings.Contains(e.GetAbsent(), reason) || len(e.GetDigest()) != 0 {
		t.Errorf("got %v, want an absence with %q", e, reason)
	}
}

func TestFilesAreHashedWithTheirResolvedPath(t *testing.T) {
	m := measurer(t, Config{
		Root: host(t, map[string]string{
			"/usr/bin/qemu-7":      "qemu",
			"/etc/alternatives/q":  "-> /usr/bin/qemu-7", // absolute: the host's root, not ours
			"/usr/bin/qemu":        "-> ../../etc/alternatives/q",
			"/bin":                 "-> usr/bin",
			"/usr/bin/escape":      "-> ../../../../../../usr/bin/qemu-7", // ".." stops at the host's root
			"/usr/bin/empty":       "",
			"/usr/local/bin/other": "other",
		}),
		Items: []Item{
			{Name: "vmm/qemu", Kind: KindFile, Path: "/bin/qemu"},
			{Name: "empty", Kind: KindFile, Path: "/usr/bin/empty"},
			{Name: "escape", Kind: KindFile, Path: "/usr/bin/escape"},
			{Name: "other", Kind: KindFile, Path: "/usr/local/lib/../bin//other"},
		},
	})
	got := measured(t, m)
	check(t, got["vmm/qemu"], "/usr/bin/qemu-7", "qemu")
	check(t, got["empty"], "/usr/bin/empty", "")
	check(t, got["escape"], "/usr/bin/qemu-7", "qemu")
	check(t, got["other"], "/usr/local/bin/other", "other")
	if got["vmm/qemu"].GetProvenance() != v1.Provenance_PROVENANCE_ENCLAVE_READ {
		t.Errorf("provenance %v", got["vmm/qemu"].GetProvenance())
	}
}

func TestWhatCannotBeMeasuredIsAbsentWithTheReason(t *testing.T) {
	root := host(t, map[string]string{
		"/dir/file": "x", "/large": strings.Repeat("x", 101), "/loop": "-> /loop", "/dangling": "-> /nowhere",
	})
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"nothing": "no such file", "dir": "not a regular file", "large": "101 bytes, more than the 100", "loop": "too many symbolic links",
		"dangling": "no such file", "dir/file/below": "no such file", "fifo": "not a regular file",
	}
	var items []Item
	for path := range want {
		items = append(items, Item{Name: path, Kind: KindFile, Path: "/" + path})
	}
	got := measured(t, measurer(t, Config{Root: root, Items: items, MaxFileSize: 100}))
	for path, reason := range want {
		checkAbsent(t, got[path], reason)
		if got[path].GetPath() != "/"+path {
			t.Errorf("path %q, want the one that was asked for", got[path].GetPath())
		}
	}
}

func TestAFileThatMayNotBeReadIsAbsentWithTheReason(t *testing.T) {
	if os.Geteuid() == 0 {
		if absence(&os.PathError{Op: "open", Path: "/boot/vmlinuz", Err: syscall.EACCES}) != "permission denied" {
			t.Error("EACCES is not an absence")
		}
		return // root reads everything
	}
	root := host(t, map[string]string{"/secret": "x"})
	if err := os.Chmod(filepath.Join(root, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	got := measured(t, measurer(t, Config{Root: root, Items: []Item{{Name: "secret", Kind: KindFile, Path: "/secret"}}}))
	checkAbsent(t, got["secret"], "permission denied")
}

func TestAnUnchangedFileIsReadOnceAndAChangedOneAgain(t *testing.T) {
	root := host(t, map[string]string{"/a": "first", "/b": "stays"})
	a := filepath.Join(root, "a")
	m := measurer(t, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}, {Name: "b", Kind: KindFile, Path: "/b"}}})
	read := func() int64 {
		before := m.hasher.read
		measured(t, m)
		return m.hasher.read - before
	}
	if got := read(); got != 10 {
		t.Errorf("read %d bytes at first, want 10", got)
	}
	if got := read(); got != 0 {
		t.Errorf("read %d bytes of unchanged files", got)
	}
	for name, change := range map[string]func() error{
		"replaced by a file of the same size": func() error {
			if err := os.WriteFile(a+".new", []byte("third"), 0o644); err != nil {
				return err
			}
			return os.Rename(a+".new", a)
		},
		"grown":                  func() error { return os.WriteFile(a, []byte("longer than before"), 0o644) },
		"touched":                func() error { return os.Chtimes(a, time.Unix(1, 0), time.Unix(1, 0)) },
		"its mode changed alone": func() error { return os.Chmod(a, 0o600) }, // ctime
	} {
		t.Run(name, func(t *testing.T) {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(a)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(); got != info.Size() {
				t.Errorf("read %d bytes, want the %d of the changed file", got, info.Size())
			}
		})
	}
	if n := len(m.hasher.cache); n != 2 {
		t.Errorf("%d digests kept for two files", n)
	}
}

// Two writes within one tick of the file system's clock look like one.
func TestADigestOfAFileThatWasWrittenJustNowIsNotKept(t *testing.T) {
	root := host(t, map[string]string{"/a": "first"})
	reading := false // an hour passes while the file is read: that does not make it older
	m := measurer(t, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}}, Now: func() time.Time {
		if reading {
			return later()
		}
		return time.Now()
	}})
	m.hasher.whileReading = func() { reading = true }
	measured(t, m)
	reading = false
	measured(t, m)
	if m.hasher.read != 10 || len(m.hasher.cache) != 0 {
		t.Errorf("%d bytes read, %d digests kept", m.hasher.read, len(m.hasher.cache))
	}
	// cp -p and tar set mtime back; ctime still tells.
	if err := os.Chtimes(filepath.Join(root, "a"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	reading = false
	measured(t, m)
	if len(m.hasher.cache) != 0 {
		t.Error("the digest of a file with an old mtime and a new ctime is kept")
	}
}

func TestAFileThatChangesWhileItIsHashedIsHashedAgainAFewTimes(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(f *os.File) error
		times  int
		want   error
	}{
		"once":             {func(f *os.File) error { _, err := f.WriteAt([]byte("X"), 0); return err }, 1, nil},
		"each time":        {func(f *os.File) error { _, err := f.WriteAt([]byte("X"), 0); return err }, 100, ErrChanged},
		"it keeps growing": {func(f *os.File) error { _, err := f.Write([]byte("X")); return err }, 1 << 20, ErrChanged},
		"it keeps shrinking": {func(f *os.File) error {
			info, err := f.Stat()
			if err != nil {
				return err
			}
			return f.Truncate(info.Size() - 1)
		}, 100, ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			root := host(t, map[string]string{"/a": strings.Repeat("a", 2*chunk+9)})
			f, err := os.OpenFile(filepath.Join(root, "a"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Seek(0, 2); err != nil {
				t.Fatal(err)
			}
			m := measurer(t, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}}})
			changes := 0
			m.hasher.whileReading = func() {
				if changes++; changes > tc.times {
					return
				}
				// An instant that no write of the test could have left, so that the clock's tick does not hide the change.
				err := errors.Join(tc.change(f), os.Chtimes(f.Name(), time.Time{}, time.Unix(int64(changes), 0)))
				if err != nil {
					t.Fatal(err)
				}
			}
			_, err = m.Measure(t.Context())
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestAMeasurementEndsWithItsContext(t *testing.T) {
	root := host(t, map[string]string{"/a": strings.Repeat("a", 4*chunk)})
	m := measurer(t, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}}})
	ctx, cancel := context.WithCancel(t.Context())
	m.hasher.whileReading = cancel
	if _, err := m.Measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
	if m.hasher.read > chunk {
		t.Errorf("read %d bytes after the end", m.hasher.read)
	}
	m.turn <- struct{}{} // another measurement is under way
	if _, err := m.Measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: got %v, want a cancelled context", err)
	}
}

func TestConcurrentMeasurementsHashEachFileOnce(t *testing.T) {
	root := host(t, map[string]string{"/a": strings.Repeat("a", 3*chunk)})
	m := measurer(t, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := m.Measure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if m.hasher.read != 3*chunk {
		t.Errorf("read %d bytes, want %d", m.hasher.read, 3*chunk)
	}
}

func TestAConfigurationThatContradictsItselfIsRefused(t *testing.T) {
	file := Item{Name: "a", Kind: KindFile, Path: "/a"}
	for name, c := range map[string]Config{
		"a relative root":              {Root: "host"},
		"a negative size":              {MaxFileSize: -1},
		"a name that is not one":       {Items: []Item{{Name: "A", Kind: KindFile, Path: "/a"}}},
		"a name given twice":           {Items: []Item{file, file}},
		"a name that modules take":     {Items: []Item{{Name: "k", Kind: KindKernelModules}, {Name: "k/kvm", Kind: KindFile, Path: "/a"}}},
		"a kind that does not exist":   {Items: []Item{{Name: "a", Kind: "directory", Path: "/a"}}},
		"no kind":                      {Items: []Item{{Name: "a", Path: "/a"}}},
		"a file without a path":        {Items: []Item{{Name: "a", Kind: KindFile}}},
		"a relative path":              {Items: []Item{{Name: "a", Kind: KindFile, Path: "a"}}},
		"a kernel image with a path":   {Items: []Item{{Name: "a", Kind: KindKernelImage, Path: "/a"}}},
		"modules with a path":          {Items: []Item{{Name: "a", Kind: KindKernelModules, Path: "/a"}}},
		"module names beyond a name's": {Items: []Item{{Name: strings.Repeat("a", 127), Kind: KindKernelModules}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(c); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v, want ErrConfig", err)
			}
		})
	}
}

func benchmark(b *testing.B, now func() time.Time, want int64) {
	root := host(b, map[string]string{"/a": strings.Repeat("a", 50<<20)})
	m := measurer(b, Config{Root: root, Items: []Item{{Name: "a", Kind: KindFile, Path: "/a"}}, Now: now})
	if _, err := m.Measure(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(50 << 20)
	b.ReportAllocs()
	before, n := m.hasher.read, int64(0)
	for b.Loop() {
		n++
		if _, err := m.Measure(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	if got := m.hasher.read - before; got != n*want {
		b.Errorf("read %d bytes in %d measurements", got, n)
	}
}

func BenchmarkMeasure50MiBUncached(b *testing.B) {
	benchmark(b, func() time.Time { return time.Unix(0, 0) }, 50<<20) // nothing ever settles
}

func BenchmarkMeasure50MiBCached(b *testing.B) { benchmark(b, later, 0) }
