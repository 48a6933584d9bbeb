package handshake

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/channel"
	"github.com/safeconduct/safeconduct/crypto/keyschedule"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// Session is what a handshake leaves in each enclave: the channel to the peer and the keys of the transfer. All methods may be
// called concurrently; after Destroy every one of them refuses.
type Session struct {
	// ID is public and the same on both nodes.
	ID     [sessionID]byte
	Intent Intent
	Role   v1.Role

	node              *Node
	ctxHash, th1, th2 [48]byte
	peerSign          ed25519.PublicKey
	peerPlatform      [32]byte

	mu        sync.Mutex
	destroyed bool
	peer      *Peer
	facts     Transcript
	kept      keptLog
	answering bool // an answer is being made: the channel outlives Destroy until it is sealed
	signKey   ed25519.PrivateKey
	schedule  *keyschedule.Schedule
	keys      *keyschedule.Keys
	channel   *channel.Channel
	exchange  *exchange
	th3       [48]byte
	appraised *v1.Appraised
	at        time.Time

	conversation conversation
}

// session is made when phase 1 has ended; it takes over the run's secrets.
func (r *run) session(ch *channel.Channel) *Session {
	name := transcript.H384("safeconduct/v1/session-id", r.th2[:])
	s := &Session{
		ID: [sessionID]byte(name[:sessionID]), Intent: r.intent, Role: r.role, node: r.node,
		ctxHash: r.ctxHash, th1: r.th1, th2: r.th2, peer: r.peer, facts: r.facts, peerSign: r.peerSign, peerPlatform: [32]byte(r.theirs.GetPlatformId()),
		signKey: r.signKey, schedule: r.schedule, channel: ch,
	}
	return s
}

// channel makes the record layer of M1 to M4 and of everything after.
func (r *run) channel() (*channel.Channel, error) {
	return r.schedule.Channel(r.role == v1.Role_ROLE_SOURCE, r.ctxHash)
}

// Format keeps every key of the session out of fmt.
func (s *Session) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "session %x", s.ID) }

// PeerHost is the host at the other end.
func (s *Session) PeerHost() string {
	if s.Role == v1.Role_ROLE_SOURCE {
		return s.Intent.Destination
	}
	return s.Intent.Source
}

// PeerAttested is what phase 1 found.
func (s *Session) PeerAttested() *v1.Attested { return s.peerNow().Attested }

func (s *Session) peerNow() *Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peer
}

// PeerAppraised is what the last integrity exchange found, or nil.
func (s *Session) PeerAppraised() *v1.Appraised {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.appraised
}

// AppraisedAt is when the peer's log was last appraised, by this node's clock.
func (s *Session) AppraisedAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *Session) over() error {
	return refusal.New(v1.Reason_REASON_WRONG_STATE, "the session's keys are destroyed")
}

// deriveKeys makes the keys of the transfer from the last exchange. Keys of an earlier exchange are destroyed.
func (s *Session) deriveKeys() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return s.over()
	}
	if s.appraised == nil {
		return refusal.New(v1.Reason_REASON_WRONG_STATE, "the peer's log is not appraised")
	}
	keys, err := s.schedule.Finish(s.th3)
	if err != nil {
		return err
	}
	if s.keys != nil {
		s.keys.Wipe()
	}
	s.keys = keys
	return nil
}

// StateKey returns a copy of the key of the vTPM's state. The caller wipes it.
func (s *Session) StateKey() (*keyschedule.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed || s.keys == nil {
		return nil, s.over()
	}
	return s.keys.State.Clone(), nil
}

// ImageKey returns a copy of the key of one part of an image. The caller wipes it.
func (s *Session) ImageKey(name string, offset uint64, last bool) (*keyschedule.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed || s.keys == nil {
		return nil, s.over()
	}
	return s.keys.ImagePart(name, offset, last)
}

// ExportKey derives a key for a purpose outside the enclaves: the same on both nodes. The caller wipes it.
func (s *Session) ExportKey(purpose string, context []byte) (*keyschedule.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed || s.keys == nil {
		return nil, s.over()
	}
	return s.keys.Export(purpose, context)
}

// DestroyTransferKeys destroys the keys of the transfer and keeps the channel, over which the session is still to be concluded.
func (s *Session) DestroyTransferKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys != nil {
		s.keys.Wipe()
		s.keys = nil
	}
}

// Destroy wipes every key of the session, as far as Go lets one.
func (s *Session) Destroy() {
	s.DestroyTransferKeys()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return
	}
	s.destroyed = true
	if s.exchange != nil {
		s.exchange.pull.stop()
		s.exchange = nil
	}
	s.schedule.Wipe()
	if !s.answering {
		s.channel.Wipe()
	}
	clear(s.signKey)
}

// Renew runs the integrity exchange again from the source, over unary calls, and derives new keys from it. send carries one sealed
// message to the peer and brings the answer.
func (s *Session) Renew(ctx context.Context, send Sender) error {
	if err := s.ask(ctx, send); err != nil {
		return err
	}
	return s.deriveKeys()
}
