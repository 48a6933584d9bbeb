package appraisal

import (
	"slices"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func claims() *Claims {
	return &Claims{
		MREnclave: [32]byte{1}, MRSigner: [32]byte{2}, ISVProdID: 3, ISVSVN: 4, ReportData: [64]byte{5},
		TCBStatus: "UpToDate", EvaluationDataNumber: 19, PPID: [16]byte{6},
	}
}

func platformID(c *Claims) [32]byte { return handshake.PlatformID(c.PPID, []byte("tpm key")) }

func accepting() *policy.Policy {
	c := claims()
	id := platformID(c)
	return &policy.Policy{
		Enclaves:  []policy.Enclave{{Name: "release 1", MREnclave: c.MREnclave[:]}},
		Platforms: []policy.Platform{{Host: "compute2", PlatformID: id[:], TPMKey: policy.Hex("tpm key")}},
	}
}

func expectation() Expectation {
	c := claims()
	id := platformID(c)
	return Expectation{ReportData: &c.ReportData, Host: "compute2", PlatformID: &id, Now: now}
}

func TestWhatThePolicyNamesIsAccepted(t *testing.T) {
	if got := Appraise(claims(), accepting(), expectation()); len(got) != 0 {
		t.Errorf("refused: %v", got)
	}
}

func TestTheEmptyPolicyAcceptsNobody(t *testing.T) {
	if got := Appraise(claims(), &policy.Policy{}, Expectation{Now: now}); len(got) == 0 {
		t.Error("accepted")
	}
	if got := Appraise(&Claims{}, &policy.Policy{Enclaves: []policy.Enclave{{}}}, Expectation{Now: now}); len(got) == 0 {
		t.Error("an empty rule accepts an empty enclave")
	}
}

func TestEachCheckFires(t *testing.T) {
	signer := func(svn uint16) func(*policy.Policy) {
		return func(p *policy.Policy) {
			p.Enclaves = []policy.Enclave{{MRSigner: claimsSigner(), ISVProdID: 3, MinISVSVN: svn}}
		}
	}
	for name, tc := range map[string]struct {
		claims func(*Claims)
		policy func(*policy.Policy)
		want   func(*Expectation)
		reason []v1.Reason // none: accepted
	}{
		"a quote made for something else": {want: func(e *Expectation) { e.ReportData = new([64]byte) }, reason: reasons(v1.Reason_REASON_QUOTE_NOT_BOUND)},
		"another measurement":             {claims: func(c *Claims) { c.MREnclave[31]++ }, reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"the signer, product and version": {policy: signer(4)},
		"an older version than accepted":  {policy: signer(5), reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"another product of the signer":   {policy: signer(4), claims: func(c *Claims) { c.ISVProdID = 9 }, reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"another signer":                  {policy: signer(4), claims: func(c *Claims) { c.MRSigner[0]++ }, reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"a debug enclave":                 {claims: func(c *Claims) { c.Debug = true }, reason: reasons(v1.Reason_REASON_DEBUG_ENCLAVE)},
		"a debug enclave that is named":   {claims: func(c *Claims) { c.Debug = true }, policy: func(p *policy.Policy) { p.Enclaves[0].Debug = true }},
		"a rule not yet in force":         {policy: func(p *policy.Policy) { p.Enclaves[0].NotBefore = now.Add(1) }, reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"a rule just in force":            {policy: func(p *policy.Policy) { p.Enclaves[0].NotBefore = now }},
		"a rule no longer in force":       {policy: func(p *policy.Policy) { p.Enclaves[0].NotAfter = now }, reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)},
		"a second rule in force": {policy: func(p *policy.Policy) {
			p.Enclaves[0].NotAfter = now
			p.Enclaves = append(p.Enclaves, policy.Enclave{MREnclave: p.Enclaves[0].MREnclave})
		}},
		"an outdated platform":          {claims: func(c *Claims) { c.TCBStatus = "OutOfDate" }, reason: reasons(v1.Reason_REASON_TCB_NOT_ACCEPTED)},
		"a status that is accepted":     {claims: func(c *Claims) { c.TCBStatus = "SWHardeningNeeded" }, policy: func(p *policy.Policy) { p.TCB.Statuses = []string{"UpToDate", "SWHardeningNeeded"} }},
		"a revoked platform, ever":      {claims: func(c *Claims) { c.TCBStatus = "Revoked" }, policy: func(p *policy.Policy) { p.TCB.Statuses = []string{"Revoked"} }, reason: reasons(v1.Reason_REASON_TCB_NOT_ACCEPTED)},
		"no status at all":              {claims: func(c *Claims) { c.TCBStatus = "" }, reason: reasons(v1.Reason_REASON_TCB_NOT_ACCEPTED)},
		"an advisory":                   {claims: func(c *Claims) { c.AdvisoryIDs = []string{"INTEL-SA-00615"} }, reason: reasons(v1.Reason_REASON_TCB_NOT_ACCEPTED)},
		"an advisory that is tolerated": {claims: func(c *Claims) { c.AdvisoryIDs = []string{"INTEL-SA-00615"} }, policy: func(p *policy.Policy) { p.TCB.ToleratedAdvisories = []string{"INTEL-SA-00615"} }},
		"old collateral":                {policy: func(p *policy.Policy) { p.TCB.MinEvaluationDataNumber = 20 }, reason: reasons(v1.Reason_REASON_COLLATERAL_INVALID)},
		"another processor":             {claims: func(c *Claims) { c.PPID[0]++ }, reason: reasons(v1.Reason_REASON_PLATFORM_NOT_ENROLLED)},
		"another host's name":           {want: func(e *Expectation) { e.Host = "compute3" }, reason: reasons(v1.Reason_REASON_PLATFORM_NOT_ENROLLED)},
		"another platform is claimed":   {want: func(e *Expectation) { e.PlatformID = new([32]byte) }, reason: reasons(v1.Reason_REASON_PLATFORM_NOT_ENROLLED)},
		"a fleet that does not enrol":   {want: func(e *Expectation) { e.Host = "compute3" }, policy: func(p *policy.Policy) { p.Enrolment = "none" }},
		"every objection is reported": {
			claims: func(c *Claims) { c.MREnclave[0]++; c.TCBStatus = "OutOfDate"; c.AdvisoryIDs = []string{"A"} },
			reason: reasons(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, v1.Reason_REASON_TCB_NOT_ACCEPTED, v1.Reason_REASON_TCB_NOT_ACCEPTED),
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, p, e := claims(), accepting(), expectation()
			for _, change := range []func(){
				func() { apply(tc.claims, c) }, func() { apply(tc.policy, p) }, func() { apply(tc.want, &e) },
			} {
				change()
			}
			var got []v1.Reason
			for _, r := range Appraise(c, p, e) {
				got = append(got, r.Reason)
				if r.Item == "" || r.Found == "" || r.Expected == "" {
					t.Errorf("%v does not say what was found and expected of what", r)
				}
			}
			if !slices.Equal(got, tc.reason) {
				t.Errorf("got %v, want %v", got, tc.reason)
			}
		})
	}
}

func apply[T any](f func(*T), v *T) {
	if f != nil {
		f(v)
	}
}

func reasons(r ...v1.Reason) []v1.Reason { return r }

func claimsSigner() policy.Hex {
	c := claims()
	return c.MRSigner[:]
}
