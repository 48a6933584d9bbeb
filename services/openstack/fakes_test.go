package openstack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	secret     = "s3cr3t-of-the-application-credential"
	tokenStart = "token-that-must-not-be-logged-"
)

// fakeCloud is Keystone, Placement and Nova in one server.
type fakeCloud struct {
	t      *testing.T
	server *httptest.Server

	mu         sync.Mutex
	tokens     int             // issued
	valid      string          // the token that counts; empty: none does
	down       map[Service]int // status that a service answers with; 0: it works
	generation int
	traits     []string        // of the provider compute1
	made       map[string]bool // traits that exist
	puts       int
	// between, if set, is called before each PUT of traits is served, once each.
	between    []func(f *fakeCloud)
	services   []map[string]any
	migrations []Migration
	asked      []string
}

func newFakeCloud(t *testing.T) *fakeCloud {
	t.Helper()
	f := &fakeCloud{t: t, down: map[Service]int{}, made: map[string]bool{"HW_CPU_X86_AVX": true, "CUSTOM_GOLD": true}, traits: []string{"HW_CPU_X86_AVX", "CUSTOM_GOLD"}, generation: 7}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func (f *fakeCloud) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fakeCloud) has() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.traits)
}

func (f *fakeCloud) config(t *testing.T) OpenStack {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return OpenStack{Timeout: 5 * time.Second, ApplicationCredential: &ApplicationCredential{AuthURL: f.server.URL + "/identity/v3", ID: "abc", SecretFile: file}}
}

func (f *fakeCloud) cloud(t *testing.T) *Cloud {
	t.Helper()
	c := NewCloud(f.config(t))
	t.Cleanup(c.Close)
	return c
}

// ServeHTTP implements http.Handler.
func (f *fakeCloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	service, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI())
	if code := f.down[Service(service)]; code != 0 {
		http.Error(w, "down for the test", code)
		return
	}
	if Service(service) == Identity {
		f.identity(w, r)
		return
	}
	if r.Header.Get("X-Auth-Token") != f.valid || f.valid == "" {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch Service(service) {
	case Placement:
		f.placement(w, r, "/"+path)
	case Compute:
		f.compute(w, r, strings.TrimPrefix("/"+path, "/v2.1"))
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, code int, body any) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func (f *fakeCloud) identity(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Auth struct {
			Identity struct {
				ApplicationCredential struct {
					ID     string `json:"id"`
					Secret string `json:"secret"`
				} `json:"application_credential"`
			} `json:"identity"`
		} `json:"auth"`
	}
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&body) != nil {
		http.Error(w, "what?", http.StatusBadRequest)
		return
	}
	if c := body.Auth.Identity.ApplicationCredential; c.ID != "abc" || c.Secret != secret {
		http.Error(w, "no", http.StatusUnauthorized)
		return
	}
	f.tokens++
	f.valid = fmt.Sprint(tokenStart, f.tokens)
	w.Header().Set("X-Subject-Token", f.valid)
	entry := func(kind, path string) map[string]any {
		return map[string]any{"type": kind, "name": kind, "endpoints": []map[string]any{{"interface": "public", "region": "R", "region_id": "R", "url": f.server.URL + path}}}
	}
	answer(w, http.StatusCreated, map[string]any{"token": map[string]any{
		"expires_at": "2099-01-01T00:00:00.000000Z", "catalog": []any{entry("placement", "/placement"), entry("compute", "/compute/v2.1")},
	}})
}

func (f *fakeCloud) placement(w http.ResponseWriter, r *http.Request, path string) {
	const id = "11111111-1111-4111-8111-111111111111"
	switch {
	case path == "/":
		answer(w, 200, map[string]any{"versions": []any{map[string]any{"id": "v1.0", "max_version": "1.39", "min_version": "1.0", "status": "CURRENT", "links": []any{}}}})
	case r.Method == http.MethodGet && path == "/resource_providers":
		all := []any{}
		if n := r.URL.Query().Get("name"); n == "compute1" || n == "" && slices.Contains(f.traits, r.URL.Query().Get("required")) {
			all = append(all, map[string]any{"uuid": id, "name": "compute1", "generation": f.generation})
		}
		answer(w, 200, map[string]any{"resource_providers": all})
	case r.Method == http.MethodGet && path == "/resource_providers/"+id+"/traits":
		answer(w, 200, map[string]any{"resource_provider_generation": f.generation, "traits": f.traits})
	case r.Method == http.MethodPut && path == "/resource_providers/"+id+"/traits":
		f.puts++
		if len(f.between) > 0 {
			do := f.between[0]
			f.between = f.between[1:]
			do(f)
			if f.down[Placement] != 0 {
				http.Error(w, "down for the test", f.down[Placement])
				f.down[Placement] = 0
				return
			}
		}
		var body struct {
			Generation *int     `json:"resource_provider_generation"`
			Traits     []string `json:"traits"`
		}
		if json.NewDecoder(r.Body).Decode(&body) != nil || body.Generation == nil || body.Traits == nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		for _, t := range body.Traits {
			if !f.made[t] {
				http.Error(w, "No such trait(s): "+t, http.StatusBadRequest)
				return
			}
		}
		if *body.Generation != f.generation {
			http.Error(w, "generation conflict", http.StatusConflict)
			return
		}
		f.generation++
		f.traits = body.Traits
		answer(w, 200, map[string]any{"resource_provider_generation": f.generation, "traits": f.traits})
	case strings.HasPrefix(path, "/traits/"):
		name := strings.TrimPrefix(path, "/traits/")
		switch {
		case r.Method == http.MethodPut && f.made[name], r.Method == http.MethodGet && f.made[name]:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPut:
			f.made[name] = true
			w.WriteHeader(http.StatusCreated)
		default:
			http.NotFound(w, r)
		}
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeCloud) compute(w http.ResponseWriter, r *http.Request, path string) {
	q := r.URL.Query()
	switch path {
	case "/os-services":
		answer(w, 200, map[string]any{"services": f.services})
	case "/os-hypervisors/detail":
		all := []any{}
		for i, s := range f.services {
			all = append(all, map[string]any{"id": fmt.Sprintf("22222222-2222-4222-8222-22222222222%d", i), "hypervisor_hostname": s["host"], "state": "up", "status": "enabled",
				"cpu_info": map[string]any{}, "service": map[string]any{"host": s["host"], "id": "x"}, "hypervisor_version": 1, "free_disk_gb": 1, "local_gb": 1})
		}
		answer(w, 200, map[string]any{"hypervisors": all})
	case "/os-migrations":
		var found []Migration
		for _, m := range f.migrations {
			if (q.Get("instance_uuid") == "" || m.Instance == q.Get("instance_uuid")) && (q.Get("status") == "" || m.Status == q.Get("status")) {
				found = append(found, m)
			}
		}
		// Two to a page, as Nova does with 1000.
		from := 1 + slices.IndexFunc(found, func(m Migration) bool { return m.UUID == q.Get("marker") })
		page, links := found[from:], []any{}
		if len(page) > 2 {
			page, links = page[:2], append(links, map[string]any{"rel": "next", "href": "x"})
		}
		answer(w, 200, map[string]any{"migrations": append([]Migration{}, page...), "migrations_links": links})
	default:
		http.NotFound(w, r)
	}
}

// fakeNode is a node service on a unix socket.
type fakeNode struct {
	v1.UnimplementedAdminServiceServer
	v1.UnimplementedIntegrityServiceServer
	v1.UnimplementedAttestationServiceServer
	v1.UnimplementedMigrationServiceServer
	probe  *health.Server
	target string
	server *grpc.Server

	mu       sync.Mutex
	status   *v1.GetStatusResponse
	policy   string
	sessions []*v1.Session
	aborted  []string
	refuse   map[string]v1.Reason // preflights that are refused, by peer
	asked    []string
}

const goodPolicy = `{"schema": "safeconduct/policy/v1", "policy_svn": 1, "mode": "intel", "enclaves": [], "tcb": {}, "enrolment": "none", "platforms": [],
	"exported_keys": ["tunnel"], "integrity": {}}`

func newFakeNode(t *testing.T) *fakeNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc-agent-") // t.TempDir() makes paths that are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &fakeNode{probe: health.NewServer(), target: "unix://" + dir + "/node.sock", policy: goodPolicy, refuse: map[string]v1.Reason{}, status: &v1.GetStatusResponse{
		Mode: v1.Mode_MODE_INTEL, Host: "compute1", AcceptedByOwnPolicy: true,
	}}
	n.probe.SetServingStatus(serviceReady, healthpb.HealthCheckResponse_SERVING)
	n.serve(t)
	t.Cleanup(func() { n.server.Stop() })
	return n
}

// serve starts it, again if it was stopped.
func (n *fakeNode) serve(t *testing.T) {
	t.Helper()
	n.server = grpc.NewServer()
	healthpb.RegisterHealthServer(n.server, n.probe)
	v1.RegisterAdminServiceServer(n.server, n)
	v1.RegisterIntegrityServiceServer(n.server, n)
	v1.RegisterAttestationServiceServer(n.server, n)
	v1.RegisterMigrationServiceServer(n.server, n)
	l, err := net.Listen("unix", strings.TrimPrefix(n.target, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = n.server.Serve(l) }()
}

func (n *fakeNode) change(do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	do()
}

func (n *fakeNode) GetStatus(context.Context, *v1.GetStatusRequest) (*v1.GetStatusResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status, nil
}

func (n *fakeNode) GetPolicy(context.Context, *v1.GetPolicyRequest) (*v1.GetPolicyResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &v1.GetPolicyResponse{Policy: []byte(n.policy)}, nil
}

func (n *fakeNode) Preflight(_ context.Context, r *v1.PreflightRequest) (*v1.PreflightResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, r.GetPeerHost())
	if reason, ok := n.refuse[r.GetPeerHost()]; ok {
		return &v1.PreflightResponse{Refusal: &v1.Refusal{Reason: reason, Message: "for the test"}}, nil
	}
	return &v1.PreflightResponse{Accepted: true}, nil
}

func (n *fakeNode) List(context.Context, *v1.ListRequest) (*v1.ListResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &v1.ListResponse{Sessions: slices.Clone(n.sessions)}, nil
}

func (n *fakeNode) Get(_ context.Context, r *v1.GetRequest) (*v1.GetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sessions {
		if string(s.GetSessionId()) == string(r.GetSessionId()) {
			return &v1.GetResponse{Session: s}, nil
		}
	}
	return nil, rpcerror.Status(refusal.New(v1.Reason_REASON_NO_SESSION, "no session"))
}

func (n *fakeNode) Abort(_ context.Context, r *v1.AbortRequest) (*v1.AbortResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.aborted = append(n.aborted, string(r.GetSessionId()))
	n.sessions = slices.DeleteFunc(n.sessions, func(s *v1.Session) bool { return string(s.GetSessionId()) == string(r.GetSessionId()) })
	return &v1.AbortResponse{}, nil
}

func (n *fakeNode) client(t *testing.T) *Node {
	t.Helper()
	c, err := NewNode(n.target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// book is a log that a test reads.
type book struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *book) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func silent() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func noWait(ctx context.Context, _ time.Duration) error { return ctx.Err() }

// until waits for something that another goroutine does.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until " + what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
