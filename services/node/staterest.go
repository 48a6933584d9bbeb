package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/services/node/local"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// The state of a vTPM at rest under a key of the enclave: who gets the key, and which state may be opened with it. The key itself is one of the VM's
// secrets (escrow), and crosses as one.

// OpenState implements CryptoService.
func (c *cryptoServer) OpenState(ctx context.Context, req *v1.OpenStateRequest) (*v1.OpenStateResponse, error) {
	instance := req.GetInstanceId()
	if err := checkInstance(instance); err != nil {
		return nil, err
	}
	if err := checkDigest("digest", req.GetDigest(), true); err != nil {
		return nil, err
	}
	if err := c.helpers.free(ctx, instance); err != nil {
		return nil, err
	}
	o := escrow.Opening{Digest: req.GetDigest(), Follows: req.GetStateFollows()}
	hs, err := c.bound(ctx, instance, &o)
	if err != nil {
		return nil, err
	}
	if o.Follows && o.Session == nil {
		return nil, refusal.New(v1.Reason_REASON_NO_SESSION, "the state of the vTPM of instance %s is said to follow, and no session brings it here", instance).On(instance)
	}
	if hs != nil {
		hs.mayHoldSecrets() // first: an abort in between must find something to discard
	}
	opened, err := c.escrow.OpenState(ctx, instance, o, rand.Reader)
	if err != nil {
		r := refusal.From(err)
		c.log.Warn("the state of a vTPM is not opened", "instance", instance, "reason", refusal.Name(r.Reason), "why", r.Message, "found", r.Found, "expected", r.Expected)
		return nil, err
	}
	if opened.Gone {
		c.log.Warn("the state of a vTPM that was recorded is gone: a new vTPM begins", "instance", instance, "generation", opened.Generation,
			"state", hex.EncodeToString(opened.Recorded))
	}
	c.log.Info("the state key of a vTPM is handed out", "instance", instance, "generation", opened.Generation, "made", opened.Made, "incoming", o.Session != nil)
	return &v1.OpenStateResponse{Key: opened.Key, Generation: opened.Generation, Recorded: opened.Recorded}, nil
}

// bound looks for the open session that decides whose the state is. One that brings the VM here is put into o and its secrets are returned.
// A VM that is leaving gets no new key, which would not go with it; and one whose state may have left is not opened.
func (c *cryptoServer) bound(ctx context.Context, instance string, o *escrow.Opening) (*live, error) {
	open := c.table.List(func(r session.Record) bool { return r.Instance == instance && !r.State.Ended() })
	for _, rec := range open {
		switch {
		case rec.Role == v1.Role_ROLE_SOURCE && rec.State.Live():
			return nil, refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "instance %s is leaving by session %s, so the state of its vTPM is not opened here", instance, rec.ID).
				Want(rec.State.String(), "no armed session")
		case rec.Role == v1.Role_ROLE_SOURCE:
			o.NoKey = refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "instance %s has an open session %s, which would leave a new key of its vTPM behind", instance, rec.ID).
				Want(rec.State.String(), "no open session")
		case rec.State == session.Appraised || rec.State.Live():
			s, err := c.table.ByID(rec.ID)
			if err != nil {
				return nil, err
			}
			hs, err := c.standing(ctx, s)
			if err != nil {
				return nil, err
			}
			id := hs.ID
			o.Session = &id
			return hs, nil
		}
	}
	return nil, nil
}

// RecordState implements CryptoService.
func (c *cryptoServer) RecordState(ctx context.Context, req *v1.RecordStateRequest) (*v1.RecordStateResponse, error) {
	instance := req.GetInstanceId()
	if err := checkInstance(instance); err != nil {
		return nil, err
	}
	if err := checkDigest("previous", req.GetPrevious(), true); err != nil {
		return nil, err
	}
	if err := checkDigest("digest", req.GetDigest(), false); err != nil {
		return nil, err
	}
	if err := c.helpers.free(ctx, instance); err != nil {
		return nil, err
	}
	generation, err := c.escrow.RecordState(ctx, instance, req.GetPrevious(), req.GetDigest())
	if err != nil {
		return nil, err
	}
	c.log.Debug("state of a vTPM recorded", "instance", instance, "generation", generation, "state", hex.EncodeToString(req.GetDigest()))
	return &v1.RecordStateResponse{Generation: generation}, nil
}

func checkDigest(field string, digest []byte, mayBeEmpty bool) error {
	if len(digest) == sha256.Size || mayBeEmpty && len(digest) == 0 {
		return nil
	}
	return invalid(field, "%s has %d bytes, not %d", field, len(digest), sha256.Size)
}

// free refuses a caller while another connection is attached as the VM's helper: its swtpm is at work on the state.
func (h *helpers) free(ctx context.Context, instance string) error {
	h.mu.Lock()
	attached := h.attached[instance] != nil
	h.mu.Unlock()
	if !attached {
		return nil
	}
	_, err := h.of(ctx, instance)
	return err
}

// keyed refuses to let a VM's state in that is under a key of the enclave at the source, and would be written without it here.
func (n *node) keyed(ctx context.Context, hs *live, instance string) error {
	if !hs.hasSecrets() {
		return nil
	}
	unused, err := n.escrow.StateKeyUnused(ctx, hs.ID, instance)
	if err == nil && unused {
		err = refusal.New(v1.Reason_REASON_STATE_KEY_UNUSED,
			"the state of the vTPM of instance %s is under a key of the enclave at %s, and this host's helper has not asked for it", instance, hs.PeerHost()).
			On(instance).Want("a helper without state_key: enclave", "one with it")
	}
	return err
}

// ListStates implements AdminService.
func (a *adminServer) ListStates(ctx context.Context, req *v1.ListStatesRequest) (*v1.ListStatesResponse, error) {
	if id := req.GetInstanceId(); id != "" {
		if err := checkInstance(id); err != nil {
			return nil, err
		}
	}
	states, err := a.escrow.States(ctx, req.GetInstanceId())
	if err != nil {
		return nil, err
	}
	out := &v1.ListStatesResponse{}
	for _, s := range states {
		state := &v1.RecordedState{InstanceId: s.Instance, Generation: s.Generation, Digest: s.Digest, Incoming: s.Incoming}
		if s.Generation > 0 {
			state.RecordedAt = timestamppb.New(s.At)
		}
		if len(s.Refused) > 0 {
			state.RefusedDigest, state.RefusedAt, state.RefusedGeneration = s.Refused, timestamppb.New(s.RefusedAt), s.RefusedGeneration
			state.RefusedReason = v1.Reason_REASON_STATE_NOT_RECORDED
			if s.RefusedGeneration > 0 {
				state.RefusedReason = v1.Reason_REASON_STATE_ROLLED_BACK
			}
		}
		out.States = append(out.States, state)
	}
	return out, nil
}

// AcceptState implements AdminService.
func (a *adminServer) AcceptState(ctx context.Context, req *v1.AcceptStateRequest) (*v1.AcceptStateResponse, error) {
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	if err := checkDigest("digest", req.GetDigest(), false); err != nil {
		return nil, err
	}
	if err := a.helpers.free(ctx, req.GetInstanceId()); err != nil {
		return nil, err
	}
	generation, err := a.escrow.AcceptState(ctx, req.GetInstanceId(), req.GetDigest())
	if err != nil {
		return nil, err
	}
	caller, _ := local.From(ctx)
	a.log.Warn("a state of a vTPM that was refused is accepted by an operator", "instance", req.GetInstanceId(), "generation", generation,
		"state", fmt.Sprintf("%x", req.GetDigest()), "uid", caller.UID, "pid", caller.PID)
	return &v1.AcceptStateResponse{Generation: generation}, nil
}
