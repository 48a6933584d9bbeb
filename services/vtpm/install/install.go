// Package install puts safeconduct-swtpm in swtpm's place on a host whose libvirt is not to be changed, and takes it back.
//
// Two methods. Path gives libvirt's daemons a PATH in which a directory of ours comes first, by a systemd drop-in: the real swtpm stays where it is,
// under its own AppArmor profile, and other users of swtpm do not notice. Divert moves Debian's swtpm aside with dpkg-divert, for hosts whose
// libvirt is not a systemd service. Both are idempotent, and refuse what they could not undo: a file of somebody else in the place of one of ours,
// another package's diversion, a swtpm that no package owns.
//
// VMs that run are not touched; each gets its helper at its next start.
package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safeconduct/safeconduct/services/vtpm/helper"
)

// Method of an installation.
type Method string

// The methods.
const (
	// None: the helper is not installed.
	None Method = "none"
	// Path is a drop-in for libvirt's systemd units.
	Path Method = "path"
	// Divert is dpkg-divert.
	Divert Method = "divert"
)

// Where things are, below Host.Root.
const (
	// Helper is the helper's own place.
	Helper = "/usr/bin/safeconduct-swtpm"
	// Directory comes first in libvirt's PATH with Path.
	Directory = "/usr/lib/safeconduct/swtpm"
	// DropIn is the drop-in's name in a unit's directory.
	DropIn = "50-safeconduct-swtpm.conf"

	swtpm = "/usr/bin/swtpm"
	// swtpmSetup makes the state of new VMs. The helper takes its place where it is, for states that are to be under a key of the enclave.
	swtpmSetup = "/usr/bin/swtpm_setup"
	// stockPath is systemd's own default, in front of which Directory is put.
	stockPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// daemons of libvirt that start swtpm.
var daemons = []string{"libvirtd", "virtqemud"}

// dropInText is the whole drop-in: a file with any other text is not ours.
const dropInText = `# Written by "safeconduct helper install", removed by "safeconduct helper uninstall".
# libvirt finds swtpm in its PATH: the first directory has safeconduct-swtpm under that name.
[Service]
Environment=PATH=` + Directory + ":" + stockPath + "\n"

// wrapper is the helper in Directory in the place of one of swtpm's programs, diverted that program's name with Divert.
func wrapper(program string) string  { return filepath.Join(Directory, filepath.Base(program)) }
func diverted(program string) string { return program + helper.DivertedSuffix }

// Host is where to install. The zero value does nothing useful: Local is this host.
type Host struct {
	// Root is put in front of every path; "" on a real host.
	Root string
	// Run runs a program of the host and returns what it prints.
	Run func(ctx context.Context, name string, args ...string) (string, error)
}

// Errors; test with errors.Is.
var (
	// ErrCannotUndo: something is in the way that an uninstallation could not put back.
	ErrCannotUndo = errors.New("refused: it could not be undone")
	// ErrMissing: something is missing that the helper needs.
	ErrMissing = errors.New("missing")
	// ErrOtherMethod: the helper is installed by the other method.
	ErrOtherMethod = errors.New("the helper is installed by another method")
)

func (h Host) path(p string) string { return filepath.Join("/", h.Root, p) }

// exists says whether something is there, a dangling link included.
func (h Host) exists(p string) bool {
	_, err := os.Lstat(h.path(p))
	return err == nil
}

// Installed says by which method the helper is installed.
func (h Host) Installed() (Method, error) {
	if ours, err := h.ours(swtpm); ours || err != nil {
		return Divert, err
	}
	for _, unit := range h.units() {
		if text, err := os.ReadFile(h.path(h.dropIn(unit))); err == nil && string(text) == dropInText {
			return Path, nil
		}
	}
	return None, nil
}

// ours says whether a path is a link to the helper.
func (h Host) ours(p string) (bool, error) {
	target, err := os.Readlink(h.path(p))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) && !isInvalid(err) {
		return false, err
	}
	return target == Helper, nil
}

// Choose returns the method for this host: Path where libvirt is a systemd service, Divert elsewhere.
func (h Host) Choose() Method {
	if len(h.units()) > 0 {
		return Path
	}
	return Divert
}

// Install installs the helper. What is there already is left as it is; changed says whether anything was not. On an error nothing is changed.
func (h Host) Install(ctx context.Context, method Method) (changed bool, err error) {
	for _, p := range []string{Helper, swtpm} {
		if !h.exists(p) {
			return false, fmt.Errorf("%s: %w: install the packages safeconduct and swtpm first", p, ErrMissing)
		}
	}
	now, err := h.Installed()
	if err != nil {
		return false, err
	}
	if now != None && now != method {
		return false, fmt.Errorf("%w: %s; uninstall it first", ErrOtherMethod, now)
	}
	switch method {
	case Path:
		return h.installPath(ctx)
	case Divert:
		return h.installDivert(ctx)
	default:
		return false, fmt.Errorf("%q is no method", method)
	}
}

// Uninstall takes the helper away. VMs that run keep theirs until they stop.
func (h Host) Uninstall(ctx context.Context) (changed bool, err error) {
	now, err := h.Installed()
	if err != nil {
		return false, err
	}
	switch now {
	case Path:
		err = h.uninstallPath(ctx)
	case Divert:
		err = h.uninstallDivert(ctx)
	default:
		return false, nil
	}
	return err == nil, err
}

// units of libvirt that the host has.
func (h Host) units() []string {
	var found []string
	for _, d := range daemons {
		if slices.ContainsFunc([]string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}, func(dir string) bool {
			return h.exists(filepath.Join(dir, d+".service"))
		}) {
			found = append(found, d+".service")
		}
	}
	return found
}

// programs are those of swtpm's whose place the helper takes.
func (h Host) programs() []string {
	if h.exists(swtpmSetup) {
		return []string{swtpm, swtpmSetup}
	}
	return []string{swtpm}
}

func (h Host) dropIn(unit string) string {
	return filepath.Join("/etc/systemd/system", unit+".d", DropIn)
}

func (h Host) installPath(ctx context.Context) (changed bool, err error) {
	units := h.units()
	if len(units) == 0 {
		return false, fmt.Errorf("a systemd unit of libvirt (%s): %w: use the method divert, or put %s first in the PATH of what starts libvirt",
			strings.Join(daemons, ", "), ErrMissing, Directory)
	}
	// First look, then touch.
	for _, p := range h.programs() {
		if ours, err := h.ours(wrapper(p)); err != nil || !ours && h.exists(wrapper(p)) {
			return false, errors.Join(err, fmt.Errorf("%s is not ours: %w", wrapper(p), ErrCannotUndo))
		}
	}
	for _, u := range units {
		switch text, err := os.ReadFile(h.path(h.dropIn(u))); {
		case err == nil && string(text) != dropInText:
			return false, fmt.Errorf("%s has another text than ours: %w", h.dropIn(u), ErrCannotUndo)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	undo := &undo{}
	defer undo.unless(&err)
	for _, p := range h.programs() {
		if h.exists(wrapper(p)) {
			continue
		}
		changed = true
		if err := undo.link(h.path(Helper), Helper, h.path(wrapper(p))); err != nil {
			return false, err
		}
	}
	for _, u := range units {
		if h.exists(h.dropIn(u)) {
			continue
		}
		changed = true
		if err := undo.file(h.path(h.dropIn(u)), dropInText); err != nil {
			return false, err
		}
	}
	if changed {
		err = h.reload(ctx)
	}
	return changed, err
}

func (h Host) uninstallPath(ctx context.Context) error {
	for _, d := range daemons { // of a unit that has gone, too
		if text, err := os.ReadFile(h.path(h.dropIn(d + ".service"))); err == nil && string(text) == dropInText {
			if err := removeAndTidy(h.path(h.dropIn(d + ".service"))); err != nil {
				return err
			}
		}
	}
	var all error
	for _, p := range []string{swtpmSetup, swtpm} { // of a package that has gone, too
		ours, err := h.ours(wrapper(p))
		if ours {
			err = removeAndTidy(h.path(wrapper(p)))
		}
		all = errors.Join(all, err)
	}
	_ = os.Remove(h.path(filepath.Dir(Directory))) // if nothing else is in it
	return errors.Join(all, h.reload(ctx))
}

// reload has systemd read the units, if it runs.
func (h Host) reload(ctx context.Context) error {
	if !h.exists("/run/systemd/system") {
		return nil
	}
	_, err := h.Run(ctx, "systemctl", "daemon-reload")
	return err
}

func (h Host) installDivert(ctx context.Context) (changed bool, err error) {
	var wanted []string
	for _, p := range h.programs() { // first look, then touch
		ours, err := h.ours(p)
		if err == nil && !ours {
			wanted = append(wanted, p)
			err = h.canDivert(ctx, p)
		}
		if err != nil {
			return false, err
		}
	}
	undo := &undo{}
	defer undo.unless(&err)
	for _, p := range wanted {
		if err := h.divert(ctx, p); err != nil {
			return false, err
		}
		undo.steps = append(undo.steps, func() error { return h.undivert(ctx, p) })
	}
	return len(wanted) > 0, nil
}

// canDivert says why a program is not to be diverted.
func (h Host) canDivert(ctx context.Context, program string) error {
	info, err := os.Lstat(h.path(program))
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", program, ErrCannotUndo)
	}
	if _, err := h.dpkg(ctx, "dpkg-query", "-S", program); err != nil {
		return fmt.Errorf("no package owns %s: %w: %w", program, ErrCannotUndo, err)
	}
	if out, err := h.dpkg(ctx, "dpkg-divert", "--list", program); err != nil || strings.TrimSpace(out) != "" {
		return errors.Join(err, fmt.Errorf("%s is diverted already (%s): %w", program, strings.TrimSpace(out), ErrCannotUndo))
	}
	if h.exists(diverted(program)) {
		return fmt.Errorf("%s is there already: %w", diverted(program), ErrCannotUndo)
	}
	if h.confined(program) {
		return fmt.Errorf("AppArmor confines %s by its path, and under another name it would run unconfined: %w: use the method path", program, ErrCannotUndo)
	}
	return nil
}

func (h Host) divert(ctx context.Context, program string) error {
	if _, err := h.dpkg(ctx, "dpkg-divert", "--local", "--rename", "--divert", diverted(program), "--add", program); err != nil {
		return err
	}
	if err := os.Symlink(Helper, h.path(program)); err != nil {
		_, undone := h.dpkg(ctx, "dpkg-divert", "--local", "--rename", "--remove", program)
		return errors.Join(err, undone)
	}
	return nil
}

func (h Host) uninstallDivert(ctx context.Context) error {
	for _, p := range []string{swtpmSetup, swtpm} {
		ours, err := h.ours(p)
		if err == nil && ours {
			err = h.undivert(ctx, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h Host) undivert(ctx context.Context, program string) error {
	if !h.exists(diverted(program)) {
		return fmt.Errorf("%s, the real %s: %w: reinstall the package that has it", diverted(program), filepath.Base(program), ErrMissing)
	}
	if err := os.Remove(h.path(program)); err != nil {
		return err
	}
	if _, err := h.dpkg(ctx, "dpkg-divert", "--local", "--rename", "--remove", program); err != nil {
		return errors.Join(err, os.Symlink(Helper, h.path(program)))
	}
	return nil
}

// dpkg runs one of dpkg's programs on the host's root.
func (h Host) dpkg(ctx context.Context, name string, args ...string) (string, error) {
	if h.Root != "" {
		if name == "dpkg-query" {
			args = append([]string{"--admindir", h.path("/var/lib/dpkg")}, args...)
		} else {
			args = append([]string{"--root", h.path("/")}, args...)
		}
	}
	return h.Run(ctx, name, args...)
}

// confined says whether AppArmor has a profile for a program by its path.
func (h Host) confined(program string) bool {
	enabled, err := os.ReadFile(h.path("/sys/module/apparmor/parameters/enabled"))
	return err == nil && strings.HasPrefix(string(enabled), "Y") && h.exists("/etc/apparmor.d/usr.bin."+filepath.Base(program))
}
