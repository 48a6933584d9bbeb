package measure

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

const release = "6.1.0-56-cloud-amd64"

// kernelOf measures image and modules of a host with these files beside its release.
func kernelOf(t *testing.T, files map[string]string) map[string]*v1.IntegrityEntry {
	t.Helper()
	all := maps.Clone(files)
	if _, ok := all["/proc/sys/kernel/osrelease"]; !ok {
		all["/proc/sys/kernel/osrelease"] = release + "\n"
	}
	return measured(t, measurer(t, Config{Root: host(t, all), Items: []Item{
		{Name: "kernel/image", Kind: KindKernelImage}, {Name: "kernel/modules", Kind: KindKernelModules},
	}}))
}

func TestTheImageOfTheRunningReleaseIsMeasured(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		path  string
	}{
		"in /boot": {map[string]string{
			"/boot/vmlinuz-" + release: "image", "/boot/vmlinuz-6.1.0-1": "older", "/usr/lib/modules/" + release + "/vmlinuz": "copy",
		}, "/boot/vmlinuz-" + release},
		"beside its modules": {map[string]string{
			"/boot/vmlinuz-6.1.0-1": "older", "/usr/lib/modules/" + release + "/vmlinuz": "image",
		}, "/usr/lib/modules/" + release + "/vmlinuz"},
	} {
		t.Run(name, func(t *testing.T) { check(t, kernelOf(t, tc.files)["kernel/image"], tc.path, "image") })
	}
}

func TestAHostWithoutAnImageSaysWhereItWasLookedFor(t *testing.T) {
	got := kernelOf(t, map[string]string{"/boot/vmlinuz-6.1.0-1": "older"})["kernel/image"]
	checkAbsent(t, got, "/boot/vmlinuz-"+release+": no such file; /usr/lib/modules/"+release+"/vmlinuz: no such file")
}

func TestAReleaseThatCannotStandInAPathIsNotUsed(t *testing.T) {
	for name, osrelease := range map[string]string{
		"a path": "../../tmp/evil", "a path within": "6/../../tmp/evil", "hidden": ".6.1", "empty": "\n", "with a space": "6.1 x", "endless": strings.Repeat("6", 129),
	} {
		t.Run(name, func(t *testing.T) {
			got := kernelOf(t, map[string]string{"/proc/sys/kernel/osrelease": osrelease, "/tmp/evil": "x"})
			checkAbsent(t, got["kernel/image"], "running release unknown")
			checkAbsent(t, got["kernel/modules"], "kernel release not usable")
		})
	}
}

func TestAHostThatTellsNoReleaseSaysSo(t *testing.T) {
	m := measurer(t, Config{Root: t.TempDir(), Items: []Item{{Name: "kernel/image", Kind: KindKernelImage}, {Name: "kernel/modules", Kind: KindKernelModules}}})
	for name, e := range measured(t, m) {
		checkAbsent(t, e, "running release unknown: /proc/sys/kernel/osrelease: no such file")
		if name != e.GetName() {
			t.Errorf("entry %s under %s", e.GetName(), name)
		}
	}
}

func TestModulesAreMeasuredAsTheKernelHasThem(t *testing.T) {
	const tree = "/lib/modules/" + release
	dep := strings.Join([]string{
		"kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz",
		"kernel/arch/x86/kvm/kvm-intel.ko.zst: kernel/arch/x86/kvm/kvm.ko.xz",
		"kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko.xz",
		"kernel/drivers/vhost/vhost.ko:",
	}, "\n")
	base := map[string]string{
		"/lib":                             "-> usr/lib",
		"/usr" + tree + "/modules.dep":     dep,
		"/usr" + tree + "/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
		"/usr" + tree + "/kernel/arch/x86/kvm/kvm.ko.xz":        "kvm",
		"/usr" + tree + "/kernel/arch/x86/kvm/kvm-intel.ko.zst": "kvm-intel",
		"/usr" + tree + "/kernel/arch/x86/kvm/kvm-amd.ko":       "kvm-amd",
	}
	for name, tc := range map[string]struct {
		files  map[string]string
		digest map[string]string // module to content
		absent map[string]string // name of the entry to reason
	}{
		"loaded ones only, whatever their compression": {
			files:  map[string]string{"/proc/modules": "kvm_intel 1 0 - Live 0x0\nkvm 1 1 kvm_intel, Live 0x0\next4 1 0 - Live 0x0\n"},
			digest: map[string]string{"kvm": "kvm", "kvm_intel": "kvm-intel"},
		},
		"loaded according to /sys alone": {
			files:  map[string]string{"/sys/module/kvm/initstate": "live\n"},
			digest: map[string]string{"kvm": "kvm"},
		},
		"loaded, and listed as built in by a wrong list": {
			files:  map[string]string{"/proc/modules": "kvm 1 0 - Live 0x0\n", "/usr" + tree + "/modules.builtin": "kernel/arch/x86/kvm/kvm.ko\n"},
			digest: map[string]string{"kvm": "kvm"},
		},
		"built in according to the list": {
			files:  map[string]string{"/usr" + tree + "/modules.builtin": "kernel/arch/x86/kvm/kvm.ko\nkernel/arch/x86/kvm/kvm-intel.ko\n"},
			absent: map[string]string{"kernel/modules/kvm": "builtin", "kernel/modules/kvm_intel": "builtin"},
		},
		"built in according to /sys": {
			files:  map[string]string{"/sys/module/kvm/parameters/halt_poll_ns": "1"},
			absent: map[string]string{"kernel/modules/kvm": "builtin"},
		},
		"loaded, its file gone": {
			files:  map[string]string{"/proc/modules": "vhost 1 0 - Live 0x0\n"},
			absent: map[string]string{"kernel/modules/vhost": "loaded, but its file is missing: no such file"},
		},
		"loaded, from no file that is known": {
			files:  map[string]string{"/proc/modules": "vfio 1 0 - Live 0x0\n"},
			absent: map[string]string{"kernel/modules/vfio": "loaded, but " + tree + "/modules.dep does not name its file"},
		},
		"none of them": {
			files:  map[string]string{"/proc/modules": "ext4 1 0 - Live 0x0\n"},
			absent: map[string]string{"kernel/modules": "the running kernel has none of kvm, "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(base)
			maps.Copy(files, tc.files)
			got := kernelOf(t, files)
			delete(got, "kernel/image")
			for module, content := range tc.digest {
				e := got["kernel/modules/"+module]
				check(t, e, e.GetPath(), content)
				if !strings.HasPrefix(e.GetPath(), "/usr"+tree+"/kernel/arch/x86/kvm/") {
					t.Errorf("path %q", e.GetPath())
				}
			}
			for entry, reason := range tc.absent {
				checkAbsent(t, got[entry], reason)
			}
			if want := len(tc.digest) + len(tc.absent); len(got) != want {
				t.Errorf("got %v, want %d entries", slices.Sorted(maps.Keys(got)), want)
			}
		})
	}
}

func TestAnEndlessListOfModulesIsAnError(t *testing.T) {
	root := host(t, map[string]string{"/proc/sys/kernel/osrelease": release, "/proc/modules": ""})
	if err := os.Truncate(root+"/proc/modules", maxListing+1); err != nil {
		t.Fatal(err)
	}
	m := measurer(t, Config{Root: root, Items: []Item{{Name: "kernel/modules", Kind: KindKernelModules}}})
	if got, err := m.Measure(t.Context()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v and %v, want an error about the size", got, err)
	}
}

// This machine may have anything; what it has must be a log, and the kernel must be in it one way or the other.
func TestTheRealHostGivesAValidLog(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := measured(t, measurer(t, Config{Items: []Item{
		{Name: "kernel/image", Kind: KindKernelImage}, {Name: "kernel/modules", Kind: KindKernelModules},
		{Name: "self", Kind: KindFile, Path: self}, {Name: "proc", Kind: KindFile, Path: "/proc/self/nonexistent"},
	}}))
	if got["kernel/image"] == nil || len(got["self"].GetDigest()) != 32 {
		t.Errorf("got %v", got)
	}
	checkAbsent(t, got["proc"], "no such file")
	for name, e := range got {
		t.Logf("%s: %s %x %s", name, e.GetPath(), e.GetDigest(), e.GetAbsent())
	}
}

func TestAnErrorOfTheDiskIsNotAnAbsence(t *testing.T) {
	if reason := absence(errors.New("input/output error")); reason != "" {
		t.Errorf("absent: %s", reason)
	}
}
