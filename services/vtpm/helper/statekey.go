package helper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/vtpm"
	"github.com/safeconduct/safeconduct/services/vtpm/cmdline"
	"github.com/safeconduct/safeconduct/services/vtpm/statekey"
)

// ErrNoStateKey says that a state cannot be under a key of the enclave. It is not kept without one instead.
var ErrNoStateKey = errors.New("state_key: enclave")

// setupPatience bounds swtpm_setup's wait for the node service: nobody counts the seconds, and the VM does not exist yet.
const setupPatience = 10 * time.Second

// place is where a state is.
type place struct {
	instance, path string
	file, incoming bool
}

// openState gets the key of a state from the node's enclave.
func openState(ctx context.Context, at place, node *vtpm.RemoteProtector, patience time.Duration, log *slog.Logger) (*statekey.State, error) {
	switch {
	case at.instance == "":
		return nil, fmt.Errorf("%w: the path %s names no VM", ErrNoStateKey, at.path)
	case at.file:
		return nil, fmt.Errorf("%w: swtpm keeps the state in the file %s, where its writes cannot be followed: give it a directory", ErrNoStateKey, at.path)
	}
	return statekey.Open(ctx, statekey.Options{Keeper: node.StateKeeper(), Dir: at.path, Follows: at.incoming, Patience: patience, Log: log})
}

// enclaveKey puts a key of the enclave, if the state is under one, in the place of the caller's. dropKey is called when swtpm has its own copy of the
// descriptor.
func (o *Options) enclaveKey() (args []string, dropKey func(), err error) {
	if o.state == nil {
		return nil, func() {}, nil
	}
	if err := closeAll(o.call.DropKey()); err != nil {
		return nil, nil, err
	}
	key, args, err := o.state.ForSWTPM()
	if err != nil {
		return nil, nil, err
	}
	if err := inherit(key); err != nil {
		return nil, nil, errors.Join(err, key.Close())
	}
	return args, func() { _ = key.Close() }, nil
}

// closeAll closes descriptors of keys that are not used.
func closeAll(fds []int) (err error) {
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("closing the descriptor of the caller's key: %w", err)
	}
	return nil
}

// SetupDropIn is safeconduct-swtpm under the name swtpm_setup, as libvirt starts it for a new VM: a state that is to be under a key of the enclave is made
// under it. Everything else becomes the real swtpm_setup at once. args are without the program's name.
func SetupDropIn(ctx context.Context, args []string, settings Settings) error {
	call, err := cmdline.ParseSetup(args)
	if err != nil {
		return err
	}
	if !call.Makes || settings.stateKey(call.Instance) != EnclaveKey {
		return become(settings, "swtpm_setup", args)
	}
	program, err := settings.tool("swtpm_setup")
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	log, err := openLog(call.LogFile, &settings.LogLevel)
	if err != nil {
		return err
	}
	defer func() { _ = log.file.Close() }()
	err = setUp(ctx, program, call, settings, log.With("instance", call.Instance))
	if err != nil {
		log.Error("swtpm_setup ends", append([]any{"instance", call.Instance}, refusal.Attributes(err)...)...)
	}
	return err
}

func setUp(ctx context.Context, program string, call *cmdline.Setup, settings Settings, log *slog.Logger) error {
	if err := errors.Join(harden(), closeAll(call.KeyFDs)); err != nil {
		return err
	}
	protector, err := vtpm.NewRemoteProtector(settings.Node, call.Instance, settings.NodeTimeout)
	if err != nil {
		return err
	}
	state, err := openState(ctx, place{instance: call.Instance, path: call.State, file: call.StateFile}, protector, setupPatience, log)
	if err != nil {
		return errors.Join(err, protector.Close())
	}
	return errors.Join(runSetup(ctx, program, call, state), state.Close(), protector.Close())
}

// runSetup runs the real swtpm_setup, which ends with us.
func runSetup(ctx context.Context, program string, call *cmdline.Setup, state *statekey.State) error {
	key, args, err := state.ForSetup()
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	if err := inherit(key); err != nil {
		return err
	}
	runtime.LockOSThread() // the death of the thread that starts the child is what Pdeathsig is about
	defer runtime.UnlockOSThread()
	c := exec.CommandContext(ctx, program, call.Args(args...)...) //nolint:gosec // who calls us could call it
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) }
	c.WaitDelay = stopPatience
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}
