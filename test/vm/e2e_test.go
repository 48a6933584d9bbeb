package vm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/crypto/statestream"
)

const instance = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

// bench is what the tests with a real QEMU share: binaries, a kernel, a directory, and two nodes with one key.
type bench struct {
	t      *testing.T
	ctx    context.Context
	dir    string
	bin    string
	kernel string
	initrd string
	key    []byte
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getenv("SAFECONDUCT_E2E") != "1" {
		t.Skip("needs QEMU, swtpm and a Debian cloud kernel: set SAFECONDUCT_E2E=1")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	dir, err := os.MkdirTemp("", "scvm")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, ctx: ctx, dir: dir, bin: filepath.Join(dir, "bin"), initrd: filepath.Join(dir, "initrd"), key: make([]byte, statestream.KeySize)}
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Log("kept:", dir)
			return
		}
		os.RemoveAll(dir)
	})
	if _, err := rand.Read(b.key); err != nil {
		t.Fatal(err)
	}
	if b.kernel, err = FindKernel(); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", b.bin+"/", "./guest", "./tap", "../../cmd/safeconduct-swtpm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := os.Mkdir(b.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := BuildInitramfs(filepath.Join(b.bin, "guest"), b.initrd, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// testNode is a CryptoService with a fixed key in the place of an armed session.
type testNode struct {
	v1.UnimplementedCryptoServiceServer
	key []byte
	// before, if set, is called with each blob; its error refuses the blob.
	before func(ctx context.Context, t v1.StateType) error
}

func (n *testNode) head(t v1.StateType) statestream.Header {
	return statestream.Header{Kind: statestream.KindState, Type: byte(t), Direction: statestream.SourceToDestination, Session: [16]byte{1}}
}

func (n *testNode) Attach(_ *v1.AttachRequest, s v1.CryptoService_AttachServer) error {
	if err := s.Send(&v1.AttachResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (n *testNode) ProtectState(s v1.CryptoService_ProtectStateServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	t := m.GetHeader().GetType()
	in := m.GetHeader().GetData()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		in = append(in, m.GetData()...)
	}
	if n.before != nil {
		if err := n.before(s.Context(), t); err != nil {
			return err
		}
	}
	var out bytes.Buffer
	w, err := statestream.NewWriter(&out, n.key, n.head(t))
	if err != nil {
		return err
	}
	if _, err := w.Write(in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return s.Send(&v1.ProtectStateResponse{Data: out.Bytes(), Done: true})
}

func (n *testNode) UnprotectState(s v1.CryptoService_UnprotectStateServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	t := m.GetHeader().GetType()
	in := m.GetHeader().GetData()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		in = append(in, m.GetData()...)
	}
	r, err := statestream.NewReader(bytes.NewReader(in), n.key, n.head(t))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.Send(&v1.UnprotectStateResponse{Data: out, Done: true})
}

// node serves n and returns its gRPC target.
func (b *bench) node(name string, n *testNode) string {
	b.t.Helper()
	n.key = b.key
	path := filepath.Join(b.dir, name+".node")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.t.Fatal(err)
	}
	s := grpc.NewServer()
	v1.RegisterCryptoServiceServer(s, n)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	b.t.Cleanup(func() { s.Stop(); <-done })
	return "unix://" + path
}

// tpm is a running swtpm, or a helper with one.
type tpm struct {
	ctrl, taps, log string
	cmd             *exec.Cmd
}

func (b *bench) paths(name string) *tpm {
	b.t.Helper()
	p := &tpm{ctrl: filepath.Join(b.dir, name+".ctrl"), taps: filepath.Join(b.dir, name+".taps"), log: filepath.Join(b.dir, name+".tpm.log")}
	for _, dir := range []string{p.taps, filepath.Join(b.dir, name+".state")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.t.Fatal(err)
		}
	}
	return p
}

func (b *bench) launch(p *tpm, name string, args ...string) *tpm {
	b.t.Helper()
	p.cmd = exec.Command(filepath.Join(b.bin, name), args...)
	p.cmd.Env = append(os.Environ(), "SAFECONDUCT_TAP_DIR="+p.taps)
	log, err := os.Create(p.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr, p.cmd.Stdout = log, log
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = p.cmd.Process.Signal(unix.SIGTERM); _ = p.cmd.Wait() })
	b.await("the control socket", func() bool { _, err := os.Stat(p.ctrl); return err == nil })
	return p
}

// plain is a swtpm without protection, tapped.
func (b *bench) plain(name string) *tpm {
	p := b.paths(name)
	return b.launch(p, "tap", "socket", "--tpm2", "--ctrl", "type=unixio,path="+p.ctrl, "--tpmstate", "dir="+filepath.Join(b.dir, name+".state"), "--terminate")
}

// protected is a helper with a tapped swtpm.
func (b *bench) protected(name, node string) *tpm {
	p := b.paths(name)
	return b.launch(p, "safeconduct-swtpm", "--node", node, "--instance", instance, "--ctrl", p.ctrl,
		"--tpmstate", filepath.Join(b.dir, name+".state"), "--swtpm", filepath.Join(b.bin, "tap"), "--node-timeout", "30s")
}

func (b *bench) await(what string, condition func() bool) {
	b.t.Helper()
	if _, err := poll(b.ctx, what, func() (bool, bool, error) { ok := condition(); return ok, ok, nil }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) start(c Config) *VM {
	b.t.Helper()
	c.Dir, c.Kernel, c.Initrd = b.dir, b.kernel, b.initrd
	v, err := Start(b.ctx, c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = v.Kill() })
	if err := v.SetReturnPath(b.ctx, true); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// pairOf is a source that has ticked and a destination that waits, with a relay in between.
type pairOf struct {
	source, destination *VM
	relay               *Relay
}

func (b *bench) pair(source, destination *tpm, mutator Mutator) *pairOf {
	b.t.Helper()
	return b.join(Config{TPMCtrlSocket: source.ctrl}, Config{TPMCtrlSocket: destination.ctrl}, &Relay{
		Listen: "unix:" + filepath.Join(b.dir, "relay"), Forward: "unix:" + filepath.Join(b.dir, "into"), Mutator: mutator,
	})
}

func (b *bench) join(source, destination Config, relay *Relay) *pairOf {
	b.t.Helper()
	relay.Capture = filepath.Join(b.dir, "capture")
	p := &pairOf{relay: relay}
	if err := p.relay.Start(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = p.relay.Close() })
	source.Name, destination.Name, destination.Incoming = "source", "destination", relay.Forward
	p.source, p.destination = b.start(source), b.start(destination)
	if _, err := p.source.WaitTick(b.ctx, 3); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("third tick %v after the start", time.Since(p.source.Started).Round(time.Millisecond))
	return p
}

func (b *bench) migrate(p *pairOf) *Migration {
	b.t.Helper()
	if err := p.source.Migrate(b.ctx, p.relay.Listen); err != nil {
		b.t.Fatal(err)
	}
	m, err := p.source.WaitMigration(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("migration: %+v", *m)
	return m
}

// arrived checks that the guest goes on at the destination with the TPM it had.
func (b *bench) arrived(p *pairOf) {
	b.t.Helper()
	before, err := p.source.Ticks()
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := p.destination.WaitTick(b.ctx, before[len(before)-1].N+6); err != nil {
		b.t.Fatal(err)
	}
	ticks, err := TicksAcross(p.source, p.destination)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := CheckTicks(ticks); err != nil {
		b.t.Error(err)
	}
}

// stayed checks that the guest goes on at the source with the TPM it had.
func (b *bench) stayed(p *pairOf) {
	b.t.Helper()
	if s, err := p.source.QueryStatus(b.ctx); err != nil || s != "running" {
		b.t.Fatalf("the source is %q (%v), expected running", s, err)
	}
	before, err := p.source.Ticks()
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := p.source.WaitTick(b.ctx, before[len(before)-1].N+6); err != nil {
		b.t.Fatal(err)
	}
	ticks, err := p.source.Ticks()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := CheckTicks(ticks); err != nil {
		b.t.Error(err)
	}
	if ticks, err := p.destination.Ticks(); err == nil && len(ticks) > 0 {
		b.t.Errorf("the guest ticks at the destination too: %+v", ticks)
	}
}

// search looks for each blob that left swtpm in the captured stream.
func (b *bench) search(p *pairOf, taps string, check func(name string, w Windows)) {
	b.t.Helper()
	if err := p.relay.Close(); err != nil {
		b.t.Fatal(err)
	}
	stream, err := os.ReadFile(p.relay.Capture)
	if err != nil {
		b.t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(taps, "*-save-*.bin"))
	if err != nil || len(blobs) != 2 {
		b.t.Fatalf("tapped %v (%v), expected two blobs", blobs, err)
	}
	for _, path := range blobs {
		plaintext, err := os.ReadFile(path)
		if err != nil {
			b.t.Fatal(err)
		}
		begun := time.Now()
		w, err := SearchWindows(stream, plaintext, 32)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Logf("%s, %d bytes: %+v (%v for %d MiB)", filepath.Base(path), len(plaintext), w, time.Since(begun).Round(time.Millisecond), len(stream)>>20)
		check(filepath.Base(path), w)
	}
}

func TestWithoutProtectionTheVTPMIsInTheStream(t *testing.T) {
	b := newBench(t)
	source := b.plain("source")
	p := b.pair(source, b.plain("destination"), nil)
	if m := b.migrate(p); m.Status != "completed" {
		t.Fatalf("%+v, expected completed", m)
	}
	b.arrived(p)
	b.search(p, source.taps, func(name string, w Windows) {
		if w.InSection != w.Total {
			t.Errorf("%s: %d windows of %d are in the section, expected all", name, w.InSection, w.Total)
		}
	})
}

func TestAMigrationFromOneNetworkNamespaceToAnother(t *testing.T) {
	b := newBench(t)
	var names [2]string
	for i := range names {
		names[i] = fmt.Sprintf("scvm-%d-%d", os.Getpid(), i)
		for _, args := range [][]string{{"netns", "add", names[i]}, {"-n", names[i], "link", "set", "lo", "up"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
			if args[0] == "netns" {
				t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", names[i]).Run() })
			}
		}
	}
	// The same address and port in both: only the namespaces tell them apart.
	p := b.join(
		Config{TPMCtrlSocket: b.plain("source").ctrl, Netns: names[0]},
		Config{TPMCtrlSocket: b.plain("destination").ctrl, Netns: names[1]},
		&Relay{Listen: "tcp:127.0.0.1:4444", ListenNetns: names[0], Forward: "tcp:127.0.0.1:4444", ForwardNetns: names[1]},
	)
	if m := b.migrate(p); m.Status != "completed" {
		t.Fatalf("%+v, expected completed", m)
	}
	b.arrived(p)
}

func TestWithProtectionTheVTPMArrivesAndIsNotInTheStream(t *testing.T) {
	b := newBench(t)
	source := b.protected("source", b.node("source", &testNode{}))
	p := b.pair(source, b.protected("destination", b.node("destination", &testNode{})), nil)
	if m := b.migrate(p); m.Status != "completed" {
		t.Fatalf("%+v, expected completed", m)
	}
	b.arrived(p)
	b.search(p, source.taps, func(name string, w Windows) {
		if w.InSection != 0 {
			t.Errorf("%s: %d windows of %d are in the section, expected none", name, w.InSection, w.Total)
		}
	})
}

func TestAChangedBlobLeavesTheGuestAtTheSource(t *testing.T) {
	b := newBench(t)
	flip := FlipBitAfter([]byte("SCST"), 200)
	destination := b.protected("destination", b.node("destination", &testNode{}))
	p := b.pair(b.protected("source", b.node("source", &testNode{})), destination, flip)
	if m := b.migrate(p); m.Status != "failed" {
		t.Errorf("%+v, expected failed", m)
	}
	if !flip.Flipped() {
		t.Error("no bit was flipped: this test proves nothing")
	}
	b.stayed(p)
	if restored, err := filepath.Glob(filepath.Join(destination.taps, "*-restore-permanent.bin")); err != nil || len(restored) > 0 {
		t.Errorf("swtpm got %v (%v), expected nothing of the blob that was changed", restored, err)
	}
}

func TestARefusalLeavesTheGuestAtTheSource(t *testing.T) {
	b := newBench(t)
	refusing := &testNode{before: func(context.Context, v1.StateType) error {
		return status.Error(codes.FailedPrecondition, "no armed session")
	}}
	source := b.protected("source", b.node("source", refusing))
	p := b.pair(source, b.protected("destination", b.node("destination", &testNode{})), nil)
	if m := b.migrate(p); m.Status != "failed" {
		t.Errorf("%+v, expected failed", m)
	}
	b.stayed(p)
	if log, err := os.ReadFile(source.log); err != nil || !strings.Contains(string(log), "no armed session") {
		t.Errorf("the helper's log (%v) does not say why: %s", err, log)
	}
}

func TestAHelperKilledInTheMiddleLeavesTheGuestAtTheSourceWithItsTPM(t *testing.T) {
	for _, at := range []v1.StateType{v1.StateType_STATE_TYPE_PERMANENT, v1.StateType_STATE_TYPE_VOLATILE} {
		t.Run(at.String(), func(t *testing.T) {
			b := newBench(t)
			reached := make(chan struct{})
			var once sync.Once
			node := &testNode{before: func(ctx context.Context, blob v1.StateType) error {
				if blob != at {
					return nil
				}
				once.Do(func() { close(reached) })
				<-ctx.Done() // until the helper is gone
				return ctx.Err()
			}}
			source := b.protected("source", b.node("source", node))
			p := b.pair(source, b.protected("destination", b.node("destination", &testNode{})), nil)
			if err := p.source.Migrate(b.ctx, p.relay.Listen); err != nil {
				t.Fatal(err)
			}
			select {
			case <-reached:
			case <-b.ctx.Done():
				t.Fatal("the blob is never saved")
			}
			children := descendants(t, source.cmd.Process.Pid)
			if err := source.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if m, err := p.source.WaitMigration(b.ctx); err != nil || m.Status != "failed" {
				t.Errorf("%+v (%v), expected failed", m, err)
			}
			b.stayed(p)
			// A later attempt fails too, and harms nobody: QEMU has no control channel left.
			if err := p.source.Migrate(b.ctx, p.relay.Listen); err == nil {
				if m, err := p.source.WaitMigration(b.ctx); err != nil || m.Status != "failed" {
					t.Errorf("second attempt: %+v (%v), expected failed", m, err)
				}
			}
			b.stayed(p)
			// swtpm goes when the guest goes.
			if len(children) < 2 {
				t.Fatalf("the helper had descendants %v, expected tap and swtpm", children)
			}
			if err := p.source.Quit(b.ctx); err != nil {
				t.Fatal(err)
			}
			b.await("the end of swtpm", func() bool { return !slices.ContainsFunc(children, running) })
		})
	}
}

// descendants of a process.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		more, err := os.ReadFile(task)
		if err != nil {
			continue // the thread is gone
		}
		raw = append(append(raw, ' '), more...)
	}
	var all []int
	for _, field := range strings.Fields(string(raw)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(all, child) {
			all = append(append(all, child), descendants(t, child)...)
		}
	}
	return all
}

func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
