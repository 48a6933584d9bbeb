package nova

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// TestTheHookLetsInWhatASessionBrings: the libvirt hook, with the real command line and real node services, refuses an incoming domain with a vTPM until
// its session is armed, at its destination only, and again when it has ended.
func TestTheHookLetsInWhatASessionBrings(t *testing.T) {
	ctx, c := nodes(t)
	source, destination := c.Hosts[0], c.Hosts[1]
	instance := uuid.NewString()
	domain := fmt.Sprintf("<domain type='kvm'><uuid>%s</uuid><devices><tpm model='tpm-tis'><backend type='emulator'/></tpm></devices></domain>", instance)
	hook := func(h *cluster.Host) error {
		defaults := filepath.Join(c.Dir, h.Name, "safeconduct-hook")
		settings := fmt.Sprintf("SAFECONDUCT=%s\nSAFECONDUCT_SOCKET=%s\n", filepath.Join(c.Bin, "safeconduct"), h.Socket)
		if err := os.WriteFile(defaults, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		run := exec.CommandContext(ctx, filepath.Join(root(t), "deploy/nova/hooks/qemu.d/50-safeconduct"), "i", "migrate", "begin", "-")
		run.Env = []string{"SAFECONDUCT_HOOK_DEFAULTS=" + defaults}
		run.Stdin = strings.NewReader(domain)
		if out, err := run.CombinedOutput(); err != nil {
			return errors.New(string(out))
		}
		return nil
	}
	refused := func(when string, h *cluster.Host) {
		t.Helper()
		if err := hook(h); err == nil || !strings.Contains(err.Error(), "no armed session") {
			t.Errorf("%s: at %s the hook says %v", when, h.Name, err)
		}
	}
	refused("without a session", destination)
	stream, err := destination.Migrations().Establish(ctx, &v1.EstablishRequest{InstanceId: instance, PeerHost: source.Name, Role: v1.Role_ROLE_DESTINATION})
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	refused("before it is armed", destination)
	armed, err := source.Migrations().Arm(ctx, &v1.ArmRequest{
		InstanceId: instance, DestinationHost: destination.Name, MigrationId: uuid.NewString(), ReturnPath: true, WithoutVtpm: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := hook(destination); err != nil {
		t.Errorf("armed: the hook says %v", err)
	}
	refused("armed to leave", source)
	if _, err := source.Migrations().Abort(ctx, &v1.AbortRequest{SessionId: armed.GetSession().GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	refused("aborted", destination)
	destination.Daemon.Stop()
	if err := hook(destination); err == nil || !strings.Contains(err.Error(), "could not be asked") {
		t.Errorf("without a node service the hook says %v", err)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// nodes starts two node services. The context ends with the test.
func nodes(t *testing.T) (context.Context, *cluster.Cluster) {
	t.Helper()
	if os.Getenv("SAFECONDUCT_E2E") == "" {
		t.Skip("it needs Nova's Python packages, QEMU and swtpm: make e2e-nova")
	}
	ctx := t.Context()
	dir, err := os.MkdirTemp("", "sc-nova-") // t.TempDir() makes paths that are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &cluster.Cluster{Bin: filepath.Join(root(t), "build", "bin"), Dir: dir, Hosts: []*cluster.Host{
		{Name: "compute1", Peer: "127.0.0.1:17541"},
		{Name: "compute2", Peer: "127.0.0.1:17542"},
	}}
	t.Cleanup(c.Close)
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts {
		if err := c.StartNode(ctx, h, ""); err != nil {
			t.Fatal(err)
		}
	}
	return ctx, c
}
