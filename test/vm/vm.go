// Package vm runs the virtual machines of the demo and the end-to-end suites: a small guest that uses its vTPM all the time (./guest), QEMU under
// TCG with a tpm-emulator, its migration, and what an attacker or an auditor does with the migration stream: record it, change it, find the vTPM
// in it.
//
// KVM is not used, so that the suites run in any container. What TCG needs in order to migrate reliably is in machine (qemu.go).
//
// Linux only; QEMU 7.2 and swtpm 0.7.1 are what it was written against. Non-goals: disks, networks, more than one processor.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Config of one virtual machine. Paths that are left empty are made in Dir.
type Config struct {
	// Name of the VM, for its files and QEMU's -name.
	Name string
	// Dir for sockets and logs. Unix socket paths are limited to 107 bytes.
	Dir string
	// QEMU binary; empty means qemu-system-x86_64.
	QEMU string
	// Netns, if set, is the network namespace (ip netns) that QEMU runs in.
	Netns string
	// Kernel image and Initrd (BuildInitramfs).
	Kernel, Initrd string
	// TPMCtrlSocket is swtpm's control socket, or the helper's; empty: a VM without a TPM.
	TPMCtrlSocket string
	// TPMDevice is tpm-tis (the default) or tpm-crb, which loses an answer now and then: see machine.
	TPMDevice string
	// Incoming URI: the VM waits there for a migration.
	Incoming string
	// MemoryMiB; 0 means 128.
	MemoryMiB int
	// Serial is the file that gets the guest's console.
	Serial string
	// ExtraArgs for QEMU.
	ExtraArgs []string
}

func (c *Config) fill() error {
	if c.Name == "" || c.Dir == "" || c.Kernel == "" || c.Initrd == "" {
		return errors.New("a VM needs a name, a directory, a kernel and an initrd")
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.QEMU, "qemu-system-x86_64"}, {&c.TPMDevice, "tpm-tis"}, {&c.Serial, filepath.Join(c.Dir, c.Name+".console")},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 128
	}
	return nil
}

// VM is a running QEMU.
type VM struct {
	Config Config
	// Started is when QEMU was started.
	Started time.Time

	cmd  *exec.Cmd
	qmp  *QMP
	done chan struct{}
	err  error
}

// Start runs QEMU and connects to its monitor. The VM lives until Quit, Kill or the end of ctx, when it is killed.
func Start(ctx context.Context, c Config) (*VM, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	monitor := filepath.Join(c.Dir, c.Name+".qmp")
	_ = os.Remove(monitor)
	// QEMU connects to us, not we to it: nothing to poll for.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: monitor, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	log, err := os.OpenFile(c.logPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	args := append([]string{c.QEMU}, c.machine(monitor)...)
	if c.Netns != "" {
		args = append([]string{"ip", "netns", "exec", c.Netns}, args...) // replaces itself by QEMU: the process is the same
	}
	v := &VM{Config: c, Started: time.Now(), cmd: exec.CommandContext(ctx, args[0], args[1:]...), done: make(chan struct{})}
	v.cmd.Stdout, v.cmd.Stderr = log, log
	v.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's interrupt is the caller's to handle
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	go func() { v.err = v.cmd.Wait(); close(v.done) }()
	if v.qmp, err = v.accept(ctx, listener); err != nil {
		_ = v.Kill()
		return nil, fmt.Errorf("%s: %w; QEMU says: %s", c.Name, err, v.Log())
	}
	return v, nil
}

// accept takes QEMU's connection to its monitor, unless QEMU ends first.
func (v *VM) accept(ctx context.Context, listener *net.UnixListener) (*QMP, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	exited := make(chan struct{})
	defer close(exited)
	go func() {
		select {
		case <-v.done:
		case <-ctx.Done():
		case <-exited:
		}
		_ = listener.Close()
	}()
	conn, err := listener.Accept()
	if err != nil {
		return nil, errors.Join(errors.New("QEMU does not come up"), ctx.Err())
	}
	return NewQMP(ctx, conn)
}

func (c *Config) logPath() string { return filepath.Join(c.Dir, c.Name+".qemu.log") }

// machine is QEMU's command line. TCG has one thread and one vCPU, and the guest a clock that does not jump with the host's time stamp counter.
//
// The TPM is a tpm-tis. With tpm-crb and a TPM command under way at switch-over, the guest finds its own command where the answer should be, and takes
// it for an error: the command buffer is guest memory, and QEMU waits for the answer (tpm_crb_pre_save) when memory has been sent already. The
// TPM itself has executed the command and loses nothing. Seen once in 25 migrations on a machine under load; tpm-tis keeps the
// buffer in the device's state, which is saved after the wait.
func (c *Config) machine(monitor string) []string {
	args := []string{
		"-name", c.Name, "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-machine", "q35,usb=off,vmport=off,smbus=off", "-accel", "tcg,thread=single",
		"-cpu", "qemu64", "-smp", "1", "-m", strconv.Itoa(c.MemoryMiB),
		"-kernel", c.Kernel, "-initrd", c.Initrd,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 tsc=unstable clocksource=acpi_pm nokaslr",
		"-serial", "file:" + c.Serial,
		"-chardev", "socket,id=qmp,path=" + monitor, "-mon", "chardev=qmp,mode=control",
	}
	if c.TPMCtrlSocket != "" {
		args = append(args,
			"-chardev", "socket,id=tpmctrl,path="+c.TPMCtrlSocket, "-tpmdev", "emulator,id=tpm,chardev=tpmctrl",
			"-device", c.TPMDevice+",tpmdev=tpm")
	}
	if c.Incoming != "" {
		args = append(args, "-incoming", c.Incoming)
	}
	return append(args, c.ExtraArgs...)
}

// Log returns the end of what QEMU has written to its standard error.
func (v *VM) Log() string {
	b, err := os.ReadFile(v.Config.logPath())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// PID of QEMU.
func (v *VM) PID() int { return v.cmd.Process.Pid }

// Done is closed when QEMU has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// QMP is the VM's monitor.
func (v *VM) QMP() *QMP { return v.qmp }

// Quit asks QEMU to end and waits for it.
func (v *VM) Quit(ctx context.Context) error {
	// The answer may be lost: QEMU ends.
	if err := v.qmp.Execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, ErrMonitorClosed) {
		return err
	}
	select {
	case <-v.done:
		return v.qmp.Close()
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not quit: %w", ctx.Err())
	}
}

// Kill ends QEMU at once and waits for it. It may be called at any time, and twice.
func (v *VM) Kill() error {
	err := v.cmd.Process.Kill()
	<-v.done
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if v.qmp != nil {
		err = errors.Join(err, v.qmp.Close())
	}
	return err
}
