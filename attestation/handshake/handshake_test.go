package handshake

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// fake stands for enclave, policy and host of one node: its "quote" is the report data itself, its "log" names the host and carries the
// qualifying data.
type fake struct {
	host                             string
	refuseEvidence, refuseLog        error
	quoteErr, logErr                 error
	evidenceAppraised, logsAppraised int
	attachments                      map[string][]byte
	appraise                         func(*LogClaim) error
	mu                               sync.Mutex
}

func (f *fake) Quote(_ context.Context, rd [64]byte) ([]byte, error) {
	return append([]byte("quote:"), rd[:]...), f.quoteErr
}

func (f *fake) AppraiseEvidence(_ context.Context, quote []byte, rd [64]byte, host string, platform [32]byte) (*Peer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.evidenceAppraised++
	if f.refuseEvidence != nil {
		return nil, f.refuseEvidence
	}
	if !bytes.Equal(quote, append([]byte("quote:"), rd[:]...)) {
		return nil, refusal.New(v1.Reason_REASON_QUOTE_NOT_BOUND, "report data")
	}
	if platform != platformOf(host) {
		return nil, refusal.New(v1.Reason_REASON_PLATFORM_NOT_ENROLLED, "platform")
	}
	return &Peer{Attested: &v1.Attested{Host: host}}, nil
}

func (f *fake) Log(_ context.Context, qualifying [32]byte) (*Log, error) {
	return &Log{Raw: append([]byte("log of "+f.host+":"), qualifying[:]...), Attachments: f.attachments}, f.logErr
}

func (f *fake) AppraiseLog(_ context.Context, c *LogClaim) (*v1.Appraised, error) {
	log, qualifying, host := c.Raw, c.Qualifying, c.Host
	if f.appraise != nil {
		if err := f.appraise(c); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logsAppraised++
	if f.refuseLog != nil {
		return nil, f.refuseLog
	}
	if !bytes.Equal(log, append([]byte("log of "+host+":"), qualifying[:]...)) {
		return nil, refusal.New(v1.Reason_REASON_TPM_QUOTE_INVALID, "qualifying data")
	}
	return &v1.Appraised{Host: host, Matched: 1}, nil
}

func platformOf(host string) [32]byte { return sha256.Sum256([]byte(host)) }

func newNode(f *fake) *Node {
	return &Node{
		Host: f.host, Mode: v1.Mode_MODE_SIMULATED, PlatformID: platformOf(f.host), PolicyDigest: sha256.Sum256([]byte("policy of " + f.host)),
		Attester: f, Evidence: f, Logs: f, Reference: f, Now: time.Now, Rand: rand.Reader,
	}
}

const instance = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

// pair is both ends of one handshake: src is compute1, dst is compute2.
type pair struct {
	src, dst       *fake
	nodeS, nodeD   *Node
	s, d           *Session
	errS, errD     error
	stepsS, stepsD []*v1.StepReport
}

func newPair() *pair {
	p := &pair{src: &fake{host: "compute1"}, dst: &fake{host: "compute2"}}
	p.nodeS, p.nodeD = newNode(p.src), newNode(p.dst)
	return p
}

func intent() Intent {
	in := Intent{Instance: instance, Source: "compute1", Destination: "compute2"}
	_, _ = rand.Read(in.Attempt[:])
	return in
}

// run lets the two sides shake hands over streams that wire may wrap. Ten virtual seconds after nobody moves any more, the connection
// breaks.
func (p *pair) run(t *testing.T, dialler v1.Role, wire func(src, dst Stream) (Stream, Stream)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		a, b := Pipe(ctx.Done())
		if wire != nil {
			a, b = wire(a, b)
		}
		collect := func(steps *[]*v1.StepReport) Events {
			return Events{Step: func(r *v1.StepReport) { *steps = append(*steps, r) }}
		}
		in := intent()
		dial := func(n *Node, st Stream, role v1.Role, ev Events) (*Session, error) {
			return n.Dial(ctx, st, role, in, ev)
		}
		accept := func(n *Node, st Stream, _ v1.Role, ev Events) (*Session, error) {
			o, err := n.ReceiveOpen(st)
			if err != nil {
				return nil, err
			}
			return n.Accept(ctx, st, o, ev)
		}
		asS, asD := dial, accept
		if dialler == v1.Role_ROLE_DESTINATION {
			asS, asD = accept, dial
		}
		var wg sync.WaitGroup
		wg.Go(func() { p.s, p.errS = asS(p.nodeS, a, v1.Role_ROLE_SOURCE, collect(&p.stepsS)) })
		wg.Go(func() { p.d, p.errD = asD(p.nodeD, b, v1.Role_ROLE_DESTINATION, collect(&p.stepsD)) })
		wg.Wait()
	})
}

func TestBothSidesDeriveTheSameKeysWhicheverDials(t *testing.T) {
	for _, dialler := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		t.Run(dialler.String(), func(t *testing.T) {
			p := newPair()
			p.run(t, dialler, nil)
			if p.errS != nil || p.errD != nil {
				t.Fatalf("source: %v; destination: %v", p.errS, p.errD)
			}
			if p.s.ID != p.d.ID || p.s.ID == [16]byte{} {
				t.Errorf("session ids %x and %x", p.s.ID, p.d.ID)
			}
			ks, errS := p.s.StateKey()
			kd, errD := p.d.StateKey()
			if errS != nil || errD != nil || !ks.Equal(kd) {
				t.Errorf("the two sides' state keys differ (%v, %v)", errS, errD)
			}
			want := []v1.Step{v1.Step_STEP_PEER_ATTESTATION, v1.Step_STEP_INTEGRITY_EXCHANGE, v1.Step_STEP_KEY_DERIVATION}
			for side, steps := range map[string][]*v1.StepReport{"source": p.stepsS, "destination": p.stepsD} {
				if len(steps) != len(want) {
					t.Fatalf("%s reported %d steps", side, len(steps))
				}
				for i, step := range steps {
					if step.GetStep() != want[i] || step.GetRefusal() != nil {
						t.Errorf("%s: step %d is %v", side, i, step)
					}
				}
			}
			if p.s.PeerAttested().GetHost() != "compute2" || p.d.PeerAppraised().GetHost() != "compute1" {
				t.Error("each side does not name the other")
			}
		})
	}
}

func TestTwoHandshakesShareNothing(t *testing.T) {
	p, q := newPair(), newPair()
	p.run(t, v1.Role_ROLE_SOURCE, nil)
	q.run(t, v1.Role_ROLE_SOURCE, nil)
	k1, err1 := p.s.StateKey()
	k2, err2 := q.s.StateKey()
	if err1 != nil || err2 != nil || k1.Equal(k2) || p.s.ID == q.s.ID {
		t.Error("two sessions have a key or a name in common")
	}
}

func TestARefusalAtEitherSideEndsBothAndTellsThePeerNothing(t *testing.T) {
	secret := errors.New("a detail the peer must not learn")
	no := func(r v1.Reason) error { return refusal.New(r, "refused: %w", secret) }
	for name, tc := range map[string]struct {
		arrange func(*pair)
		atS     bool // the side that refuses
		reason  v1.Reason
	}{
		"the source refuses the destination's evidence": {func(p *pair) { p.src.refuseEvidence = no(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED) }, true, v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED},
		"the destination refuses the source's evidence": {func(p *pair) { p.dst.refuseEvidence = no(v1.Reason_REASON_TCB_NOT_ACCEPTED) }, false, v1.Reason_REASON_TCB_NOT_ACCEPTED},
		"the source refuses the destination's log":      {func(p *pair) { p.src.refuseLog = no(v1.Reason_REASON_INTEGRITY_MISMATCH) }, true, v1.Reason_REASON_INTEGRITY_MISMATCH},
		"the destination refuses the source's log":      {func(p *pair) { p.dst.refuseLog = no(v1.Reason_REASON_TPM_QUOTE_INVALID) }, false, v1.Reason_REASON_TPM_QUOTE_INVALID},
		"the source cannot quote":                       {func(p *pair) { p.src.quoteErr = secret }, true, v1.Reason_REASON_QUOTE_FAILED},
		"the destination cannot quote":                  {func(p *pair) { p.dst.quoteErr = secret }, false, v1.Reason_REASON_QUOTE_FAILED},
		"the source cannot measure itself":              {func(p *pair) { p.src.logErr = no(v1.Reason_REASON_MEASUREMENT_FAILED) }, true, v1.Reason_REASON_MEASUREMENT_FAILED},
		"the destination cannot measure itself":         {func(p *pair) { p.dst.logErr = no(v1.Reason_REASON_MEASUREMENT_FAILED) }, false, v1.Reason_REASON_MEASUREMENT_FAILED},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair()
			tc.arrange(p)
			p.run(t, v1.Role_ROLE_SOURCE, nil)
			refuser, peer := p.errS, p.errD
			if !tc.atS {
				refuser, peer = peer, refuser
			}
			if !errors.Is(refuser, refusal.Because(tc.reason)) {
				t.Errorf("the refuser says %v", refuser)
			}
			if !errors.Is(peer, refusal.Because(v1.Reason_REASON_PEER_REFUSED)) || strings.Contains(peer.Error(), secret.Error()) {
				t.Errorf("its peer says %v", peer)
			}
			if p.s != nil || p.d != nil {
				t.Error("a session was left")
			}
		})
	}
}

func TestNoSeedIsSealedToAKeyWhoseEvidenceIsRefused(t *testing.T) {
	p := newPair()
	p.src.refuseEvidence = refusal.New(v1.Reason_REASON_QUOTE_INVALID, "no")
	var sealed bool
	p.run(t, v1.Role_ROLE_SOURCE, func(src, dst Stream) (Stream, Stream) {
		return &tap{Stream: src, send: func(f *v1.Frame) []*v1.Frame {
			sealed = sealed || f.GetSourceEvidence() != nil
			return []*v1.Frame{f}
		}}, dst
	})
	if sealed {
		t.Error("message 3, with the source's seed, was sent")
	}
}

func TestOpeningsThatAreNotAdmitted(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*v1.Open)
		reason v1.Reason
	}{
		"another suite":             {func(o *v1.Open) { o.Suite = "safeconduct/v0" }, v1.Reason_REASON_SUITE_MISMATCH},
		"another mode":              {func(o *v1.Open) { o.Mode = v1.Mode_MODE_INTEL }, v1.Reason_REASON_MODE_MISMATCH},
		"no mode":                   {func(o *v1.Open) { o.Mode = 0 }, v1.Reason_REASON_MODE_MISMATCH},
		"source is destination":     {func(o *v1.Open) { o.SourceHost = o.DestinationHost }, v1.Reason_REASON_SAME_NODE},
		"another node's name":       {func(o *v1.Open) { o.DestinationHost = "compute9" }, v1.Reason_REASON_UNKNOWN_PEER},
		"roles swapped":             {func(o *v1.Open) { o.DiallerRole = v1.Role_ROLE_DESTINATION }, v1.Reason_REASON_UNKNOWN_PEER},
		"no role":                   {func(o *v1.Open) { o.DiallerRole = 0 }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"an upper-case instance":    {func(o *v1.Open) { o.InstanceId = strings.ToUpper(o.InstanceId) }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"an instance with a path":   {func(o *v1.Open) { o.InstanceId = "../../../../etc/passwd00000000000000" }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"a host with a line break":  {func(o *v1.Open) { o.SourceHost = "compute1\nroot" }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"a short attempt id":        {func(o *v1.Open) { o.AttemptId = o.AttemptId[:15] }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"an attempt id of zeros":    {func(o *v1.Open) { clear(o.AttemptId) }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"an unknown field":          {func(o *v1.Open) { o.ProtoReflect().SetUnknown([]byte{0xf8, 0x01, 1}) }, v1.Reason_REASON_PROTOCOL_VIOLATION},
		"a very long name of suite": {func(o *v1.Open) { o.Suite = strings.Repeat("x", 1000) }, v1.Reason_REASON_PROTOCOL_VIOLATION},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair()
			p.run(t, v1.Role_ROLE_SOURCE, func(src, dst Stream) (Stream, Stream) {
				return &tap{Stream: src, send: func(f *v1.Frame) []*v1.Frame {
					if f.GetOpen() != nil {
						tc.change(f.GetOpen())
					}
					return []*v1.Frame{f}
				}}, dst
			})
			if !errors.Is(p.errD, refusal.Because(tc.reason)) {
				t.Errorf("the destination says %v", p.errD)
			}
			if p.dst.evidenceAppraised > 0 {
				t.Error("something costly was done first")
			}
		})
	}
}

// tap changes what one side sends: it may drop, repeat, hold back or alter frames.
type tap struct {
	Stream
	send func(*v1.Frame) []*v1.Frame
}

func (t *tap) Send(f *v1.Frame) error {
	for _, out := range t.send(proto.Clone(f).(*v1.Frame)) {
		if err := t.Stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}

// TestAnActiveAttackerOnTheWireOnlyEndsTheHandshake does each thing to each frame of each side, and expects that no side is left with a
// session that the other does not share.
func TestAnActiveAttackerOnTheWireOnlyEndsTheHandshake(t *testing.T) {
	const frames = 5 // the most that a side sends: open or not, hello, evidence, confirm, M1, M3
	for _, side := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		for n := range frames + 1 {
			for attack, mangle := range attacks {
				t.Run(fmt.Sprintf("%s of frame %d of the %s", attack, n, RoleName(side)), func(t *testing.T) {
					p := newPair()
					touched := false
					wrap := func(st Stream) Stream {
						i, held := -1, []*v1.Frame(nil)
						return &tap{Stream: st, send: func(f *v1.Frame) []*v1.Frame {
							if f.GetRefused() != nil {
								return []*v1.Frame{f}
							}
							if i++; i == n {
								touched = true
								out := mangle(f)
								if attack == "swap" {
									held = out
									return nil
								}
								return out
							}
							out := append([]*v1.Frame{f}, held...)
							held = nil
							return out
						}}
					}
					p.run(t, v1.Role_ROLE_SOURCE, func(src, dst Stream) (Stream, Stream) {
						if side == v1.Role_ROLE_SOURCE {
							return wrap(src), dst
						}
						return src, wrap(dst)
					})
					if !touched {
						if p.errS != nil || p.errD != nil {
							t.Fatalf("untouched, and yet %v, %v", p.errS, p.errD)
						}
						return
					}
					p.mustNotBeShared(t, attack)
				})
			}
		}
	}
}

// attacks on one frame. A replayed frame after the last one is seen by nobody: the connection is then past the handshake.
var attacks = map[string]func(*v1.Frame) []*v1.Frame{
	"drop":   func(*v1.Frame) []*v1.Frame { return nil },
	"repeat": func(f *v1.Frame) []*v1.Frame { return []*v1.Frame{f, f} },
	"swap":   func(f *v1.Frame) []*v1.Frame { return []*v1.Frame{f} },
	"flip":   func(f *v1.Frame) []*v1.Frame { return []*v1.Frame{flipped(f)} },
	"empty":  func(*v1.Frame) []*v1.Frame { return []*v1.Frame{{}} },
}

// flipped flips the last bit of the frame's longest field of bytes.
func flipped(f *v1.Frame) *v1.Frame {
	var longest []byte
	for _, b := range [][]byte{
		f.GetOpen().GetAttemptId(), f.GetHello().GetEvidence(), f.GetHello().GetKemPublic(), f.GetSourceEvidence().GetEncapsulatedSeed(),
		f.GetDestinationSeal().GetEncapsulatedSeed(), f.GetConfirm().GetConfirm(), f.GetSealed().GetCiphertext(),
	} {
		if len(b) > len(longest) {
			longest = b
		}
	}
	if len(longest) > 0 {
		longest[len(longest)-1] ^= 1
	}
	return f
}

// mustNotBeShared: at least one side has refused, and no side has a session unless it is the last frame that was lost or repeated, which
// its sender cannot know.
func (p *pair) mustNotBeShared(t *testing.T, attack string) {
	t.Helper()
	if p.errS == nil && p.errD == nil {
		if attack == "repeat" { // a repeat of the last frame finds nobody listening
			ks, _ := p.s.StateKey()
			kd, _ := p.d.StateKey()
			if ks.Equal(kd) {
				return
			}
		}
		t.Fatal("both sides believe in a handshake that was tampered with")
	}
	if p.errS == nil {
		t.Errorf("the source has a session, the destination says %v", p.errD)
	}
}

func TestAReflectedHelloIsRefused(t *testing.T) {
	p := newPair()
	p.run(t, v1.Role_ROLE_SOURCE, func(src, dst Stream) (Stream, Stream) { return &mirror{Stream: src}, dst })
	if p.errS == nil {
		t.Error("the source shook hands with itself")
	}
}

// mirror answers each frame with itself.
type mirror struct {
	Stream
	queue []*v1.Frame
}

func (m *mirror) Send(f *v1.Frame) error {
	if h := f.GetHello(); h != nil {
		g := proto.Clone(f).(*v1.Frame)
		g.GetHello().SignPublic, g.GetHello().Evidence = make([]byte, 32), []byte("quote:")
		m.queue = append(m.queue, g)
	}
	return nil
}

func (m *mirror) Recv() (*v1.Frame, error) {
	f := m.queue[0]
	m.queue = m.queue[1:]
	return f, nil
}

func TestAKeyConfirmationOfAnotherHandshakeIsRefused(t *testing.T) {
	for _, side := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		p := newPair()
		alter := func(s Stream) Stream {
			return &tap{Stream: s, send: func(f *v1.Frame) []*v1.Frame {
				for _, tag := range [][]byte{f.GetConfirm().GetConfirm(), f.GetDestinationSeal().GetConfirm()} {
					if len(tag) > 0 {
						tag[0] ^= 1
					}
				}
				return []*v1.Frame{f}
			}}
		}
		p.run(t, v1.Role_ROLE_SOURCE, func(src, dst Stream) (Stream, Stream) {
			if side == v1.Role_ROLE_SOURCE {
				return alter(src), dst
			}
			return src, alter(dst)
		})
		refuser := p.errD
		if side == v1.Role_ROLE_DESTINATION {
			refuser = p.errS
		}
		if !errors.Is(refuser, refusal.Because(v1.Reason_REASON_KEY_CONFIRMATION_FAILED)) || p.s != nil && p.d != nil {
			t.Errorf("the confirmation of the %s: %v, %v", RoleName(side), p.errS, p.errD)
		}
	}
}
