// Package node is the node service: the gRPC services that run inside the enclave, and what they share. Each service has a file of its
// own; this one holds what they share, run.go the composition.
package node

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/credentials"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/node/tracing"
	"github.com/safeconduct/safeconduct/tee"
)

// Defaults of the configuration's durations.
const (
	defaultHandshakeTimeout = 20 * time.Second
	defaultArmMaxAge        = 30 * time.Second
	openTimeout             = 5 * time.Second
	concludeTimeout         = 3 * time.Second
	armTimeout              = 20 * time.Second
	maxBlobsAtOnce          = 32
)

// node is the state that the services share.
type node struct {
	host      string
	mode      v1.Mode
	enclave   tee.Enclave
	peerCreds credentials.TransportCredentials
	log       *slog.Logger
	now       func() time.Time
	table     *session.Table
	escrow    *escrow.Store
	receipts  *receipt.Chain
	shelf     shelf
	helpers   helpers
	peers     *peers
	base      handshake.Node // without what the policy in force adds: see party
	logs      *hostLogs
	started   time.Time

	collateral *collateral.Cache[*dcap.CheckedCollateral]
	// collateralAge counts changes of collateral; rejudge has a token when sessions are to be judged again for one.
	collateralAge atomic.Uint64
	rejudge       chan struct{}
	// The policy in force, and how to read it anew; reloading is held while that is done.
	inForce   atomic.Pointer[judge]
	newJudge  func(context.Context) (*judge, error)
	reloading sync.Mutex
	draining  atomic.Bool
	stop      context.CancelFunc
	// stopping is closed when the service begins to stop; set before the first call is served.
	stopping <-chan struct{}

	handshakeTimeout time.Duration
	armMaxAge        time.Duration
	handshakes       *semaphore.Weighted
	blobs            *semaphore.Weighted
	metrics          *metrics.Recorder
	health           *healthState
	audit            *auditor
	tracing          *tracing.Tracing
	logLevel         *slog.LevelVar
	// ownKind is this node's own kind of platform, certificates when those of the peer port expire.
	ownKind      collateral.Key
	certificates map[string]time.Time

	// background owns goroutines that outlive the call that started them; Run waits for it.
	background sync.WaitGroup
}

// secrets returns what the session holds, once its handshake has ended well, whether or not the verdict still holds: to end it. Keys are
// released through standing.
func secrets(s *session.Session) (*live, error) {
	hs, ok := s.Secrets().(*live)
	if !ok {
		return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s is %s and has no keys", s.Record().ID, s.Record().State)
	}
	return hs, nil
}

// events makes a session follow its handshake.
func (n *node) events(ctx context.Context, s *session.Session, progress func(*v1.StepReport)) handshake.Events {
	return handshake.Events{
		Attested: func(id [16]byte) error { return s.Attested(session.ID(id)) },
		Step: func(step *v1.StepReport) {
			s.Step(step)
			n.stepped(ctx, step)
			n.logStep(s, step)
			if progress != nil {
				progress(step)
			}
		},
	}
}

// stepped counts and traces one step of a handshake.
func (n *node) stepped(ctx context.Context, step *v1.StepReport) {
	n.metrics.Step(step)
	reason := ""
	if step.GetRefusal() != nil {
		reason = refusal.Name(step.GetRefusal().GetReason())
	}
	name := strings.ToLower(strings.TrimPrefix(step.GetStep().String(), "STEP_"))
	n.tracing.Past(ctx, name, step.GetElapsed().AsDuration(), reason)
}

func (n *node) logStep(s *session.Session, step *v1.StepReport) {
	rec := s.Record()
	attrs := []any{
		"step", step.GetStep().String(), "instance", rec.Instance, "attempt", rec.Attempt.String(),
		"source", rec.Source, "destination", rec.Destination, "elapsed", step.GetElapsed().AsDuration(),
	}
	if r := step.GetRefusal(); r != nil {
		attrs = append(attrs, "reason", refusal.Name(r.GetReason()), "why", r.GetMessage(), "item", r.GetItem(),
			"found", r.GetFound(), "expected", r.GetExpected(), "do", r.GetRemedy())
		n.log.Warn("handshake refused", attrs...)
		return
	}
	n.log.Info("handshake step passed", attrs...)
}

// changed is told of every transition, under the table's lock.
func (n *node) changed(c session.Change) {
	if c.Session.State.Ended() {
		n.metrics.Ended(c.Session.State)
		n.recordEnd(c.Session)
	}
	attrs := []any{
		"session", c.Session.ID.String(), "instance", c.Session.Instance, "from", c.Previous.String(), "to", c.Session.State.String(),
		"migration", c.Session.MigrationID,
	}
	if r := c.Session.Refusal; r != nil {
		n.log.Warn("session ended", append(attrs, "reason", refusal.Name(r.Reason), "why", r.Message)...)
		return
	}
	n.log.Info("session", attrs...)
}

// establish dials the peer and runs the handshake.
func (n *node) establish(ctx context.Context, who session.Identity, progress func(*v1.StepReport)) (*session.Session, error) {
	client, err := n.peers.client(who.Peer())
	if err != nil {
		return nil, err
	}
	n.peers.reconnect(ctx, who.Peer())
	s, err := n.begin(who)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.handshakeTimeout, errHandshakeTime(n.handshakeTimeout))
	defer cancel()
	defer context.AfterFunc(s.Context(), cancel)()
	err = n.phase(ctx, metrics.PhaseEstablish, func(ctx context.Context) error { return n.dial(ctx, client, s, progress) })
	if err != nil {
		why := n.explain(ctx, err)
		n.abort(ctx, s, why)
		return nil, why
	}
	return s, nil
}

// dial runs the dialler's side until the peer, too, has taken the session into its table.
func (n *node) dial(ctx context.Context, client v1.PeerServiceClient, s *session.Session, progress func(*v1.StepReport)) error {
	stream, err := dialPeer(ctx, client)
	if err != nil {
		return err
	}
	rec := s.Record()
	intent := handshake.Intent{Attempt: rec.Attempt, Instance: rec.Instance, Source: rec.Source, Destination: rec.Destination}
	party, under := n.party()
	hs, err := party.Dial(ctx, stream, rec.Role, intent, n.events(ctx, s, progress))
	if err != nil {
		return err
	}
	if err := s.Appraised(n.hold(hs, under)); err != nil {
		return err
	}
	if err := stream.finish(); err != nil || rec.Role != v1.Role_ROLE_SOURCE {
		return err // the source sends its secrets before it ends the stream
	}
	return n.sendSecrets(ctx, s)
}

func errHandshakeTime(d time.Duration) error {
	return refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "the handshake did not end within %v", d)
}

// explain prefers the reason for which a context ended to the error that its ending caused.
func (n *node) explain(ctx context.Context, err error) *refusal.Refusal {
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		if r := refusal.From(err); r.Reason == v1.Reason_REASON_PEER_UNAVAILABLE || r.Reason == v1.Reason_REASON_INTERNAL {
			return refusal.From(cause)
		}
	}
	return refusal.From(err)
}

// abort ends a session for why and, on the source, tells the peer over the channel, as far as it can be told.
func (n *node) abort(ctx context.Context, s *session.Session, why *refusal.Refusal) {
	rec := s.Record()
	hs, err := secrets(s)
	if err == nil && rec.Role == v1.Role_ROLE_SOURCE && !rec.State.Ended() {
		hs.DestroyTransferKeys()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), concludeTimeout)
		defer cancel()
		err = n.concludeAbort(ctx, hs, rec, why)
		if err != nil {
			n.log.Warn("the peer could not be told of the abort; its session expires by itself",
				"session", rec.ID.String(), "peer", rec.Peer(), "why", err)
		}
	}
	_ = s.Abort(why) // an ended session stays as it ended
}

// concludeAbort tells the destination of an abort. A migration that was armed leaves a record that both have signed.
func (n *node) concludeAbort(ctx context.Context, hs *live, rec session.Record, why *refusal.Refusal) error {
	p := &v1.ConcludePayload{Refusal: &v1.Refusal{Reason: why.Reason, Message: why.Message}}
	if rec.MigrationID == "" || hs.commit.Load() != nil {
		return n.conclude(ctx, hs, p, nil)
	}
	s, err := n.record(hs, rec, receipt.Outcome{Result: receipt.Aborted, Reason: refusal.Name(why.Reason)})
	if err != nil {
		return err
	}
	if err := n.conclude(ctx, hs, p, s); err != nil {
		return err
	}
	if hs.concluded.CompareAndSwap(false, true) {
		n.keep(hs, hs.Transcript(), s)
	}
	return nil
}

// conclude tells the destination how the session ended, and returns nil once it has answered that it knows. Its signature under the record, if it gives
// one, is put in.
func (n *node) conclude(ctx context.Context, hs *live, p *v1.ConcludePayload, record *signed) error {
	client, err := n.peers.client(hs.PeerHost())
	if err != nil {
		return err
	}
	if record != nil {
		p.Receipt, p.Signature = record.record, record.source
	}
	answer, err := hs.Request(ctx, concludeSender(client, hs.ID[:]), &v1.ChannelPayload{Body: &v1.ChannelPayload_Conclude{Conclude: p}})
	if err != nil {
		return err
	}
	if answer.GetConcluded() == nil {
		return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the peer answered conclude with something else")
	}
	if record == nil {
		return nil
	}
	if hs.CheckReceipt(record.record, answer.GetConcluded().GetSignature()) {
		record.destination = answer.GetConcluded().GetSignature()
		return nil
	}
	// How the session ended is settled; what is missing is the other's word for it.
	n.log.Warn("the peer has not signed the record of the migration; the receipt has this node's signature alone", "session", session.ID(hs.ID).String(),
		"peer", hs.PeerHost(), "do", "read the peer's log: it names what differs, often the clocks")
	return nil
}

// newAttempt draws an attempt id.
func newAttempt() (id session.AttemptID) {
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
	return id
}

// expireLoop ends sessions whose time is up.
func (n *node) expireLoop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.table.Expire()
			n.health.change(func() { n.health.beat = n.health.uptime() })
		}
	}
}
