//go:build !sgx

package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheDocumentedSimulationComesUp runs the lines of docs/simulated.md as they stand there, but for the ports.
func TestTheDocumentedSimulationComesUp(t *testing.T) {
	doc, err := os.ReadFile("../../docs/simulated.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(doc), "```bash\n")
	script, _, found := strings.Cut(script, "```\n")
	if !found {
		t.Fatal("docs/simulated.md has no lines to run")
	}
	for _, port := range []string{"7443", "7453"} { // others may have them here
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, free, _ := net.SplitHostPort(l.Addr().String())
		script = strings.ReplaceAll(script, port, free)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	bin, dir := t.TempDir(), shortDir(t)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", ".", "../safeconduct")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"+script)
	c.Dir, c.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	out, err := c.CombinedOutput()
	if err != nil {
		logs, _ := filepath.Glob(dir + "/*/log")
		for _, l := range logs {
			raw, _ := os.ReadFile(l)
			t.Logf("%s: %s", l, raw)
		}
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"SIMULATED: what this makes", "safeconductd.yaml: ok, mode simulated"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
	if n := strings.Count(string(out), "accepted"); n < 3 {
		t.Errorf("accepted %d times, expected by status and both preflights: %s", n, out)
	}
	for path, mode := range map[string]os.FileMode{"authority/private": 0o700, "authority/private/root_ca.key.pem": 0o600, "compute1/platform": 0o700, "policy.key": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: found %v, %v; expected mode %v", path, info, err, mode)
		}
	}
	// A second time nothing is overwritten.
	for _, args := range [][]string{{"authority", "authority"}, {"platform", "compute1/platform", "--authority", "authority", "--host", "compute1"}} {
		c := exec.CommandContext(ctx, filepath.Join(bin, "safeconductd"), append([]string{"simulate"}, args...)...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "nothing is overwritten") {
			t.Errorf("%v a second time: %v, %s", args, err, out)
		}
	}
}

// shortDir is a directory whose path leaves room for a unix socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
