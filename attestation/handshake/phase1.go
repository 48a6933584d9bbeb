package handshake

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha512"
	"io"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/channel"
	"github.com/safeconduct/safeconduct/crypto/keyschedule"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// run is one handshake under way, on one side.
type run struct {
	node   *Node
	intent Intent
	role   v1.Role
	stream Stream
	events Events

	kem                  *keyschedule.KEMPrivate
	signKey              ed25519.PrivateKey
	mine, theirs         *v1.Hello
	ctxHash, th1, th2    [48]byte
	schedule             *keyschedule.Schedule
	facts                Transcript
	peer                 *Peer
	peerSign             ed25519.PublicKey
	evidenceS, evidenceD []byte
}

// Dial runs the handshake as the node that called. role is the caller's.
func (n *Node) Dial(ctx context.Context, stream Stream, role v1.Role, intent Intent, events Events) (*Session, error) {
	open := &v1.Open{
		Suite: Suite, Mode: n.Mode, AttemptId: intent.Attempt[:], InstanceId: intent.Instance,
		SourceHost: intent.Source, DestinationHost: intent.Destination, DiallerRole: role,
	}
	if err := checkOpen(open); err != nil {
		return nil, err
	}
	if err := stream.Send(&v1.Frame{Body: &v1.Frame_Open{Open: open}}); err != nil {
		return nil, lost("open", err)
	}
	return n.run(ctx, &run{node: n, intent: intent, role: role, stream: stream, events: events})
}

// Opening is what a dialler asks for, checked for form only.
type Opening struct {
	Intent Intent
	// Role of the node that was dialled.
	Role v1.Role
	// PeerHost is the dialler's name, by its own word.
	PeerHost string
}

// ReceiveOpen reads the dialler's first frame. It costs nothing: the caller decides by it whether to go on with Accept.
func (n *Node) ReceiveOpen(stream Stream) (*Opening, error) {
	frame, err := receive(stream, "open")
	if err != nil {
		return nil, err
	}
	open := frame.GetOpen()
	if open == nil {
		return nil, violation("the first frame is %s, not open", frameName(frame))
	}
	if err := checkOpen(open); err != nil {
		return nil, err
	}
	if open.GetSuite() != Suite {
		return nil, refusal.New(v1.Reason_REASON_SUITE_MISMATCH, "the peer speaks another protocol").Want(open.GetSuite(), Suite)
	}
	if open.GetMode() != n.Mode {
		return nil, refusal.New(v1.Reason_REASON_MODE_MISMATCH, "the peer runs in another mode").
			Want(ModeName(open.GetMode()), ModeName(n.Mode))
	}
	o := &Opening{Role: other(open.GetDiallerRole()), Intent: Intent{
		Attempt: [attemptSize]byte(open.GetAttemptId()), Instance: open.GetInstanceId(),
		Source: open.GetSourceHost(), Destination: open.GetDestinationHost(),
	}}
	me := o.Intent.Destination
	o.PeerHost = o.Intent.Source
	if o.Role == v1.Role_ROLE_SOURCE {
		me, o.PeerHost = o.PeerHost, me
	}
	if me != n.Host {
		return nil, refusal.New(v1.Reason_REASON_UNKNOWN_PEER, "the peer took this node for another").Want(me, n.Host)
	}
	return o, nil
}

// Accept runs the handshake as the node that was dialled, once the caller has admitted the opening.
func (n *Node) Accept(ctx context.Context, stream Stream, o *Opening, events Events) (*Session, error) {
	return n.run(ctx, &run{node: n, intent: o.Intent, role: o.Role, stream: stream, events: events})
}

// run drives both phases and tells the peer, bluntly, if this side refuses.
func (n *Node) run(ctx context.Context, r *run) (*Session, error) {
	defer r.wipe()
	session, err := r.bothPhases(ctx)
	if err != nil && !refusedByPeer(err) {
		// The peer may be gone already; the error that counts is ours.
		_ = r.stream.Send(&v1.Frame{Body: &v1.Frame_Refused{Refused: refusal.Blunt(err)}})
	}
	return session, err
}

func (r *run) bothPhases(ctx context.Context) (*Session, error) {
	var ch *channel.Channel
	attest := func(ctx context.Context) (step *v1.StepReport, err error) {
		step = &v1.StepReport{Step: v1.Step_STEP_PEER_ATTESTATION}
		if r.role == v1.Role_ROLE_SOURCE {
			ch, err = r.attestAsSource(ctx)
		} else {
			ch, err = r.attestAsDestination(ctx)
		}
		if r.peer != nil {
			step.Attested = r.peer.Attested
		}
		return step, err
	}
	if err := r.step(ctx, attest); err != nil {
		return nil, err
	}
	s := r.session(ch)
	if r.events.Attested != nil {
		if err := r.events.Attested(s.ID); err != nil {
			s.Destroy()
			return nil, err
		}
	}
	exchange := func(ctx context.Context) (*v1.StepReport, error) {
		step := &v1.StepReport{Step: v1.Step_STEP_INTEGRITY_EXCHANGE}
		err := s.exchangeOver(ctx, r.stream)
		step.Appraised = s.PeerAppraised()
		return step, err
	}
	derive := func(context.Context) (*v1.StepReport, error) {
		return &v1.StepReport{Step: v1.Step_STEP_KEY_DERIVATION}, s.deriveKeys()
	}
	for _, f := range []func(context.Context) (*v1.StepReport, error){exchange, derive} {
		if err := r.step(ctx, f); err != nil {
			s.Destroy()
			return nil, err
		}
	}
	return s, nil
}

// step times f and reports its outcome.
func (r *run) step(ctx context.Context, f func(context.Context) (*v1.StepReport, error)) error {
	begun := r.node.Now()
	report, err := f(ctx)
	report.Elapsed = durationpb.New(r.node.Now().Sub(begun))
	report.Refusal = refusal.From(err).Proto()
	if r.events.Step != nil {
		r.events.Step(report)
	}
	return err
}

// hello makes this side's message 1 or 2, without evidence.
func (r *run) hello() (*v1.Hello, error) {
	var err error
	if r.kem, err = keyschedule.GenerateKEM(); err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	if _, err := io.ReadFull(r.node.Rand, nonce); err != nil {
		return nil, err
	}
	if _, r.signKey, err = ed25519.GenerateKey(r.node.Rand); err != nil {
		return nil, err
	}
	return &v1.Hello{
		PlatformId: r.node.PlatformID[:], PolicyDigest: r.node.PolicyDigest[:],
		Nonce: nonce, KemPublic: r.kem.Public(),
	}, nil
}

func (r *run) signPublic() ed25519.PublicKey { return r.signKey.Public().(ed25519.PublicKey) }

// transcript1 fixes ctx and th1 from the two hellos.
func (r *run) transcript1(s, d *v1.Hello) error {
	if bytes.Equal(s.GetPlatformId(), d.GetPlatformId()) {
		return refusal.New(v1.Reason_REASON_SAME_NODE, "source and destination are the same platform")
	}
	if bytes.Equal(s.GetNonce(), d.GetNonce()) || bytes.Equal(s.GetKemPublic(), d.GetKemPublic()) {
		return violation("the peer sent our own hello back")
	}
	r.ctxHash = contextHash(r.intent, r.node.Mode, s, d)
	r.th1 = transcript.H384("safeconduct/v1/th1", r.ctxHash[:], s.GetNonce(), d.GetNonce(), s.GetKemPublic(), d.GetKemPublic(), d.GetSignPublic())
	return nil
}

// appraise judges the peer's evidence. Nothing is sealed to the peer's key before this returns nil.
func (r *run) appraise(ctx context.Context, evidence, signPublic []byte) error {
	peerRole, host := other(r.role), r.intent.Destination
	if peerRole == v1.Role_ROLE_SOURCE {
		host = r.intent.Source
	}
	peer, err := r.node.Evidence.AppraiseEvidence(ctx, evidence, ReportData(peerRole, r.th1, signPublic),
		host, [32]byte(r.theirs.GetPlatformId()))
	if err != nil {
		return err
	}
	r.peer, r.peerSign = peer, signPublic
	return nil
}

func (r *run) quote(ctx context.Context) ([]byte, error) {
	evidence, err := r.node.Attester.Quote(ctx, ReportData(r.role, r.th1, r.signPublic()))
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_QUOTE_FAILED, "this enclave could not make its quote: %w", err)
	}
	return evidence, nil
}

// transcript2 fixes th2 and the key schedule.
func (r *run) transcript2(signS, encS, encD []byte, seedS, seedD *keyschedule.Secret) error {
	hs, hd := sha512.Sum384(r.evidenceS), sha512.Sum384(r.evidenceD)
	r.th2 = transcript.H384("safeconduct/v1/th2", r.th1[:], hs[:], hd[:], signS, encS, encD)
	helloS, helloD := r.mine, r.theirs
	if r.role == v1.Role_ROLE_DESTINATION {
		helloS, helloD = helloD, helloS
	}
	r.facts = Transcript{
		Mode: r.node.Mode, Intent: r.intent, HelloS: withoutEvidence(helloS), HelloD: withoutEvidence(helloD), SignS: signS, SignD: helloD.GetSignPublic(),
		EncS: encS, EncD: encD, EvidenceS: r.evidenceS, EvidenceD: r.evidenceD,
	}
	var err error
	r.schedule, err = keyschedule.New(r.th2, seedS, seedD)
	return err
}

func withoutEvidence(h *v1.Hello) *v1.Hello {
	return &v1.Hello{
		PlatformId: h.GetPlatformId(), PolicyDigest: h.GetPolicyDigest(), Nonce: h.GetNonce(), KemPublic: h.GetKemPublic(), SignPublic: h.GetSignPublic(),
	}
}

func info(th1 [48]byte, direction string) []byte { return append(th1[:], direction...) }

func (r *run) attestAsSource(ctx context.Context) (*channel.Channel, error) {
	var err error
	if r.mine, err = r.hello(); err != nil {
		return nil, err
	}
	if err := r.stream.Send(&v1.Frame{Body: &v1.Frame_Hello{Hello: r.mine}}); err != nil { // message 1
		return nil, lost("message 1", err)
	}
	frame, err := receive(r.stream, "message 2")
	if err != nil {
		return nil, err
	}
	if r.theirs = frame.GetHello(); r.theirs == nil {
		return nil, violation("message 2 is %s", frameName(frame))
	}
	if err := checkHello(r.theirs, true); err != nil {
		return nil, err
	}
	if err := r.transcript1(r.mine, r.theirs); err != nil {
		return nil, err
	}
	r.evidenceD = r.theirs.GetEvidence()
	if err := r.appraise(ctx, r.evidenceD, r.theirs.GetSignPublic()); err != nil {
		return nil, err
	}
	if r.evidenceS, err = r.quote(ctx); err != nil {
		return nil, err
	}
	seedS, err := keyschedule.NewSecret(r.node.Rand)
	if err != nil {
		return nil, err
	}
	defer seedS.Wipe()
	encS, err := keyschedule.SealSeed(r.theirs.GetKemPublic(), seedS, info(r.th1, "S->D"))
	if err != nil {
		return nil, violation("the peer's KEM key: %w", err)
	}
	if err := r.stream.Send(&v1.Frame{Body: &v1.Frame_SourceEvidence{SourceEvidence: &v1.SourceEvidence{ // message 3
		Evidence: r.evidenceS, SignPublic: r.signPublic(), EncapsulatedSeed: encS,
	}}}); err != nil {
		return nil, lost("message 3", err)
	}
	if frame, err = receive(r.stream, "message 4"); err != nil {
		return nil, err
	}
	m4 := frame.GetDestinationSeal()
	if m4 == nil || len(m4.GetConfirm()) != confirmSize {
		return nil, violation("message 4 is %s, or malformed", frameName(frame))
	}
	seedD, err := r.kem.OpenSeed(m4.GetEncapsulatedSeed(), info(r.th1, "D->S"))
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_KEY_CONFIRMATION_FAILED, "the destination's seed does not open: %w", err)
	}
	defer seedD.Wipe()
	if err := r.transcript2(r.signPublic(), encS, m4.GetEncapsulatedSeed(), seedS, seedD); err != nil {
		return nil, err
	}
	if err := r.checkConfirm(keyschedule.Destination, m4.GetConfirm()); err != nil {
		return nil, err
	}
	if err := r.stream.Send(&v1.Frame{Body: &v1.Frame_Confirm{Confirm: &v1.Confirm{ // message 5
		Confirm: r.schedule.Confirm(keyschedule.Source),
	}}}); err != nil {
		return nil, lost("message 5", err)
	}
	return r.channel()
}

func (r *run) attestAsDestination(ctx context.Context) (*channel.Channel, error) {
	frame, err := receive(r.stream, "message 1")
	if err != nil {
		return nil, err
	}
	if r.theirs = frame.GetHello(); r.theirs == nil {
		return nil, violation("message 1 is %s", frameName(frame))
	}
	if err := checkHello(r.theirs, false); err != nil {
		return nil, err
	}
	if r.mine, err = r.hello(); err != nil {
		return nil, err
	}
	r.mine.SignPublic = r.signPublic()
	if err := r.transcript1(r.theirs, r.mine); err != nil {
		return nil, err
	}
	if r.evidenceD, err = r.quote(ctx); err != nil {
		return nil, err
	}
	r.mine.Evidence = r.evidenceD
	if err := r.stream.Send(&v1.Frame{Body: &v1.Frame_Hello{Hello: r.mine}}); err != nil { // message 2
		return nil, lost("message 2", err)
	}
	if frame, err = receive(r.stream, "message 3"); err != nil {
		return nil, err
	}
	m3 := frame.GetSourceEvidence()
	if m3 == nil || len(m3.GetSignPublic()) != signPublic || len(m3.GetEvidence()) > maxEvidence {
		return nil, violation("message 3 is %s, or malformed", frameName(frame))
	}
	r.evidenceS = m3.GetEvidence()
	if err := r.appraise(ctx, r.evidenceS, m3.GetSignPublic()); err != nil {
		return nil, err
	}
	seedS, err := r.kem.OpenSeed(m3.GetEncapsulatedSeed(), info(r.th1, "S->D"))
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_KEY_CONFIRMATION_FAILED, "the source's seed does not open: %w", err)
	}
	defer seedS.Wipe()
	seedD, err := keyschedule.NewSecret(r.node.Rand)
	if err != nil {
		return nil, err
	}
	defer seedD.Wipe()
	encD, err := keyschedule.SealSeed(r.theirs.GetKemPublic(), seedD, info(r.th1, "D->S"))
	if err != nil {
		return nil, violation("the peer's KEM key: %w", err)
	}
	if err := r.transcript2(m3.GetSignPublic(), m3.GetEncapsulatedSeed(), encD, seedS, seedD); err != nil {
		return nil, err
	}
	if err := r.stream.Send(&v1.Frame{Body: &v1.Frame_DestinationSeal{DestinationSeal: &v1.DestinationSeal{ // message 4
		EncapsulatedSeed: encD, Confirm: r.schedule.Confirm(keyschedule.Destination),
	}}}); err != nil {
		return nil, lost("message 4", err)
	}
	if frame, err = receive(r.stream, "message 5"); err != nil {
		return nil, err
	}
	if frame.GetConfirm() == nil {
		return nil, violation("message 5 is %s", frameName(frame))
	}
	if err := r.checkConfirm(keyschedule.Source, frame.GetConfirm().GetConfirm()); err != nil {
		return nil, err
	}
	return r.channel()
}

func (r *run) checkConfirm(role keyschedule.Role, tag []byte) error {
	if !r.schedule.CheckConfirm(role, tag) {
		return refusal.New(v1.Reason_REASON_KEY_CONFIRMATION_FAILED, "the peer's key confirmation does not match: the two sides saw different handshakes")
	}
	return nil
}

// wipe destroys what only the handshake needs.
func (r *run) wipe() {
	if r.kem != nil {
		r.kem.Wipe()
	}
}
