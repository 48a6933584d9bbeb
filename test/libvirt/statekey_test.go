package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// statePath is the file of the VM's state on a host, as it is found from outside.
func (d *Domain) statePath(h *Host) string {
	return h.path("/var/lib/libvirt/swtpm/" + d.UUID + "/tpm2/tpm2-00.permall")
}

// recorded is what a node's enclave has recorded of the VM's state; nil: it has no key for it.
func (d *Domain) recorded(ctx context.Context, t *testing.T, h *Host) *v1.RecordedState {
	t.Helper()
	got, err := v1.NewAdminServiceClient(h.Conn).ListStates(ctx, &v1.ListStatesRequest{InstanceId: d.UUID})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range got.GetStates() {
		return s
	}
	return nil
}

// startFails starts the VM, which its swtpm refuses for a reason.
func (d *Domain) startFails(ctx context.Context, t *testing.T, what, reason string) {
	t.Helper()
	_, err := d.Host().Virsh(ctx, "start", d.Name)
	log, _ := os.ReadFile(d.Host().path("/var/log/swtpm/libvirt/qemu/" + d.Name + "-swtpm.log"))
	if err == nil || !strings.Contains(err.Error(), reason) || !bytes.Contains(log, []byte("reason="+reason)) {
		t.Fatalf("%s: %v, expected %s, also in swtpm's log", what, err, reason)
	}
	t.Logf("%s: %v", what, err)
}

func (d *Domain) starts(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := d.Host().Virsh(ctx, "start", d.Name); err != nil {
		t.Fatal(err)
	}
}

// stop destroys the VM, as pulling the plug does, and waits until its state is recorded and nobody is at work on it.
func (d *Domain) stop(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := d.Host().Virsh(ctx, "destroy", d.Name); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Until(ctx, "the end of "+d.Name+"'s helper", func() error {
		if out, err := d.Host().Run(ctx, "pgrep", "-fa", d.UUID); err == nil {
			return errors.New(out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestAStateUnderAKeyOfTheEnclaveGoesWithTheVMAndNotBackInTime(t *testing.T) {
	r, ctx := start(t, Options{HelperSettings: "state_key: enclave\n"})
	for name, d := range map[string]*Domain{"without <encryption>": {}, "with <encryption>": {Encrypted: true, Model: "tpm-crb"}} {
		t.Run(name, func(t *testing.T) {
			if err := r.Boot(ctx, d); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = d.Host().Virsh(ctx, "destroy", d.Name) })
			first, second := d.Host(), d.Other()
			early, err := os.ReadFile(d.statePath(first))
			if err != nil {
				t.Fatal(err)
			}
			if s := d.recorded(ctx, t, first); s.GetGeneration() == 0 {
				t.Fatalf("nothing is recorded: %v", s)
			}
			for leg := range 2 {
				left := d.Host()
				if err := d.Migrate(ctx); err != nil {
					t.Fatalf("leg %d: %v", leg+1, err)
				}
				if err := d.GoesOn(ctx); err != nil {
					t.Fatalf("after leg %d: %v", leg+1, err)
				}
				if s := d.recorded(ctx, t, left); s != nil {
					t.Errorf("leg %d: the source keeps the key: %v", leg+1, s)
				}
				if s := d.recorded(ctx, t, d.Host()); s.GetGeneration() == 0 || s.GetIncoming() {
					t.Errorf("leg %d: at the destination: %v", leg+1, s)
				}
			}

			// A destination without the mode takes nothing, and the VM runs on.
			settings := second.path("/etc/safeconduct/helper.yaml")
			if err := os.WriteFile(settings, []byte("state_key: caller\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			s, err := d.Arm(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Virsh(ctx); err == nil {
				t.Fatal("the VM has moved to a host without the mode")
			}
			if _, err := d.Host().Migrations().Abort(ctx, &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(settings, []byte("state_key: enclave\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := d.GoesOn(ctx); err != nil {
				t.Fatal(err)
			}
			if err := d.AbsentFrom(ctx, second); err != nil {
				t.Fatal(err)
			}

			d.stop(ctx, t)
			now, err := os.ReadFile(d.statePath(d.Host()))
			if err != nil {
				t.Fatal(err)
			}
			put := func(state []byte) {
				if err := os.WriteFile(d.statePath(d.Host()), state, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			put(early)
			d.startFails(ctx, t, "the state of before the VM left", "STATE_NOT_RECORDED")
			put(now)
			before := d.recorded(ctx, t, d.Host()).GetGeneration()
			d.starts(ctx, t)
			if err := cluster.Until(ctx, "a state of this start", func() error {
				if s := d.recorded(ctx, t, d.Host()); s.GetGeneration() <= before {
					return fmt.Errorf("generation %d", s.GetGeneration())
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			d.stop(ctx, t)
			put(now)
			d.startFails(ctx, t, "the state of the last start", "STATE_ROLLED_BACK")
			accept := []string{filepath.Join(r.Cluster.Bin, "safeconduct"), "secrets", "accept-state", d.UUID}
			said, err := d.Host().Run(ctx, accept...)
			_, digest, found := strings.Cut(said, "--digest ")
			if err == nil || !found {
				t.Fatalf("accept-state without a digest: %v: %s", err, said)
			}
			if _, err := d.Host().Run(ctx, append(accept, "--digest", strings.Fields(digest)[0])...); err != nil {
				t.Fatal(err)
			}
			d.starts(ctx, t)
		})
	}
}
