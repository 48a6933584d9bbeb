package appraisal

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// TestOneQuoteUnderTwoEvaluationNumbersHasTwoVerdicts: the platform is up to date by the older collateral and out of date by the newer, so a policy that
// asks for the newer generation refuses it under either, for two reasons.
func TestOneQuoteUnderTwoEvaluationNumbersHasTwoVerdicts(t *testing.T) {
	dir := t.TempDir()
	authority, err := simulated.CreateAuthority(filepath.Join(dir, "authority"), simulated.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.CreatePlatform(filepath.Join(dir, "platform"), simulated.PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := simulated.Open(filepath.Join(dir, "platform"), simulated.Measurement{MREnclave: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	quote, err := p.Quote(t.Context(), [64]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	pin, err := dcap.PinPEM(authority.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	claimsUnder := func(o simulated.CollateralOptions) *Claims {
		t.Helper()
		if err := authority.WriteCollateral(filepath.Join(dir, "collateral"), o); err != nil {
			t.Fatal(err)
		}
		c, err := collateral.LoadDir(filepath.Join(dir, "collateral"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := dcap.Verifier{Root: pin}.Verify(quote, c, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return ClaimsOf(r)
	}
	newer := simulated.DefaultLevels()
	newer[0].PCESVN++
	newer[1].Advisories = nil
	older := claimsUnder(simulated.CollateralOptions{EvaluationDataNumber: 17})
	late := claimsUnder(simulated.CollateralOptions{EvaluationDataNumber: 19, Levels: newer, CRLNumber: 5})

	accept := policy.Policy{Enclaves: []policy.Enclave{{MREnclave: older.MREnclave[:]}}}
	minimum := accept
	minimum.TCB.MinEvaluationDataNumber = 19
	at := Expectation{Now: time.Now()}
	for name, tc := range map[string]struct {
		claims *Claims
		policy policy.Policy
		want   v1.Reason
	}{
		"17, no minimum":    {older, accept, 0},
		"19, no minimum":    {late, accept, v1.Reason_REASON_TCB_NOT_ACCEPTED},
		"17, 19 at minimum": {older, minimum, v1.Reason_REASON_COLLATERAL_INVALID},
		"19, 19 at minimum": {late, minimum, v1.Reason_REASON_TCB_NOT_ACCEPTED},
	} {
		got := Appraise(tc.claims, &tc.policy, at)
		if tc.want == 0 && len(got) != 0 || tc.want != 0 && (len(got) != 1 || !errors.Is(got[0], refusal.Because(tc.want))) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	if late.PCKCRLNumber != 5 || late.RootCACRLNumber != 5 || late.OldestArtefact == "" || time.Since(late.OldestIssued) < 30*time.Minute {
		t.Errorf("claims %+v", late)
	}
}

func TestOldRevocationListsAndOldCollateralAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*policy.Policy)
		item   string
	}{
		"the PCK CRL":  {func(p *policy.Policy) { p.TCB.MinPCKCRLNumber = 8 }, "pck_crl"},
		"the root CRL": {func(p *policy.Policy) { p.TCB.MinRootCACRLNumber = 10 }, "root_ca_crl"},
		"the age":      {func(p *policy.Policy) { p.TCB.MaxCollateralAge = policy.Duration(time.Hour) }, "tcb_info"},
	} {
		c := claims()
		c.PCKCRLNumber, c.RootCACRLNumber, c.OldestIssued, c.OldestArtefact = 7, 9, now.Add(-2*time.Hour), "tcb_info"
		p := accepting()
		if got := Appraise(c, p, expectation()); len(got) != 0 {
			t.Fatalf("%s: refused before: %v", name, got)
		}
		tc.change(p)
		got := Appraise(c, p, expectation())
		if len(got) != 1 || got[0].Reason != v1.Reason_REASON_COLLATERAL_INVALID || got[0].Item != tc.item || got[0].Found == "" || got[0].Expected == "" {
			t.Errorf("%s: %v", name, got)
		}
	}
	c, p := claims(), accepting()
	c.PCKCRLNumber, c.OldestIssued = 7, now.Add(-time.Hour)
	p.TCB.MinPCKCRLNumber, p.TCB.MaxCollateralAge = 7, policy.Duration(time.Hour)
	if got := Appraise(c, p, expectation()); len(got) != 0 {
		t.Errorf("at its bounds: %v", got)
	}
}
