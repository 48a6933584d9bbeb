// Package machine makes machines out of one: each has a root file system of its own (an overlay on a Debian tree that all share), a host name, a network
// address, and no view of the others but the network. They end with the process that made them, whatever ends it.
//
// The caller's program is started again in three roles. The world is PID 1 of a process namespace, reaps what is orphaned there, and when it ends, the kernel
// kills everything in it. The actor is its child, which does what the program is for. Each machine is a process that holds the machine's
// namespaces and does nothing else.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The environment tells the program which of them it is.
const (
	roleVariable = "SAFECONDUCT_MACHINE_ROLE"
	roleWorld    = "world"
	roleActor    = "actor"
	roleMachine  = "machine"
)

// Enter runs inside in a new world and returns its exit status to main. It must be called first in main: the program starts itself again through it.
// Root is needed.
func Enter(inside func() int) int {
	switch os.Getenv(roleVariable) {
	case roleMachine:
		return hold()
	case roleWorld:
		code, err := reap()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	case roleActor:
		if err := os.Unsetenv(roleVariable); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return inside()
	}
	world := exec.Command("/proc/self/exe", os.Args[1:]...)
	world.Stdin, world.Stdout, world.Stderr = os.Stdin, os.Stdout, os.Stderr
	world.Env = append(os.Environ(), roleVariable+"="+roleWorld)
	world.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setpgid:    true, // a terminal's interrupt comes from here, once
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	if err := world.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "a world of namespaces: %v (root is needed)\n", err)
		return 1
	}
	go func() {
		for range stop {
			_ = world.Process.Signal(syscall.SIGTERM) // the world may be gone already
		}
	}()
	err := world.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
	}
	return max(world.ProcessState.ExitCode(), 0)
}

// settle gives the world its own view of processes, and a loopback.
func settle() error {
	// The caller's death is the world's, even one that cannot be caught.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("/proc of the world: %w", err)
	}
	return nil
}

// reap is PID 1: it starts the actor, collects whatever ends, and returns the actor's exit status. A QEMU that nobody collected would be alive to libvirt.
func reap() (int, error) {
	if err := settle(); err != nil {
		return 0, err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	if err := os.Setenv(roleVariable, roleActor); err != nil {
		return 0, err
	}
	actor, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 0, err
	}
	go func() {
		for range stop {
			_ = actor.Signal(syscall.SIGTERM) // it may have ended
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, err
		}
		if pid == actor.Pid && (status.Exited() || status.Signaled()) {
			return max(status.ExitStatus(), 0) + int(max(status.Signal(), 0)), nil
		}
	}
}

// World is where machines are: a directory in memory and a bridge.
type World struct {
	// Dir is the same directory on every machine, in memory; short, for unix sockets.
	Dir string
	// Lower is the Debian tree that every machine's root begins as.
	Lower string
	// Network is a /24 by its first three bytes, such as "10.213.77"; .1 is the world.
	Network string
}

// Bridge that the machines are on.
const Bridge = "scos0"

// New makes a world without machines.
func New(ctx context.Context, lower, network string) (*World, error) {
	dir, err := os.MkdirTemp("", "scos-")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("scos", dir, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("memory for %s: %w", dir, err)
	}
	w := &World{Dir: dir, Lower: lower, Network: network}
	if err := os.Mkdir(w.Shared(), 0o755); err != nil {
		return nil, err
	}
	return w, w.ip(ctx, "link set lo up", "link add "+Bridge+" type bridge", "addr add "+network+".1/24 dev "+Bridge, "link set "+Bridge+" up")
}

// Shared is a directory that has the same path, and content, on every machine and here.
func (w *World) Shared() string { return filepath.Join(w.Dir, "shared") }

// Close forgets the directory. The machines end with the process.
func (w *World) Close() error {
	return errors.Join(unix.Unmount(w.Dir, unix.MNT_DETACH), os.Remove(w.Dir))
}

func (w *World) ip(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}
