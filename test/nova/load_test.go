// Package nova runs deploy/nova's client of the node service against real node services.
package nova

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/test/cluster"
)

// TestTwentyMigrationsAtOnceUnderEventlet: the calls of twenty live migrations, made at once in a process that eventlet has patched as it patches
// nova-compute, all succeed, and during each of them other greenthreads run. Made without eventlet's pool of threads, they keep the others from running.
func TestTwentyMigrationsAtOnceUnderEventlet(t *testing.T) {
	if os.Getenv("SAFECONDUCT_E2E") == "" {
		t.Skip("it needs Nova's Python packages, QEMU and swtpm: make e2e-nova")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sc-nova-") // t.TempDir() makes paths that are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &cluster.Cluster{Bin: filepath.Join(root, "build", "bin"), Dir: dir, Hosts: []*cluster.Host{
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
	load := func(args ...string) ([]byte, error) {
		args = append(append([]string{"-m", "nova_safeconduct.tests.load"}, args...), "compute1="+c.Hosts[0].Socket, "compute2="+c.Hosts[1].Socket)
		run := exec.CommandContext(ctx, "/usr/bin/python3", args...)
		run.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH="+filepath.Join(root, "deploy", "nova"),
			"PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore")
		out, err := run.CombinedOutput()
		t.Logf("%v\n%s", args[2:], out)
		return out, err
	}
	if _, err := load(); err != nil {
		t.Error(err)
	}
	if out, err := load("--direct"); err == nil || !strings.Contains(string(out), `"good": 20,`) {
		t.Error("calls that are made without the pool pass too: this test shows nothing")
	}
}
