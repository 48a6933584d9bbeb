package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// discardTimeout bounds what is done to secrets after a session has ended.
const discardTimeout = 10 * time.Second

// secretServer implements SecretService, for nova-compute.
type secretServer struct {
	v1.UnimplementedSecretServiceServer
	*node
}

// Escrow implements SecretService.
func (s *secretServer) Escrow(ctx context.Context, req *v1.EscrowRequest) (*v1.EscrowResponse, error) {
	defer clear(req.GetSecret())
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	if err := s.escrow.Escrow(ctx, req.GetInstanceId(), req.GetSecretId(), req.GetSecret()); err != nil {
		return nil, err
	}
	s.log.Info("secret escrowed", "instance", req.GetInstanceId(), "secret_id", req.GetSecretId())
	return &v1.EscrowResponse{}, nil
}

// Release implements SecretService.
func (s *secretServer) Release(ctx context.Context, req *v1.ReleaseRequest) (*v1.ReleaseResponse, error) {
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	var secret []byte
	var name string
	var err error
	if len(req.GetSessionId()) == 0 {
		if err = s.atRest(req.GetInstanceId(), "released"); err == nil {
			secret, name, err = s.escrow.ReleaseLocal(ctx, req.GetInstanceId(), req.GetSecretId())
		}
	} else {
		secret, name, err = s.releaseIncoming(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	s.log.Info("secret released", "instance", req.GetInstanceId(), "secret_id", name, "incoming", len(req.GetSessionId()) > 0)
	return &v1.ReleaseResponse{Secret: secret, SecretId: name}, nil
}

// releaseIncoming hands out a secret that came with a session, while the session is open and its peer still stands.
func (s *secretServer) releaseIncoming(ctx context.Context, req *v1.ReleaseRequest) ([]byte, string, error) {
	if len(req.GetSessionId()) != len(session.ID{}) {
		return nil, "", invalid("session_id", "session_id has %d bytes, not %d", len(req.GetSessionId()), len(session.ID{}))
	}
	id := session.ID(req.GetSessionId())
	of, err := s.table.ByID(id)
	if err != nil {
		return nil, "", err
	}
	rec := of.Record()
	if rec.Instance != req.GetInstanceId() || rec.Role != v1.Role_ROLE_DESTINATION {
		return nil, "", refusal.New(v1.Reason_REASON_NO_SESSION, "session %s brings no secret of instance %s here", id, req.GetInstanceId()).
			Want(rec.Instance+" to "+rec.Destination, req.GetInstanceId()+" to "+s.host)
	}
	if rec.State.Ended() {
		return nil, "", refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s is over", id).Want(rec.State.String(), "an open session")
	}
	if _, err := s.standing(ctx, of); err != nil {
		return nil, "", err
	}
	return s.escrow.ReleaseIncoming(ctx, id, req.GetInstanceId(), req.GetSecretId())
}

// atRest refuses while a session of the instance is open: what would be done to its secret there is the session's to decide.
func (n *node) atRest(instance, what string) error {
	open := n.table.List(func(r session.Record) bool { return r.Instance == instance && !r.State.Ended() })
	if len(open) == 0 {
		return nil
	}
	return refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "instance %s has an open session %s, so its secret is not %s", instance, open[0].ID, what).
		Want(open[0].State.String(), "no open session")
}

// Forget implements SecretService.
func (s *secretServer) Forget(ctx context.Context, req *v1.ForgetRequest) (*v1.ForgetResponse, error) {
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	if err := s.atRest(req.GetInstanceId(), "forgotten"); err != nil {
		return nil, err
	}
	forgotten, err := s.escrow.Forget(ctx, req.GetInstanceId(), req.GetSecretId())
	if err != nil {
		return nil, err
	}
	s.log.Info("secret forgotten", "instance", req.GetInstanceId(), "secret_id", req.GetSecretId(), "found", forgotten)
	return &v1.ForgetResponse{Forgotten: forgotten}, nil
}

// ListSecrets implements SecretService.
func (s *secretServer) ListSecrets(ctx context.Context, req *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error) {
	all, err := s.escrow.List(ctx, req.GetInstanceId())
	if err != nil {
		return nil, err
	}
	out := &v1.ListSecretsResponse{}
	for _, e := range all {
		out.Secrets = append(out.Secrets, &v1.EscrowedSecret{
			InstanceId: e.Instance, SecretId: e.ID, EscrowedAt: timestamppb.New(e.At), Incoming: e.Incoming,
		})
	}
	return out, nil
}

// sendSecrets sends every secret of the session's VM to the destination's enclave, from the source, as soon as both hosts are appraised: the
// destination needs them before it can prepare the VM. A destination that is not migrated to in the end discards them.
func (n *node) sendSecrets(ctx context.Context, s *session.Session) error {
	return n.phase(ctx, metrics.PhaseSecret, func(ctx context.Context) error { return n.sendAll(ctx, s) })
}

func (n *node) sendAll(ctx context.Context, s *session.Session) error {
	ctx, cancel := context.WithTimeout(ctx, armTimeout)
	defer cancel()
	hs, err := n.standing(ctx, s)
	if err != nil {
		return err
	}
	client, err := n.peers.client(hs.PeerHost())
	if err != nil {
		return err
	}
	send := transferSender(client, hs.ID[:])
	sent := 0
	err = n.escrow.Each(ctx, s.Record().Instance, func(id string, secret []byte, remaining int) error {
		sent++
		hs.tookSecrets()
		return n.sendSecret(ctx, hs, send, &v1.SecretPayload{Secret: secret, SecretId: id, Remaining: uint32(remaining)})
	})
	if err == nil && sent == 0 {
		err = n.sendSecret(ctx, hs, send, &v1.SecretPayload{})
	}
	if err != nil {
		return err
	}
	n.log.Info("secrets sent", "session", s.Record().ID.String(), "instance", s.Record().Instance, "secrets", sent)
	return nil
}

func (n *node) sendSecret(ctx context.Context, hs *live, send func(context.Context, *v1.SealedMessage) (*v1.SealedMessage, error), p *v1.SecretPayload) error {
	answer, err := hs.Request(ctx, send, &v1.ChannelPayload{Body: &v1.ChannelPayload_Secret{Secret: p}})
	if err != nil {
		return err
	}
	digest := sha256.Sum256(p.GetSecret())
	if stored := answer.GetSecretStored(); stored.GetSecretId() != p.GetSecretId() || !bytes.Equal(stored.GetDigest(), digest[:]) {
		return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the peer stored something else than the secret it was sent")
	}
	return nil
}

// Transfer implements PeerService: a secret comes in.
func (p *peerServer) Transfer(ctx context.Context, req *v1.TransferRequest) (*v1.TransferResponse, error) {
	s, hs, err := p.find(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	answer, err := hs.Answer(req.GetMessage(), func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) {
		secret := m.GetSecret()
		if secret == nil {
			return nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "a transfer without a secret")
		}
		defer clear(secret.GetSecret())
		if state := s.Record().State; state != session.Appraised {
			return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "a secret in a session that is %s", state)
		}
		if _, err := p.standing(ctx, s); err != nil {
			return nil, err
		}
		if len(secret.GetSecret()) > 0 {
			hs.tookSecrets() // first: an abort in between must find something to discard
			if err := p.escrow.Receive(ctx, hs.ID, s.Record().Instance, secret.GetSecretId(), secret.GetSecret()); err != nil {
				return nil, err
			}
		}
		digest := sha256.Sum256(secret.GetSecret())
		return &v1.ChannelPayload{Body: &v1.ChannelPayload_SecretStored{SecretStored: &v1.SecretStored{
			Digest: digest[:], SecretId: secret.GetSecretId(),
		}}}, nil
	})
	p.ended(ctx, s, answer, err)
	return &v1.TransferResponse{Message: answer}, answered(answer, err)
}

// incoming counts the secrets that crossed with a session; at the destination they are promoted or discarded with its end, and with them a state
// key that was made for it here.
type incoming struct {
	count atomic.Uint32
	made  atomic.Bool
}

func (i *incoming) tookSecrets()     { i.count.Add(1) }
func (i *incoming) mayHoldSecrets()  { i.made.Store(true) }
func (i *incoming) hasSecrets() bool { return i.secrets() > 0 || i.made.Load() }
func (i *incoming) secrets() uint32  { return i.count.Load() }

// promote makes the secrets that came with a session this node's own. The destination does it before it says that it has committed: from then on
// the source forgets them.
func (n *node) promote(ctx context.Context, hs *live) error {
	if !hs.hasSecrets() {
		return nil
	}
	return n.escrow.Promote(ctx, hs.ID, hs.Intent.Instance)
}

// discard drops the secrets that came with a session that was aborted, unless the VM may run here all the same: once both blobs of its vTPM have been
// opened here, QEMU may go on whatever becomes of the session, and its secret must then be to be had. It is called under the table's lock and does
// not wait.
func (n *node) discard(hs *live, rec session.Record) {
	if !hs.hasSecrets() || hs.Role != v1.Role_ROLE_DESTINATION {
		return
	}
	if rec.State == session.Aborted && opened(rec) {
		n.log.Warn("the session ended after the vTPM's state was opened here: its secret is kept, in case the VM runs here",
			"session", rec.ID.String(), "instance", rec.Instance, "do", "if the VM does not run here, call Forget for the instance")
		return
	}
	n.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), discardTimeout)
		defer cancel()
		if err := n.escrow.Discard(ctx, hs.ID, hs.Intent.Instance); err != nil {
			n.log.Error("secrets of an aborted session are not discarded; they stay sealed and unusable", "session", session.ID(hs.ID).String(), "why", err)
		}
	})
}

// opened says whether both blobs of the vTPM crossed here.
func opened(rec session.Record) bool {
	crossed := map[v1.StateType]bool{}
	for _, b := range rec.Blobs {
		crossed[b.GetType()] = true
	}
	return crossed[v1.StateType_STATE_TYPE_PERMANENT] && crossed[v1.StateType_STATE_TYPE_VOLATILE]
}

// forgetMoved drops the source's copies once both sides have committed. A failure leaves sealed copies that the next migration here replaces.
func (n *node) forgetMoved(ctx context.Context, instance string) {
	if err := n.escrow.Moved(ctx, instance); err != nil {
		n.log.Error("the VM has left, but its secret could not be forgotten here", "instance", instance, "why", err, "do", "call Forget for the instance")
	}
}
