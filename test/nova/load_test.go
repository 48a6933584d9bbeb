// Package nova runs deploy/nova's client of the node service, and its libvirt hook, against real node services.
package nova

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTwentyMigrationsAtOnceUnderEventlet: the calls of twenty live migrations, made at once in a process that eventlet has patched as it patches
// nova-compute, all succeed, and during each of them other greenthreads run. Made without eventlet's pool of threads, they keep the others from running.
func TestTwentyMigrationsAtOnceUnderEventlet(t *testing.T) {
	ctx, c := nodes(t)
	load := func(args ...string) (string, error) {
		args = append(append([]string{"-m", "nova_safeconduct.tests.load"}, args...), "compute1="+c.Hosts[0].Socket, "compute2="+c.Hosts[1].Socket)
		run := exec.CommandContext(ctx, "/usr/bin/python3", args...)
		run.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH="+filepath.Join(root(t), "deploy", "nova"),
			"PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore")
		out, err := run.CombinedOutput()
		t.Logf("%v\n%s", args[2:], out)
		return string(out), err
	}
	if _, err := load(); err != nil {
		t.Error(err)
	}
	if out, err := load("--direct"); err == nil || !strings.Contains(out, `"good": 20,`) {
		t.Error("calls that are made without the pool pass too, or fail for another reason: this test shows nothing")
	}
}
