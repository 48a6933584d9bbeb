package statekey

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vm = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

// memory is sealed storage that a test can fail.
type memory struct {
	mu    sync.Mutex
	blobs map[string][]byte
}

func (m *memory) Put(_ context.Context, kind, name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[kind+"/"+name] = bytes.Clone(b)
	return nil
}

func (m *memory) Get(_ context.Context, kind, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[kind+"/"+name]
	if !ok {
		return nil, sealed.ErrNotFound
	}
	return bytes.Clone(b), nil
}

func (m *memory) Delete(_ context.Context, kind, name string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, kind+"/"+name)
	return true, nil
}

func (m *memory) List(string) ([]string, error) { return nil, nil }

var errDown = errors.New("the node service is down")

// node is a Keeper over the escrow of a node service, for one VM. It can be down, and lose its answers.
type node struct {
	*escrow.Store
	session *escrow.SessionID

	mu         sync.Mutex
	down, mute bool
	records    int
	recorded   chan struct{} // closed and replaced with each record
}

func newNode() *node {
	return &node{Store: escrow.Open(&memory{blobs: map[string][]byte{}}, time.Now), recorded: make(chan struct{})}
}

func (n *node) fails(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.mute = down, false
}

func (n *node) OpenState(ctx context.Context, digest []byte, follows bool) (Opened, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return Opened{}, errDown
	}
	got, err := n.Store.OpenState(ctx, vm, escrow.Opening{Session: n.session, Digest: digest, Follows: follows}, rand.Reader)
	return Opened{Key: got.Key, Generation: got.Generation, Recorded: got.Recorded}, err
}

func (n *node) RecordState(ctx context.Context, previous, digest []byte) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return 0, errDown
	}
	g, err := n.Store.RecordState(ctx, vm, previous, digest)
	n.records++
	close(n.recorded)
	n.recorded = make(chan struct{})
	if n.mute {
		return 0, errDown
	}
	return g, err
}

// latest is the generation and the digest that were recorded last.
func (n *node) latest(t *testing.T) (uint64, []byte) {
	t.Helper()
	states, err := n.States(t.Context(), vm)
	if err != nil || len(states) != 1 {
		t.Fatal(states, err)
	}
	return states[0].Generation, states[0].Digest
}

// await waits until the state in dir is recorded.
func (n *node) await(t *testing.T, dir string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		next := n.recorded
		n.mu.Unlock()
		want, err := Digest(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := n.latest(t); want != nil && bytes.Equal(got, want) {
			return
		}
		select {
		case <-next:
		case <-deadline:
			t.Fatal("the state is not recorded")
		}
	}
}

func want(t *testing.T, what string, err error, reason v1.Reason) {
	t.Helper()
	if !errors.Is(err, refusal.Because(reason)) {
		t.Errorf("%s: got %v, want %s", what, err, refusal.Name(reason))
	}
}

func options(n *node, dir string) Options {
	return Options{Keeper: n, Dir: dir, Log: slog.New(slog.DiscardHandler)}
}

func opens(t *testing.T, n *node, dir string) *State {
	t.Helper()
	s, err := Open(t.Context(), options(n, dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refuses(t *testing.T, what string, n *node, dir string, reason v1.Reason) {
	t.Helper()
	s, err := Open(t.Context(), options(n, dir))
	want(t, what, err, reason)
	if s != nil {
		t.Error(errors.Join(fmt.Errorf("%s: opened", what), s.Close()))
	}
}

// write replaces a file of the state, as swtpm does.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	temp := filepath.Join(dir, "TMP2-00.permall")
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

const permall = "tpm2-00.permall"

// copyState copies one directory's state to another, in place of what is there.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(from, permall))
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, permall, string(raw))
}

// real returns the path of one of swtpm's programs.
func real(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(name + " is not installed")
	}
	return path
}

// setup makes a vTPM's state with swtpm_setup, as libvirt does.
func setup(t *testing.T, n *node, dir string, more ...string) {
	t.Helper()
	program := real(t, "swtpm_setup")
	s := opens(t, n, dir)
	key, args, err := s.ForSetup()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	c := exec.Command(program, slices.Concat([]string{"--tpm2", "--tpm-state", dir, "--logfile", log}, more, number(args, key, 3))...)
	c.ExtraFiles = []*os.File{key}
	if out, err := c.CombinedOutput(); err != nil {
		raw, _ := os.ReadFile(log)
		t.Fatalf("%v: %s\n%s", err, out, raw)
	}
	if err := errors.Join(key.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

// number replaces the number of a descriptor in arguments: exec.Cmd renumbers what it passes on.
func number(args []string, f *os.File, n int) []string {
	out := slices.Clone(args)
	for i, a := range out {
		switch a {
		case fmt.Sprint(f.Fd()):
			out[i] = fmt.Sprint(n)
		case fmt.Sprintf("fd=%d,mode=aes-256-cbc,format=binary", f.Fd()):
			out[i] = fmt.Sprintf("fd=%d,mode=aes-256-cbc,format=binary", n)
		}
	}
	return out
}

// tpm is a real swtpm at work on a state.
type tpm struct {
	*State
	cmd     *exec.Cmd
	address string
}

// boot starts swtpm on an opened state, with its key.
func boot(t *testing.T, s *State) *tpm {
	t.Helper()
	program := real(t, "swtpm")
	key, args, err := s.ForSWTPM()
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	dir, err := os.MkdirTemp("", "sc-key-") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	listening, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	c := exec.Command(program, append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + s.o.Dir, "--server", "type=unixio,fd=4",
		"--ctrl", "type=unixio,path=" + socket + ".ctrl", "--flags", "not-need-init,startup-clear"}, number(args, key, 3)...)...)
	c.ExtraFiles = []*os.File{key, listening}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return &tpm{State: s, cmd: c, address: "unix:" + socket}
}

// stop ends swtpm, and the watch after it.
func (b *tpm) stop(t *testing.T) {
	t.Helper()
	_ = b.cmd.Process.Signal(unix.SIGTERM)
	late := time.AfterFunc(2*time.Second, func() { _ = b.cmd.Process.Kill() }) // swtpm 0.10 spins on a listener that it is handed, and hears no signal
	defer late.Stop()
	_ = b.cmd.Wait()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// counter is the index of a counter in the TPM's NV memory.
const counter = tpm2.TPMHandle(0x01800001)

var owner = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}

// count increments the TPM's counter, which is made by the first call, and returns it.
func (b *tpm) count(t *testing.T) (value uint64) {
	t.Helper()
	swtpmtest.Do(t, b.address, func(x transport.TPM) error {
		public, err := tpm2.NVReadPublic{NVIndex: counter}.Execute(x)
		if err != nil {
			if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: counter, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true, NT: tpm2.TPMNTCounter},
			})}).Execute(x); err != nil {
				return err
			}
			if public, err = (tpm2.NVReadPublic{NVIndex: counter}).Execute(x); err != nil {
				return err
			}
		}
		if _, err := (tpm2.NVIncrement{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: counter, Name: public.NVName}}).Execute(x); err != nil {
			return err
		}
		if public, err = (tpm2.NVReadPublic{NVIndex: counter}).Execute(x); err != nil { // written now: another name
			return err
		}
		read, err := tpm2.NVRead{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: counter, Name: public.NVName}, Size: 8}.Execute(x)
		if err == nil {
			value = binary.BigEndian.Uint64(read.Data.Buffer)
		}
		return err
	})
	return value
}
