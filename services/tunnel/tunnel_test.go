package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/safeconduct/safeconduct/crypto/livestream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vm = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

var errNoSession = errors.New("no armed session")

// keys stands for the node services of both hosts.
type keys struct {
	session SessionID
	secret  string
	err     error
}

func (k keys) TunnelKey(_ context.Context, instance string, id [livestream.ConnectionSize]byte) ([]byte, SessionID, error) {
	sum := sha256.Sum256(append([]byte(k.secret+instance), id[:]...))
	return sum[:], k.session, k.err
}

// theSession is the only one that is expected.
type theSession struct {
	id  SessionID
	ctx context.Context
	err error
}

func (s theSession) Incoming(context.Context, string) (SessionID, context.Context, error) {
	return s.id, s.ctx, s.err
}

// path is a tunnel between two hosts in one process: a socket that stands for QEMU's outgoing side, and a listener for its incoming one.
type path struct {
	from     string
	between  net.Addr
	incoming net.Listener
	wire     func(net.Conn) net.Conn // what lies between the hosts
	src, dst keys
	expected theSession
	patience Patience
	limits   Limits
	out, in  *Flows
	// endSession is what ends the destination's session.
	endSession context.CancelCauseFunc
	stop       func()
}

var quiet = slog.New(slog.DiscardHandler)

func newPath(t *testing.T, change func(*path)) *path {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	session, end := context.WithCancelCause(ctx)
	p := &path{
		from: filepath.Join(dir, "out"), src: keys{secret: "s"}, dst: keys{secret: "s"}, expected: theSession{ctx: session},
		wire: func(c net.Conn) net.Conn { return c }, patience: DefaultPatience, limits: Limits{PerVM: 20, All: 100}, endSession: end,
	}
	if change != nil {
		change(p)
	}
	listen := func(network, address string) net.Listener {
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	p.incoming = listen("unix", filepath.Join(dir, "in"))
	between := listen("tcp", "127.0.0.1:0")
	p.between = between.Addr()
	p.out, p.in = NewFlows(p.limits, "simulated", "test"), NewFlows(p.limits, "simulated", "test")
	src := &Source{Instance: vm, Keys: p.src, Flows: p.out, Patience: p.patience, Log: quiet, Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", between.Addr().String())
		if err != nil {
			return nil, err
		}
		return p.wire(c), nil
	}}
	dst := &Destination{
		Sessions: p.expected, Keys: p.dst, Flows: p.in, Patience: p.patience, Log: quiet,
		Reach: func(ctx context.Context, _ string, _ Channel) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "in"))
		},
	}
	var all sync.WaitGroup
	out := listen("unix", p.from)
	all.Go(func() {
		if err := src.Serve(ctx, out); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if err := dst.Serve(ctx, between); err != nil {
			t.Error(err)
		}
	})
	p.stop = func() { cancel(); all.Wait() }
	t.Cleanup(func() { p.stop(); _ = p.incoming.Close() })
	return p
}

// count is the value of a series of a metric: of the connections that ended whole, or broke.
func count(t *testing.T, f *Flows, outcome string) int {
	t.Helper()
	return int(testutil.ToFloat64(f.ended.WithLabelValues("migration", outcome)))
}

// wantEnds waits until so many connections have ended in a way at both ends.
func (p *path) wantEnds(t *testing.T, outcome string, n int) {
	t.Helper()
	for end, f := range map[string]*Flows{"source": p.out, "destination": p.in} {
		until(t, end+": connections that ended "+outcome, func() bool { return count(t, f, outcome) == n })
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *path) connect(t *testing.T) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", p.from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs fails
	return c
}

func (p *path) accept(t *testing.T) net.Conn {
	t.Helper()
	_ = p.incoming.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	c, err := p.incoming.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestAMigrationStreamAndItsReturnPathCross(t *testing.T) {
	p := newPath(t, nil)
	out, there, back := p.connect(t), random(3<<20+7), random(1000)
	go func() {
		_, _ = out.Write(there)
		_ = out.(*net.UnixConn).CloseWrite()
	}()
	in := p.accept(t)
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, there) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(there), err)
	}
	if _, err := in.Write(back); err != nil { // the other direction is still open
		t.Fatal(err)
	}
	_ = in.Close()
	if got, err := io.ReadAll(out); err != nil || !bytes.Equal(got, back) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	p.wantEnds(t, "whole", 1)
	for f, want := range map[*Flows][2]int{p.out: {len(there), len(back)}, p.in: {len(back), len(there)}} {
		sent, received := testutil.ToFloat64(f.bytes.WithLabelValues("migration", "sent")), testutil.ToFloat64(f.bytes.WithLabelValues("migration", "received"))
		if int(sent) != want[0] || int(received) != want[1] {
			t.Errorf("counted %v sent and %v received, expected %v", sent, received, want)
		}
	}
}

func TestConnectionsReachTheOtherQEMUInTheirOrder(t *testing.T) {
	p := newPath(t, nil)
	const n = 12
	for i := range n { // as a multifd migration: all at once, and only then some data
		go func(out net.Conn) { _, _ = out.Write([]byte{byte(i)}) }(p.connect(t))
	}
	for i := range n {
		got := make([]byte, 1)
		if _, err := io.ReadFull(p.accept(t), got); err != nil || got[0] != byte(i) {
			t.Fatalf("connection %d is the one that was opened as number %d (%v)", i, got[0], err)
		}
	}
}

func TestAVMHasNoMoreConnectionsThanItMay(t *testing.T) {
	p := newPath(t, func(p *path) { p.limits.PerVM = 2 })
	for range 2 {
		_, _ = p.connect(t).Write([]byte("x"))
		p.accept(t)
	}
	if got, err := io.ReadAll(p.connect(t)); len(got) > 0 || err != nil {
		t.Errorf("the third read %d bytes, %v; expected that it is closed", len(got), err)
	}
	if n := len(p.out.Progress()); n != 2 {
		t.Errorf("%d connections are open", n)
	}
}

func TestTheEndOfTheSessionEndsItsConnections(t *testing.T) {
	p := newPath(t, nil)
	out := p.connect(t)
	_, _ = out.Write([]byte("x"))
	in := p.accept(t)
	if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.endSession(errAborted)
	if _, err := io.ReadAll(out); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	_, _ = io.ReadAll(in)
	p.wantEnds(t, "broken", 1)
}

func TestAnIdleConnectionLives(t *testing.T) {
	wires := make(chan *spy, 1)
	p := newPath(t, func(p *path) {
		p.patience.Alive, p.patience.Silence = 5*time.Millisecond, 300*time.Millisecond
		p.wire = func(c net.Conn) net.Conn { w := &spy{Conn: c}; wires <- w; return w }
	})
	out := p.connect(t)
	_, _ = out.Write([]byte("x"))
	in := p.accept(t)
	if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	wire := <-wires
	until(t, "signs of life for longer than Silence in all", func() bool {
		wire.mu.Lock()
		defer wire.mu.Unlock()
		return wire.sent.Len() > 100*20
	})
	_, _ = in.Write([]byte("y"))
	_ = in.Close()
	_ = out.(*net.UnixConn).CloseWrite()
	if got, err := io.ReadAll(out); err != nil || string(got) != "y" {
		t.Errorf("%q, %v", got, err)
	}
	p.wantEnds(t, "whole", 1)
}

// hole is a wire that swallows what the source sends from some moment on, while nothing else shows it.
type hole struct {
	net.Conn
	swallow atomic.Bool
	once    bool // swallow one write only
}

func (h *hole) Write(b []byte) (int, error) {
	if h.swallow.Load() {
		if h.once {
			h.swallow.Store(false)
		}
		return len(b), nil
	}
	return h.Conn.Write(b)
}

func TestARecordThatIsTakenOutIsNoticedThoughNothingFollows(t *testing.T) {
	wires := make(chan *hole, 1)
	p := newPath(t, func(p *path) {
		p.patience.Alive = 50 * time.Millisecond
		p.wire = func(c net.Conn) net.Conn { h := &hole{Conn: c, once: true}; wires <- h; return h }
	})
	out := p.connect(t)
	in := p.accept(t)
	(<-wires).swallow.Store(true)
	_, _ = out.Write([]byte("the last word of the migration"))
	if got, _ := io.ReadAll(in); len(got) > 0 { // it ends by itself
		t.Errorf("%q came out", got)
	}
	_, _ = io.ReadAll(out)
	p.wantEnds(t, "broken", 1)
}

func TestAPeerThatFallsSilentIsNoticed(t *testing.T) {
	wires := make(chan *hole, 1)
	p := newPath(t, func(p *path) {
		p.patience.Alive, p.patience.Silence = 10*time.Millisecond, 200*time.Millisecond
		p.wire = func(c net.Conn) net.Conn { h := &hole{Conn: c}; wires <- h; return h }
	})
	out := p.connect(t)
	in := p.accept(t)
	(<-wires).swallow.Store(true)
	_, _ = io.ReadAll(in)
	_, _ = io.ReadAll(out)
	p.wantEnds(t, "broken", 1)
}

func TestAConnectionThatProvesNothingTakesNoPlaceForLong(t *testing.T) {
	p := newPath(t, func(p *path) { p.patience.Prove = 300 * time.Millisecond })
	var idle []net.Conn
	for range maxUnprovenEach {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.between.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, nonceSize)); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if got, _ := io.ReadAll(p.connect(t)); len(got) > 0 {
		t.Errorf("%d bytes came in beside %d that prove nothing", len(got), len(idle))
	}
	for _, c := range idle {
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err) // closed
		}
	}
	_, _ = p.connect(t).Write([]byte("x"))
	if _, err := io.ReadFull(p.accept(t), make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(p.in.refusals.WithLabelValues("limit")); n != 1 {
		t.Errorf("%v were counted as over the limit", n)
	}
}

func TestSeveralConnectionsCrossAtOnce(t *testing.T) {
	p := newPath(t, nil)
	const n = 8
	want := map[string]bool{}
	for range n {
		data := random(500_000)
		sum := sha256.Sum256(data)
		want[string(sum[:])] = true
		out := p.connect(t)
		go func() {
			_, _ = out.Write(data)
			_ = out.(*net.UnixConn).CloseWrite()
		}()
	}
	got := make(chan [32]byte, n)
	for range n {
		in := p.accept(t)
		go func() {
			data, _ := io.ReadAll(in)
			got <- sha256.Sum256(data)
			_ = in.Close()
		}()
	}
	for range n {
		if sum := <-got; !want[string(sum[:])] {
			t.Error("a connection arrived altered")
		}
	}
}

// spy keeps what the source's tunnel sends.
type spy struct {
	net.Conn
	mu   sync.Mutex
	sent bytes.Buffer
}

func (s *spy) Write(b []byte) (int, error) {
	s.mu.Lock()
	s.sent.Write(b)
	s.mu.Unlock()
	return s.Conn.Write(b)
}

func (s *spy) CloseWrite() error { return s.Conn.(closeWriter).CloseWrite() }

func TestNothingCrossesInClearAndNothingCanBePlayedAgain(t *testing.T) {
	wires := make(chan *spy, 1)
	p := newPath(t, func(p *path) { p.wire = func(c net.Conn) net.Conn { w := &spy{Conn: c}; wires <- w; return w } })
	out, marker := p.connect(t), []byte("the guest's memory holds this marker")
	go func() {
		_, _ = out.Write(bytes.Repeat(marker, 100))
		_ = out.(*net.UnixConn).CloseWrite()
	}()
	in := p.accept(t)
	if _, err := io.ReadAll(in); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	_, _ = io.ReadAll(out)
	p.wantEnds(t, "whole", 1)
	wire := <-wires
	wire.mu.Lock()
	recorded := bytes.Clone(wire.sent.Bytes())
	wire.mu.Unlock()
	if bytes.Contains(recorded, marker) || len(recorded) < 100*len(marker) {
		t.Error("the marker crosses in clear, or nothing crossed")
	}
	again, err := new(net.Dialer).DialContext(t.Context(), "tcp", wire.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_ = again.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := again.Write(recorded); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(again)
	if len(answer) > nonceSize {
		t.Errorf("a recorded connection was answered with %d bytes", len(answer))
	}
	p.wantUnreached(t)
}

// wantUnreached checks that QEMU at the destination hears of nothing more.
func (p *path) wantUnreached(t *testing.T) {
	t.Helper()
	p.stop() // every connection that could still reach it has ended then
	_ = p.incoming.(*net.UnixListener).SetDeadline(time.Now().Add(time.Millisecond))
	if c, err := p.incoming.Accept(); err == nil {
		_ = c.Close()
		t.Error("QEMU was reached")
	}
}

func TestWhoDoesNotProveTheSessionNeverReachesQEMU(t *testing.T) {
	for name, change := range map[string]func(*path){
		"another key at the source":             func(p *path) { p.src.secret = "x" },
		"another session at the source":         func(p *path) { p.src.session[0] = 1 },
		"another session at the destination":    func(p *path) { p.dst.session[0] = 1 },
		"a session that nobody expects":         func(p *path) { p.expected.err = ErrSession },
		"a session other than the expected one": func(p *path) { p.expected.id[0] = 1 },
		"no session at the source":              func(p *path) { p.src.err = errNoSession },
		"no session at the destination":         func(p *path) { p.dst.err = errNoSession },
		"a greeting that is altered on its way": func(p *path) {
			p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: len(magic) + 2 + instanceSize + sessionSize} }
		},
		"a version that is not there": func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: len(magic)} } },
		"a channel that is altered":   func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: len(magic) + 1} } },
		"no tunnel":                   func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: 0} } },
		"a proof that is altered":     func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: helloSize + 10} } },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPath(t, change)
			out := p.connect(t)
			if got, err := io.ReadAll(out); len(got) != 0 {
				t.Errorf("QEMU's side read %d bytes, %v", len(got), err)
			}
			p.wantUnreached(t)
		})
	}
}

// flip alters one byte of what is written, counted from the beginning.
type flip struct {
	net.Conn
	at, seen int
}

func (f *flip) Write(b []byte) (int, error) {
	if i := f.at - f.seen; i >= 0 && i < len(b) {
		b = bytes.Clone(b)
		b[i] ^= 1
	}
	f.seen += len(b)
	return f.Conn.Write(b)
}

func (f *flip) CloseWrite() error { return f.Conn.(closeWriter).CloseWrite() }

func TestAStreamThatIsAlteredBreaksOnBothSides(t *testing.T) {
	for name, at := range map[string]int{"at its start": helloSize + 60, "in the middle": 1 << 20, "near its end": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			p := newPath(t, func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: at} } })
			out, sent := p.connect(t), random(4<<20)
			broken := make(chan error, 1)
			go func() {
				_, _ = out.Write(sent)
				_ = out.(*net.UnixConn).CloseWrite()
				_, err := io.ReadAll(out)
				broken <- err
			}()
			got, _ := io.ReadAll(p.accept(t))
			if len(got) >= len(sent) || !bytes.HasPrefix(sent, got) {
				t.Errorf("%d bytes of %d came out", len(got), len(sent))
			}
			<-broken // the source's side ended too
			p.wantEnds(t, "broken", 1)
		})
	}
}

func TestAConnectionThatIsCutIsNoEnd(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := newPath(t, func(p *path) { p.wire = func(c net.Conn) net.Conn { conns <- c; return c } })
	out := p.connect(t)
	go func() { _, _ = out.Write(random(1000)) }()
	in := p.accept(t)
	if _, err := io.ReadFull(in, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = (<-conns).Close()
	_, _ = io.ReadAll(in)
	_, _ = io.ReadAll(out)
	p.wantEnds(t, "broken", 1)
}

func FuzzHello(f *testing.F) {
	f.Add(hello{instance: vm}.encode())
	f.Add(hello{instance: vm, channel: Disks}.encode())
	f.Add([]byte("SCTUNNEL"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := parseHello(raw)
		if err == nil && !bytes.Equal(h.encode(), raw) {
			t.Error("a hello has two spellings")
		}
	})
}

func TestASocketTakesItsPlaceAndLeavesIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen := func() (net.Listener, error) { return listenUnix(t.Context(), path, socketMode, -1) }
	for range 2 { // over the leftover of a crash, too
		l, err := listen()
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != socketMode {
			t.Fatalf("%v, %v", info, err)
		}
		_ = l.(*unlinking).Listener.Close() // a crash
	}
	l, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
	if l, err = listen(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	qemu, err := new(net.ListenConfig).Listen(t.Context(), "unix", path) // the VM comes back
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("QEMU's socket was removed")
	}
	if err := errors.Join(qemu.Close(), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(); err == nil {
		t.Error("a file was replaced")
	}
}

func TestATunnelThatWasKilledLeavesNothingForLong(t *testing.T) {
	dir, err := os.MkdirTemp("", "sct")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	left, err := listenUnix(t.Context(), in(Disks.Socket(vm)), socketMode, -1)
	if err != nil {
		t.Fatal(err)
	}
	_ = left.(*unlinking).Listener.Close() // it was killed
	qemu, err := net.Listen("unix", in(Migration.Socket(vm)))
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	foreign, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("foreign.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	foreign.SetUnlinkOnClose(false)
	if err := errors.Join(foreign.Close(), os.WriteFile(in(vm), nil, 0o600), removeLeftovers(dir)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{vm, Migration.Socket(vm), "foreign.sock"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v is left, %v; expected %v", names, err, want)
	}
}
