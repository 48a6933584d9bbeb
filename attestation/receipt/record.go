// Package receipt is the signed record of a migration's end: what both enclaves sign when a session is concluded, how a node keeps it, and how
// anybody verifies it later without either node. docs/receipts.md is its specification.
//
//   - A Record is one JSON document in the one encoding that it has. Its source composes it (Compose), its destination compares it with what
//     it has seen itself (Check), and both sign it with the keys that their quotes bind.
//   - A Chain keeps the receipts of one node, each hashed together with the one before.
//   - An Export is a receipt with everything that is needed to verify it: Verifier does so by a policy and the roots alone.
//
// Non-goals: it decides nothing about a migration (a session is committed with or without a receipt), holds no key, knows no network, and does not
// appraise the hosts' logs again: a receipt says which logs were accepted, by digest.
package receipt

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// Schema names the format of records. A reader refuses every other.
const Schema = "safeconduct/receipt/v1"

// MaxRecord bounds a record, in bytes. One has some 9 KiB, most of it KEM keys and sealed seeds.
const MaxRecord = 32 << 10

// ErrRecord says that something is no record.
var ErrRecord = errors.New("not a receipt's record")

// Record is what the enclaves of both sides sign, as the bytes of its one encoding. Binary fields are lower-case hex (Hex) or base64 ([]byte).
type Record struct {
	Schema string `json:"schema"`
	Suite  string `json:"suite"`
	// Mode is "intel" or "simulated".
	Mode       string     `json:"mode"`
	SessionID  policy.Hex `json:"session_id"`
	AttemptID  policy.Hex `json:"attempt_id"`
	InstanceID string     `json:"instance_id"`
	// MigrationID is empty if the session was never armed.
	MigrationID string     `json:"migration_id"`
	Source      Side       `json:"source"`
	Destination Side       `json:"destination"`
	Exchange    Exchange   `json:"exchange"`
	Transcript  Transcript `json:"transcript"`
	// State is the vTPM's state blobs that crossed, in order.
	State []Blob `json:"state"`
	// ImageBytes is the plaintext of images, parts that crossed again counted again.
	ImageBytes uint64  `json:"image_bytes"`
	Secrets    uint32  `json:"secrets"`
	Outcome    Outcome `json:"outcome"`
	Times      Times   `json:"times"`
	// ComposedBy is the role of the enclave that composed the record: "source", or "destination" if that could not reach the source.
	ComposedBy string `json:"composed_by"`
}

// Side is what one node has put into the handshake.
type Side struct {
	Host         string     `json:"host"`
	PlatformID   policy.Hex `json:"platform_id"`   // 32 bytes
	PolicyDigest policy.Hex `json:"policy_digest"` // SHA-256
	// PolicySVN is the version of that policy; 0 if the composer was not told it.
	PolicySVN  uint64     `json:"policy_svn"`
	Nonce      policy.Hex `json:"nonce"`       // 32 bytes
	SignPublic policy.Hex `json:"sign_public"` // Ed25519, 32 bytes: the key that signs logs and this record
	KEMPublic  []byte     `json:"kem_public"`  // 1216 bytes
	Sealed     []byte     `json:"sealed_seed"` // HPKE encapsulation and sealed seed, 1168 bytes
	Evidence   policy.Hex `json:"evidence"`    // SHA-384 of the quote
	Log        policy.Hex `json:"log"`         // SHA-384 of the integrity log that the peer accepted last
	// Found is what the other side has found of this one's platform; absent if the composer was not told it.
	Found *Finding `json:"found,omitempty"`
}

// Finding is the verdict on a platform, in Intel's words, with the collateral that it rests on.
type Finding struct {
	TCBStatus            string     `json:"tcb_status"`
	Advisories           []string   `json:"advisories"`
	EvaluationDataNumber uint32     `json:"tcb_evaluation_data_number"`
	Collateral           policy.Hex `json:"collateral"` // collateral.Collateral.Digest
}

// FindingOf is the finding in what a side has recorded of its peer.
func FindingOf(a *v1.Attested, collateral [32]byte) *Finding {
	return &Finding{
		TCBStatus: a.GetTcbStatus(), Advisories: append([]string{}, a.GetAdvisoryIds()...),
		EvaluationDataNumber: a.GetTcbEvaluationDataNumber(), Collateral: collateral[:],
	}
}

// Exchange is the last integrity exchange: the nonces of M1 to M4, 32 bytes each.
type Exchange struct {
	Nonce1 policy.Hex `json:"nonce1"`
	Nonce2 policy.Hex `json:"nonce2"`
	Nonce3 policy.Hex `json:"nonce3"`
	Nonce4 policy.Hex `json:"nonce4"`
}

// Transcript is the handshake's transcript hashes, 48 bytes each. They follow from the rest of the record.
type Transcript struct {
	Ctx policy.Hex `json:"ctx"`
	TH1 policy.Hex `json:"th1"`
	TH2 policy.Hex `json:"th2"`
	TH3 policy.Hex `json:"th3"`
}

// Blob is one blob of vTPM state that crossed; sizes in bytes.
type Blob struct {
	// Type is "permanent", "volatile" or "savestate".
	Type            string `json:"type"`
	PlaintextBytes  uint64 `json:"plaintext_bytes"`
	CiphertextBytes uint64 `json:"ciphertext_bytes"`
}

// BlobsOf are the blobs in a session's reports.
func BlobsOf(reports []*v1.BlobReport) []Blob {
	names := map[v1.StateType]string{
		v1.StateType_STATE_TYPE_PERMANENT: statePermanent, v1.StateType_STATE_TYPE_VOLATILE: stateVolatile, v1.StateType_STATE_TYPE_SAVESTATE: stateSave,
	}
	blobs := make([]Blob, 0, len(reports))
	for _, r := range reports {
		blobs = append(blobs, Blob{Type: names[r.GetType()], PlaintextBytes: r.GetPlaintextBytes(), CiphertextBytes: r.GetCiphertextBytes()})
	}
	return blobs
}

const (
	statePermanent = "permanent"
	stateVolatile  = "volatile"
	stateSave      = "savestate"
)

// The results of a migration.
const (
	Committed = "committed"
	Aborted   = "aborted"
)

// Outcome is how the session ended.
type Outcome struct {
	// Result is Committed or Aborted.
	Result string `json:"result"`
	// Reason is the name of a safeconduct.v1.Reason without its prefix, of an aborted session.
	Reason string `json:"reason,omitempty"`
}

// Times are the composer's clock, in UTC, to the second. A clock is its host's word: the other side vouches for it to within MaxSkew.
type Times struct {
	// Established is when both logs had been accepted, Judged when the composer last judged the quotes, Armed when the session was bound to a
	// migration id (absent if it never was), Concluded when the record was composed.
	Established time.Time `json:"established"`
	Judged      time.Time `json:"judged"`
	Armed       time.Time `json:"armed,omitzero"`
	Concluded   time.Time `json:"concluded"`
}

// Hashes computes the transcript hashes from the rest of the record; docs/protocol.md, "Context" to "Phase 2". All four are of the exact bytes that
// the two sides hashed when they met.
func (r *Record) Hashes() (ctx, th1, th2, th3 [48]byte) {
	s, d := &r.Source, &r.Destination
	ctx = transcript.H384("safeconduct/v1/ctx", []byte(r.Suite), []byte(r.Mode), r.AttemptID, []byte(r.InstanceID), []byte(s.Host), []byte(d.Host),
		s.PlatformID, d.PlatformID, s.PolicyDigest, d.PolicyDigest)
	th1 = transcript.H384("safeconduct/v1/th1", ctx[:], s.Nonce, d.Nonce, s.KEMPublic, d.KEMPublic, d.SignPublic)
	th2 = transcript.H384("safeconduct/v1/th2", th1[:], s.Evidence, d.Evidence, s.SignPublic, s.Sealed, d.Sealed)
	e := &r.Exchange
	th3 = transcript.H384("safeconduct/v1/th3", th2[:], s.Log, d.Log, e.Nonce1, e.Nonce2, e.Nonce3, e.Nonce4)
	return ctx, th1, th2, th3
}

// sessionID is the session's public name, which follows from th2.
func sessionID(th2 [48]byte) []byte {
	h := transcript.H384("safeconduct/v1/session-id", th2[:])
	return h[:16]
}

// Signed is what a role's key signs, by Ed25519; docs/protocol.md, "Conclude".
func Signed(role v1.Role, th2 [48]byte, record []byte) []byte {
	h := transcript.H384("safeconduct/v1/receipt", []byte(handshake.RoleName(role)), th2[:], record)
	return h[:]
}

// ID of a receipt is SHA-256 of its record.
func ID(record []byte) [32]byte { return sha256.Sum256(record) }

// Encode is the record in its one encoding. Error: ErrRecord, for a record that ParseRecord would refuse.
func (r *Record) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	raw, err := marshal(r, "")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrRecord, len(raw), MaxRecord)
	}
	return raw, nil
}

// marshal writes JSON without a line's end, and no character otherwise than JSON demands.
func marshal(v any, indent string) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// ParseRecord reads exactly what Encode writes, to the byte: an unknown or repeated key, another order, white space, another spelling of a value
// are all refused. It checks form, not truth. Error: ErrRecord.
func ParseRecord(raw []byte) (*Record, error) {
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrRecord, len(raw), MaxRecord)
	}
	r := new(Record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	canonical, err := r.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(canonical, raw) {
		return nil, fmt.Errorf("%w: found another encoding of its content than the one that there is", ErrRecord)
	}
	return r, nil
}

func sum384(b []byte) policy.Hex {
	h := sha512.Sum384(b)
	return h[:]
}
