package receipt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee"
)

// Verifier verifies exports without a network and without either node. The zero value accepts nothing.
type Verifier struct {
	// Roots are the pinned roots of quotes. A receipt of a mode without one is not accepted.
	Roots map[tee.Mode]dcap.RootPin
	// Policy by which both enclaves and platforms are appraised. It need not be the one that was in force: the report says whether it is.
	Policy *policy.Loaded
	// At is when the quotes are judged; zero means when the record says that they were, which is what an auditor of the past wants.
	At time.Time
}

// CheckName names a check of a receipt. The names are stable; those of one side begin with "source " or "destination ".
type CheckName string

// The checks. Those from CheckEvidence on are made for each side.
const (
	CheckID        CheckName = "receipt id"
	CheckMode      CheckName = "mode"
	CheckCtx       CheckName = "context"
	CheckTH1       CheckName = "transcript of the hellos"
	CheckTH2       CheckName = "transcript of the attestation"
	CheckTH3       CheckName = "transcript of the integrity exchange"
	CheckSession   CheckName = "session id"
	CheckTimes     CheckName = "times"
	CheckLink      CheckName = "chain link"
	CheckSigned    CheckName = "signed"
	CheckEvidence  CheckName = "evidence digest"
	CheckLog       CheckName = "log digest"
	CheckQuote     CheckName = "quote"
	CheckBinding   CheckName = "report data"
	CheckPolicy    CheckName = "policy"
	CheckFinding   CheckName = "finding"
	CheckSignature CheckName = "signature"
)

// Of is the check's name for one side.
func (c CheckName) Of(role v1.Role) CheckName { return CheckName(handshake.RoleName(role)) + " " + c }

// Result is the outcome of one check.
type Result struct {
	Name   CheckName `json:"check"`
	Passed bool      `json:"passed"`
	// Found and Expected are for people. Expected is empty where the name says it.
	Found    string `json:"found"`
	Expected string `json:"expected,omitempty"`
}

// Report is what Verify has found.
type Report struct {
	// Accepted says that every check has passed. SignedBy says what by: a receipt of one signature is that side's word alone.
	Accepted bool     `json:"accepted"`
	SignedBy SignedBy `json:"signed_by"`
	// ID is SHA-256 of the record's exact bytes.
	ID policy.Hex `json:"receipt_id"`
	// At is when the quotes were judged.
	At time.Time `json:"judged_at"`
	// SourcePolicy and DestinationPolicy say that the Verifier's policy is the very one that was in force on that side.
	SourcePolicy      bool `json:"source_policy_in_force"`
	DestinationPolicy bool `json:"destination_policy_in_force"`
	// OtherCollateral names the sides ("source", "destination") whose recorded finding rests on other collateral than the export has, so that the
	// two are not compared.
	OtherCollateral []string `json:"other_collateral,omitempty"`
	Checks          []Result `json:"checks"`
	Record          *Record  `json:"record"`
}

// SignedBy says who has signed a receipt.
type SignedBy string

// Who has signed. The zero value is nobody.
const (
	SignedByBoth        SignedBy = "both"
	SignedBySource      SignedBy = roleSource
	SignedByDestination SignedBy = roleDestination
)

// Failed are the checks that did not pass.
func (r *Report) Failed() []Result {
	return slices.DeleteFunc(slices.Clone(r.Checks), func(c Result) bool { return c.Passed })
}

// Verify verifies an export. It returns an error only for what is no export (ErrExport); everything else is in the report, checks that did not pass
// included.
func (v Verifier) Verify(raw []byte) (*Report, error) {
	e, err := ParseExport(raw)
	if err != nil {
		return nil, err
	}
	a := &audit{Verifier: v, export: e, record: e.Decoded, report: &Report{Record: e.Decoded, At: v.At}}
	id := ID(e.Record)
	a.report.ID = id[:]
	if a.report.At.IsZero() {
		a.report.At = e.Decoded.Times.Judged
	}
	if v.Policy == nil {
		a.Policy = new(policy.Loaded)
	}
	a.whole()
	for _, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		a.side(role)
	}
	a.signedBy()
	a.report.SourcePolicy = bytes.Equal(a.Policy.Digest[:], a.record.Source.PolicyDigest)
	a.report.DestinationPolicy = bytes.Equal(a.Policy.Digest[:], a.record.Destination.PolicyDigest)
	a.report.Accepted = len(a.report.Failed()) == 0
	return a.report, nil
}

// audit is one verification under way.
type audit struct {
	Verifier
	export   *Export
	record   *Record
	report   *Report
	th1, th2 [48]byte
}

func (a *audit) note(name CheckName, passed bool, found, expected string) {
	a.report.Checks = append(a.report.Checks, Result{Name: name, Passed: passed, Found: found, Expected: expected})
}

func (a *audit) equal(name CheckName, found, expected []byte) {
	a.note(name, bytes.Equal(found, expected), text(found), text(expected))
}

// whole checks the record as a whole.
func (a *audit) whole() {
	r, l := a.record, &a.export.Chain
	a.equal(CheckID, a.export.ReceiptID, a.report.ID)
	_, rooted := a.Roots[tee.Mode(r.Mode)]
	expected := string(a.Policy.Mode)
	if !rooted {
		expected = "a mode with a pinned root"
	}
	a.note(CheckMode, rooted && a.Policy.Mode == tee.Mode(r.Mode), r.Mode, expected)
	var ctx, th3 [48]byte
	ctx, a.th1, a.th2, th3 = r.Hashes()
	a.equal(CheckCtx, r.Transcript.Ctx, ctx[:])
	a.equal(CheckTH1, r.Transcript.TH1, a.th1[:])
	a.equal(CheckTH2, r.Transcript.TH2, a.th2[:])
	a.equal(CheckTH3, r.Transcript.TH3, th3[:])
	a.equal(CheckSession, r.SessionID, sessionID(a.th2))
	t := &r.Times
	a.note(CheckTimes, t.inOrder(), fmt.Sprintf("established %s, judged %s, armed %s, concluded %s", when(t.Established), when(t.Judged), when(t.Armed), when(t.Concluded)),
		fmt.Sprintf("in order, to within %v", MaxSkew))
	link := l.compute([32]byte(a.report.ID), &a.export.Source, &a.export.Destination)
	ends := l.Host == r.Source.Host || l.Host == r.Destination.Host
	first := l.Number != 1 || bytes.Equal(l.Previous, make([]byte, sha256.Size))
	a.note(CheckLink, ends && first && bytes.Equal(l.Link, link[:]), fmt.Sprintf("%x, number %d of %s", []byte(l.Link), l.Number, l.Host),
		fmt.Sprintf("%x, of %s or %s", link, r.Source.Host, r.Destination.Host))
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// side checks the evidence of one side, and that it stands for the key that signed.
func (a *audit) side(role v1.Role) {
	s, p := a.record.side(role), a.export.proof(role)
	a.equal(CheckEvidence.Of(role), sum384(p.Evidence), s.Evidence)
	if len(p.Log) > 0 {
		a.equal(CheckLog.Of(role), sum384(p.Log), s.Log)
	}
	result, err := a.quote(p)
	if err != nil {
		a.note(CheckQuote.Of(role), false, err.Error(), "a quote that verifies at "+when(a.report.At))
	} else {
		a.note(CheckQuote.Of(role), true, "genuine, "+string(result.Status), "")
		a.appraise(role, result)
	}
	if len(p.Signature) > 0 {
		ok := ed25519.Verify(ed25519.PublicKey(s.SignPublic), Signed(role, a.th2, a.export.Record), p.Signature)
		a.note(CheckSignature.Of(role), ok, text(p.Signature), "a signature by "+text(s.SignPublic))
	}
}

// quote verifies a side's quote against the collateral that the export has for it.
func (a *audit) quote(p *Proof) (*dcap.Result, error) {
	i := slices.IndexFunc(a.export.Collateral, func(c Artefacts) bool { return bytes.Equal(c.Digest, p.Collateral) })
	if i < 0 {
		return nil, fmt.Errorf("the export has no collateral %x", []byte(p.Collateral))
	}
	r, err := dcap.Verifier{Root: a.Roots[tee.Mode(a.record.Mode)]}.Verify(p.Evidence, a.export.Collateral[i].collateral(), a.report.At)
	if err != nil {
		return nil, err
	}
	if r.Quote.SGX == nil {
		return nil, fmt.Errorf("the quote is a TD's, not an SGX enclave's")
	}
	return r, nil
}

// appraise judges a genuine quote by the policy, and against the record.
func (a *audit) appraise(role v1.Role, r *dcap.Result) {
	s := a.record.side(role)
	want := handshake.ReportData(role, a.th1, s.SignPublic)
	a.equal(CheckBinding.Of(role), r.ReportData[:], want[:])
	claims := &appraisal.Claims{
		MREnclave: r.MREnclave, MRSigner: r.MRSigner, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN, Debug: r.Debug, ReportData: r.ReportData,
		TCBStatus: string(r.Status), AdvisoryIDs: r.AdvisoryIDs, EvaluationDataNumber: r.EvaluationDataNumber(), PPID: r.PPID,
	}
	platform := [32]byte(s.PlatformID)
	refusals := appraisal.Appraise(claims, &a.Policy.Policy, appraisal.Expectation{Host: s.Host, PlatformID: &platform, Now: a.report.At})
	objections := make([]string, len(refusals))
	for i, no := range refusals {
		objections[i] = no.Error()
	}
	found := fmt.Sprintf("mrenclave %x on platform %x", r.MREnclave, platform)
	if len(objections) > 0 {
		found = strings.Join(objections, "; ")
	}
	a.note(CheckPolicy.Of(role), len(objections) == 0, found, fmt.Sprintf("what policy %x, version %d, accepts of %s", a.Policy.Digest, a.Policy.SVN, s.Host))
	a.finding(role, r)
}

// finding compares what the other side has recorded with what its collateral says now. Of other collateral it may have been something else.
func (a *audit) finding(role v1.Role, r *dcap.Result) {
	f := a.record.side(role).Found
	if f == nil {
		return
	}
	if !bytes.Equal(f.Collateral, a.export.proof(role).Collateral) {
		a.report.OtherCollateral = append(a.report.OtherCollateral, handshake.RoleName(role))
		return
	}
	now := &Finding{
		TCBStatus: string(r.Status), Advisories: r.AdvisoryIDs, EvaluationDataNumber: r.EvaluationDataNumber(), Collateral: f.Collateral,
	}
	a.note(CheckFinding.Of(role), f.equal(now), f.text(), now.text())
}

// signedBy says whose word the receipt is.
func (a *audit) signedBy() {
	passed := func(role v1.Role) bool {
		return slices.ContainsFunc(a.report.Checks, func(c Result) bool { return c.Name == CheckSignature.Of(role) && c.Passed })
	}
	source, destination := passed(v1.Role_ROLE_SOURCE), passed(v1.Role_ROLE_DESTINATION)
	switch {
	case source && destination:
		a.report.SignedBy = SignedByBoth
	case source:
		a.report.SignedBy = SignedBySource
	case destination:
		a.report.SignedBy = SignedByDestination
	}
	found := string(a.report.SignedBy)
	if found == "" {
		found = "nobody"
	}
	a.note(CheckSigned, found == string(SignedByBoth) || found == a.record.ComposedBy, found, "both sides, or the "+a.record.ComposedBy+", which composed the record")
}
