package measure

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Bounds of a program.
const (
	maxLibraries = 1024
	maxObjects   = 8192 // remembered
	// maxELF bounds what is parsed, in bytes: QEMU has about 30 MB.
	maxELF = 512 << 20
)

// libraryDirs are where the loader of a 64-bit Linux looks when nothing else says so (ld.so(8)), Debian's first.
func libraryDirs() []string {
	return []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// object is what an ELF file asks of the loader.
type object struct {
	interpreter string
	needed      []string
	dirs        []string // DT_RUNPATH or DT_RPATH, with $ORIGIN replaced
}

// program measures the ELF file at a path of the host with all that the loader would give it, found as ld.so does: DT_RPATH or DT_RUNPATH, then
// the directories of ld.so.conf, then the usual ones. What a program loads by itself later (dlopen, QEMU's modules) is not among it: measure those
// directories as trees. LD_LIBRARY_PATH and LD_PRELOAD belong to whoever starts the program: IMA sees them, this does not.
func (m *Measurer) program(ctx context.Context, name, file string) ([]*v1.IntegrityEntry, error) {
	first, err := m.file(ctx, name, file)
	if err != nil || first.GetAbsent() != "" {
		return []*v1.IntegrityEntry{first}, err
	}
	entries := []*v1.IntegrityEntry{first}
	conf, err := m.loaderDirs()
	if err != nil {
		return nil, err
	}
	root, err := m.objectOf(first)
	if err != nil {
		return nil, err
	}
	if root == nil { // no ELF: a script has no libraries
		return entries, nil
	}
	type want struct {
		soname string
		dirs   []string
	}
	queue := []want{}
	add := func(o *object) {
		for _, soname := range o.needed {
			queue = append(queue, want{soname, o.dirs})
		}
	}
	add(root)
	seen := map[string]bool{}
	if root.interpreter != "" {
		e, err := m.file(ctx, libraryName(name, root.interpreter), root.interpreter)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		seen[path.Base(root.interpreter)] = true
	}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		if seen[next.soname] {
			continue
		}
		seen[next.soname] = true
		if len(seen) > maxLibraries {
			return nil, notMeasurable(fmt.Sprintf("%s asks for more than %d libraries", file, maxLibraries))
		}
		e, err := m.library(ctx, libraryName(name, next.soname), next.soname, slices.Concat(next.dirs, conf, libraryDirs()))
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		if e.GetAbsent() == "" {
			o, err := m.objectOf(e)
			if err != nil {
				return nil, err
			}
			if o != nil {
				add(o)
			}
		}
	}
	return entries, unique(entries)
}

// unique refuses libraries that differ only in what a name in the log cannot show.
func unique(entries []*v1.IntegrityEntry) error {
	seen := map[string]string{}
	for _, e := range entries {
		if other, ok := seen[e.GetName()]; ok {
			return fmt.Errorf("%w: %s and %s have one name in the log, %s", ErrConfig, other, e.GetPath(), e.GetName())
		}
		seen[e.GetName()] = e.GetPath()
	}
	return nil
}

// libraryName is the entry's name of a library: its soname, in the characters that a name may have.
func libraryName(program, soname string) string {
	return program + "/lib/" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_', r == '.', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, path.Base(soname))
}

func (m *Measurer) library(ctx context.Context, name, soname string, dirs []string) (*v1.IntegrityEntry, error) {
	if strings.Contains(soname, "/") { // a path, not a name
		return m.file(ctx, name, soname)
	}
	for _, dir := range dirs {
		e, err := m.file(ctx, name, path.Join(dir, soname))
		if err != nil || e.GetAbsent() == "" {
			return e, err
		}
	}
	return absent(name, soname, "in none of the loader's directories"), nil
}

// objectOf is object of a file that was measured, remembered by its path and digest.
func (m *Measurer) objectOf(e *v1.IntegrityEntry) (*object, error) {
	key := e.GetPath() + "\x00" + string(e.GetDigest())
	if o, known := m.objects[key]; known {
		return o, nil
	}
	o, err := m.object(e.GetPath())
	if err != nil {
		return nil, err
	}
	if len(m.objects) >= maxObjects {
		clear(m.objects)
	}
	m.objects[key] = o
	return o, nil
}

// object reads what an ELF file asks for; nil if the file is none.
func (m *Measurer) object(file string) (*object, error) {
	f, err := os.Open(filepath.Join(m.root, file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := f.ReadAt(magic, 0); err != nil || !bytes.Equal(magic, []byte(elf.ELFMAG)) || info.Size() > maxELF {
		return nil, nil //nolint:nilerr // too short for an ELF file is not one
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, nil //nolint:nilerr // damaged: the loader will not take it, and its digest is in the log
	}
	o := new(object)
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= 4096 {
			raw := make([]byte, p.Filesz)
			if _, err := p.ReadAt(raw, 0); err != nil {
				return nil, err
			}
			o.interpreter = string(bytes.TrimRight(raw, "\x00"))
		}
	}
	if o.needed, err = e.ImportedLibraries(); err != nil {
		o.needed = nil // a static program has no dynamic section
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := e.DynString(tag)
		if err != nil || len(paths) == 0 {
			continue
		}
		for dir := range strings.SplitSeq(strings.Join(paths, ":"), ":") {
			dir = strings.NewReplacer("$ORIGIN", path.Dir(file), "${ORIGIN}", path.Dir(file)).Replace(dir)
			if path.IsAbs(dir) {
				o.dirs = append(o.dirs, path.Clean(dir))
			}
		}
		break // DT_RUNPATH makes DT_RPATH void
	}
	return o, nil
}

// loaderDirs reads /etc/ld.so.conf and what it includes.
func (m *Measurer) loaderDirs() ([]string, error) {
	var dirs []string
	files := []string{"/etc/ld.so.conf"}
	for n := 0; n < len(files) && n < 256; n++ {
		raw, err := m.listing(files[n])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", files[n], err)
		}
		for line := range strings.Lines(string(raw)) {
			line, _, _ = strings.Cut(line, "#")
			fields := strings.Fields(line)
			switch {
			case len(fields) == 2 && fields[0] == "include":
				files = append(files, m.glob(files[n], fields[1])...)
			case len(fields) == 1 && path.IsAbs(fields[0]):
				dirs = append(dirs, fields[0])
			}
		}
	}
	return dirs, nil
}

func (m *Measurer) glob(from, pattern string) []string {
	if !path.IsAbs(pattern) {
		pattern = path.Join(path.Dir(from), pattern)
	}
	found, err := filepath.Glob(filepath.Join(m.root, pattern))
	if err != nil {
		return nil // a pattern that ld.so would not understand either
	}
	for i := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(found[i], m.root), "/")
	}
	return found
}
