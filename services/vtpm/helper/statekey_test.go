package helper

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// volatileStore is sealed storage that seals nothing.
type volatileStore struct {
	mu    sync.Mutex
	blobs map[string][]byte
}

func (m *volatileStore) Put(_ context.Context, kind, name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[kind+"/"+name] = bytes.Clone(b)
	return nil
}

func (m *volatileStore) Get(_ context.Context, kind, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.blobs[kind+"/"+name]; ok {
		return bytes.Clone(b), nil
	}
	return nil, sealed.ErrNotFound
}

func (m *volatileStore) Delete(_ context.Context, kind, name string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, kind+"/"+name)
	return true, nil
}

func (m *volatileStore) List(string) ([]string, error) { return nil, nil }

// stateNode is a node service that keeps state keys, and lets no state out.
type stateNode struct {
	v1.UnimplementedCryptoServiceServer
	*escrow.Store
	settings string // the path of a helper.yaml for it
	stopping chan struct{}
}

func (n *stateNode) Attach(_ *v1.AttachRequest, s grpc.ServerStreamingServer[v1.AttachResponse]) error {
	if err := s.Send(&v1.AttachResponse{LocalSave: v1.LocalSave_LOCAL_SAVE_REFUSE}); err != nil {
		return err
	}
	select {
	case <-s.Context().Done():
	case <-n.stopping:
	}
	return nil
}

func (n *stateNode) OpenState(ctx context.Context, q *v1.OpenStateRequest) (*v1.OpenStateResponse, error) {
	got, err := n.Store.OpenState(ctx, q.GetInstanceId(), escrow.Opening{Digest: q.GetDigest()}, rand.Reader)
	if err != nil {
		return nil, rpcerror.Status(err)
	}
	return &v1.OpenStateResponse{Key: got.Key, Generation: got.Generation, Recorded: got.Recorded}, nil
}

func (n *stateNode) RecordState(ctx context.Context, q *v1.RecordStateRequest) (*v1.RecordStateResponse, error) {
	g, err := n.Store.RecordState(ctx, q.GetInstanceId(), q.GetPrevious(), q.GetDigest())
	if err != nil {
		return nil, rpcerror.Status(err)
	}
	return &v1.RecordStateResponse{Generation: g}, nil
}

// startStateNode serves until the test ends; more is added to its helpers' settings.
func startStateNode(t *testing.T, more string) *stateNode {
	t.Helper()
	dir := shortDir(t)
	n := &stateNode{Store: escrow.Open(&volatileStore{blobs: map[string][]byte{}}, time.Now), settings: filepath.Join(dir, "helper.yaml"),
		stopping: make(chan struct{})}
	socket := filepath.Join(dir, "n")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	v1.RegisterCryptoServiceServer(s, n)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { close(n.stopping); s.Stop(); served.Wait() })
	text := fmt.Sprintf("node: unix://%s\nstate_key: enclave\n%s", socket, more)
	if err := os.WriteFile(n.settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *stateNode) generation(t *testing.T) uint64 {
	t.Helper()
	states, err := n.States(t.Context(), instance)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		return s.Generation
	}
	return 0
}

// under has a program in swtpm's place use the node service.
func under(n *stateNode, c *exec.Cmd) *exec.Cmd {
	c.Env, c.Dir = append(c.Env, withSettings+"=1"), filepath.Dir(n.settings)
	return c
}

// setupDropIn is a process that takes swtpm_setup's place.
func setupDropIn(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("swtpm_setup")
	if err != nil {
		t.Skip("swtpm_setup is not installed")
	}
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), runAsSetup+"="+filepath.Dir(path))
	return c
}

// setUpState makes a VM's state as libvirt does, with a passphrase of libvirt's on descriptor 3.
func setUpState(t *testing.T, n *stateNode, dir string) {
	t.Helper()
	state, log := filepath.Join(dir, instance, "tpm2"), filepath.Join(dir, "swtpm.log")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	c := under(n, setupDropIn(t, "--tpm2", "--pwdfile-fd", "3", "--cipher", "aes-256-cbc", "--tpm-state", state, "--vmid", "vm:"+instance, "--logfile", log,
		"--createek", "--lock-nvram", "--not-overwrite"))
	c.ExtraFiles = []*os.File{passphrase(t, "correct horse")}
	if out, err := c.CombinedOutput(); err != nil {
		raw, _ := os.ReadFile(log)
		t.Fatalf("%v: %s\n%s", err, out, raw)
	}
}

// said is the path of what a program printed.
type said string

func (s said) String() string {
	raw, err := os.ReadFile(string(s))
	return string(raw) + strings.TrimPrefix(fmt.Sprint(err), "<nil>")
}

// start starts swtpm's drop-in as libvirt does for a VM with <encryption>.
func start(t *testing.T, n *stateNode, dir string) (c *exec.Cmd, ctrl string, stderr said) {
	t.Helper()
	ctrl, args := libvirt(t, dir, "--key", "pwdfd=3,mode=aes-256-cbc", "--migration-key", "pwdfd=4,mode=aes-256-cbc")
	c, stderr = under(n, dropIn(t, args...)), said(filepath.Join(dir, "stderr"))
	file, err := os.Create(string(stderr)) // no pipe: a swtpm that lives on would hold it open
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c.ExtraFiles = []*os.File{passphrase(t, "correct horse"), passphrase(t, "correct horse")}
	c.Stderr = file
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c, ctrl, stderr
}

// live boots a VM's TPM, shuts it down as a guest does, and ends it.
func live(t *testing.T, n *stateNode, dir string) {
	t.Helper()
	c, ctrl, stderr := start(t, n, dir)
	data := startTPM(t, dial(t, ctrl))
	guest(t, data, getRandom)
	guest(t, data, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0}) // TPM2_Shutdown(CLEAR)
	data.Close()
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
}

// fails says that a VM's swtpm does not start, and why.
func fails(t *testing.T, what string, n *stateNode, dir, reason string) {
	t.Helper()
	c, _, stderr := start(t, n, dir)
	err := c.Wait()
	if log, _ := os.ReadFile(filepath.Join(dir, "swtpm.log")); err == nil || !strings.Contains(stderr.String(), reason) || !strings.Contains(string(log), "reason="+reason) {
		t.Errorf("%s: %v: %s, expected %s there and in the log", what, err, stderr, reason)
	}
}

func permall(dir string) string { return filepath.Join(dir, instance, "tpm2", "tpm2-00.permall") }

func TestLibvirtsStateIsUnderAKeyOfTheEnclaveFromTheFirstByte(t *testing.T) {
	n, dir := startStateNode(t, ""), shortDir(t)
	setUpState(t, n, dir)
	if n.generation(t) == 0 {
		t.Fatal("what swtpm_setup has written is not recorded")
	}
	old, err := os.ReadFile(permall(dir))
	if err != nil {
		t.Fatal(err)
	}
	live(t, n, dir)
	live(t, n, dir)
	now, err := os.ReadFile(permall(dir))
	if err != nil || bytes.Equal(now, old) {
		t.Fatalf("nothing was written: %v", err)
	}
	if err := os.WriteFile(permall(dir), old, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "an old state", n, dir, "STATE_ROLLED_BACK")
	if err := os.WriteFile(permall(dir), now, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "another node", startStateNode(t, ""), dir, "NO_STATE_KEY")
	live(t, n, dir)

	// Libvirt's passphrase does not open it.
	plain := startStateNode(t, "state_key_of: {"+instance+": caller}\n")
	_, ctrl, _ := start(t, plain, dir)
	conn := dial(t, ctrl)
	dataChannel(t, conn)
	if _, err := conn.Write(words(2, 0)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := conn.Read(got); err != nil || bytes.Equal(got, words(0)) {
		t.Errorf("INIT under libvirt's passphrase answers %x (%v), expected an error", got, err)
	}
}

func TestAKilledHelpersStateIsForTheOperator(t *testing.T) {
	n, dir := startStateNode(t, ""), shortDir(t)
	live(t, n, dir)
	c, ctrl, _ := start(t, n, dir)
	data := startTPM(t, dial(t, ctrl))
	_ = c.Process.Kill()
	_ = c.Wait()
	before, err := os.ReadFile(permall(dir))
	if err != nil {
		t.Fatal(err)
	}
	guest(t, data, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0}) // TPM2_Shutdown writes, and nobody has it recorded
	data.Close()
	until(t, "the last write", func() bool {
		now, err := os.ReadFile(permall(dir))
		return err == nil && !bytes.Equal(now, before)
	})
	fails(t, "what was written without a helper", n, dir, "STATE_NOT_RECORDED")
}

func TestAVMOfTheCallersOwnKeyStaysAsItIs(t *testing.T) {
	n, dir := startStateNode(t, "state_key_of: {"+instance+": caller}\n"), shortDir(t)
	setUpState(t, n, dir)
	live(t, n, dir)
	if n.generation(t) != 0 {
		t.Error("it is under a key of the enclave")
	}
}

func TestQuestionsToSetupGoToTheRealOne(t *testing.T) {
	n := startStateNode(t, "")
	want, wantErr := exec.Command("swtpm_setup", "--print-capabilities").CombinedOutput()
	got, gotErr := under(n, setupDropIn(t, "--print-capabilities")).CombinedOutput()
	if !bytes.Equal(got, want) || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || len(want) == 0 {
		t.Errorf("%q (%v), expected %q (%v)", got, gotErr, want, wantErr)
	}
}

func TestAFailingSetupFailsAndItsStateCanBeMadeAgain(t *testing.T) {
	n, dir := startStateNode(t, ""), shortDir(t)
	state := filepath.Join(dir, instance, "tpm2")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := under(n, setupDropIn(t, "--tpm2", "--tpm-state", state, "--no-such-option")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "exit status") {
		t.Errorf("%v: %s", err, out)
	}
	setUpState(t, n, dir)
	live(t, n, dir)
}

func TestAStateThatCannotBeUnderAKeyOfTheEnclaveIsNotKeptWithout(t *testing.T) {
	n, dir := startStateNode(t, ""), shortDir(t)
	ctrl := filepath.Join(dir, "s")
	for name, tpmstate := range map[string]string{"names no VM": "dir=" + dir, "directory": "backend-uri=file://" + filepath.Join(dir, instance)} {
		c := under(n, dropIn(t, "socket", "--ctrl", "type=unixio,path="+ctrl+",mode=0600", "--tpmstate", tpmstate, "--tpm2", "--terminate"))
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), name) {
			t.Errorf("%s: %v: %s", tpmstate, err, out)
		}
	}
	for name, state := range map[string]string{"names no VM": dir, "directory": "file://" + filepath.Join(dir, instance)} {
		if out, err := under(n, setupDropIn(t, "--tpm2", "--tpm-state", state)).CombinedOutput(); err == nil || !strings.Contains(string(out), name) {
			t.Errorf("%s: %v: %s", state, err, out)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*permall"))
	if err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestWithoutANodeNoStateUnderItsKeyIsOpened(t *testing.T) {
	dir := shortDir(t)
	n := &stateNode{settings: filepath.Join(dir, "helper.yaml")}
	if err := os.WriteFile(n.settings, []byte("node: unix:///nonexistent\nstate_key: enclave\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, stderr := start(t, n, dir)
	if err := c.Wait(); err == nil || !strings.Contains(stderr.String(), "node service at unix:///nonexistent") {
		t.Errorf("%v: %s", err, stderr)
	}
	if _, err := os.Stat(permall(dir)); err == nil {
		t.Error("swtpm has made a state all the same")
	}
}

func TestTheHelpersOwnCommandLineTakesTheModeToo(t *testing.T) {
	n, o := startStateNode(t, ""), options(t)
	raw, err := os.ReadFile(n.settings)
	if err != nil {
		t.Fatal(err)
	}
	node, _, _ := strings.Cut(strings.TrimPrefix(string(raw), "node: "), "\n")
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), runAsHelper+"="+strings.Join([]string{"--node", node, "--instance", o.Instance, "--ctrl", o.Ctrl, "--tpmstate", o.TPMState,
		"--swtpm", o.SWTPM, "--state-key", "enclave"}, " "))
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	data := startTPM(t, dial(t, o.Ctrl))
	until(t, "the first record", func() bool { return n.generation(t) > 0 })
	data.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}
