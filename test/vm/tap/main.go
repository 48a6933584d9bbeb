// Command tap is a swtpm that keeps what an auditor needs: it runs the real swtpm behind a vtpm.Proxy that records every state blob in clear and passes
// it through unchanged. Give it to the helper as --swtpm and it sees what the helper encrypts; give it to QEMU as swtpm and it shows what leaves a
// host without the helper. For tests and demonstrations only: it writes vTPM state to disk, in clear.
//
// It takes swtpm's own command line (`tap socket --ctrl type=unixio,path=PATH|clientfd=N ...`) and two variables:
//
//	SAFECONDUCT_TAP_DIR     directory for the blobs: 001-save-permanent.bin, 002-save-volatile.bin, 001-restore-permanent.bin, ...
//	SAFECONDUCT_TAP_SWTPM   the real swtpm; /usr/bin/swtpm if unset
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/safeconduct/safeconduct/services/vtpm"
)

func main() {
	if err := run(os.Args[1:], os.Getenv("SAFECONDUCT_TAP_DIR"), os.Getenv("SAFECONDUCT_TAP_SWTPM")); err != nil {
		fmt.Fprintln(os.Stderr, "tap:", err)
		os.Exit(1)
	}
}

func run(args []string, dir, swtpm string) error {
	if dir == "" {
		return errors.New("SAFECONDUCT_TAP_DIR is not set")
	}
	if swtpm == "" {
		swtpm = "/usr/bin/swtpm"
	}
	at := slices.Index(args, "--ctrl")
	if at < 0 || at+1 >= len(args) {
		return errors.New("there is no --ctrl")
	}
	accept, err := control(args[at+1])
	if err != nil {
		return err
	}
	args[at+1] = "type=unixio,clientfd=3"
	// The death signal below is the thread's, not the process's.
	runtime.LockOSThread()
	inner, wait, err := start(swtpm, args)
	if err != nil {
		return err
	}
	proxy := &vtpm.Proxy{Protector: &recorder{dir: dir}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	go func() {
		for {
			conn, err := accept()
			if err != nil {
				return
			}
			if err := proxy.Serve(context.Background(), conn, inner); err != nil {
				fmt.Fprintln(os.Stderr, "tap:", err)
			}
		}
	}()
	return wait()
}

// control returns what takes the next control connection. An inherited one is the only one.
func control(option string) (func() (*net.UnixConn, error), error) {
	for field := range strings.SplitSeq(option, ",") {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "path":
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: value, Net: "unix"})
			if err != nil {
				return nil, err
			}
			return l.AcceptUnix, nil
		case "clientfd":
			fd, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("--ctrl %s: %w", option, err)
			}
			conn, err := fileConn(os.NewFile(uintptr(fd), "control channel"))
			if err != nil {
				return nil, err
			}
			return func() (*net.UnixConn, error) {
				c := conn
				conn = nil
				if c == nil {
					return nil, net.ErrClosed
				}
				return c, nil
			}, nil
		}
	}
	return nil, fmt.Errorf("--ctrl %s: neither path nor clientfd", option)
}

// start runs the real swtpm with its control channel as descriptor 3.
func start(swtpm string, args []string) (*net.UnixConn, func() error, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "swtpm")
	defer func() { _ = theirs.Close() }()
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "tap"))
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(swtpm, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, cmd.Wait, nil
}

// fileConn takes over f.
func fileConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is a %T, expected a unix socket", f.Name(), conn), conn.Close())
	}
	return unix, nil
}

// recorder is a Protector that protects nothing.
type recorder struct {
	dir   string
	mu    sync.Mutex
	count map[string]int
}

func (r *recorder) Protect(_ context.Context, t vtpm.StateType, b []byte) ([]byte, error) {
	return r.record("save", t, b)
}

func (r *recorder) Unprotect(_ context.Context, t vtpm.StateType, b []byte) ([]byte, error) {
	return r.record("restore", t, b)
}

func (r *recorder) record(what string, t vtpm.StateType, b []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = map[string]int{}
	}
	r.count[what]++
	name := fmt.Sprintf("%03d-%s-%v.bin", r.count[what], what, t)
	return b, os.WriteFile(filepath.Join(r.dir, name), b, 0o600)
}
