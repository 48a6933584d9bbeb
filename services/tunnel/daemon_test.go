package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// fakeNode is the node service of a host: sessions that a test sets, and a key that both hosts of a test share.
type fakeNode struct {
	v1.UnimplementedCryptoServiceServer
	v1.UnimplementedMigrationServiceServer
	secret string
	socket string
	server *grpc.Server

	mu       sync.Mutex
	sessions []*v1.Session
	watchers map[chan *v1.Session]bool
}

func (n *fakeNode) DeriveKey(_ context.Context, req *v1.DeriveKeyRequest) (*v1.DeriveKeyResponse, error) {
	sum := sha256.Sum256(append([]byte(n.secret+req.GetPurpose()+req.GetInstanceId()), req.GetContext()...))
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sessions {
		if s.GetInstanceId() == req.GetInstanceId() {
			return &v1.DeriveKeyResponse{Key: sum[:], SessionId: s.GetSessionId()}, nil
		}
	}
	return nil, fmt.Errorf("no session")
}

func (n *fakeNode) List(context.Context, *v1.ListRequest) (*v1.ListResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &v1.ListResponse{Sessions: n.sessions}, nil
}

func (n *fakeNode) Watch(_ *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse]) error {
	c := make(chan *v1.Session, 10)
	n.mu.Lock()
	n.watchers[c] = true
	n.mu.Unlock()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case s := <-c:
			if err := stream.Send(&v1.WatchResponse{Session: s}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			n.mu.Lock()
			delete(n.watchers, c)
			n.mu.Unlock()
			return stream.Context().Err()
		}
	}
}

// set gives a session a state; one that has ended is not listed any more.
func (n *fakeNode) set(s *v1.Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions = nil
	if s.GetState() < v1.SessionState_SESSION_STATE_COMMITTED {
		n.sessions = []*v1.Session{s}
	}
	for c := range n.watchers {
		c <- s
	}
}

func (n *fakeNode) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(n.socket)
	l, err := net.Listen("unix", n.socket)
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.sessions, n.watchers = nil, map[chan *v1.Session]bool{}
	n.mu.Unlock()
	n.server = grpc.NewServer()
	v1.RegisterCryptoServiceServer(n.server, n)
	v1.RegisterMigrationServiceServer(n.server, n)
	go func() { _ = n.server.Serve(l) }()
	t.Cleanup(n.server.Stop)
}

// computeHost is a host with its node service and its tunnel.
type computeHost struct {
	node   *fakeNode
	daemon *daemon
	dir    string
}

// computeHosts are a source and a destination.
func computeHosts(t *testing.T) [2]*computeHost {
	t.Helper()
	var hosts [2]*computeHost
	var ports [2]string
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = l.Addr().String()
		_ = l.Close()
	}
	for i := range hosts {
		dir, err := os.MkdirTemp("", "sct")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		h := &computeHost{node: &fakeNode{secret: "s", socket: filepath.Join(dir, "node")}, dir: filepath.Join(dir, "t")}
		h.node.start(t)
		cfg, err := ParseConfig(fmt.Appendf(nil, "mode: simulated\nnode: unix://%s\ndir: %s\nlisten: %s\npeers: [{host: other, address: %q}]\n",
			h.node.socket, h.dir, ports[i], ports[1-i]))
		if err != nil {
			t.Fatal(err)
		}
		node, err := NewNode(cfg.Node)
		if err != nil {
			t.Fatal(err)
		}
		h.daemon = &daemon{cfg: cfg, log: quiet, node: node, patience: DefaultPatience, flows: NewFlows(Limits{PerVM: 10, All: 10}, "simulated", "test")}
		h.daemon.patience.Drain = 100 * time.Millisecond
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- h.daemon.run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			_ = node.Close()
		})
		until(t, "the tunnel follows its node", node.Following)
		hosts[i] = h
	}
	return hosts
}

func session(id byte, role v1.Role, state v1.SessionState) *v1.Session {
	return &v1.Session{
		SessionId: bytes.Repeat([]byte{id}, sessionSize), InstanceId: vm, Role: role, SourceHost: "other", DestinationHost: "other", State: state,
		Mode: v1.Mode_MODE_SIMULATED,
	}
}

const (
	armed     = v1.SessionState_SESSION_STATE_ARMED
	committed = v1.SessionState_SESSION_STATE_COMMITTED
	aborted   = v1.SessionState_SESSION_STATE_ABORTED
)

// qemu listens where the incoming QEMU of a channel does.
func (h *computeHost) qemu(t *testing.T, c Channel) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(h.dir, c.Socket(vm)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// migrate connects to the VM's socket as QEMU does, once it is there, and returns both ends.
func migrate(t *testing.T, h [2]*computeHost, c Channel) (out, in net.Conn) {
	t.Helper()
	l := h[1].qemu(t, c)
	path := filepath.Join(h[0].dir, c.Socket(vm))
	until(t, "the VM's socket", func() bool { _, err := os.Stat(path); return err == nil })
	out, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if in, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{out, in} {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = conn.Close() })
	}
	return out, in
}

func TestAnArmedSessionHasItsSocketsUntilItEnds(t *testing.T) {
	h := computeHosts(t)
	h[0].node.set(session(1, v1.Role_ROLE_SOURCE, v1.SessionState_SESSION_STATE_APPRAISED))
	h[1].node.set(session(1, v1.Role_ROLE_DESTINATION, armed))
	h[0].node.set(session(1, v1.Role_ROLE_SOURCE, armed))
	for _, c := range []Channel{Migration, Disks} {
		out, in := migrate(t, h, c)
		want := []byte("through the channel " + c.String())
		_, _ = out.Write(want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	recorded := httptest.NewRecorder()
	h[0].daemon.handler().ServeHTTP(recorded, httptest.NewRequestWithContext(t.Context(), "GET", "/connections", nil))
	var shown struct{ Connections []Progress }
	if err := json.Unmarshal(recorded.Body.Bytes(), &shown); err != nil || len(shown.Connections) != 2 || shown.Connections[1].Channel != "disks" ||
		shown.Connections[1].Sent == 0 || shown.Connections[0].Instance != vm {
		t.Errorf("/connections says %s", recorded.Body)
	}
	for i, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		h[i].node.set(session(1, role, aborted))
	}
	for i := range h {
		until(t, "the end of every connection", func() bool { return len(h[i].daemon.flows.Progress()) == 0 })
	}
	for _, c := range []Channel{Migration, Disks} {
		path := filepath.Join(h[0].dir, c.Socket(vm))
		until(t, "the socket is gone", func() bool { _, err := os.Stat(path); return err != nil })
		if _, err := os.Stat(filepath.Join(h[1].dir, c.Socket(vm))); err != nil {
			t.Error("QEMU's own socket is gone")
		}
	}
}

func TestTheConnectionsOfACommittedSessionMayEndByThemselves(t *testing.T) {
	h := computeHosts(t)
	for i, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		h[i].node.set(session(1, role, armed))
	}
	out, in := migrate(t, h, Migration)
	for i, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		h[i].node.set(session(1, role, committed))
	}
	if _, err := out.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	_, _ = io.ReadAll(in) // and when they do not, they are ended
	for i := range h {
		until(t, "the end of every connection", func() bool { return len(h[i].daemon.flows.Progress()) == 0 })
	}
}

func TestANodeServiceThatRestartsHasNoSessionsLeft(t *testing.T) {
	h := computeHosts(t)
	for i, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		h[i].node.set(session(1, role, armed))
	}
	out, _ := migrate(t, h, Migration)
	h[0].node.server.Stop()
	until(t, "the node is gone", func() bool { return !h[0].daemon.node.Following() })
	recorded := httptest.NewRecorder()
	h[0].daemon.handler().ServeHTTP(recorded, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
	if recorded.Code != 503 {
		t.Errorf("/readyz answers %d without a node service", recorded.Code)
	}
	h[0].node.start(t)
	if _, err := io.ReadAll(out); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	until(t, "the node is back", h[0].daemon.node.Following)
}

func TestASessionOfAnotherModeIsNotCarried(t *testing.T) {
	var log bytes.Buffer
	s := NewSessions(v1.Mode_MODE_INTEL, time.Second, slog.New(slog.NewTextHandler(&log, nil)), func(context.Context, Armed) { t.Error("it is carried") })
	s.Update(t.Context(), session(1, v1.Role_ROLE_SOURCE, armed))
	if !strings.Contains(log.String(), "MODE_SIMULATED") {
		t.Errorf("the log says %q", log.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Incoming(ctx, vm); err == nil {
		t.Error("it is expected")
	}
}

func TestAnOutgoingSessionLetsNobodyIn(t *testing.T) {
	s := NewSessions(v1.Mode_MODE_SIMULATED, time.Second, quiet, nil)
	ctx, cancel := context.WithCancel(t.Context())
	s.Update(ctx, session(1, v1.Role_ROLE_SOURCE, armed))
	now, stop := context.WithCancel(ctx)
	stop()
	if _, _, err := s.Incoming(now, vm); err == nil {
		t.Error("a VM that leaves is expected")
	}
	s.Update(ctx, session(2, v1.Role_ROLE_DESTINATION, armed)) // it comes back
	if id, _, err := s.Incoming(now, vm); err != nil || id[0] != 2 {
		t.Errorf("%x, %v", id, err)
	}
	cancel()
}

func TestAConfigurationThatMakesNoSenseIsRefused(t *testing.T) {
	if _, err := ParseConfig([]byte("mode: intel\n")); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"no mode":               {"listen: 0.0.0.0:7444", "expected intel or simulated"},
		"a mode that is none":   {"mode: sgx", "expected intel or simulated"},
		"an unknown key":        {"mode: intel\nlisen: x", "lisen"},
		"no port":               {"mode: intel\nlisten: 0.0.0.0", "HOST:PORT"},
		"a port that is none":   {"mode: intel\nlisten: 0.0.0.0:99999", "HOST:PORT"},
		"a relative directory":  {"mode: intel\ndir: run", "absolute"},
		"a directory too deep":  {"mode: intel\ndir: /" + strings.Repeat("x", 70), "more than the 107"},
		"a peer twice":          {"mode: intel\npeers: [{host: a, address: 'a:1'}, {host: a, address: 'a:2'}]", "twice"},
		"a peer's address":      {"mode: intel\npeers: [{host: a, address: a}]", "HOST:PORT"},
		"no connections at all": {"mode: intel\nconnections_per_vm: 0", "not 1 to 1000"},
		"fewer than for a VM":   {"mode: intel\nconnections: 3", "not connections_per_vm"},
		"a bad listener":        {"mode: intel\nhttp: {listen: x}", "http.listen"},
	} {
		if _, err := ParseConfig([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, expected %q", name, err, tc.want)
		}
	}
	c := DefaultConfig()
	c.Peers = []PeerEntry{{Host: "b", Address: "10.0.0.2:1"}}
	for host, want := range map[string]string{"a": "a:7444", "b": "10.0.0.2:1", "fe80::1": "[fe80::1]:7444"} {
		if got := c.address(host); got != want {
			t.Errorf("%s is at %s, expected %s", host, got, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("mode: simulated\npeers: [{host: a, address: 'a:1'}]\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err == nil && (c.mode() == v1.Mode_MODE_UNSPECIFIED || c.ConnectionsPerVM < 1) {
			t.Errorf("%q passes", raw)
		}
	})
}

func TestTheCommandChecksItsConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tunnel.yaml")
	if err := os.WriteFile(file, []byte("mode: simulated\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		ok   bool
	}{{[]string{"--check", "--config", file}, true}, {[]string{"--check", "--config", "/nowhere"}, false}, {[]string{"--config", file, "more"}, false}} {
		c := Command()
		c.SetArgs(tc.args)
		c.SetErr(io.Discard)
		if err := c.ExecuteContext(t.Context()); (err == nil) != tc.ok {
			t.Errorf("%v: %v", tc.args, err)
		}
	}
}

func TestAGroupIsGivenByNameOrByNumber(t *testing.T) {
	for group, gid := range map[string]int{"": -1, "root": 0, "994": 994, "65534": 65534} {
		if got, err := findGroup(group); err != nil || got != gid {
			t.Errorf("%q: found %d, %v; expected %d", group, got, err, gid)
		}
	}
	for _, group := range []string{"no-such-group", "-1", "4294967295", "0x10"} {
		if got, err := findGroup(group); err == nil {
			t.Errorf("%q: found %d, expected an error", group, got)
		}
	}
}
