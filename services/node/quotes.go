package node

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// RootOfTrust is what quotes are verified under: the mode and the pinned key of its root.
type RootOfTrust struct {
	Mode v1.Mode
	Pin  dcap.RootPin
	// PolicyKeys are the keys that sign policies.
	PolicyKeys policy.Keys
}

// quoteVerifier verifies quotes under one root and one set of collateral.
type quoteVerifier struct {
	mode    v1.Mode
	checked *dcap.CheckedCollateral
	digest  [32]byte
}

func newQuoteVerifier(dir string, root RootOfTrust) (*quoteVerifier, error) {
	c, err := collateral.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("collateral.dir: %w", err)
	}
	checked, err := dcap.Verifier{Root: root.Pin}.CheckCollateral(c)
	if err != nil {
		return nil, fmt.Errorf("collateral.dir: %w", err)
	}
	return &quoteVerifier{mode: root.Mode, checked: checked, digest: c.Digest()}, nil
}

// verify says what an authentic quote claims. Its errors are refusals.
func (q *quoteVerifier) verify(raw []byte, now time.Time) (*appraisal.Claims, *v1.Attested, error) {
	r, err := q.checked.Verify(raw, now)
	if err != nil {
		return nil, nil, quoteRefusal(err)
	}
	if r.Quote.SGX == nil {
		return nil, nil, refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is a TD's, not an SGX enclave's").On("quote").Want("TDX", "SGX")
	}
	claims := &appraisal.Claims{
		MREnclave: r.MREnclave, MRSigner: r.MRSigner, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN, Debug: r.Debug,
		ReportData: r.ReportData, TCBStatus: string(r.Status), AdvisoryIDs: r.AdvisoryIDs,
		EvaluationDataNumber: r.EvaluationDataNumber(), PPID: r.PPID,
	}
	return claims, &v1.Attested{
		Mode: q.mode, Mrenclave: r.MREnclave[:], Mrsigner: r.MRSigner[:], IsvProdId: uint32(r.ISVProdID), IsvSvn: uint32(r.ISVSVN),
		Debug: r.Debug, TcbStatus: string(r.Status), AdvisoryIds: r.AdvisoryIDs, TcbEvaluationDataNumber: r.EvaluationDataNumber(),
		TcbDate: timestamppb.New(r.TCBDate), Fmspc: r.FMSPC, Root: r.RootSubject, ExpiresAt: timestamppb.New(r.ExpiresAt),
	}, nil
}

// quoteRefusal gives a failed verification its reason: revoked, the collateral's fault, or the quote's.
func quoteRefusal(err error) error {
	var e *dcap.Error
	if !errors.As(err, &e) {
		return refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote: %w", err)
	}
	ofQuote := []dcap.Artefact{dcap.ArtefactPCKCertificate, dcap.ArtefactPCKCA, dcap.ArtefactPCKChain}
	reason := v1.Reason_REASON_QUOTE_INVALID
	switch e.Check {
	case dcap.CheckRevoked:
		reason = v1.Reason_REASON_CERTIFICATE_REVOKED
	case dcap.CheckMissing, dcap.CheckCRL, dcap.CheckSignature, dcap.CheckDocument, dcap.CheckPlatform:
		reason = v1.Reason_REASON_COLLATERAL_INVALID
	case dcap.CheckValidity:
		if !slices.Contains(ofQuote, e.Artefact) {
			reason = v1.Reason_REASON_COLLATERAL_INVALID
		}
	case dcap.CheckChain, dcap.CheckRoot:
		if e.Artefact == dcap.ArtefactSigningChain {
			reason = v1.Reason_REASON_COLLATERAL_INVALID
		}
	default: // the quote's own fault
	}
	return refusal.New(reason, "the quote is not verified: %w", err).On(string(e.Artefact)).Want(e.Found, e.Expected)
}
