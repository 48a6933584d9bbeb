// Package handshake is the Safeconduct handshake, version 1: mutual attestation of two enclaves, mutual appraisal of their hosts'
// integrity logs, and the keys that follow from both. docs/protocol.md is its specification; the message numbers and names in
// the comments here are that document's.
//
// It knows no transport (Stream), no quote format (Attester, EvidenceAppraiser) and no log format (LogSource, LogAppraiser); what it knows
// is the order of things: nothing costly for a peer that was not admitted, no seed sealed to a key whose evidence was not appraised,
// no key of the transfer before both logs were.
package handshake

import (
	"context"
	"errors"
	"io"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// Suite names the protocol version and every primitive. Two nodes that differ in it refuse each other.
const Suite = "safeconduct/v1 X25519MLKEM768 HKDF-SHA384 AES-256-GCM Ed25519"

// Sizes in bytes.
const (
	nonceSize    = 32
	attemptSize  = 16
	digestSize   = 32
	signPublic   = 32
	confirmSize  = 48
	sessionID    = 16
	maxHost      = 253
	maxInstance  = 36
	maxEvidence  = 64 << 10
	maxLog       = 8 << 20
	maxPiece     = 1 << 20
	maxFetched   = 64 << 20 // of all attachments in one exchange
	signatureLen = 64
)

// Stream carries frames between the two nodes. Recv returns io.EOF when the peer has ended the stream.
type Stream interface {
	Send(*v1.Frame) error
	Recv() (*v1.Frame, error)
}

// Attester makes this enclave's evidence.
type Attester interface {
	Quote(ctx context.Context, reportData [64]byte) ([]byte, error)
}

// Peer is what appraised evidence says of the enclave at the other end.
type Peer struct {
	// Report for humans and records.
	Attested *v1.Attested
	// Identity of the processor, from its PCK certificate.
	PPID [16]byte
}

// EvidenceAppraiser verifies a quote, appraises it by policy, and checks that it is bound to reportData and that the platform claimed
// is the one enrolled for host. Its errors are refusals.
type EvidenceAppraiser interface {
	AppraiseEvidence(ctx context.Context, quote []byte, reportData [64]byte, host string, platform [32]byte) (*Peer, error)
}

// Log is what a host shows of itself: the log, which is signed, and the attachments that it names, which are sent as far as the appraiser asks
// for them. The bytes are not to be changed.
type Log struct {
	Raw         []byte
	Attachments map[string][]byte
}

// Fetch is a Fetch of the log's own attachments, for a node that judges itself.
func (l *Log) Fetch(name string, offset uint64) ([]byte, error) {
	content, ok := l.Attachments[name]
	if !ok || offset > uint64(len(content)) {
		return nil, violation("the log has no byte %d of an attachment %q", offset, name)
	}
	return content[offset:min(uint64(len(content)), offset+maxPiece)], nil
}

// LogSource measures this host. The TPM quote in the log is over qualifying.
type LogSource interface {
	Log(ctx context.Context, qualifying [32]byte) (*Log, error)
}

// Fetch brings a piece of an attachment of the peer's log, which begins at offset: at most 1 MiB, and nothing at its end.
type Fetch func(name string, offset uint64) ([]byte, error)

// LogClaim is a peer's log with everything that it must be bound to.
type LogClaim struct {
	Raw []byte
	// Qualifying data of the TPM quote.
	Qualifying [32]byte
	Host       string
	Platform   [32]byte
	Peer       *Peer
	// At is when the log was received.
	At time.Time
	// Fetch is nil when the peer cannot be asked, because its log is judged again after the exchange.
	Fetch Fetch
	// Previous is what the last accepted appraisal in this session left in Next: nil for the first. An appraiser uses it to see that a host
	// shown again is the one shown before, grown older.
	Previous, Next any
}

// LogAppraiser judges a peer's log against reference values. Its errors are refusals.
type LogAppraiser interface {
	AppraiseLog(ctx context.Context, claim *LogClaim) (*v1.Appraised, error)
}

// Node is what this side of a handshake is made of.
type Node struct {
	Host string
	Mode v1.Mode
	// PlatformID is this node's enrolled identity.
	PlatformID [32]byte
	// PolicyDigest is SHA-256 of the policy in force when the handshake begins.
	PolicyDigest [32]byte

	Attester  Attester
	Evidence  EvidenceAppraiser
	Logs      LogSource
	Reference LogAppraiser

	Now  func() time.Time
	Rand io.Reader
}

// Intent is what a handshake is for.
type Intent struct {
	Attempt             [attemptSize]byte
	Instance            string
	Source, Destination string
}

// Events are told of each step as it ends, well or not, before the next begins. They must not block.
type Events struct {
	// Attested is called when phase 1 has ended well, with the session's public name. An error breaks the handshake off.
	Attested func(id [16]byte) error
	// Step is called with every step's outcome.
	Step func(*v1.StepReport)
}

// violation is a message that the protocol does not allow.
func violation(format string, args ...any) error {
	return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, format, args...)
}

// lost is a peer that broke off. A refusal that arrived in its place is passed through.
func lost(what string, err error) error {
	var r *refusal.Refusal
	if errors.As(err, &r) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "%s: %w", what, err)
}

// contextHash covers every fact of the attempt that both sides must see alike.
func contextHash(in Intent, mode v1.Mode, s, d *v1.Hello) [48]byte {
	return transcript.H384("safeconduct/v1/ctx",
		[]byte(Suite), []byte(ModeName(mode)), in.Attempt[:], []byte(in.Instance), []byte(in.Source), []byte(in.Destination),
		s.GetPlatformId(), d.GetPlatformId(), s.GetPolicyDigest(), d.GetPolicyDigest())
}

// ModeName is the mode's name in transcripts.
func ModeName(mode v1.Mode) string {
	switch mode {
	case v1.Mode_MODE_INTEL:
		return "intel"
	case v1.Mode_MODE_SIMULATED:
		return "simulated"
	default:
		return "unspecified"
	}
}

// RoleName is the role's name in transcripts.
func RoleName(role v1.Role) string {
	switch role {
	case v1.Role_ROLE_SOURCE:
		return "source"
	case v1.Role_ROLE_DESTINATION:
		return "destination"
	default:
		return "unspecified"
	}
}

// ReportData binds evidence to a role, a transcript and the key that signs the role's logs.
func ReportData(role v1.Role, th1 [48]byte, signPublic []byte) [64]byte {
	return transcript.H512("safeconduct/v1/report-data", []byte(RoleName(role)), th1[:], signPublic)
}

// Qualifying is what a role's TPM quote must be over: the transcript, and the appraiser's nonce so that a second exchange in the same
// session cannot be answered with the first one's quote.
func Qualifying(role v1.Role, th2 [48]byte, nonce []byte) [32]byte {
	h := transcript.H384("safeconduct/v1/tpm", []byte(RoleName(role)), th2[:], nonce)
	return [32]byte(h[:32])
}

// logTranscript is what a role's log key signs.
func logTranscript(role v1.Role, th2 [48]byte, nonce, log []byte) []byte {
	h := transcript.H384("safeconduct/v1/log", []byte(RoleName(role)), th2[:], nonce, log)
	return h[:]
}

func other(role v1.Role) v1.Role {
	if role == v1.Role_ROLE_SOURCE {
		return v1.Role_ROLE_DESTINATION
	}
	return v1.Role_ROLE_SOURCE
}

// PlatformID is the enrolled identity of a node: its processor and its TPM's attestation key (TPMT_PUBLIC; empty for a node without a
// TPM).
func PlatformID(ppid [16]byte, tpmKey []byte) [32]byte {
	h := transcript.H384("safeconduct/v1/platform", ppid[:], tpmKey)
	return [32]byte(h[:32])
}
