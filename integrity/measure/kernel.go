package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// maxListing bounds each list that the kernel or its package offers (/proc/modules, modules.dep, modules.builtin), in bytes. modules.dep
// of a distribution kernel has about 1 MB.
const maxListing = 16 << 20

// releaseCharacters are all that a kernel release may consist of.
const releaseCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+~-"

// errRelease: the host's kernel release is not one that can stand in a path.
var errRelease = errors.New("kernel release not usable")

// KernelModules are the modules that KindKernelModules looks for: those that a guest's isolation rests on.
func KernelModules() []string {
	return []string{"kvm", "kvm_amd", "kvm_intel", "vfio", "vhost"}
}

// release is the running kernel's, as uname -r prints it. It is read from the host's /proc: what uname says in an enclave is not the host's.
func (m *Measurer) release() (string, error) {
	raw, err := m.listing("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	r := strings.TrimSpace(string(raw))
	strange := func(c rune) bool { return !strings.ContainsRune(releaseCharacters, c) }
	if r == "" || len(r) > 128 || r[0] == '.' || strings.ContainsFunc(r, strange) {
		return "", fmt.Errorf("%w: found %.64q", errRelease, r)
	}
	return r, nil
}

func (m *Measurer) kernelImage(ctx context.Context, name string) ([]*v1.IntegrityEntry, error) {
	release, err := m.release()
	if err != nil {
		return m.unknownRelease(name, err)
	}
	candidates := []string{"/boot/vmlinuz-" + release, "/usr/lib/modules/" + release + "/vmlinuz"}
	var reasons []string
	for _, candidate := range candidates {
		e, err := m.file(ctx, name, candidate)
		if err != nil {
			return nil, err
		}
		if e.GetAbsent() == "" {
			return []*v1.IntegrityEntry{e}, nil
		}
		reasons = append(reasons, candidate+": "+e.GetAbsent())
	}
	return []*v1.IntegrityEntry{absent(name, "", strings.Join(reasons, "; "))}, nil
}

// unknownRelease is the entry of an item that needs the release of a host that does not tell it.
func (m *Measurer) unknownRelease(name string, err error) ([]*v1.IntegrityEntry, error) {
	reason := absence(err)
	if reason == "" && !errors.Is(err, errRelease) {
		return nil, fmt.Errorf("running release: %w", err)
	}
	if reason == "" {
		reason = err.Error()
	}
	return []*v1.IntegrityEntry{absent(name, "", "running release unknown: /proc/sys/kernel/osrelease: "+reason)}, nil
}

// kernelModules gives one entry for each module that the running kernel has, as a file or built in. If it has none of them, one entry says so.
func (m *Measurer) kernelModules(ctx context.Context, name string) ([]*v1.IntegrityEntry, error) {
	release, err := m.release()
	if err != nil {
		return m.unknownRelease(name, err)
	}
	tree, err := m.moduleTree(release)
	if err != nil {
		return nil, err
	}
	var entries []*v1.IntegrityEntry
	for _, module := range KernelModules() {
		e, err := m.module(ctx, name+"/"+module, module, tree)
		if err != nil {
			return nil, err
		}
		if e != nil {
			entries = append(entries, e)
		}
	}
	if entries == nil {
		entries = append(entries, absent(name, "", "the running kernel has none of "+strings.Join(KernelModules(), ", ")))
	}
	return entries, nil
}

// module measures one module, or returns nil if the kernel does not have it.
func (m *Measurer) module(ctx context.Context, name, module string, tree *moduleTree) (*v1.IntegrityEntry, error) {
	loaded, inKernel, err := m.presence(module, tree)
	switch {
	case err != nil:
		return nil, err
	case !loaded && inKernel:
		return absent(name, "", "builtin: part of the kernel image"), nil
	case !loaded:
		return nil, nil
	}
	file, ok := tree.files[module]
	if !ok {
		return absent(name, "", "loaded, but "+tree.dir+"/modules.dep does not name its file"), nil
	}
	e, err := m.file(ctx, name, file)
	if err == nil && e.GetAbsent() != "" {
		e.Absent = "loaded, but its file is missing: " + e.GetAbsent()
	}
	return e, err
}

// presence says whether a module is loaded from a file or part of the kernel. Every loaded module is in /proc/modules and has
// /sys/module/NAME/initstate; one that is built in may have /sys/module/NAME, without initstate.
func (m *Measurer) presence(module string, tree *moduleTree) (loaded, inKernel bool, err error) {
	if tree.loaded[module] {
		return true, false, nil
	}
	if loaded, err = m.exists("/sys/module/" + module + "/initstate"); loaded || err != nil {
		return loaded, false, err
	}
	if tree.builtin[module] {
		return false, true, nil
	}
	inKernel, err = m.exists("/sys/module/" + module)
	return false, inKernel, err
}

func (m *Measurer) exists(name string) (bool, error) {
	_, err := os.Stat(filepath.Join(m.root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// moduleTree is what the host says of its modules, by name.
type moduleTree struct {
	dir             string
	loaded, builtin map[string]bool
	files           map[string]string
}

func (m *Measurer) moduleTree(release string) (*moduleTree, error) {
	t := &moduleTree{dir: "/lib/modules/" + release, loaded: map[string]bool{}, builtin: map[string]bool{}, files: map[string]string{}}
	for _, list := range []struct {
		path string
		take func(line string)
	}{
		{"/proc/modules", func(line string) {
			name, _, _ := strings.Cut(line, " ")
			t.loaded[name] = true
		}},
		{t.dir + "/modules.builtin", func(line string) { t.builtin[moduleName(line)] = true }},
		{t.dir + "/modules.dep", func(line string) {
			if file, _, ok := strings.Cut(line, ":"); ok {
				if !path.IsAbs(file) { // relative to the tree, but for very old depmod
					file = path.Join(t.dir, file)
				}
				t.files[moduleName(file)] = file
			}
		}},
	} {
		raw, err := m.listing(list.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list.path, err)
		}
		for line := range strings.Lines(string(raw)) {
			if line = strings.TrimSpace(line); line != "" {
				list.take(line)
			}
		}
	}
	return t, nil
}

// moduleName is that of a module's file: kernel/arch/x86/kvm/kvm-intel.ko.xz is kvm_intel.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// listing reads a small file of the host.
func (m *Measurer) listing(name string) ([]byte, error) {
	resolved, err := resolve(m.root, name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(m.root, resolved))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxListing+1))
	if err == nil && len(raw) > maxListing {
		err = fmt.Errorf("more than %d bytes", maxListing)
	}
	return raw, err
}
