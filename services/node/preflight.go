package node

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// preflightInstance stands for no VM: a handshake for it is a preflight. It is part of ctx, so the two sides cannot differ about it, and no session
// of that name exists.
const preflightInstance = "00000000-0000-0000-0000-000000000000"

// Preflight implements AttestationService.
func (a *attestationServer) Preflight(ctx context.Context, req *v1.PreflightRequest) (*v1.PreflightResponse, error) {
	role := req.GetRole()
	if role == v1.Role_ROLE_UNSPECIFIED {
		role = v1.Role_ROLE_SOURCE
	}
	intent := handshake.Intent{Attempt: newAttempt(), Instance: preflightInstance, Source: a.host, Destination: req.GetPeerHost()}
	switch role {
	case v1.Role_ROLE_SOURCE:
	case v1.Role_ROLE_DESTINATION:
		intent.Source, intent.Destination = intent.Destination, intent.Source
	default:
		return nil, invalid("role", "there is no role %d", role)
	}
	if intent.Source == intent.Destination {
		return nil, refusal.New(v1.Reason_REASON_SAME_NODE, "this node is %s itself", a.host)
	}
	begun := a.now()
	steps, err := a.preflight(ctx, role, intent)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		noteOf(ctx).refuse(err)
	}
	out := &v1.PreflightResponse{
		Accepted: err == nil, Mode: a.mode, Host: a.host, PeerHost: req.GetPeerHost(), Steps: steps, Refusal: refusal.From(err).Proto(),
		Elapsed: durationpb.New(a.now().Sub(begun)),
	}
	a.log.Info("preflight", "peer", req.GetPeerHost(), "accepted", out.GetAccepted(), "why", out.GetRefusal().GetMessage())
	return out, nil
}

// preflight runs the handshake and destroys what it made.
func (n *node) preflight(ctx context.Context, role v1.Role, intent handshake.Intent) ([]*v1.StepReport, error) {
	client, err := n.peers.client(peerOf(role, intent))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.handshakeTimeout, errHandshakeTime(n.handshakeTimeout))
	defer cancel()
	var steps []*v1.StepReport
	events := handshake.Events{Step: func(step *v1.StepReport) { steps = append(steps, step); n.stepped(ctx, step) }}
	err = n.dialPreflight(ctx, client, role, intent, events)
	if err != nil {
		err = n.explain(ctx, err)
	}
	return slices.Clone(steps), err
}

func peerOf(role v1.Role, intent handshake.Intent) string {
	if role == v1.Role_ROLE_SOURCE {
		return intent.Destination
	}
	return intent.Source
}

func (n *node) dialPreflight(ctx context.Context, client v1.PeerServiceClient, role v1.Role, intent handshake.Intent, events handshake.Events) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := dialPeer(ctx, client)
	if err != nil {
		return err
	}
	party, _ := n.party()
	hs, err := party.Dial(ctx, stream, role, intent, events)
	if err != nil {
		return err
	}
	hs.Destroy()
	return stream.finish()
}

// acceptPreflight is the side that was dialled.
func (p *peerServer) acceptPreflight(ctx context.Context, stream *acceptStream, o *handshake.Opening) error {
	party, _ := p.party()
	begun := p.now()
	hs, err := party.Accept(ctx, stream, o, handshake.Events{Step: func(step *v1.StepReport) { p.stepped(ctx, step) }})
	if err != nil {
		r := p.explain(ctx, err)
		p.log.Warn("preflight refused", "peer", o.PeerHost, "reason", refusal.Name(r.Reason), "why", r.Message, "item", r.Item,
			"found", r.Found, "expected", r.Expected, "do", r.RemedyText())
		return err
	}
	hs.Destroy()
	p.log.Info("preflight passed", "peer", o.PeerHost, "elapsed", p.now().Sub(begun))
	return nil
}
