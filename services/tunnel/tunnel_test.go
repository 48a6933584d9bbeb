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
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/safeconduct/safeconduct/crypto/livestream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vm = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

var errNoSession = errors.New("no armed session")

// keys stands for the node services of both hosts.
type keys struct {
	session [sessionSize]byte
	secret  string
	err     error
}

func (k keys) TunnelKey(_ context.Context, instance string, id [livestream.ConnectionSize]byte) ([]byte, [sessionSize]byte, error) {
	sum := sha256.Sum256(append([]byte(k.secret+instance), id[:]...))
	return sum[:], k.session, k.err
}

// path is a tunnel between two hosts in one process: a socket that stands for QEMU's outgoing side, and a listener for its incoming one.
type path struct {
	from     string
	incoming net.Listener
	wire     func(net.Conn) net.Conn // what lies between the hosts
	src, dst keys
	reports  chan Report
	stop     func()
}

func newPath(t *testing.T, change func(*path)) *path {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	p := &path{
		from: filepath.Join(dir, "out"), src: keys{secret: "s"}, dst: keys{secret: "s"},
		wire: func(c net.Conn) net.Conn { return c }, reports: make(chan Report, 100),
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
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	done := func(r Report) { p.reports <- r }
	src := &Source{Instance: vm, Keys: p.src, Log: log, Done: done, Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", between.Addr().String())
		if err != nil {
			return nil, err
		}
		return p.wire(c), nil
	}}
	dst := &Destination{Keys: p.dst, Log: log, Done: done, Reach: func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "in"))
	}}
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
	for range 2 {
		r := <-p.reports
		if r.Instance != vm || r.Sent+r.Received != int64(len(there)+len(back)) {
			t.Errorf("reported %+v", r)
		}
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
	var wire *spy
	p := newPath(t, func(p *path) { p.wire = func(c net.Conn) net.Conn { wire = &spy{Conn: c}; return wire } })
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
	<-p.reports
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
		"another key at the source":     func(p *path) { p.src.secret = "x" },
		"another session at the source": func(p *path) { p.src.session[0] = 1 },
		"no session at the source":      func(p *path) { p.src.err = errNoSession },
		"no session at the destination": func(p *path) { p.dst.err = errNoSession },
		"a greeting that is altered on its way": func(p *path) {
			p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: len(magic) + 1 + instanceSize + sessionSize} }
		},
		"a version that is not there": func(p *path) { p.wire = func(c net.Conn) net.Conn { return &flip{Conn: c, at: len(magic)} } },
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
			select {
			case r := <-p.reports:
				t.Errorf("it is reported as whole: %+v", r)
			default:
			}
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
	p.stop()
	select {
	case r := <-p.reports:
		t.Errorf("it is reported as whole: %+v", r)
	default:
	}
}

func FuzzHello(f *testing.F) {
	f.Add(hello{instance: vm}.encode())
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
	for range 2 { // over the leftover of a crash, too
		l, err := listenOn(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		_ = l.(*unlinking).Listener.Close() // a crash
	}
	l, err := listenOn(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenOn(t.Context(), "unix", path); err == nil {
		t.Error("a file was replaced")
	}
}

func TestTheCommandRefusesWhatMakesNoSense(t *testing.T) {
	for name, args := range map[string][]string{
		"no instance":  {"source", "--listen", "/x", "--peer", "y:1"},
		"not a UUID":   {"source", "--instance", "x", "--listen", "/x", "--peer", "y:1"},
		"no target":    {"destination", "--listen", "127.0.0.1:0"},
		"a bad socket": {"destination", "--listen", "unix:/nowhere/at/all", "--target", "/x"},
	} {
		c := Command()
		c.SetArgs(args)
		c.SetErr(io.Discard)
		if err := c.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%s: it runs", name)
		}
	}
}
