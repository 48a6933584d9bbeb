package helper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// stopPatience is how long swtpm may take to end on SIGTERM before it is killed. It has nothing to write then: NV memory is written when it changes.
const stopPatience = 5 * time.Second

// child is the real swtpm.
type child struct {
	cmd   *exec.Cmd
	ctrl  *net.UnixConn // our end of its control channel
	guard *guard
	done  chan struct{} // closed when it has ended
	err   error         // how it ended; read after done
}

// startSWTPM starts swtpm with its control channel and its guard as inherited descriptors.
func startSWTPM(o Options) (*child, error) {
	ours, theirs, err := socketPair("swtpm control channel")
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, err
	}
	g, err := newGuard()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	// The child gets descriptors under their own numbers, for libvirt's arguments name some (pwdfd=27): what is to be inherited is not closed on
	// exec, and ExtraFiles, which would put ours in the place of 3 and 4, is not used.
	for _, f := range []*os.File{theirs, g.inherited} {
		if err := inherit(f); err != nil {
			return nil, errors.Join(err, conn.Close(), g.close())
		}
	}
	extra, dropKey, err := o.enclaveKey()
	if err != nil {
		return nil, errors.Join(err, conn.Close(), g.close())
	}
	args := o.call.Args(int(theirs.Fd()), append(extra, o.Extra...)...)
	c := &child{cmd: exec.Command(o.SWTPM, args...), ctrl: conn.(*net.UnixConn), guard: g, done: make(chan struct{})} //nolint:noctx // stop ends it in order
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	// Its own process group: a terminal's interrupt is the helper's to pass on.
	c.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = c.cmd.Start()
	dropKey()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting swtpm: %w", err), conn.Close(), g.close())
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	if err := errors.Join(g.arm(c.pid()), o.dropKeys()); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// inherit lets a child have the descriptor, under the same number.
func inherit(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// dropKeys closes our copies of the descriptors that carry keys; swtpm has its own by now.
func (o *Options) dropKeys() (err error) {
	for _, fd := range o.call.KeyFDs {
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("closing a key's descriptor: %w", err)
	}
	return nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// disarm lets swtpm outlive the helper, from here on for as long as its data channel.
func (c *child) disarm() error { return c.guard.disarm() }

// stop ends swtpm in order and waits for it.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending swtpm: %w", err)
	}
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		_ = c.cmd.Process.Kill()
		<-c.done
	}
	return errors.Join(c.ctrl.Close(), c.guard.close())
}

// exitError says how swtpm ended by itself; nil for status 0. It is called after done.
func (c *child) exitError() error {
	var err error
	if c.err != nil {
		err = fmt.Errorf("swtpm ended: %w", c.err)
	}
	return errors.Join(err, c.ctrl.Close(), c.guard.close())
}

// guard has the kernel end the child when the helper is gone, until it is disarmed: one end of a socket pair is the helper's alone, the other is
// inherited by the child and, by O_ASYNC, owned by it (fcntl(2), F_SETOWN, F_SETSIG). When the helper ends, however it ends, its end hangs up, and
// that is the event at which the kernel sends SIGTERM to the owner.
type guard struct {
	kept, inherited *os.File
}

func newGuard() (*guard, error) {
	kept, inherited, err := socketPair("guard")
	if err != nil {
		return nil, err
	}
	return &guard{kept: kept, inherited: inherited}, nil
}

func (g *guard) arm(pid int) error {
	fd := int(g.inherited.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETOWN, pid); err != nil {
		return fmt.Errorf("arming the guard: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(unix.SIGTERM)); err != nil {
		return fmt.Errorf("arming the guard: %w", err)
	}
	return g.setAsync(true)
}

func (g *guard) disarm() error { return g.setAsync(false) }

// setAsync sets or clears O_ASYNC, which belongs to the open file that we and the child share.
func (g *guard) setAsync(on bool) error {
	fd := g.inherited.Fd()
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("the guard's flags: %w", err)
	}
	flags &^= unix.O_ASYNC
	if on {
		flags |= unix.O_ASYNC
	}
	if _, err := unix.FcntlInt(fd, unix.F_SETFL, flags); err != nil {
		return fmt.Errorf("the guard's flags: %w", err)
	}
	return nil
}

func (g *guard) close() error { return errors.Join(g.inherited.Close(), g.kept.Close()) }

func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
