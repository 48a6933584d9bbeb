package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// staysWhereItIs checks what is promised of every failure: virsh says so, the VM runs on at the source with its vTPM, and the destination has nothing
// of it.
func (d *Domain) staysWhereItIs(ctx context.Context, migration error) error {
	if migration == nil {
		return errors.New("virsh migrate succeeds")
	}
	if state, err := d.State(ctx); err != nil || state != "running" {
		return fmt.Errorf("the VM is %q at the source: %w", state, err)
	}
	if err := d.GoesOn(ctx); err != nil {
		return err
	}
	return d.AbsentFrom(ctx, d.Other())
}

func (d *Domain) abort(ctx context.Context, s *v1.Session) error {
	_, err := d.Host().Migrations().Abort(ctx, &v1.AbortRequest{SessionId: s.GetSessionId(), Reason: "the migration failed"})
	return err
}

// helpersLog is what the VM's swtpm and helper wrote on a host.
func (d *Domain) helpersLog(h *Host) string {
	raw, _ := os.ReadFile(filepath.Join(h.dir, "root/var/log/swtpm/libvirt/qemu", d.Name+"-swtpm.log"))
	return string(raw)
}

// kill ends the processes of the VM's vTPM on a host whose command line begins so.
func (d *Domain) kill(ctx context.Context, h *Host, command string) error {
	_, err := h.Run(ctx, "pkill", "-9", "-f", command+".*"+d.UUID)
	return err
}

const (
	helperCommand = "bin/swtpm socket --ctrl type=unixio,path"
	swtpmCommand  = "/usr/bin/swtpm socket"
)

func TestTheVMStaysOnTheSourceWhateverFails(t *testing.T) {
	r, ctx := start(t, Options{})
	d := &Domain{}
	if err := r.Boot(ctx, d); err != nil {
		t.Fatal(err)
	}
	src, dst := r.Hosts[0], r.Hosts[1]
	armed := func(t *testing.T) *v1.Session {
		t.Helper()
		s, err := d.Arm(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	stays := func(t *testing.T, migration error) {
		t.Helper()
		if err := d.staysWhereItIs(ctx, migration); err != nil {
			t.Fatal(err)
		}
		t.Logf("virsh: %v", migration)
	}

	t.Run("no session", func(t *testing.T) {
		stays(t, d.Virsh(ctx))
		if log := d.helpersLog(src); !strings.Contains(log, "NO_ARMED_SESSION") {
			t.Errorf("the helper's log does not say why:\n%s", log)
		}
	})
	t.Run("a session of another VM", func(t *testing.T) {
		other := &Domain{}
		if err := r.Boot(ctx, other); err != nil {
			t.Fatal(err)
		}
		s, err := other.Arm(ctx)
		if err != nil {
			t.Fatal(err)
		}
		stays(t, d.Virsh(ctx))
		if err := other.abort(ctx, s); err != nil {
			t.Error(err)
		}
		if _, err := src.Virsh(ctx, "destroy", other.Name); err != nil {
			t.Error(err)
		}
	})
	t.Run("the source's node service is down", func(t *testing.T) {
		armed(t)
		src.Daemon.Kill()
		err := d.Virsh(ctx)
		if err := r.Cluster.StartNode(ctx, src.Host, ""); err != nil {
			t.Fatal(err)
		}
		stays(t, err)
	})
	t.Run("the destination's node service is down", func(t *testing.T) {
		s := armed(t)
		dst.Daemon.Kill()
		err := d.Virsh(ctx)
		if err := r.Cluster.StartNode(ctx, dst.Host, ""); err != nil {
			t.Fatal(err)
		}
		stays(t, err)
		if err := d.abort(ctx, s); err != nil {
			t.Error(err)
		}
	})
	t.Run("the source's node service does not answer", func(t *testing.T) {
		s := armed(t)
		src.Daemon.Signal(syscall.SIGSTOP)
		err := d.Virsh(ctx)
		src.Daemon.Signal(syscall.SIGCONT)
		stays(t, err)
		if log := d.helpersLog(src); !strings.Contains(log, "DeadlineExceeded") && !strings.Contains(log, "deadline exceeded") {
			t.Errorf("the helper's log does not speak of a deadline:\n%s", log)
		}
		if err := d.abort(ctx, s); err != nil {
			t.Error(err)
		}
	})
	t.Run("the destination's node service does not answer", func(t *testing.T) {
		s := armed(t)
		dst.Daemon.Signal(syscall.SIGSTOP)
		err := d.Virsh(ctx)
		dst.Daemon.Signal(syscall.SIGCONT)
		stays(t, err)
		if err := d.abort(ctx, s); err != nil {
			t.Error(err)
		}
	})
	for _, h := range r.Hosts {
		t.Run("libvirtd of "+h.Name+" is killed in mid-migration", func(t *testing.T) {
			s := armed(t)
			err := d.inMidMigration(ctx, func() error { return h.KillLibvirtd(ctx) })
			if err := h.AwaitLibvirtd(ctx); err != nil {
				t.Fatal(err)
			}
			// A source that lost its libvirtd gives the migration up when it is back; a destination's QEMU is ended by its own.
			if err := cluster.Until(ctx, "the VM's job ends", func() error { return d.noJob(ctx) }); err != nil {
				t.Fatal(err)
			}
			stays(t, err)
			if err := d.abort(ctx, s); err != nil {
				t.Error(err)
			}
		})
	}
	for name, what := range map[string]string{"helper": helperCommand, "swtpm": swtpmCommand} {
		t.Run("the destination's "+name+" is killed in mid-migration", func(t *testing.T) {
			s := armed(t)
			stays(t, d.inMidMigration(ctx, func() error { return d.kill(ctx, dst, what) }))
			if err := d.abort(ctx, s); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("after all that, it migrates", func(t *testing.T) {
		if err := d.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.GoesOn(ctx); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("its helper is killed", func(t *testing.T) {
		if err := d.kill(ctx, d.Host(), helperCommand); err != nil {
			t.Fatal(err)
		}
		if err := d.GoesOn(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Arm(ctx); err == nil || !strings.Contains(err.Error(), "safeconduct-swtpm") {
			t.Errorf("Arm: %v, expected that it wants a helper", err)
		}
		stays(t, d.Virsh(ctx))
	})
	t.Run("its swtpm is killed", func(t *testing.T) {
		other := &Domain{}
		if err := r.Boot(ctx, other); err != nil {
			t.Fatal(err)
		}
		s, err := other.Arm(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.kill(ctx, src, swtpmCommand); err != nil {
			t.Fatal(err)
		}
		// The guest has lost its TPM, as it does without the helper; the VM itself runs on, where it is.
		if err := other.Virsh(ctx); err == nil {
			t.Error("a VM without its TPM migrates")
		}
		if state, err := other.State(ctx); err != nil || state != "running" {
			t.Errorf("the VM is %q (%v)", state, err)
		}
		if err := other.AbsentFrom(ctx, dst); err != nil {
			t.Error(err)
		}
		if err := other.abort(ctx, s); err != nil {
			t.Error(err)
		}
	})
}

// inMidMigration migrates slowly and does something while the destination has part of the guest's memory.
func (d *Domain) inMidMigration(ctx context.Context, what func() error, more ...string) error {
	ended := make(chan error, 1)
	go func() { ended <- d.Virsh(ctx, append([]string{"--bandwidth", "4"}, more...)...) }()
	defer func() { _, _ = d.Host().Virsh(ctx, "migrate-setspeed", d.Name, "100000") }()
	err := cluster.Until(ctx, "the migration is under way", func() error {
		out, err := d.Host().Virsh(ctx, "domjobinfo", d.Name)
		if err == nil && !strings.Contains(out, "Data processed") {
			err = errors.New("no job")
		}
		return err
	})
	if err == nil {
		err = what()
	}
	if err != nil {
		return errors.Join(err, <-ended)
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(2 * time.Minute):
		return errors.New("virsh does not return")
	}
}

func (d *Domain) noJob(ctx context.Context) error {
	out, err := d.Host().Virsh(ctx, "domjobinfo", d.Name)
	if err == nil && !strings.Contains(out, "None") {
		err = errors.New(out)
	}
	return err
}
