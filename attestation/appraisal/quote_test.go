package appraisal

import (
	"errors"
	"fmt"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
)

func TestAFailedVerificationIsTheQuotesFaultTheCollateralsOrARevocation(t *testing.T) {
	const quote, collateral = v1.Reason_REASON_QUOTE_INVALID, v1.Reason_REASON_COLLATERAL_INVALID
	for _, c := range []struct {
		check    dcap.Check
		artefact dcap.Artefact
		want     v1.Reason
	}{
		{dcap.CheckRevoked, dcap.ArtefactPCKCertificate, v1.Reason_REASON_CERTIFICATE_REVOKED},
		{dcap.CheckMissing, dcap.ArtefactTCBInfo, collateral},
		{dcap.CheckSignature, dcap.ArtefactTCBInfo, collateral},
		{dcap.CheckPlatform, dcap.ArtefactTCBInfo, collateral},
		{dcap.CheckValidity, dcap.ArtefactTCBInfo, collateral},
		{dcap.CheckValidity, dcap.ArtefactPCKCertificate, quote},
		{dcap.CheckValidity, dcap.ArtefactPCKCA, quote},
		{dcap.CheckChain, dcap.ArtefactSigningChain, collateral},
		{dcap.CheckChain, dcap.ArtefactPCKChain, quote},
		{dcap.CheckRoot, dcap.ArtefactSigningChain, collateral},
		{dcap.CheckRoot, dcap.ArtefactPCKChain, quote},
	} {
		err := &dcap.Error{Check: c.check, Artefact: c.artefact, Found: "this", Expected: "that"}
		r := QuoteRefusal(fmt.Errorf("platform: %w", err)).Proto()
		if r.GetReason() != c.want || r.GetItem() != string(c.artefact) || r.GetFound() != "this" || r.GetExpected() != "that" {
			t.Errorf("%s of %s: found %v, expected %v", c.check, c.artefact, r, c.want)
		}
	}
	if r := QuoteRefusal(errors.New("too short")).Proto(); r.GetReason() != quote || r.GetItem() != "" {
		t.Errorf("any other error: found %v", r)
	}
}
