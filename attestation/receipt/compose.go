package receipt

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// MaxSkew is how far apart the two sides' times may be.
const MaxSkew = 5 * time.Minute

// View is what one side knows by itself of a session that ends.
type View struct {
	// Role of this side.
	Role       v1.Role
	Transcript handshake.Transcript
	// MigrationID is empty if the session was never armed.
	MigrationID string
	State       []Blob
	ImageBytes  uint64
	Secrets     uint32
	Outcome     Outcome
	// PolicySVN is of this side's policy.
	PolicySVN uint64
	// Peer is what this side has found of the other; Own what the other has said that it found of this one, or nil.
	Peer, Own *Finding
	Times     Times
}

// Compose makes the record of a session's end. Error: ErrRecord, if the view is none of a session that was established.
func Compose(v *View) ([]byte, error) {
	r := v.record()
	return r.Encode()
}

func (v *View) record() *Record {
	t := &v.Transcript
	r := &Record{
		Schema: Schema, Suite: handshake.Suite, Mode: handshake.ModeName(t.Mode),
		AttemptID: t.Intent.Attempt[:], InstanceID: t.Intent.Instance, MigrationID: v.MigrationID,
		Source:      side(t.Intent.Source, t.HelloS, t.SignS, t.EncS, t.EvidenceS, t.LogS),
		Destination: side(t.Intent.Destination, t.HelloD, t.SignD, t.EncD, t.EvidenceD, t.LogD),
		Exchange:    Exchange{Nonce1: t.Nonce1, Nonce2: t.Nonce2, Nonce3: t.Nonce3, Nonce4: t.Nonce4},
		State:       append([]Blob{}, v.State...), ImageBytes: v.ImageBytes, Secrets: v.Secrets, Outcome: v.Outcome,
		Times:      Times{stamp(v.Times.Established), stamp(v.Times.Judged), stamp(v.Times.Armed), stamp(v.Times.Concluded)},
		ComposedBy: handshake.RoleName(v.Role),
	}
	mine, theirs := &r.Source, &r.Destination
	if v.Role == v1.Role_ROLE_DESTINATION {
		mine, theirs = theirs, mine
	}
	mine.PolicySVN, mine.Found, theirs.Found = v.PolicySVN, v.Own, v.Peer
	ctx, th1, th2, th3 := r.Hashes()
	r.Transcript = Transcript{Ctx: ctx[:], TH1: th1[:], TH2: th2[:], TH3: th3[:]}
	r.SessionID = sessionID(th2)
	return r
}

func side(host string, h *v1.Hello, sign, sealed, evidence []byte, log [48]byte) Side {
	return Side{
		Host: host, PlatformID: h.GetPlatformId(), PolicyDigest: h.GetPolicyDigest(), Nonce: h.GetNonce(), SignPublic: sign,
		KEMPublic: h.GetKemPublic(), Sealed: sealed, Evidence: sum384(evidence), Log: log[:],
	}
}

func stamp(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}

// Check compares the peer's record with this side's own view, field by field, before this side signs it. What only the composer can know it takes as
// the composer's word: the version of its policy, what it found of this side, the reason of an abort and, when the migration was aborted, what
// had crossed. Errors are refusals (REASON_PROTOCOL_VIOLATION) that name the field.
func Check(record []byte, own *View) (*Record, error) {
	r, err := ParseRecord(record)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the peer's record: %w", err)
	}
	want := own.record()
	want.ComposedBy = roleSource
	theirs, wantTheirs, mine, wantMine := &r.Source, &want.Source, &r.Destination, &want.Destination
	if own.Role == v1.Role_ROLE_SOURCE {
		want.ComposedBy = roleDestination
		theirs, wantTheirs, mine, wantMine = mine, wantMine, theirs, wantTheirs
	}
	// The composer's word.
	wantTheirs.PolicySVN, wantMine.Found, want.Outcome.Reason = theirs.PolicySVN, mine.Found, r.Outcome.Reason
	// What the composer may not have been told.
	if mine.PolicySVN == 0 {
		wantMine.PolicySVN = 0
	}
	if theirs.Found == nil {
		wantTheirs.Found = nil
	}
	if r.Outcome.Result == Aborted { // what one side had sent when it ended, the other need not have seen
		want.State, want.ImageBytes, want.Secrets = r.State, r.ImageBytes, r.Secrets
	}
	// A part of an image that broke off at the destination had crossed for the source.
	if own.Role == v1.Role_ROLE_DESTINATION && r.ImageBytes > want.ImageBytes {
		want.ImageBytes = r.ImageBytes
	}
	if err := differ(r, want); err != nil {
		return nil, err
	}
	return r, sameTimes(&r.Times, &want.Times)
}

// differ compares two records in everything but their times.
func differ(found, expected *Record) error {
	f, e := found.fields(), expected.fields()
	for i := range f {
		if f[i] != e[i] {
			return mismatch(f[i].name, f[i].value, e[i].value)
		}
	}
	return nil
}

func mismatch(name, found, expected string) error {
	return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the peer's record of the migration is not this side's").On(name).Want(found, expected)
}

type field struct{ name, value string }

// fields lists everything in a record but its times. A test sees to it that nothing is missing.
func (r *Record) fields() []field {
	out := []field{
		{"schema", r.Schema}, {"suite", r.Suite}, {"mode", r.Mode}, {"session_id", text(r.SessionID)}, {"attempt_id", text(r.AttemptID)},
		{"instance_id", r.InstanceID}, {"migration_id", r.MigrationID},
	}
	for _, s := range []struct {
		role string
		*Side
	}{{roleSource, &r.Source}, {roleDestination, &r.Destination}} {
		out = append(out, []field{
			{s.role + ".host", s.Host}, {s.role + ".platform_id", text(s.PlatformID)}, {s.role + ".policy_digest", text(s.PolicyDigest)},
			{s.role + ".policy_svn", strconv.FormatUint(s.PolicySVN, 10)}, {s.role + ".nonce", text(s.Nonce)},
			{s.role + ".sign_public", text(s.SignPublic)}, {s.role + ".kem_public", text(s.KEMPublic)}, {s.role + ".sealed_seed", text(s.Sealed)},
			{s.role + ".evidence", text(s.Evidence)}, {s.role + ".log", text(s.Log)}, {s.role + ".found", s.Found.text()},
		}...)
	}
	return append(out, []field{
		{"exchange.nonce1", text(r.Exchange.Nonce1)}, {"exchange.nonce2", text(r.Exchange.Nonce2)},
		{"exchange.nonce3", text(r.Exchange.Nonce3)}, {"exchange.nonce4", text(r.Exchange.Nonce4)},
		{"transcript.ctx", text(r.Transcript.Ctx)}, {"transcript.th1", text(r.Transcript.TH1)},
		{"transcript.th2", text(r.Transcript.TH2)}, {"transcript.th3", text(r.Transcript.TH3)},
		{"state", fmt.Sprint(r.State)}, {"image_bytes", strconv.FormatUint(r.ImageBytes, 10)}, {"secrets", strconv.FormatUint(uint64(r.Secrets), 10)},
		{"outcome.result", r.Outcome.Result}, {"outcome.reason", r.Outcome.Reason}, {"composed_by", r.ComposedBy},
	}...)
}

func text[B ~[]byte](b B) string { return fmt.Sprintf("%x", []byte(b)) }

func (f *Finding) text() string {
	if f == nil {
		return ""
	}
	return fmt.Sprintf("%s %q of evaluation %d by collateral %x", f.TCBStatus, f.Advisories, f.EvaluationDataNumber, []byte(f.Collateral))
}

func (f *Finding) equal(g *Finding) bool {
	return f.TCBStatus == g.TCBStatus && slices.Equal(f.Advisories, g.Advisories) && f.EvaluationDataNumber == g.EvaluationDataNumber
}

// sameTimes allows for two clocks. Each side judges the other's quote when it must, so that only the bounds of that time are known to both.
func sameTimes(found, expected *Times) error {
	for _, t := range []struct {
		name            string
		found, expected time.Time
	}{
		{"times.established", found.Established, expected.Established}, {"times.armed", found.Armed, expected.Armed},
		{"times.concluded", found.Concluded, expected.Concluded},
	} {
		if t.found.IsZero() != t.expected.IsZero() || math.Abs(t.found.Sub(t.expected).Seconds()) > MaxSkew.Seconds() {
			return mismatch(t.name, t.found.Format(time.RFC3339), fmt.Sprintf("within %v of %s", MaxSkew, t.expected.Format(time.RFC3339)))
		}
	}
	if !found.inOrder() {
		return mismatch("times.judged", found.Judged.Format(time.RFC3339), "between established and concluded")
	}
	return nil
}

// inOrder says whether the times can be of one session, by one clock that may have been set meanwhile.
func (t *Times) inOrder() bool {
	ok := !t.Judged.Before(t.Established.Add(-MaxSkew)) && !t.Judged.After(t.Concluded.Add(MaxSkew)) && !t.Concluded.Before(t.Established.Add(-MaxSkew))
	if t.Armed.IsZero() {
		return ok
	}
	return ok && !t.Armed.Before(t.Established.Add(-MaxSkew)) && !t.Armed.After(t.Concluded.Add(MaxSkew))
}
