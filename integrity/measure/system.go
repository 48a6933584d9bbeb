package measure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// commandLine measures /proc/cmdline, without its line's end. What is not printable is shown as '?' and hashed so: the kernel takes nothing else from
// a boot loader that an operator would accept.
func (m *Measurer) commandLine(name string) ([]*v1.IntegrityEntry, error) {
	const path = "/proc/cmdline"
	raw, err := m.listing(path)
	if err != nil {
		return m.unreadable(name, path, err)
	}
	return []*v1.IntegrityEntry{asText(name, path, printable(strings.TrimRight(string(raw), "\n")))}, nil
}

// cpu describes the first processor: model, microcode, and the kernel's word on each known vulnerability. It is information: the attested TCB status
// speaks for the microcode of the platform as a whole.
func (m *Measurer) cpu(name string) ([]*v1.IntegrityEntry, error) {
	const path = "/proc/cpuinfo"
	raw, err := m.listing(path)
	if err != nil {
		return m.unreadable(name, path, err)
	}
	var parts []string
	first, _, _ := strings.Cut(string(raw), "\n\n")
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch key = strings.TrimSpace(key); key {
		case "model name", "cpu family", "model", "stepping", "microcode":
			parts = append(parts, key+": "+strings.TrimSpace(value))
		}
	}
	weak, err := m.vulnerabilities()
	if err != nil {
		return nil, err
	}
	text := printable(strings.Join(append(parts, weak...), "; "))
	if len(text) > hostlog.MaxText {
		text = text[:hostlog.MaxText]
	}
	e := asText(name, path, text)
	e.Information = true
	return []*v1.IntegrityEntry{e}, nil
}

func (m *Measurer) vulnerabilities() ([]string, error) {
	const dir = "/sys/devices/system/cpu/vulnerabilities"
	files, err := os.ReadDir(filepath.Join(m.root, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return []string{"vulnerabilities: not told"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	var out []string
	for _, f := range files {
		raw, err := m.listing(dir + "/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("%s/%s: %w", dir, f.Name(), err)
		}
		out = append(out, f.Name()+": "+strings.TrimSpace(string(raw)))
	}
	slices.Sort(out)
	return out, nil
}

func (m *Measurer) unreadable(name, path string, err error) ([]*v1.IntegrityEntry, error) {
	if reason := absence(err); reason != "" {
		return []*v1.IntegrityEntry{absent(name, path, reason)}, nil
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

// printable keeps ASCII that can be shown.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
