package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a child with a log of its own, which is ended and waited for.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	// forks: the process is the parent of what it runs, as nsenter is when it enters a PID namespace; signals are for the child.
	forks bool
}

// Start runs a program whose output goes to logFile. env is added to the present environment.
func Start(logFile string, env []string, name string, args ...string) (*Process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = log, log, append(os.Environ(), env...)
	// Its own process group: a terminal's interrupt is for the caller, who ends everything in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() {
		_ = p.cmd.Wait() // its end is what counts
		_ = log.Close()
		close(p.done)
	}()
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the process with SIGTERM, or with SIGKILL if that takes longer than 5 s, and waits for its end. It may be called twice.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
}

// Kill ends the process at once and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Signal sends a signal, if the process is there.
func (p *Process) Signal(sig syscall.Signal) {
	if p.forks {
		if child, err := p.Child(); err == nil {
			_ = syscall.Kill(child, sig) // it may have ended meanwhile
			if sig != syscall.SIGCONT && sig != syscall.SIGKILL {
				return
			}
			// nsenter stops when its child is stopped, and would not notice its end.
		}
	}
	_ = p.cmd.Process.Signal(sig)
}

// Child is the pid of the process's only child.
func (p *Process) Child() (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID(), p.PID()))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// Until polls for a condition of another process, for half a minute.
func Until(ctx context.Context, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}
