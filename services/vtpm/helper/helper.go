// Package helper is the program safeconduct-swtpm: it runs the real swtpm as its child behind a vtpm.Proxy, and is to QEMU what swtpm is, a
// control socket.
//
// # Whom to survive
//
// The guest's TPM commands travel on a data channel that QEMU hands to swtpm by descriptor; the helper is not on their way. Measured with
// swtpm 0.7.1 and QEMU 7.2, the helper being killed by SIGKILL while the guest uses its TPM:
//
//   - swtpm with PR_SET_PDEATHSIG: it dies with the helper, QEMU reports "Unable to write to socket: Broken pipe" for every later TPM command of
//     the guest, and the volatile state is lost.
//   - swtpm without it: the data channel goes on, the guest notices nothing. A migration that is under way fails with the VM running on the source;
//     so does a later one, for QEMU does not connect again.
//   - swtpm with --terminate: ends by itself, with status 0, as soon as the data channel hangs up, which is when QEMU is gone; an ended control
//     connection it does not mind.
//
// So the child gets --terminate and no death signal: it lives as long as its guest. What that leaves is a helper killed before QEMU has handed
// over a data channel, where swtpm would wait for ever, with and without --terminate (measured), and hold the lock on the state. For that span
// the child inherits one end of a socket pair whose hanging up has the kernel send it SIGTERM (guard); it is disarmed when swtpm has taken the
// data channel.
//
// swtpm's control channel is an inherited descriptor (clientfd): there is no second path that anybody else could connect to or
// that a killed helper would leave behind.
//
// SIGTERM and SIGINT end the child in order, and with it the guest's TPM, as they do for swtpm itself.
package helper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/services/vtpm"
	"github.com/safeconduct/safeconduct/services/vtpm/cmdline"
	"github.com/safeconduct/safeconduct/services/vtpm/statekey"
)

// Options of the helper. Paths are of this host.
type Options struct {
	// Node is the gRPC target of the node service's local socket.
	Node string
	// Instance is the VM's UUID, in canonical lower case.
	Instance string
	// Ctrl is where QEMU connects: a unix socket, made with mode 0600.
	Ctrl string
	// TPMState is swtpm's state directory.
	TPMState string
	// SWTPM is the real swtpm.
	SWTPM string
	// NodeTimeout bounds one blob's way through the node service; 0 means vtpm.DefaultTimeout. The VM stands still meanwhile.
	NodeTimeout time.Duration
	// Extra arguments for swtpm.
	Extra []string
	// StateKey is whose key the state at rest is under; empty: the caller's.
	StateKey StateKey

	// call is what swtpm is asked for; nil: what the fields above say.
	call *cmdline.Call
	// state is under a key of the enclave; nil: it is not.
	state *statekey.State
}

// owned are swtpm's options that the helper sets, or that would take the child away from it.
var owned = [...]string{"--ctrl", "--server", "--tpmstate", "--terminate", "-t", "--daemon", "-d", "--port", "-p", "--fd", "-f", "--print-capabilities"}

func (o *Options) check() error {
	if o.call != nil {
		return nil // checked as it was read
	}
	if id, err := uuid.Parse(o.Instance); err != nil || id.String() != o.Instance {
		return fmt.Errorf("--instance: found %q, expected a UUID in lower case", o.Instance)
	}
	for flag, value := range map[string]string{"--ctrl": o.Ctrl, "--tpmstate": o.TPMState, "--swtpm": o.SWTPM, "--node": o.Node} {
		if value == "" {
			return fmt.Errorf("%s is missing", flag)
		}
	}
	if strings.Contains(o.TPMState, ",") {
		return fmt.Errorf("--tpmstate: %q has a comma, which swtpm takes for the start of another option", o.TPMState)
	}
	for _, arg := range o.Extra {
		name, _, _ := strings.Cut(arg, "=")
		if slices.Contains(owned[:], name) || name == "--key" && o.StateKey == EnclaveKey {
			return fmt.Errorf("swtpm argument %s is not for the caller to set", name)
		}
	}
	var err error
	o.call, err = cmdline.Parse([]string{
		"socket", "--tpm2", "--ctrl", "type=unixio,path=" + o.Ctrl + ",mode=0600", "--tpmstate", "dir=" + o.TPMState + ",mode=0600", "--terminate",
	})
	return err
}

// Run serves until ctx ends (nil), swtpm ends with status 0, as it does when QEMU is gone (nil), or something fails.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	if o.Instance == "" && o.StateKey != EnclaveKey {
		log.Warn("the state's path names no VM, so its state is never let out: the VM runs, and cannot be migrated or saved", "state", o.call.State)
		return runWith(ctx, o, nil, log)
	}
	protector, err := vtpm.NewRemoteProtector(o.Node, o.Instance, o.NodeTimeout)
	if err != nil {
		return err
	}
	log = log.With("instance", o.Instance)
	if o.StateKey == EnclaveKey {
		o.state, err = openState(ctx, place{o.Instance, o.call.State, o.call.StateFile, o.call.Incoming}, protector, statekey.DefaultPatience, log)
		if err != nil {
			return errors.Join(err, protector.Close())
		}
	}
	keeping, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	kept.Go(func() { protector.Keep(keeping, log) })
	err = runWith(ctx, o, protector, log)
	if o.state != nil {
		err = errors.Join(err, o.state.Close())
	}
	stop()
	kept.Wait()
	return errors.Join(err, protector.Close())
}

func runWith(ctx context.Context, o Options, protector vtpm.Protector, log *slog.Logger) error {
	if err := o.check(); err != nil {
		return err
	}
	child, err := startSWTPM(o)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, o.call.Ctrl)
	if err != nil {
		return errors.Join(err, child.stop())
	}
	removePID, err := o.writePID()
	if err != nil {
		return errors.Join(err, ignoreClosed(listener.Close()), child.stop())
	}
	defer removePID()
	log.Info("serving", "ctrl", o.call.Ctrl.Path, "swtpm_pid", child.pid())
	proxy := &vtpm.Proxy{Protector: protector, Log: log, OnDataChannel: child.disarm}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener, proxy, child.ctrl, log) }()
	select {
	case <-child.done:
		cancel()
		log.Debug("swtpm has ended", "control_channel", <-served)
		return child.exitError()
	case <-ctx.Done():
		log.Info("stopping")
		err := child.stop()
		log.Debug("stopped", "control_channel", <-served)
		return err
	case err := <-served:
		return errors.Join(err, child.stop())
	}
}

// serve takes one control connection after the other, as swtpm itself does. It closes listener.
func serve(ctx context.Context, listener *net.UnixListener, proxy *vtpm.Proxy, swtpm *net.UnixConn, log *slog.Logger) error {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return errors.Join(err, ignoreClosed(listener.Close()))
		}
		err = proxy.Serve(ctx, conn, swtpm)
		switch {
		case errors.Is(err, vtpm.ErrSWTPM):
			return errors.Join(err, ignoreClosed(listener.Close()))
		case err != nil:
			log.Warn("control connection ended", "why", err)
		default:
			log.Debug("control connection ended")
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listen makes the control socket, with its mode from the first moment. A socket that nobody listens on is a killed helper's and is removed; any
// other file is not ours. The umask is the process's: listen is called before there are other goroutines that make files.
func listen(ctx context.Context, socket cmdline.Socket) (*net.UnixListener, error) {
	path := socket.Path
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("--ctrl: %s exists and is no socket", path)
		}
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("--ctrl: another process listens on %s", path), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("--ctrl: %w", err)
		}
	}
	before := unix.Umask(int(0o777 &^ socket.Mode))
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Clean(path), Net: "unix"})
	unix.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("--ctrl: %w", err)
	}
	if socket.UID >= 0 || socket.GID >= 0 {
		if err := os.Chown(path, socket.UID, socket.GID); err != nil {
			return nil, errors.Join(fmt.Errorf("--ctrl: %w", err), ignoreClosed(listener.Close()))
		}
	}
	return listener, nil
}

// writePID writes this process's id where --pid says: for who started it, it is swtpm.
func (o *Options) writePID() (remove func(), err error) {
	text := []byte(strconv.Itoa(os.Getpid()) + "\n")
	switch {
	case o.call.PIDFD >= 0:
		_, err = unix.Write(o.call.PIDFD, text)
	case o.call.PIDFile != "":
		if err = os.WriteFile(o.call.PIDFile, text, 0o600); err == nil {
			return func() { _ = os.Remove(o.call.PIDFile) }, nil // a leftover does no harm: its process is gone
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--pid: %w", err)
	}
	return func() {}, nil
}

// harden keeps plaintext that passes through out of core files and away from debuggers of the same uid. The child inherits the first of the two.
func harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core files off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	return nil
}
