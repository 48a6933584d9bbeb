package node

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// peerServer implements PeerService, for other node services. Whoever calls it is a stranger until the handshake has shown
// otherwise.
type peerServer struct {
	v1.UnimplementedPeerServiceServer
	*node
}

// dialStream and acceptStream adapt the two ends of the gRPC stream to handshake.Stream.
type dialStream struct {
	rpc grpc.BidiStreamingClient[v1.HandshakeRequest, v1.HandshakeResponse]
}

func (s *dialStream) Send(f *v1.Frame) error {
	err := s.rpc.Send(&v1.HandshakeRequest{Frame: f})
	if errors.Is(err, io.EOF) { // the peer has ended the stream; Recv has its reason
		return nil
	}
	return err
}

func (s *dialStream) Recv() (*v1.Frame, error) {
	resp, err := s.rpc.Recv()
	if errors.Is(err, io.EOF) {
		return nil, err
	}
	if err != nil {
		return nil, rpcerror.Refusal(err)
	}
	return resp.GetFrame(), nil
}

// finish waits until the peer has ended the stream, which it does when it, too, holds the session.
func (s *dialStream) finish() error {
	if err := s.rpc.CloseSend(); err != nil {
		return rpcerror.Refusal(err)
	}
	frame, err := s.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	case frame.GetRefused() != nil:
		return refusal.New(frame.GetRefused().GetReason(), "the peer refused after the handshake")
	}
	return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "a message after the handshake")
}

func dialPeer(ctx context.Context, client v1.PeerServiceClient) (*dialStream, error) {
	rpc, err := client.Handshake(ctx)
	if err != nil {
		return nil, rpcerror.Refusal(err)
	}
	return &dialStream{rpc}, nil
}

type acceptStream struct {
	rpc grpc.BidiStreamingServer[v1.HandshakeRequest, v1.HandshakeResponse]
}

func (s *acceptStream) Send(f *v1.Frame) error {
	return s.rpc.Send(&v1.HandshakeResponse{Frame: f})
}

func (s *acceptStream) Recv() (*v1.Frame, error) {
	req, err := s.rpc.Recv()
	return req.GetFrame(), err
}

// Handshake implements PeerService. It returns when the handshake has ended or its time is up; a handler that returns ends the stream, so
// that a Recv under way ends too.
func (p *peerServer) Handshake(rpc grpc.BidiStreamingServer[v1.HandshakeRequest, v1.HandshakeResponse]) error {
	stream := &acceptStream{rpc}
	opening, err := within(rpc.Context(), p.node, openTimeout, func(context.Context) (*handshake.Opening, error) {
		party, _ := p.party()
		return party.ReceiveOpen(stream)
	})
	if err == nil {
		err = p.admit(opening)
	}
	if err != nil {
		return p.refuse(stream, err)
	}
	if !p.handshakes.TryAcquire(1) {
		return p.refuse(stream, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "too many handshakes are under way"))
	}
	defer p.handshakes.Release(1)
	_, err = within(rpc.Context(), p.node, p.handshakeTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.accept(ctx, stream, opening)
	})
	return err
}

// admit decides whether a stranger's opening is worth a quote, before anything costly.
func (p *peerServer) admit(o *handshake.Opening) error {
	if p.draining.Load() {
		return refusal.New(v1.Reason_REASON_DRAINING, "node %s is draining", p.host)
	}
	return p.peers.admit(o.PeerHost, p.now())
}

// refuse tells a peer that was not admitted, bluntly, and the log why.
func (p *peerServer) refuse(stream *acceptStream, err error) error {
	r := refusal.From(err)
	p.log.Warn("handshake not admitted", "reason", refusal.Name(r.Reason), "why", r.Message, "found", r.Found, "expected", r.Expected)
	_ = stream.Send(&v1.Frame{Body: &v1.Frame_Refused{Refused: refusal.Blunt(err)}}) // the peer may be gone
	return err
}

func (p *peerServer) accept(ctx context.Context, stream *acceptStream, o *handshake.Opening) error {
	if o.Intent.Instance == preflightInstance {
		return p.acceptPreflight(ctx, stream, o)
	}
	s, err := p.begin(session.Identity{
		Attempt: o.Intent.Attempt, Instance: o.Intent.Instance, Role: o.Role, Source: o.Intent.Source, Destination: o.Intent.Destination,
	})
	if err != nil {
		return p.refuse(stream, err)
	}
	party, under := p.party()
	hs, err := party.Accept(ctx, stream, o, p.events(ctx, s, nil))
	if err == nil {
		err = s.Appraised(p.hold(hs, under))
	}
	if err == nil && o.Role == v1.Role_ROLE_SOURCE {
		err = p.sendSecrets(ctx, s)
	}
	if err != nil {
		_ = s.Abort(p.explain(ctx, err))
	}
	return err
}

// within runs f in a goroutine that the node owns and waits for it, or for d to pass. f must end when the handler's stream has
// ended.
func within[T any](ctx context.Context, n *node, d time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d, errHandshakeTime(d))
	defer cancel() // here, not where f ends: a result and a cancelled context must not be ready together
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	n.background.Go(func() {
		value, err := f(ctx)
		done <- result{value, err}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// find waits for a session that the peer names to have ended its handshake here: the peer's side may end a moment earlier.
func (p *peerServer) find(ctx context.Context, raw []byte) (*session.Session, *live, error) {
	if len(raw) != len(session.ID{}) {
		return nil, nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "a session id of %d bytes", len(raw))
	}
	s, err := p.table.ByID(session.ID(raw))
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-s.Settled():
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	hs, err := secrets(s)
	return s, hs, err
}

// Arm implements PeerService: M1 and M3 of a renewed exchange, then the migration id.
func (p *peerServer) Arm(ctx context.Context, req *v1.PeerServiceArmRequest) (*v1.PeerServiceArmResponse, error) {
	s, hs, err := p.find(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	answer, err := hs.Answer(req.GetMessage(), func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) {
		if m.GetArm() != nil {
			return p.armHere(ctx, s, hs, m.GetArm().GetMigrationId())
		}
		if state := s.Record().State; state != session.Appraised {
			return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "an integrity exchange in a session that is %s", state)
		}
		reply, err := hs.AnswerExchange(ctx, m)
		if err == nil && m.GetM3() != nil {
			err = s.Reappraised(hs.PeerAppraised())
		}
		return reply, err
	})
	p.ended(ctx, s, answer, err)
	return &v1.PeerServiceArmResponse{Message: answer}, answered(answer, err)
}

func (p *peerServer) armHere(ctx context.Context, s *session.Session, hs *live, migrationID string) (*v1.ChannelPayload, error) {
	if err := checkMigrationID(migrationID); err != nil {
		return nil, err
	}
	// Twice the source's bound: the source renews by its own clock, and the way here takes time.
	if age := p.now().Sub(hs.AppraisedAt()); age < 0 || age > 2*p.armMaxAge {
		return nil, refusal.New(v1.Reason_REASON_INTEGRITY_STALE, "the source's integrity was appraised %v ago", age)
	}
	if _, err := p.standing(ctx, s); err != nil {
		return nil, err
	}
	if err := s.Arm(migrationID); err != nil {
		return nil, err
	}
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_Armed{Armed: &v1.ArmedPayload{MigrationId: migrationID}}}, nil
}

// ended aborts a session in which a request of its peer was refused: a channel that carried a refusal has no more to say. A message that did not open
// (without an answer) is anybody's, who has seen the session's public id: it ends nothing.
func (p *peerServer) ended(ctx context.Context, s *session.Session, answer *v1.SealedMessage, err error) {
	if answer != nil && err != nil && !errors.Is(err, context.Canceled) {
		noteOf(ctx).refuse(err)        // the call itself is answered
		_ = s.Abort(refusal.From(err)) // a session that ended before stays as it ended
	}
}

// answered says what to return beside a sealed answer: a refusal inside the answer is all that the peer is told.
func answered(answer *v1.SealedMessage, err error) error {
	if answer != nil {
		return nil
	}
	return err
}

// Conclude implements PeerService.
func (p *peerServer) Conclude(ctx context.Context, req *v1.ConcludeRequest) (*v1.ConcludeResponse, error) {
	s, hs, err := p.find(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	answer, err := hs.Answer(req.GetMessage(), func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) {
		c := m.GetConclude()
		if c == nil {
			return nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "conclude without an outcome")
		}
		var record *signed
		if rec := s.Record(); len(c.GetReceipt()) > 0 && rec.MigrationID != "" {
			var err error
			if record, err = p.countersign(hs, rec, c); err != nil {
				r := refusal.From(err)
				p.log.Warn("the source's record of the migration is not signed here", "session", rec.ID.String(), "why", r.Message, "item", r.Item,
					"found", r.Found, "expected", r.Expected)
				record = nil
			}
		}
		t := hs.Transcript()
		if c.GetCommitted() {
			if err := s.BeginCommit(); err != nil {
				return nil, err
			}
			if err := p.phase(ctx, metrics.PhaseCommit, func(ctx context.Context) error { return p.promote(ctx, hs) }); err != nil {
				return nil, err
			}
			hs.concluded.Store(true)
			if err := s.Commit(); err != nil {
				return nil, err
			}
		} else {
			why := refusal.FromProto(c.GetRefusal())
			if why == nil {
				why = refusal.New(v1.Reason_REASON_ABORTED, "no reason given")
			}
			why.Message = "the source aborted: " + why.Message
			hs.concluded.Store(record != nil || hs.concluded.Load())
			if err := s.Abort(why); err != nil {
				return nil, err
			}
		}
		concluded := &v1.ConcludedPayload{State: v1.SessionState(s.Record().State)}
		if record != nil {
			concluded.Signature = record.destination
			p.background.Go(func() { p.keep(hs, t, record) })
		}
		return &v1.ChannelPayload{Body: &v1.ChannelPayload_Concluded{Concluded: concluded}}, nil
	})
	if err != nil && answer != nil {
		noteOf(ctx).refuse(err)
	}
	return &v1.ConcludeResponse{Message: answer}, answered(answer, err)
}
