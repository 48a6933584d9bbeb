package measure

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// hostWith makes a file system for a Measurer; a name that ends in "/" is a directory.
func hostWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		put(t, root, name, content)
	}
	return root
}

func put(t *testing.T, root, name, content string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func measureAll(t *testing.T, root string, items ...Item) map[string]*v1.IntegrityEntry {
	t.Helper()
	m, err := New(Config{Root: root, Items: items})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := m.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*v1.IntegrityEntry{}
	for _, e := range entries {
		out[e.GetName()] = e
	}
	return out
}

func TestTheCommandLineIsMeasuredAndReadable(t *testing.T) {
	root := hostWith(t, map[string]string{"proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ima_policy=tcb\x01\n"})
	e := measureAll(t, root, Item{Name: "kernel/cmdline", Kind: KindKernelCommandLine})["kernel/cmdline"]
	if e.GetText() != "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ima_policy=tcb?" || len(e.GetDigest()) != 32 || e.GetInformation() {
		t.Errorf("got %v", e)
	}
	put(t, root, "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1\n")
	if other := measureAll(t, root, Item{Name: "kernel/cmdline", Kind: KindKernelCommandLine})["kernel/cmdline"]; bytes.Equal(e.GetDigest(), other.GetDigest()) {
		t.Error("another command line has the same digest")
	}
	if e := measureAll(t, t.TempDir(), Item{Name: "kernel/cmdline", Kind: KindKernelCommandLine})["kernel/cmdline"]; e.GetAbsent() == "" {
		t.Errorf("without /proc: %v", e)
	}
}

func TestTheProcessorIsDescribedForInformation(t *testing.T) {
	root := hostWith(t, map[string]string{
		"proc/cpuinfo": "processor\t: 0\nmodel name\t: A CPU\nmicrocode\t: 0x2b000603\nflags\t\t: sgx\n\nprocessor\t: 1\nmicrocode\t: 0x1\n",
		"sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
		"sys/devices/system/cpu/vulnerabilities/mds":      "Vulnerable\n",
	})
	e := measureAll(t, root, Item{Name: "cpu", Kind: KindCPU})["cpu"]
	if want := "model name: A CPU; microcode: 0x2b000603; mds: Vulnerable; meltdown: Not affected"; e.GetText() != want || !e.GetInformation() {
		t.Errorf("got %v", e)
	}
	if _, err := hostlog.Build("h", time.Now(), []*v1.IntegrityEntry{e}, nil); err != nil {
		t.Errorf("the entry has no place in a log: %v", err)
	}
}

func TestATreeIsOneDigestOfEverythingInIt(t *testing.T) {
	files := map[string]string{"opt/nova/a.py": "a", "opt/nova/sub/b.py": "bb"}
	item := Item{Name: "nova/driver", Kind: KindTree, Path: "/opt/nova"}
	root := hostWith(t, files)
	first := measureAll(t, root, item)["nova/driver"]
	if first.GetSize() != 3 || len(first.GetDigest()) != 32 {
		t.Fatalf("got %v", first)
	}
	if again := measureAll(t, hostWith(t, files), item)["nova/driver"]; !bytes.Equal(first.GetDigest(), again.GetDigest()) {
		t.Error("the same tree elsewhere has another digest")
	}
	for name, change := range map[string]func(root string) error{
		"a changed file": func(r string) error { return os.WriteFile(filepath.Join(r, "opt/nova/a.py"), []byte("x"), 0o600) },
		"a new file":     func(r string) error { return os.WriteFile(filepath.Join(r, "opt/nova/c.pyc"), nil, 0o600) },
		"a new link":     func(r string) error { return os.Symlink("/tmp/evil.py", filepath.Join(r, "opt/nova/c.py")) },
		"a removed file": func(r string) error { return os.Remove(filepath.Join(r, "opt/nova/sub/b.py")) },
		"a renamed file": func(r string) error {
			return os.Rename(filepath.Join(r, "opt/nova/a.py"), filepath.Join(r, "opt/nova/z.py"))
		},
	} {
		changed := hostWith(t, files)
		if err := change(changed); err != nil {
			t.Fatal(err)
		}
		if e := measureAll(t, changed, item)["nova/driver"]; bytes.Equal(first.GetDigest(), e.GetDigest()) {
			t.Errorf("%s does not change the digest", name)
		}
	}
	for name, path := range map[string]string{"nothing there": "/opt/none", "a file": "/opt/nova/a.py"} {
		if e := measureAll(t, root, Item{Name: "x", Kind: KindTree, Path: path})["x"]; e.GetAbsent() == "" {
			t.Errorf("%s: %v", name, e)
		}
	}
}

// ldd lists what the host's own loader would load for a program.
func ldd(t *testing.T, program string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", program).Output()
	if err != nil {
		t.Skipf("ldd %s: %v", program, err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); !strings.HasPrefix(name, "linux-vdso") {
			names = append(names, libraryName("p", name))
		}
	}
	slices.Sort(names)
	return names
}

func TestAProgramIsMeasuredWithWhatTheLoaderWouldLoad(t *testing.T) {
	for _, program := range []string{"/bin/sh", "/usr/bin/qemu-system-x86_64", "/usr/bin/swtpm", "/usr/bin/git"} {
		t.Run(filepath.Base(program), func(t *testing.T) {
			if _, err := os.Stat(program); err != nil {
				t.Skip(err)
			}
			want := ldd(t, program)
			var got []string
			for name, e := range measureAll(t, "/", Item{Name: "p", Kind: KindProgram, Path: program}) {
				if e.GetAbsent() != "" {
					t.Errorf("%s is absent: %s", name, e.GetAbsent())
				}
				if name != "p" {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("measured %v\nthe loader says %v", got, want)
			}
		})
	}
}

func TestAChangedOrMissingLibraryShows(t *testing.T) {
	real := measureAll(t, "/", Item{Name: "p", Kind: KindProgram, Path: "/bin/sh"})
	if len(real) < 2 {
		t.Skip("/bin/sh is static here")
	}
	root := t.TempDir()
	var library string
	for name, e := range real {
		raw, err := os.ReadFile(e.GetPath())
		if err != nil {
			t.Fatal(err)
		}
		put(t, root, e.GetPath(), string(raw))
		if strings.Contains(name, "libc.") {
			library = name
		}
	}
	// The loader's path to the interpreter and to the libraries goes over /lib64 and /lib, which are links.
	for _, link := range []string{"lib", "lib64", "bin"} {
		_ = os.Symlink("usr/"+link, filepath.Join(root, link)) // already there where they are no links
	}
	item := Item{Name: "p", Kind: KindProgram, Path: real["p"].GetPath()}
	same := measureAll(t, root, item)
	if len(same) != len(real) || library == "" {
		t.Fatalf("a copy has %d entries, not %d", len(same), len(real))
	}
	put(t, root, real[library].GetPath(), "\x7fELF not a library")
	if e := measureAll(t, root, item)[library]; bytes.Equal(e.GetDigest(), real[library].GetDigest()) || len(e.GetDigest()) == 0 {
		t.Errorf("a changed library: %v", e)
	}
	if err := os.Remove(filepath.Join(root, real[library].GetPath())); err != nil {
		t.Fatal(err)
	}
	if e := measureAll(t, root, item)[library]; e.GetAbsent() == "" {
		t.Errorf("a missing library: %v", e)
	}
}

func TestAScriptHasNoLibraries(t *testing.T) {
	root := hostWith(t, map[string]string{"usr/bin/x": "#!/bin/sh\n"})
	if got := measureAll(t, root, Item{Name: "p", Kind: KindProgram, Path: "/usr/bin/x"}); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestTheLoadersConfigurationAndRunPathsAreFollowed(t *testing.T) {
	root := hostWith(t, map[string]string{
		"etc/ld.so.conf":            "include /etc/ld.so.conf.d/*.conf\n# a comment\n/opt/one\n",
		"etc/ld.so.conf.d/two.conf": "/opt/two # here\n",
	})
	m, err := New(Config{Root: root, Items: nil})
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := m.loaderDirs()
	if err != nil || !slices.Equal(dirs, []string{"/opt/one", "/opt/two"}) {
		t.Errorf("%v, %v", dirs, err)
	}
}

func TestNamesThatAProgramTakesAreRefused(t *testing.T) {
	_, err := New(Config{Items: []Item{{Name: "p", Kind: KindProgram, Path: "/p"}, {Name: "p/lib/libc.so.6", Kind: KindFile, Path: "/x"}}})
	if !errors.Is(err, ErrConfig) {
		t.Errorf("got %v", err)
	}
	for _, kind := range []Kind{KindKernelCommandLine, KindCPU} {
		if _, err := New(Config{Items: []Item{{Name: "x", Kind: kind, Path: "/x"}}}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s with a path: %v", kind, err)
		}
	}
	for _, kind := range []Kind{KindProgram, KindTree} {
		if _, err := New(Config{Items: []Item{{Name: "x", Kind: kind, Path: "x"}}}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s with a relative path: %v", kind, err)
		}
	}
}

func FuzzObject(f *testing.F) {
	if raw, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(raw[:min(len(raw), 64<<10)])
	}
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		root := t.TempDir()
		put(t, root, "p", string(raw))
		m, err := New(Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.object("/p"); err != nil {
			t.Fatal(err)
		}
	})
}
