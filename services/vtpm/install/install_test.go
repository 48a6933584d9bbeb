package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const id = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

// fake is a host in a directory: real files, real dpkg if it is there, and a systemctl that is counted.
type fake struct {
	Host
	t       *testing.T
	reloads int
	fail    string // a program that fails
}

func newFake(t *testing.T, systemd bool) *fake {
	t.Helper()
	f := &fake{t: t}
	f.Host = Host{Root: t.TempDir(), Run: func(ctx context.Context, name string, args ...string) (string, error) {
		switch name {
		case f.fail:
			return "", fmt.Errorf("%s: it fails", name)
		case "systemctl":
			f.reloads++
			return "", nil
		}
		return Local().Run(ctx, name, args...)
	}}
	f.write(Helper, "the helper", 0o755)
	f.write(swtpm, "the real swtpm", 0o755)
	f.write(swtpmSetup, "the real swtpm_setup", 0o755)
	if systemd {
		f.write("/lib/systemd/system/libvirtd.service", "[Service]\n", 0o644)
		f.write("/usr/lib/systemd/system/virtqemud.service", "[Service]\n", 0o644)
		if err := os.MkdirAll(f.path("/run/systemd/system"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fake) write(p, text string, mode os.FileMode) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path(p)), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.path(p), []byte(text), mode); err != nil {
		f.t.Fatal(err)
	}
}

// dpkg gives the host a package database in which the package swtpm owns swtpm and swtpm_setup.
func (f *fake) dpkg() {
	f.t.Helper()
	if _, err := exec.LookPath("dpkg-divert"); err != nil {
		f.t.Skip("this is no Debian: there is no dpkg-divert")
	}
	f.write("/var/lib/dpkg/status", "Package: swtpm\nStatus: install ok installed\nMaintainer: x <x@example.org>\nArchitecture: amd64\nVersion: 1\nDescription: x\n\n", 0o644)
	f.write("/var/lib/dpkg/info/swtpm.list", "/.\n/usr\n/usr/bin\n/usr/bin/swtpm\n/usr/bin/swtpm_setup\n", 0o644)
	f.write("/var/lib/dpkg/info/format", "1\n", 0o644)
	if err := os.MkdirAll(f.path("/var/lib/dpkg/updates"), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// tree is every file of the host, with what is in it, but for what dpkg remembers.
func (f *fake) tree() map[string]string {
	f.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(f.path("/"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimPrefix(p, f.Root)
		if strings.HasPrefix(rel, "/var/lib/dpkg") {
			return nil
		}
		if target, err := os.Readlink(p); err == nil {
			out[rel] = "-> " + target
			return nil
		}
		raw, err := os.ReadFile(p)
		out[rel] = string(raw)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fake) installed(want Method) {
	f.t.Helper()
	if got, err := f.Installed(); err != nil || got != want {
		f.t.Errorf("installed: %s, %v, expected %s", got, err, want)
	}
}

func TestEachMethodIsIdempotentAndLeavesNothingBehind(t *testing.T) {
	for _, method := range []Method{Path, Divert} {
		t.Run(string(method), func(t *testing.T) {
			f := newFake(t, method == Path)
			f.dpkg()
			if got := f.Choose(); got != method {
				t.Errorf("the host's method is %s", got)
			}
			before := f.tree()
			for i, want := range []bool{true, false} {
				if changed, err := f.Install(t.Context(), method); err != nil || changed != want {
					t.Fatalf("installation %d: %t, %v", i+1, changed, err)
				}
				f.installed(method)
			}
			for _, program := range []string{swtpm, swtpmSetup} {
				place := map[Method]string{Path: wrapper(program), Divert: program}[method]
				if ours, err := f.ours(place); err != nil || !ours {
					t.Errorf("%s is not the helper (%v)", place, err)
				}
			}
			for i, want := range []bool{true, false} {
				if changed, err := f.Uninstall(t.Context()); err != nil || changed != want {
					t.Fatalf("uninstallation %d: %t, %v", i+1, changed, err)
				}
				f.installed(None)
			}
			if after := f.tree(); !maps.Equal(after, before) {
				t.Errorf("what is left is\n%v, expected\n%v", after, before)
			}
			if method == Path && f.reloads != 2 {
				t.Errorf("systemd was reloaded %d times, expected 2", f.reloads)
			}
		})
	}
}

func TestWhatCannotBeUndoneIsRefusedAndChangesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		method  Method
		prepare func(*fake)
		want    error
	}{
		"another drop-in of our name": {Path, func(f *fake) { f.write("/etc/systemd/system/libvirtd.service.d/"+DropIn, "[Service]\n", 0o644) }, ErrCannotUndo},
		"another swtpm in our place":  {Path, func(f *fake) { f.write(wrapper(swtpm), "somebody's", 0o755) }, ErrCannotUndo},
		"no systemd unit": {Path, func(f *fake) {
			_ = os.RemoveAll(f.path("/lib"))
			_ = os.RemoveAll(f.path("/usr/lib/systemd"))
		}, ErrMissing},
		"no helper":        {Path, func(f *fake) { _ = os.Remove(f.path(Helper)) }, ErrMissing},
		"no swtpm":         {Divert, func(f *fake) { _ = os.Remove(f.path(swtpm)) }, ErrMissing},
		"the other method": {Divert, func(f *fake) { _, _ = f.Install(context.Background(), Path) }, ErrOtherMethod},
		"a swtpm that no package owns": {Divert, func(f *fake) {
			f.write("/var/lib/dpkg/info/swtpm.list", "/.\n", 0o644)
		}, ErrCannotUndo},
		"a swtpm that is a link": {Divert, func(f *fake) {
			_ = os.Remove(f.path(swtpm))
			_ = os.Symlink("/opt/swtpm", f.path(swtpm))
		}, ErrCannotUndo},
		"another's diversion": {Divert, func(f *fake) {
			if _, err := f.Host.dpkg(context.Background(), "dpkg-divert", "--package", "other", "--divert", "/usr/bin/swtpm.other", "--no-rename", "--add", swtpm); err != nil {
				f.t.Fatal(err)
			}
		}, ErrCannotUndo},
		"a file under the diverted name":                {Divert, func(f *fake) { f.write(diverted(swtpm), "x", 0o755) }, ErrCannotUndo},
		"another swtpm_setup in our place":              {Path, func(f *fake) { f.write(wrapper(swtpmSetup), "somebody's", 0o755) }, ErrCannotUndo},
		"a file under the diverted name of swtpm_setup": {Divert, func(f *fake) { f.write(diverted(swtpmSetup), "x", 0o755) }, ErrCannotUndo},
		"an AppArmor profile by path": {Divert, func(f *fake) {
			f.write("/sys/module/apparmor/parameters/enabled", "Y\n", 0o644)
			f.write("/etc/apparmor.d/usr.bin.swtpm", "profile swtpm /usr/bin/swtpm {}", 0o644)
		}, ErrCannotUndo},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, true)
			f.dpkg()
			tc.prepare(f)
			before := f.tree()
			if changed, err := f.Install(t.Context(), tc.method); changed || !errors.Is(err, tc.want) {
				t.Errorf("%t, %v, expected %v", changed, err, tc.want)
			}
			if after := f.tree(); !maps.Equal(after, before) {
				t.Errorf("it changed\n%v into\n%v", before, after)
			}
		})
	}
}

func TestAnInstallationThatFailsInTheMiddleIsTakenBack(t *testing.T) {
	for _, method := range []Method{Path, Divert} {
		f := newFake(t, method == Path)
		f.dpkg()
		f.fail = map[Method]string{Path: "systemctl", Divert: "dpkg-divert"}[method]
		before := f.tree()
		if _, err := f.Install(t.Context(), method); err == nil {
			t.Errorf("%s: no error", method)
		}
		if after := f.tree(); !maps.Equal(after, before) {
			t.Errorf("%s: what is left is\n%v, expected\n%v", method, after, before)
		}
	}
}

func TestAnInstallationOfBeforeSwtpmSetupIsCompletedAndTakenBack(t *testing.T) {
	for _, method := range []Method{Path, Divert} {
		f := newFake(t, method == Path)
		f.dpkg()
		before := f.tree()
		_ = os.Remove(f.path(swtpmSetup))
		if changed, err := f.Install(t.Context(), method); err != nil || !changed {
			t.Fatalf("%s: %t, %v", method, changed, err)
		}
		f.write(swtpmSetup, "the real swtpm_setup", 0o755) // its package is installed later
		for i, want := range []bool{true, false} {
			if changed, err := f.Install(t.Context(), method); err != nil || changed != want {
				t.Fatalf("%s, again %d: %t, %v", method, i+1, changed, err)
			}
		}
		if _, err := f.Uninstall(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := f.tree(); !maps.Equal(after, before) {
			t.Errorf("%s: what is left is\n%v, expected\n%v", method, after, before)
		}
	}
}

// process puts a process into the host's /proc.
func (f *fake) process(pid int, comm, exe, path string, args ...string) {
	dir := fmt.Sprintf("/proc/%d", pid)
	f.write(dir+"/comm", comm+"\n", 0o600)
	f.write(dir+"/cmdline", strings.Join(args, "\x00")+"\x00", 0o600)
	f.write(dir+"/environ", "HOME=/root\x00PATH="+path+"\x00", 0o600)
	if err := unix.Symlink(exe, f.path(dir+"/exe")); err != nil {
		f.t.Fatal(err)
	}
}

func TestTheStatusTellsWhoRunsBehindTheHelperAndWhoDoesNot(t *testing.T) {
	f := newFake(t, true)
	if _, err := f.Install(t.Context(), Path); err != nil {
		t.Fatal(err)
	}
	started := func(dir, instance string) []string {
		return []string{dir + "/swtpm", "socket", "--ctrl", "type=unixio,path=/s,mode=0600", "--tpmstate", "dir=/var/lib/libvirt/swtpm/" + instance + "/tpm2", "--tpm2"}
	}
	f.process(10, "libvirtd", "/usr/sbin/libvirtd", stockPath, "/usr/sbin/libvirtd")
	f.process(11, "virtqemud", "/usr/sbin/virtqemud", Directory+":"+stockPath, "/usr/sbin/virtqemud")
	f.process(20, "swtpm", Helper, "", started(Directory, id)...)
	f.process(21, "swtpm", swtpm, "", "/usr/bin/swtpm", "socket", "--tpmstate", "dir=/x/"+id, "--ctrl", "type=unixio,clientfd=9")
	f.process(22, "swtpm", swtpm, "", started("/usr/bin", "0c6f1d3e-5b1f-4d62-9b0a-000000000001")...)
	f.process(23, "bash", "/bin/bash", "", "/bin/bash", "-c", "swtpm socket")
	s, err := f.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if s.Method != Path || s.Effective() {
		t.Errorf("%+v: libvirtd was not restarted", s)
	}
	slices.SortFunc(s.Daemons, func(a, b Daemon) int { return a.PID - b.PID })
	if len(s.Daemons) != 2 || s.Daemons[0].Helper || s.Daemons[0].SWTPM != swtpm || !s.Daemons[1].Helper {
		t.Errorf("daemons: %+v", s.Daemons)
	}
	if len(s.Behind) != 1 || s.Behind[0] != (VM{id, 20}) || len(s.Bare) != 1 || s.Bare[0].PID != 22 {
		t.Errorf("behind %+v, bare %+v", s.Behind, s.Bare)
	}
}
