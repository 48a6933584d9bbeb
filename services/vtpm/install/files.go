package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Local is this host.
func Local() Host {
	return Host{Run: func(ctx context.Context, name string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return string(out), err
	}}
}

// isInvalid says that a path is no link.
func isInvalid(err error) bool { return errors.Is(err, unix.EINVAL) }

// undo is what to do, the last first, if an installation fails in the middle.
type undo struct{ steps []func() error }

func (u *undo) unless(err *error) {
	if *err == nil {
		return
	}
	for i := len(u.steps) - 1; i >= 0; i-- {
		*err = errors.Join(*err, u.steps[i]())
	}
}

// link makes a link to target, which is there under present.
func (u *undo) link(present, target, path string) error {
	if _, err := os.Stat(present); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // libvirt looks into it
		return err
	}
	if err := os.Symlink(target, path); err != nil {
		return err
	}
	u.steps = append(u.steps, func() error { return removeAndTidy(path) })
	return nil
}

func (u *undo) file(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // systemd's own mode
		return err
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o644); err != nil { //nolint:gosec // systemd's own mode
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	u.steps = append(u.steps, func() error { return removeAndTidy(path) })
	return nil
}

// removeAndTidy removes a file, and its directory if it was the last.
func removeAndTidy(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.Remove(filepath.Dir(path)); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
