package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

var update = flag.Bool("update", false, "write the golden files and docs/errors.md anew")

// TestMain lets scripts run the command line as a program.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"safeconduct": func() { os.Exit(Run(context.Background(), os.Args[1:], Env{})) }})
}

// noon is the clock of these tests.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

type result struct {
	code     int
	out, err string
}

// run runs the command line in this process.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return runIn(t.Context(), t, args...)
}

func runIn(ctx context.Context, t *testing.T, args ...string) result {
	t.Helper()
	var out, stderr bytes.Buffer
	seed := [32]byte{1}
	code := Run(ctx, args, Env{
		In: strings.NewReader(""), Out: &out, Err: &stderr, Getenv: func(string) string { return "" }, Now: func() time.Time { return noon },
		Rand: rand.NewChaCha8(seed),
	})
	return result{code, out.String(), stderr.String()}
}

// exits checks a code and shows what was printed if it is another.
func (r result) exits(t *testing.T, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\n%s%s", r.code, code, r.out, r.err)
	}
	return r
}

// golden compares with a file under testdata/golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: run the tests with -update if this is intended\n got:\n%s\nwant:\n%s", name, got, want)
	}
}

// decode reads JSON and refuses what is not one document.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if dec.More() {
		t.Fatalf("more than one document:\n%s", text)
	}
	return v
}

// fakeNode is a node service whose answers a test sets. A nil answer is Unimplemented, as a node of an older release answers.
type fakeNode struct {
	v1.UnimplementedAdminServiceServer
	v1.UnimplementedAttestationServiceServer
	v1.UnimplementedMigrationServiceServer
	v1.UnimplementedReceiptServiceServer
	v1.UnimplementedSecretServiceServer

	socket string
	// fail, if set, is what every call answers.
	fail error

	evidence  *v1.GetEvidenceResponse
	appraise  *v1.AppraiseResponse
	preflight *v1.PreflightResponse
	status    *v1.GetStatusResponse
	reload    *v1.ReloadResponse
	drain     []*v1.DrainResponse
	sessions  []*v1.Session
	changes   []*v1.WatchResponse
	secrets   *v1.ListSecretsResponse
	states    *v1.ListStatesResponse
	accepted  *v1.AcceptStateResponse
	receipts  []*v1.ReceiptSummary
	receipt   []byte
	level     *v1.SetLogLevelResponse
	// hold keeps a watch open until its caller goes.
	hold bool

	mu   sync.Mutex
	seen []any
}

var errUnset = errors.New("this test set no answer")

// startNode serves f on a socket of its own until the test ends.
func startNode(t *testing.T, f *fakeNode) *fakeNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc-cli-") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	f.socket = filepath.Join(dir, "node.sock")
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(f.unary))
	v1.RegisterAdminServiceServer(s, f)
	v1.RegisterAttestationServiceServer(s, f)
	v1.RegisterMigrationServiceServer(s, f)
	v1.RegisterReceiptServiceServer(s, f)
	v1.RegisterSecretServiceServer(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
		os.RemoveAll(dir)
	})
	return f
}

func (f *fakeNode) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	f.mu.Lock()
	f.seen = append(f.seen, req)
	f.mu.Unlock()
	if f.fail != nil {
		return nil, rpcerror.Status(f.fail)
	}
	return next(ctx, req)
}

// asked is the last request of a kind.
func request[T any](t *testing.T, f *fakeNode) T {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.seen) - 1; i >= 0; i-- {
		if q, ok := f.seen[i].(T); ok {
			return q
		}
	}
	t.Fatalf("there was no %T", *new(T))
	panic("unreachable")
}

func answer[T any](r *T) (*T, error) {
	if r == nil {
		return nil, errUnset
	}
	return r, nil
}

func (f *fakeNode) GetEvidence(context.Context, *v1.GetEvidenceRequest) (*v1.GetEvidenceResponse, error) {
	return answer(f.evidence)
}

func (f *fakeNode) Appraise(context.Context, *v1.AppraiseRequest) (*v1.AppraiseResponse, error) {
	return answer(f.appraise)
}

func (f *fakeNode) Preflight(context.Context, *v1.PreflightRequest) (*v1.PreflightResponse, error) {
	return answer(f.preflight)
}

func (f *fakeNode) GetStatus(context.Context, *v1.GetStatusRequest) (*v1.GetStatusResponse, error) {
	return answer(f.status)
}

func (f *fakeNode) ListStates(context.Context, *v1.ListStatesRequest) (*v1.ListStatesResponse, error) {
	return answer(f.states)
}

func (f *fakeNode) AcceptState(context.Context, *v1.AcceptStateRequest) (*v1.AcceptStateResponse, error) {
	return answer(f.accepted)
}

func (f *fakeNode) Reload(context.Context, *v1.ReloadRequest) (*v1.ReloadResponse, error) {
	return answer(f.reload)
}

func (f *fakeNode) SetLogLevel(context.Context, *v1.SetLogLevelRequest) (*v1.SetLogLevelResponse, error) {
	return answer(f.level)
}

func (f *fakeNode) Drain(_ *v1.DrainRequest, s grpc.ServerStreamingServer[v1.DrainResponse]) error {
	for _, e := range f.drain {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return rpcerror.Status(f.fail)
}

func (f *fakeNode) List(_ context.Context, q *v1.ListRequest) (*v1.ListResponse, error) {
	out := &v1.ListResponse{}
	for _, s := range f.sessions {
		ended := s.GetState() >= v1.SessionState_SESSION_STATE_COMMITTED
		if (q.GetInstanceId() == "" || q.GetInstanceId() == s.GetInstanceId()) && (!ended || q.GetIncludeEnded()) {
			out.Sessions = append(out.Sessions, s)
		}
	}
	return out, nil
}

func (f *fakeNode) find(id []byte) (*v1.Session, error) {
	for _, s := range f.sessions {
		if bytes.Equal(s.GetSessionId(), id) {
			return s, nil
		}
	}
	return nil, rpcerror.Status(noSession())
}

func (f *fakeNode) Get(_ context.Context, q *v1.GetRequest) (*v1.GetResponse, error) {
	s, err := f.find(q.GetSessionId())
	return &v1.GetResponse{Session: s}, err
}

func (f *fakeNode) Abort(_ context.Context, q *v1.AbortRequest) (*v1.AbortResponse, error) {
	s, err := f.find(q.GetSessionId())
	return &v1.AbortResponse{Session: s}, err
}

func (f *fakeNode) Watch(_ *v1.WatchRequest, s grpc.ServerStreamingServer[v1.WatchResponse]) error {
	for _, e := range f.changes {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	if f.hold {
		<-s.Context().Done()
	}
	return rpcerror.Status(f.fail)
}

func (f *fakeNode) ListSecrets(context.Context, *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error) {
	return answer(f.secrets)
}

func (f *fakeNode) ListReceipts(_ context.Context, q *v1.ListReceiptsRequest) (*v1.ListReceiptsResponse, error) {
	out := &v1.ListReceiptsResponse{}
	for _, r := range f.receipts {
		if r.GetNumber() > q.GetAfter() && len(out.GetReceipts()) < int(min(max(q.GetLimit(), 1), receiptPage)) {
			out.Receipts = append(out.Receipts, r)
		}
	}
	return out, nil
}

func (f *fakeNode) ExportReceipt(context.Context, *v1.ExportReceiptRequest) (*v1.ExportReceiptResponse, error) {
	return &v1.ExportReceiptResponse{Receipt: f.receipt}, nil
}
