package handshake

import (
	"context"
	"crypto/ed25519"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// maxKeptLog bounds the peer's log that a session keeps for being judged again, in bytes: a thousand sessions keep 64 MiB at most.
const maxKeptLog = 64 << 10

// keptLog is the last log that the peer was accepted with.
type keptLog struct {
	raw        []byte // nil if it was too large to keep
	qualifying [32]byte
	at         time.Time
	next       any // what the appraiser wants to know of it later
}

// Rejudge judges the peer again: its quote by evidence and, if logs is not nil, its last log by logs. What changed since it was accepted is the
// policy, the collateral or the time, not the peer. The first refusal is returned; the caller ends the session. A log larger than 64 KiB
// is not kept, and judging it again is refused as stale.
func (s *Session) Rejudge(ctx context.Context, evidence EvidenceAppraiser, logs LogAppraiser) error {
	s.mu.Lock()
	log, quote, destroyed := s.kept, s.facts.peerEvidence(s.Role), s.destroyed
	s.mu.Unlock()
	if destroyed {
		return s.over()
	}
	peerRole := other(s.Role)
	peer, err := evidence.AppraiseEvidence(ctx, quote, ReportData(peerRole, s.th1, s.peerSign), s.PeerHost(), s.peerPlatform)
	if err != nil {
		return err
	}
	if logs == nil {
		return s.rejudged(peer, nil, log.at)
	}
	if log.raw == nil {
		return refusal.New(v1.Reason_REASON_INTEGRITY_STALE,
			"the log of %s is larger than the %d bytes that are kept, so it cannot be judged by what changed", s.PeerHost(), maxKeptLog)
	}
	appraised, err := logs.AppraiseLog(ctx, &LogClaim{
		Raw: log.raw, Qualifying: log.qualifying, Host: s.PeerHost(), Platform: s.peerPlatform, Peer: peer, At: log.at,
	})
	if err != nil {
		return err
	}
	return s.rejudged(peer, appraised, log.at)
}

// rejudged records a new verdict, unless a newer exchange has brought its own meanwhile.
func (s *Session) rejudged(peer *Peer, appraised *v1.Appraised, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return s.over()
	}
	s.peer = peer
	if appraised != nil && s.kept.at.Equal(at) {
		s.appraised = appraised
	}
	return nil
}

// Transcript is every input of the session's transcripts as exact bytes: what an auditor needs to compute ctx, th1, th2 and th3 himself
// and to see that both quotes are bound to them. None of it is secret.
type Transcript struct {
	Mode   v1.Mode
	Intent Intent
	// The hellos, without evidence: platform id, policy digest, nonce, KEM public key; in HelloD also the key that signs D's logs.
	HelloS, HelloD *v1.Hello
	// Keys that sign the logs, 32 bytes each.
	SignS, SignD []byte
	// HPKE encapsulations with sealed seeds.
	EncS, EncD []byte
	// The quotes.
	EvidenceS, EvidenceD []byte
	// SHA-384 of the logs of the last exchange, and its nonces.
	LogS, LogD                     [48]byte
	Nonce1, Nonce2, Nonce3, Nonce4 []byte
}

func (t *Transcript) peerEvidence(mine v1.Role) []byte {
	if mine == v1.Role_ROLE_SOURCE {
		return t.EvidenceD
	}
	return t.EvidenceS
}

// Transcript returns the inputs of the session's transcripts, the last finished integrity exchange included. Its bytes are not to be
// changed.
func (s *Session) Transcript() Transcript {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.facts
}

// receiptTranscript is what a role's log key signs to conclude the session; docs/receipts.md.
func receiptTranscript(role v1.Role, th2 [48]byte, record []byte) []byte {
	h := transcript.H384("safeconduct/v1/receipt", []byte(RoleName(role)), th2[:], record)
	return h[:]
}

// SignReceipt signs the record of the session's end with this side's log key; 64 bytes, Ed25519.
func (s *Session) SignReceipt(record []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return nil, s.over()
	}
	return ed25519.Sign(s.signKey, receiptTranscript(s.Role, s.th2, record)), nil
}

// CheckReceipt says whether signature is the peer's over record.
func (s *Session) CheckReceipt(record, signature []byte) bool {
	return len(signature) == signatureLen && ed25519.Verify(s.peerSign, receiptTranscript(other(s.Role), s.th2, record), signature)
}
