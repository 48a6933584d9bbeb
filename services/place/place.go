// Package place puts on a Kubernetes node what the chart's pods need there, and takes it away: directories for a service that is not root, and the swtpm
// helper for libvirt. It runs in an init container, and in a hook when the chart is uninstalled.
//
// What it removes, it has placed: a file of another origin in the place of one of ours is refused, never overwritten or removed.
package place

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

// Names in a directory of helpers.
const (
	// HelperName is the helper's own name, and LinkName the one that libvirt looks for.
	HelperName = "safeconduct-swtpm"
	LinkName   = "swtpm"
	// SettingsName is the helper's settings, which libvirt's container mounts at /etc/safeconduct.
	SettingsName = "helper.yaml"
	// Marker says that a directory is ours.
	Marker = ".placed-by-safeconduct"
)

// ErrNotOurs says that something is in the way that was not placed by this package.
var ErrNotOurs = errors.New("is there already and was not placed by safeconduct-place; move it away first")

// Directory makes a directory, or takes over one that is there, with exactly this owner and mode. A link in its place is refused: it could lead anywhere.
func Directory(path string, uid, gid int, mode fs.FileMode) error {
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // the parents; the mode of path itself is set below
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", path)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// Helper places the helper in a directory that libvirt's containers mount: the executable, a link to it under swtpm's name, and its settings. What runs keeps
// the file that it was started from.
func Helper(from, dir string, settings []byte) error {
	if entries, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if len(entries) > 0 {
		if err := ours(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // libvirt and swtpm's user look into it
		return err
	}
	if err := replace(filepath.Join(dir, Marker), nil, 0o644); err != nil {
		return err
	}
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, HelperName), program, 0o755); err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, SettingsName), settings, 0o644); err != nil {
		return err
	}
	link := filepath.Join(dir, LinkName)
	if target, err := os.Readlink(link); err == nil && target == HelperName {
		return nil
	}
	return os.Symlink(HelperName, link)
}

func ours(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, Marker)); err != nil {
		return fmt.Errorf("%s %w", dir, ErrNotOurs)
	}
	return nil
}

// replace writes a file in one step, unless it has these bytes already: a program that runs cannot be written to, and its users keep the old one.
func replace(path string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return os.Chmod(path, mode)
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, content, mode); err != nil { //nolint:gosec // the paths are the chart's arguments
		return err
	}
	return errors.Join(os.Chmod(fresh, mode), os.Rename(fresh, path))
}

// RemoveHelper removes what Helper placed. Nothing there is not an error, other files in the directory are: they stay.
func RemoveHelper(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := ours(dir); err != nil {
		return err
	}
	for _, name := range []string{LinkName, HelperName, SettingsName, Marker} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(dir)
}

// InstallOnHost has the libvirt of this root, a service of the host, start the helper: the executable is placed where its package would put it, and
// "safeconduct helper install" does the rest. A helper that a package or somebody else installed is refused.
func InstallOnHost(ctx context.Context, program []byte, host install.Host, marker string) error {
	helper := filepath.Join("/", host.Root, install.Helper)
	placed := filepath.Join("/", host.Root, marker, Marker)
	if _, err := os.Lstat(helper); err == nil {
		if _, err := os.Lstat(placed); err != nil {
			return fmt.Errorf("%s %w", install.Helper, ErrNotOurs)
		}
	}
	if err := os.MkdirAll(filepath.Dir(placed), 0o755); err != nil { //nolint:gosec // nothing secret is in it
		return err
	}
	if err := errors.Join(replace(placed, nil, 0o644), replace(helper, program, 0o755)); err != nil {
		return err
	}
	_, err := host.Install(ctx, host.Choose())
	return err
}

// RemoveFromHost takes back what InstallOnHost did.
func RemoveFromHost(ctx context.Context, host install.Host, marker string) error {
	placed := filepath.Join("/", host.Root, marker, Marker)
	if _, err := os.Lstat(placed); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := host.Uninstall(ctx); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join("/", host.Root, install.Helper)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.Remove(placed), os.Remove(filepath.Dir(placed)))
}
