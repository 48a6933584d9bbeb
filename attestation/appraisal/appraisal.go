// Package appraisal decides whether authentic evidence is acceptable: the operator's policy against what package dcap has verified. It
// verifies no signature itself, and it reports every objection, not the first.
package appraisal

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Claims are what verified evidence says. They come from dcap.Result and nowhere else: appraising claims that were not verified is
// meaningless.
type Claims struct {
	MREnclave, MRSigner  [32]byte
	ISVProdID, ISVSVN    uint16
	Debug                bool
	ReportData           [64]byte
	TCBStatus            string
	AdvisoryIDs          []string
	EvaluationDataNumber uint32
	PPID                 [16]byte
	// Numbers of the two CRLs, and the oldest part of the collateral.
	PCKCRLNumber, RootCACRLNumber uint64
	OldestIssued                  time.Time
	OldestArtefact                string
}

// ClaimsOf are the claims of a verified quote of an SGX enclave.
func ClaimsOf(r *dcap.Result) *Claims {
	return &Claims{
		MREnclave: r.MREnclave, MRSigner: r.MRSigner, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN, Debug: r.Debug, ReportData: r.ReportData,
		TCBStatus: string(r.Status), AdvisoryIDs: r.AdvisoryIDs, EvaluationDataNumber: r.EvaluationDataNumber(), PPID: r.PPID,
		PCKCRLNumber: r.PCKCRLNumber, RootCACRLNumber: r.RootCACRLNumber, OldestIssued: r.OldestIssued, OldestArtefact: string(r.OldestArtefact),
	}
}

// Expectation is what the appraiser knows by itself. A nil or empty field is not asked for.
type Expectation struct {
	// ReportData that the evidence must be bound to.
	ReportData *[64]byte
	// Host under whose enrolment the platform is judged.
	Host string
	// PlatformID that the peer claims to have. It is judged together with Host.
	PlatformID *[32]byte
	Now        time.Time
}

// Appraise returns every objection to the claims; none means that they are accepted. The zero policy objects to everything.
func Appraise(c *Claims, p *policy.Policy, want Expectation) []*refusal.Refusal {
	var all []*refusal.Refusal
	against := func(r *refusal.Refusal) {
		if r != nil {
			all = append(all, r)
		}
	}
	if want.ReportData != nil {
		against(bound(c, *want.ReportData))
	}
	against(measurement(c, p, want.Now))
	against(tcbStatus(c, p))
	against(advisories(c, p))
	against(evaluation(c, p))
	against(crlNumber("pck_crl", c.PCKCRLNumber, p.TCB.MinPCKCRLNumber))
	against(crlNumber("root_ca_crl", c.RootCACRLNumber, p.TCB.MinRootCACRLNumber))
	against(collateralAge(c, p, want.Now))
	if want.Host != "" {
		against(enrolled(c, p, want))
	}
	return all
}

func bound(c *Claims, want [64]byte) *refusal.Refusal {
	if subtle.ConstantTimeCompare(c.ReportData[:], want[:]) == 1 {
		return nil
	}
	return refusal.New(v1.Reason_REASON_QUOTE_NOT_BOUND, "the quote is genuine but was made for something else").On("report data").
		Want(hex.EncodeToString(c.ReportData[:]), hex.EncodeToString(want[:]))
}

// measurement looks for a rule that accepts the enclave now. A debug enclave needs a rule that names debug.
func measurement(c *Claims, p *policy.Policy, now time.Time) *refusal.Refusal {
	matched, closed := false, ""
	for _, e := range p.Enclaves {
		if !matches(c, &e) {
			continue
		}
		matched = true
		if !e.InForce(now) {
			closed = fmt.Sprintf("rule %q is in force from %s to %s", e.Name, stamp(e.NotBefore), stamp(e.NotAfter))
			continue
		}
		if c.Debug && !e.Debug {
			continue
		}
		return nil
	}
	found := fmt.Sprintf("mrenclave %x, mrsigner %x, product %d, svn %d", c.MREnclave, c.MRSigner, c.ISVProdID, c.ISVSVN)
	switch {
	case matched && closed != "":
		return refusal.New(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, "the rule that accepts this enclave is not in force now").On("mrenclave").
			Want(found, closed)
	case matched:
		return refusal.New(v1.Reason_REASON_DEBUG_ENCLAVE, "this is a debug enclave, and no rule that accepts it names debug").On("debug").
			Want("debug", "production")
	}
	return refusal.New(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, "no rule of the policy accepts this enclave's measurement").On("mrenclave").
		Want(found, expectedEnclaves(p))
}

// AcceptedUntil is when the last rule that accepts this enclave's measurement now ends: the zero time if one never does. It is false if no rule does.
func AcceptedUntil(c *Claims, p *policy.Policy, now time.Time) (until time.Time, accepted bool) {
	for _, e := range p.Enclaves {
		if !matches(c, &e) || !e.InForce(now) || c.Debug && !e.Debug {
			continue
		}
		if e.NotAfter.IsZero() {
			return time.Time{}, true
		}
		if e.NotAfter.After(until) {
			until = e.NotAfter
		}
		accepted = true
	}
	return until, accepted
}

func matches(c *Claims, e *policy.Enclave) bool {
	if len(e.MREnclave) == 0 && len(e.MRSigner) == 0 {
		return false
	}
	if len(e.MREnclave) > 0 && !bytes.Equal(e.MREnclave, c.MREnclave[:]) {
		return false
	}
	if len(e.MRSigner) > 0 && (!bytes.Equal(e.MRSigner, c.MRSigner[:]) || e.ISVProdID != c.ISVProdID) {
		return false
	}
	return c.ISVSVN >= e.MinISVSVN
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "ever"
	}
	return t.UTC().Format(time.RFC3339)
}

func expectedEnclaves(p *policy.Policy) string {
	if len(p.Enclaves) == 0 {
		return "nothing: the policy accepts no enclave"
	}
	var rules []string
	for _, e := range p.Enclaves {
		var parts []string
		if len(e.MREnclave) > 0 {
			parts = append(parts, fmt.Sprintf("mrenclave %x", []byte(e.MREnclave)))
		}
		if len(e.MRSigner) > 0 {
			parts = append(parts, fmt.Sprintf("mrsigner %x, product %d", []byte(e.MRSigner), e.ISVProdID))
		}
		if e.MinISVSVN > 0 {
			parts = append(parts, fmt.Sprintf("svn at least %d", e.MinISVSVN))
		}
		rules = append(rules, strings.Join(parts, ", "))
	}
	return strings.Join(rules, "; or ")
}

func tcbStatus(c *Claims, p *policy.Policy) *refusal.Refusal {
	if c.TCBStatus != "Revoked" && p.AcceptsStatus(c.TCBStatus) {
		return nil
	}
	accepted := p.TCB.Statuses
	if len(accepted) == 0 {
		accepted = []string{"UpToDate"}
	}
	found := c.TCBStatus
	if found == "" {
		found = "no status"
	}
	return refusal.New(v1.Reason_REASON_TCB_NOT_ACCEPTED, "the platform's TCB status is %s", found).On("tcb status").
		Want(found, strings.Join(accepted, " or "))
}

// advisories that the policy does not tolerate. An accepted status other than UpToDate does not bring its advisories with it.
func advisories(c *Claims, p *policy.Policy) *refusal.Refusal {
	var open []string
	for _, id := range c.AdvisoryIDs {
		if !slices.Contains(p.TCB.ToleratedAdvisories, id) {
			open = append(open, id)
		}
	}
	if len(open) == 0 {
		return nil
	}
	tolerated := "no advisory"
	if len(p.TCB.ToleratedAdvisories) > 0 {
		tolerated = "none but " + strings.Join(p.TCB.ToleratedAdvisories, ", ")
	}
	return refusal.New(v1.Reason_REASON_TCB_NOT_ACCEPTED, "security advisories apply to the platform").On("advisories").
		Want(strings.Join(open, ", "), tolerated)
}

func evaluation(c *Claims, p *policy.Policy) *refusal.Refusal {
	if c.EvaluationDataNumber >= p.TCB.MinEvaluationDataNumber {
		return nil
	}
	return refusal.New(v1.Reason_REASON_COLLATERAL_INVALID, "the collateral is of an older evaluation than the policy asks for").
		On("tcb evaluation data number").
		Want(fmt.Sprint(c.EvaluationDataNumber), fmt.Sprintf("at least %d", p.TCB.MinEvaluationDataNumber))
}

func crlNumber(item string, found, least uint64) *refusal.Refusal {
	if found >= least {
		return nil
	}
	return refusal.New(v1.Reason_REASON_COLLATERAL_INVALID, "a revocation list is older than the policy asks for").On(item).
		Want(fmt.Sprintf("number %d", found), fmt.Sprintf("at least %d", least))
}

func collateralAge(c *Claims, p *policy.Policy, now time.Time) *refusal.Refusal {
	most := time.Duration(p.TCB.MaxCollateralAge)
	if age := now.Sub(c.OldestIssued); most == 0 || age <= most {
		return nil
	}
	return refusal.New(v1.Reason_REASON_COLLATERAL_INVALID, "the collateral was issued longer ago than the policy accepts").On(c.OldestArtefact).
		Want("issued "+stamp(c.OldestIssued), fmt.Sprintf("not before %s", stamp(now.Add(-most))))
}

// enrolled checks that the processor and the TPM key make the platform id that is enrolled for the host, and that it is the one claimed.
// Without enrolment the id can be checked only in phase 2, when the TPM's key is known.
func enrolled(c *Claims, p *policy.Policy, want Expectation) *refusal.Refusal {
	no := func(found, expected, format string, args ...any) *refusal.Refusal {
		return refusal.New(v1.Reason_REASON_PLATFORM_NOT_ENROLLED, format, args...).On(want.Host).Want(found, expected)
	}
	pl, ok := p.Enrolled(want.Host)
	if !ok {
		if p.Enrolment == "none" {
			return nil
		}
		return no("no platform", "an enrolled platform", "no platform is enrolled for host %s", want.Host)
	}
	if got := handshake.PlatformID(c.PPID, pl.TPMKey); !bytes.Equal(got[:], pl.PlatformID) {
		return no(fmt.Sprintf("%x", got), fmt.Sprintf("%x", []byte(pl.PlatformID)),
			"the processor that made the quote is not the one enrolled for host %s", want.Host)
	}
	if want.PlatformID != nil && !bytes.Equal(want.PlatformID[:], pl.PlatformID) {
		return no(fmt.Sprintf("%x", *want.PlatformID), fmt.Sprintf("%x", []byte(pl.PlatformID)),
			"the peer claims another platform than the one enrolled for host %s", want.Host)
	}
	return nil
}
