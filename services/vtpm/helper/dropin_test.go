package helper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// dropIn is a process that takes swtpm's place.
func dropIn(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), runAsDropIn+"="+filepath.Dir(swtpm(t)))
	return c
}

// libvirt is the command line that libvirt 9 builds, in a directory of its own, and the control socket in it.
func libvirt(t *testing.T, dir string, more ...string) (ctrl string, args []string) {
	state := filepath.Join(dir, instance, "tpm2")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	ctrl = filepath.Join(dir, "1-vm-swtpm.sock")
	return ctrl, append([]string{
		"socket", "--ctrl", "type=unixio,path=" + ctrl + ",mode=0600", "--tpmstate", "dir=" + state + ",mode=0600", "--log", "file=" + filepath.Join(dir, "swtpm.log"),
		"--terminate", "--tpm2",
	}, more...)
}

func TestQuestionsAndTheRestGoToTheRealSWTPM(t *testing.T) {
	for _, args := range [][]string{{"socket", "--print-capabilities"}, {"--version"}, {"socket", "--help"}, {"chardev", "--print-capabilities"}} {
		want, wantErr := exec.Command(swtpm(t), args...).CombinedOutput()
		got, gotErr := dropIn(t, args...).CombinedOutput()
		if !bytes.Equal(got, want) || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || len(want) == 0 {
			t.Errorf("%v: %q (%v), expected %q (%v)", args, got, gotErr, want, wantErr)
		}
	}
}

// passphrase is a pipe that has one to read, as libvirt's virCommandSetSendBuffer makes it.
func passphrase(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestSWTPMGetsThePassphrasesUnderTheirNumbers(t *testing.T) {
	dir := shortDir(t)
	start := func(first, second string) (*exec.Cmd, string) {
		ctrl, args := libvirt(t, dir, "--key", "pwdfd=3,mode=aes-256-cbc", "--migration-key", "pwdfd=27,mode=aes-256-cbc")
		c := dropIn(t, args...)
		c.ExtraFiles = make([]*os.File, 25)
		c.ExtraFiles[0], c.ExtraFiles[24] = passphrase(t, first), passphrase(t, second)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
		return c, ctrl
	}
	c, ctrl := start("correct horse", "correct horse")
	startTPM(t, dial(t, ctrl)).Close()
	if err := c.Wait(); err != nil {
		t.Fatalf("QEMU is gone: %v", err)
	}
	state, err := os.ReadFile(filepath.Join(dir, instance, "tpm2", "tpm2-00.permall"))
	if err != nil || len(state) == 0 {
		t.Fatal(err)
	}
	// The state opens with the same passphrase, and not with another: it was read, to the last byte.
	_, ctrl = start("wrong horse", "wrong horse")
	conn := dial(t, ctrl)
	dataChannel(t, conn)
	if _, err := conn.Write(words(2, 0)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := conn.Read(got); err != nil || bytes.Equal(got, words(0)) {
		t.Errorf("INIT under another passphrase answers %x (%v), expected an error", got, err)
	}
}

func TestTheDropInIsToLibvirtWhatSWTPMIs(t *testing.T) {
	dir := shortDir(t)
	ctrl, args := libvirt(t, dir)
	c := dropIn(t, args...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	conn := dial(t, ctrl)
	info, err := os.Stat(ctrl)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	data := startTPM(t, conn)
	guest(t, data, getRandom)
	exchange(t, conn, words(12, 1, 1, 0), words(9, 0, 0, 0)) // no session, no state
	guest(t, data, getRandom)
	conn.Close()
	data.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("it ends with %v, expected status 0", err)
	}
	if _, err := os.Stat(ctrl); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is left behind")
	}
	log, err := os.ReadFile(filepath.Join(dir, "swtpm.log"))
	if err != nil || !strings.Contains(string(log), "program=safeconduct-swtpm instance="+instance) {
		t.Errorf("the log (%v) says nothing of the VM:\n%s", err, log)
	}
}

func TestABrokenStandardErrorDoesNotEndTheTPM(t *testing.T) {
	dir := shortDir(t)
	ctrl, args := libvirt(t, dir)
	c := dropIn(t, args...)
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	_ = stderr.Close() // as libvirt does when swtpm is up
	conn := dial(t, ctrl)
	data := startTPM(t, conn)
	exchange(t, conn, words(12, 1, 1, 0), words(9, 0, 0, 0))
	guest(t, data, getRandom)
}

func TestAStateThatNamesNoVMNeverLeaves(t *testing.T) {
	dir := shortDir(t)
	ctrl := filepath.Join(dir, "s")
	c := dropIn(t, "socket", "--ctrl", "type=unixio,path="+ctrl+",mode=0600", "--tpmstate", "dir="+dir, "--tpm2", "--terminate")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	conn := dial(t, ctrl)
	data := startTPM(t, conn)
	exchange(t, conn, words(12, 1, 1, 0), words(9, 0, 0, 0))
	guest(t, data, getRandom)
}

func TestTheHelperWritesItsOwnPIDWhereSWTPMWould(t *testing.T) {
	dir := shortDir(t)
	pidFile := filepath.Join(dir, "pid")
	ctrl, args := libvirt(t, dir, "--pid", "file="+pidFile)
	c := dropIn(t, args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	dial(t, ctrl)
	until(t, "the pid file", func() bool {
		raw, err := os.ReadFile(pidFile)
		return err == nil && strings.HasSuffix(string(raw), "\n")
	})
	if raw, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(raw)) != fmt.Sprint(c.Process.Pid) {
		t.Errorf("%q, %v, expected %d", raw, err, c.Process.Pid)
	}
}

func TestTheRealToolIsNeverThisProgram(t *testing.T) {
	dir := t.TempDir()
	s := Settings{Tools: dir}
	if _, err := s.tool("swtpm"); !errors.Is(err, ErrNoTool) {
		t.Errorf("nothing is there: %v", err)
	}
	if err := os.Symlink("/proc/self/exe", filepath.Join(dir, "swtpm")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.tool("swtpm"); !errors.Is(err, ErrNoTool) {
		t.Errorf("this program is there: %q, %v", got, err)
	}
	diverted := filepath.Join(dir, "swtpm"+DivertedSuffix)
	if err := os.WriteFile(diverted, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := s.tool("swtpm"); err != nil || got != diverted {
		t.Errorf("%q, %v, expected %q", got, err, diverted)
	}
}

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "helper.yaml")
	if got, err := ReadSettings(path); err != nil || !reflect.DeepEqual(got, DefaultSettings()) {
		t.Errorf("a missing file: %+v, %v", got, err)
	}
	for name, tc := range map[string]struct{ text, problem string }{
		"a whole one": {"node: unix:///n\nnode_timeout: 800ms\ntools: /opt\nlog_level: DEBUG\nstate_key: enclave\nstate_key_of: {" + instance +
			": caller}\n", ""},
		"another's key":         {"state_key: libvirt\n", "state_key"},
		"a VM that is none":     {"state_key_of: {vm-1: enclave}\n", "vm-1"},
		"an empty one":          {" \n", ""},
		"comments only":         {"# node: x\n#tools: /y\n", ""},
		"an unknown key":        {"nodes: x\n", "nodes"},
		"a long wait":           {"node_timeout: 1m\n", "stands still"},
		"no wait":               {"node_timeout: 0s\n", "stands still"},
		"a directory of no use": {"tools: bin\n", "absolute"},
		"no node":               {"node: \"\"\n", "node is empty"},
		"a flood":               {strings.Repeat("#", maxSettings+1), "more than"},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSettings(path)
		if (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%s: %v, expected %q", name, err, tc.problem)
		}
		if (name == "an empty one" || name == "comments only") && !reflect.DeepEqual(got, DefaultSettings()) {
			t.Errorf("%s: %+v, expected the defaults", name, got)
		}
		if name == "a whole one" && (got.NodeTimeout != 800*time.Millisecond || got.Node != "unix:///n" || got.Tools != "/opt" || got.LogLevel >= 0 ||
			got.stateKey("") != EnclaveKey || got.stateKey(instance) != CallersKey) {
			t.Errorf("%+v", got)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("node: unix:///n\nnode_timeout: 800ms\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(dir, "helper.yaml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Skip()
		}
		if s, err := ReadSettings(path); err == nil && (s.Node == "" || s.NodeTimeout <= 0) {
			t.Errorf("%+v", s)
		}
	})
}
