package receipt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

const (
	vm        = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"
	migration = "5d5a7a1e-0000-4000-8000-000000000001"
)

// began is when every migration of these tests begins.
var began = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

// rig is two enclaves on simulated platforms, under one authority and one policy.
type rig struct {
	roots      map[tee.Mode]dcap.RootPin
	collateral *collateral.Collateral
	policy     *policy.Loaded
	nodes      map[string]*party
}

// party is everything that a handshake asks of a node, and judges as a node does.
type party struct {
	*rig
	host    string
	enclave tee.Enclave
	id      [32]byte
	found   *v1.Attested // of the peer
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	issued := began.Add(-24 * time.Hour)
	a, err := simulated.CreateAuthority(dir, simulated.AuthorityOptions{At: issued})
	must(t, err)
	pin, err := dcap.PinPEM(a.RootPEM())
	must(t, err)
	r := &rig{roots: map[tee.Mode]dcap.RootPin{tee.ModeSimulated: pin}, nodes: map[string]*party{}}
	r.collateral, err = collateral.LoadDir(dir)
	must(t, err)
	enclave := simulated.Measurement{MREnclave: sha256.Sum256([]byte("enclave")), MRSigner: sha256.Sum256([]byte("signer"))}
	platforms := ""
	for i, host := range []string{"compute1", "compute2"} {
		p := &party{rig: r, host: host}
		where := filepath.Join(dir, host)
		ppid := [16]byte{byte(i + 1)}
		must(t, a.CreatePlatform(where, simulated.PlatformOptions{PPID: ppid, At: issued}))
		p.enclave, err = simulated.Open(where, enclave)
		must(t, err)
		p.id = handshake.PlatformID(ppid, nil)
		r.nodes[host] = p
		platforms += fmt.Sprintf(`,{"host":%q,"platform_id":"%x"}`, host, p.id)
	}
	r.policy = loadPolicy(t, fmt.Sprintf(`{"schema":%q,"policy_svn":7,"mode":"simulated","enclaves":[{"mrenclave":"%x"}],"tcb":{},"platforms":[%s],"integrity":{}}`,
		policy.Schema, enclave.MREnclave, platforms[1:]))
	return r
}

func loadPolicy(t testing.TB, raw string) *policy.Loaded {
	t.Helper()
	p, err := policy.Parse([]byte(raw))
	must(t, err)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *party) Quote(ctx context.Context, rd [64]byte) ([]byte, error) {
	return p.enclave.Quote(ctx, rd)
}

func (p *party) AppraiseEvidence(_ context.Context, raw []byte, rd [64]byte, host string, platform [32]byte) (*handshake.Peer, error) {
	r, err := dcap.Verifier{Root: p.roots[tee.ModeSimulated]}.Verify(raw, p.collateral, began)
	if err != nil {
		return nil, err
	}
	c := &appraisal.Claims{
		MREnclave: r.MREnclave, ReportData: r.ReportData, TCBStatus: string(r.Status), AdvisoryIDs: r.AdvisoryIDs,
		EvaluationDataNumber: r.EvaluationDataNumber(), PPID: r.PPID,
	}
	no := appraisal.Appraise(c, &p.policy.Policy, appraisal.Expectation{ReportData: &rd, Host: host, PlatformID: &platform, Now: began})
	if len(no) > 0 {
		return nil, no[0]
	}
	p.found = &v1.Attested{TcbStatus: string(r.Status), AdvisoryIds: r.AdvisoryIDs, TcbEvaluationDataNumber: r.EvaluationDataNumber()}
	return &handshake.Peer{Attested: p.found, PPID: r.PPID}, nil
}

func (p *party) log() []byte { return []byte("the integrity log of " + p.host) }

func (p *party) Log(context.Context, [32]byte) (*handshake.Log, error) {
	return &handshake.Log{Raw: p.log()}, nil
}

func (p *party) AppraiseLog(_ context.Context, c *handshake.LogClaim) (*v1.Appraised, error) {
	if !bytes.Equal(c.Raw, p.nodes[c.Host].log()) {
		return nil, errors.New("another log")
	}
	return &v1.Appraised{Host: c.Host}, nil
}

func (p *party) node() *handshake.Node {
	return &handshake.Node{
		Host: p.host, Mode: v1.Mode_MODE_SIMULATED, PlatformID: p.id, PolicyDigest: p.policy.Digest, Attester: p, Evidence: p, Logs: p, Reference: p,
		Now: func() time.Time { return began }, Rand: rand.Reader,
	}
}

// pipe is one end of a Stream in memory.
type pipe struct {
	in   <-chan *v1.Frame
	out  chan<- *v1.Frame
	done <-chan struct{}
}

func (p *pipe) Send(f *v1.Frame) error {
	select {
	case p.out <- f:
		return nil
	case <-p.done:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Recv() (*v1.Frame, error) {
	select {
	case f := <-p.in:
		return f, nil
	case <-p.done:
		return nil, io.EOF
	}
}

// ended is a session as both sides know it at its end.
type ended struct {
	s, d   *handshake.Session
	vs, vd *View
}

// migrate runs a real handshake from compute1 to compute2, and says that everything crossed.
func (r *rig) migrate(t testing.TB) *ended {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ab, ba := make(chan *v1.Frame, 8), make(chan *v1.Frame, 8)
	in := handshake.Intent{Instance: vm, Source: "compute1", Destination: "compute2"}
	_, _ = rand.Read(in.Attempt[:])
	e := new(ended)
	var errS, errD error
	var both sync.WaitGroup
	both.Go(func() {
		defer func() {
			if errS != nil {
				cancel()
			}
		}()
		e.s, errS = r.nodes["compute1"].node().Dial(ctx, &pipe{ba, ab, ctx.Done()}, v1.Role_ROLE_SOURCE, in, handshake.Events{})
	})
	both.Go(func() {
		n := r.nodes["compute2"].node()
		stream := &pipe{ab, ba, ctx.Done()}
		var o *handshake.Opening
		if o, errD = n.ReceiveOpen(stream); errD == nil {
			e.d, errD = n.Accept(ctx, stream, o, handshake.Events{})
		}
		if errD != nil {
			cancel()
		}
	})
	both.Wait()
	must(t, errS)
	must(t, errD)
	view := func(s *handshake.Session, skew time.Duration) *View {
		at := began.Add(skew)
		return &View{
			Role: s.Role, Transcript: s.Transcript(), MigrationID: migration, PolicySVN: r.policy.SVN, Secrets: 1, ImageBytes: 1 << 20,
			State:   []Blob{{"permanent", 6188, 6300}, {"volatile", 9482, 9600}},
			Outcome: Outcome{Result: Committed},
			Times:   Times{Established: at, Judged: at, Armed: at.Add(2 * time.Second), Concluded: at.Add(time.Minute)},
			Peer:    FindingOf(s.PeerAttested(), r.collateral.Digest()),
		}
	}
	e.vs, e.vd = view(e.s, 0), view(e.d, 1500*time.Millisecond)
	return e
}

// entry concludes the migration as two nodes do: the source composes and signs, the destination checks and signs.
func (r *rig) entry(t testing.TB, e *ended) *Entry {
	t.Helper()
	record, err := Compose(e.vs)
	must(t, err)
	if _, err := Check(record, e.vd); err != nil {
		t.Fatal(err)
	}
	signS, err := e.s.SignReceipt(record)
	must(t, err)
	if !e.d.CheckReceipt(record, signS) {
		t.Fatal("the destination does not know the source's signature")
	}
	signD, err := e.d.SignReceipt(record)
	must(t, err)
	f := e.s.Transcript()
	return &Entry{
		Record: record, SourceSignature: signS, DestinationSignature: signD, SourceEvidence: f.EvidenceS, DestinationEvidence: f.EvidenceD,
		SourceCollateral: r.collateral, DestinationCollateral: r.collateral, SourceLog: r.nodes["compute1"].log(), DestinationLog: r.nodes["compute2"].log(),
	}
}

func (r *rig) verifier() Verifier { return Verifier{Roots: r.roots, Policy: r.policy} }

// marks is sealed storage in memory. It can fail at a write, before or after it has taken effect.
type marks struct {
	mu      sync.Mutex
	content []byte
	op      func() error // called before a Put
	after   func() error // called after it
}

func (m *marks) Get(context.Context, string, string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.content == nil {
		return nil, sealed.ErrNotFound
	}
	return bytes.Clone(m.content), nil
}

func (m *marks) Put(_ context.Context, _, _ string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.op != nil {
		if err := m.op(); err != nil {
			return err
		}
	}
	m.content = bytes.Clone(b)
	if m.after != nil {
		return m.after()
	}
	return nil
}

func options() Options {
	return Options{Host: "compute1", Now: func() time.Time { return began.Add(time.Hour) }}
}

// export puts an entry into a new chain and returns it as it comes out.
func export(t testing.TB, entry *Entry) []byte {
	t.Helper()
	c, err := OpenChain(t.Context(), filepath.Join(t.TempDir(), "receipts"), &marks{}, options())
	must(t, err)
	if _, err := c.Append(t.Context(), entry); err != nil {
		t.Fatal(err)
	}
	raw, err := c.Get(ID(entry.Record))
	must(t, err)
	return raw
}
