package handshake

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/channel"
)

// Sender carries one sealed message to the peer and brings its sealed answer.
type Sender func(ctx context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error)

// conversation is the request and answer discipline over a channel. Only the source asks: so each direction's counter has one
// writer, and a message lost on the way is sent again as the same bytes, which the destination answers with the same bytes.
type conversation struct {
	mu sync.Mutex
	// Source: what was sent and has no answer.
	pending        *v1.SealedMessage
	pendingPayload *v1.ChannelPayload
	// Destination: the last request, by digest, and its answer.
	answered [32]byte
	answer   *v1.SealedMessage
}

// Request seals payload, sends it and returns the opened answer. A refusal in the answer is returned as an error. When the transport fails,
// the message is kept, and the next Request sends it again first. Source only.
func (s *Session) Request(ctx context.Context, send Sender, payload *v1.ChannelPayload) (*v1.ChannelPayload, error) {
	c := &s.conversation
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Role != v1.Role_ROLE_SOURCE {
		return nil, refusal.New(v1.Reason_REASON_INTERNAL, "only the source asks over the channel")
	}
	if c.pending != nil {
		repeated := proto.Equal(c.pendingPayload, payload)
		answer, err := s.deliver(ctx, send)
		if repeated || c.pending != nil {
			return answer, err
		}
	}
	raw, err := marshal(payload)
	if err != nil {
		return nil, err
	}
	if c.pending, err = s.seal(raw); err != nil {
		return nil, err
	}
	c.pendingPayload = payload
	return s.deliver(ctx, send)
}

// deliver sends what is pending and opens the answer.
func (s *Session) deliver(ctx context.Context, send Sender) (*v1.ChannelPayload, error) {
	c := &s.conversation
	sealed, err := send(ctx, c.pending)
	if err != nil {
		return nil, err
	}
	answer, err := s.open(sealed)
	if err != nil {
		return nil, err
	}
	c.pending, c.pendingPayload = nil, nil
	if r := answer.GetRefusal(); r != nil {
		return nil, &peerRefusal{refusal.FromProto(r)}
	}
	return answer, nil
}

// Answer opens a request, has handle answer it, and seals the answer. An error of handle is sealed for the peer as a refusal, of
// which an appraised peer may know the reason, and returned too. A request that was answered before gets the same answer and
// handle is not called. Destination only.
func (s *Session) Answer(m *v1.SealedMessage, handle func(*v1.ChannelPayload) (*v1.ChannelPayload, error)) (*v1.SealedMessage, error) {
	c := &s.conversation
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Role != v1.Role_ROLE_DESTINATION {
		return nil, violation("a request to the source of a session")
	}
	digest := requestDigest(m)
	if c.answer != nil && digest == c.answered {
		return c.answer, nil
	}
	payload, err := s.open(m)
	if err != nil {
		return nil, err
	}
	// handle may end the session; the answer that says so is sealed before the channel goes.
	defer s.holdChannel()()
	reply, failed := handle(payload)
	if failed != nil {
		reply = &v1.ChannelPayload{Body: &v1.ChannelPayload_Refusal{Refusal: &v1.Refusal{Reason: refusal.Blunt(failed).GetReason()}}}
		if s.PeerAppraised() != nil {
			reply.GetRefusal().Reason = refusal.From(failed).Reason
		}
	}
	raw, err := marshal(reply)
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	sealed, err := s.seal(raw)
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	c.answered, c.answer = digest, sealed
	return sealed, failed
}

// holdChannel keeps Destroy from wiping the channel until the function it returns is called.
func (s *Session) holdChannel() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answering = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answering = false
		if s.destroyed {
			s.channel.Wipe()
		}
	}
}

func requestDigest(m *v1.SealedMessage) [32]byte { return sha256.Sum256(m.GetCiphertext()) }

func (s *Session) seal(raw []byte) (*v1.SealedMessage, error) {
	counter, ciphertext, err := s.channel.Seal(raw)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "channel: %w", err)
	}
	return &v1.SealedMessage{Counter: counter, Ciphertext: ciphertext}, nil
}

func (s *Session) open(m *v1.SealedMessage) (*v1.ChannelPayload, error) {
	raw, err := s.channel.Open(m.GetCounter(), m.GetCiphertext())
	switch {
	case errors.Is(err, channel.ErrWiped):
		return nil, s.over()
	case err != nil:
		return nil, violation("channel: %w", err)
	}
	return unmarshalStrict(raw)
}
