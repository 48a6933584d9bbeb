package place

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestHelperIsPlacedReplacedAndRemoved(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	from, dir := filepath.Join(root, "program"), filepath.Join(root, "helper")
	for _, version := range []string{"one", "one", "two"} {
		write(t, from, version)
		if err := Helper(from, dir, []byte("log_level: INFO\n")); err != nil {
			t.Fatal(err)
		}
		if got := read(t, filepath.Join(dir, LinkName)); got != version {
			t.Errorf("swtpm is %q, expected %q", got, version)
		}
	}
	if err := RemoveHelper(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left behind: %v", err)
	}
	if err := RemoveHelper(dir); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}

func TestAHelperThatRunsKeepsItsFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	from, dir := filepath.Join(root, "program"), filepath.Join(root, "helper")
	write(t, from, "one")
	if err := Helper(from, dir, nil); err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(filepath.Join(dir, HelperName))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	write(t, from, "two")
	if err := Helper(from, dir, nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3)
	if _, err := running.Read(b); err != nil || string(b) != "one" {
		t.Errorf("the open file has %q, %v", b, err)
	}
}

func TestADirectoryOfSomebodyElseIsLeftAlone(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	from, dir := filepath.Join(root, "program"), filepath.Join(root, "bin")
	write(t, from, "helper")
	write(t, filepath.Join(dir, LinkName), "the real swtpm")
	if err := Helper(from, dir, nil); !errors.Is(err, ErrNotOurs) {
		t.Errorf("placing: %v", err)
	}
	if err := RemoveHelper(dir); !errors.Is(err, ErrNotOurs) {
		t.Errorf("removing: %v", err)
	}
	if got := read(t, filepath.Join(dir, LinkName)); got != "the real swtpm" {
		t.Errorf("swtpm is now %q", got)
	}
}

func TestOtherFilesBesideTheHelperStay(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	from, dir := filepath.Join(root, "program"), filepath.Join(root, "helper")
	write(t, from, "helper")
	if err := Helper(from, dir, nil); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "notes"), "mine")
	if err := RemoveHelper(dir); err == nil {
		t.Error("a directory with other files was removed")
	}
	if got := read(t, filepath.Join(dir, "notes")); got != "mine" {
		t.Errorf("notes are %q", got)
	}
}

func host(root string) install.Host {
	return install.Host{Root: root, Run: func(context.Context, string, ...string) (string, error) { return "", nil }}
}

func TestHelperOfAHostsOwnLibvirt(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, filepath.Join(root, "usr/bin/swtpm"), "the real swtpm")
	write(t, filepath.Join(root, "usr/lib/systemd/system/libvirtd.service"), "[Service]\n")
	h := host(root)
	for range 2 {
		if err := InstallOnHost(t.Context(), []byte("helper"), h, helperMarker); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := h.Installed(); m != install.Path || err != nil {
		t.Errorf("installed by %q, %v", m, err)
	}
	if err := RemoveFromHost(t.Context(), h, helperMarker); err != nil {
		t.Fatal(err)
	}
	var left []string
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			left = append(left, strings.TrimPrefix(p, root))
		}
		return nil
	})
	if got := strings.Join(left, " "); got != "/usr/bin/swtpm /usr/lib/systemd/system/libvirtd.service" {
		t.Errorf("left behind: %s", got)
	}
}

func TestAHelperOfAPackageIsNotReplaced(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, filepath.Join(root, install.Helper), "the package's")
	if err := InstallOnHost(t.Context(), []byte("ours"), host(root), helperMarker); !errors.Is(err, ErrNotOurs) {
		t.Errorf("%v", err)
	}
	if err := RemoveFromHost(t.Context(), host(root), helperMarker); err != nil {
		t.Error(err)
	}
	if got := read(t, filepath.Join(root, install.Helper)); got != "the package's" {
		t.Errorf("the helper is now %q", got)
	}
}

func TestDirectoryHasOwnerAndMode(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	for _, mode := range []fs.FileMode{0o700, 0o775 | fs.ModeSetgid} {
		if err := Directory(dir, os.Getuid(), os.Getgid(), mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil || info.Mode() != mode|fs.ModeDir {
			t.Errorf("mode %v, %v; expected %v", info.Mode(), err, mode)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := Directory(link, os.Getuid(), os.Getgid(), 0o700); err == nil {
		t.Error("a link was taken for a directory")
	}
}

func TestBadArgumentsAreRefused(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no mode":                     {"directories", "1:1:/run/safeconduct"},
		"a relative path":             {"directories", "1:1:0750:run"},
		"the root directory":          {"directories", "1:1:0750:/"},
		"the root directory, dressed": {"directories", "1:1:0750:/run/.."},
		"a user's name":               {"directories", "nova:1:0750:/run/safeconduct"},
		"set user id":                 {"directories", "1:1:4750:/run/safeconduct"},
		"a mode that is not octal":    {"directories", "1:1:0790:/run/safeconduct"},
		"no method":                   {"helper"},
		"both methods":                {"helper", "--directory", "/a", "--host", "/b"},
		"a tree that is not ours":     {"clean", "--tree", "/var/lib/nova"},
		"a tree, dressed":             {"clean", "--tree", "/var/lib/safeconduct/.."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := Command()
			c.SetArgs(args)
			if err := c.ExecuteContext(t.Context()); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func FuzzDirectory(f *testing.F) {
	f.Add("64061:64061:0750:/run/safeconduct")
	f.Add("0:0:2775:/a:b")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDirectory(s)
		if err == nil && (!filepath.IsAbs(d.path) || d.path == "/" || d.uid < 0 || d.gid < 0) {
			t.Errorf("%q gave %+v", s, d)
		}
	})
}

func TestTreeOfOursIsRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "safeconduct")
	write(t, filepath.Join(dir, "node.sock"), "")
	c := Command()
	c.SetArgs([]string{"clean", "--tree", dir})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

func TestAwaitDaemonSet(t *testing.T) {
	t.Parallel()
	calls := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.Header.Get("Authorization") != "Bearer secret" || r.URL.Path != "/apis/apps/v1/namespaces/openstack/daemonsets/clean" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		var d daemonSet
		d.Metadata.Generation, d.Status.Desired = 2, 3
		switch calls {
		case 1:
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		case 2: // an old observation
			d.Status.Observed, d.Status.Ready = 1, 3
		case 3:
			d.Status.Observed, d.Status.Ready = 2, 2
		default:
			d.Status.Observed, d.Status.Ready = 2, 3
		}
		_ = json.NewEncoder(w).Encode(d)
	}))
	defer s.Close()
	c := Cluster{URL: s.URL, Token: "secret", Client: s.Client()}
	if err := c.AwaitDaemonSet(t.Context(), "openstack", "clean", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if calls != 4 {
		t.Errorf("%d calls, expected 4", calls)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	calls = 1
	if err := c.AwaitDaemonSet(ctx, "openstack", "clean", time.Hour); err == nil || !strings.Contains(err.Error(), "openstack/clean") {
		t.Errorf("%v", err)
	}
}

func TestOutsideOfAPodThereIsNoCluster(t *testing.T) {
	t.Parallel()
	if _, err := InCluster(t.TempDir(), func(string) string { return "" }); err == nil {
		t.Error("found one")
	}
}
