package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a unix socket, in bytes.
const maxSocketPath = 107

// listenUnix makes a unix socket in the place of what is there: under another name first, so that nobody finds it before it has its mode and group.
// A gid of -1 leaves the group.
func listenUnix(ctx context.Context, path string, mode fs.FileMode, gid int) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket", path)
	}
	fresh := newName(path)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	own, err := os.Lstat(fresh)
	if err := errors.Join(err, os.Chown(fresh, -1, gid), os.Chmod(fresh, mode), os.Rename(fresh, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unlinking{Listener: l, path: path, own: own}, nil
}

func newName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// ownName matches the names of the sockets that a tunnel makes, and those that they have first.
var ownName = regexp.MustCompile(`^\.?[0-9a-f-]{36}(-disks)?\.sock(\.new)?$`)

// removeLeftovers removes the sockets that a tunnel that was killed has left in dir: those of this user on which nobody listens. What QEMU listens on is
// bound under its own path, and so in the kernel's list.
func removeLeftovers(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	bound, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil || info.Mode().Type() != fs.ModeSocket || !ownName.MatchString(e.Name()) {
			continue
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(owner.Uid) != os.Geteuid() || bytes.Contains(bound, []byte(" "+path+"\n")) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unlinking removes its socket when it is closed, unless another has taken its place: when the VM comes back, its QEMU listens there.
type unlinking struct {
	net.Listener
	path string
	own  os.FileInfo
}

func (u *unlinking) Close() error {
	if err := u.Listener.Close(); err != nil {
		return err
	}
	if info, err := os.Lstat(u.path); err != nil || !os.SameFile(info, u.own) {
		return nil
	}
	return os.Remove(u.path)
}

// keepKeysIn has the kernel write no core dump of this process, which holds keys and what they protect, and let no process of its user trace it.
func keepKeysIn() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
