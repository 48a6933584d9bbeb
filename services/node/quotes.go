package node

import (
	"context"
	"errors"
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

// quoteVerifier verifies quotes under one root, each with the collateral of its kind of platform.
type quoteVerifier struct {
	mode  v1.Mode
	cache *collateral.Cache[*dcap.CheckedCollateral]
	// clock times each verification for record.
	clock  func() time.Time
	record func(time.Duration, error)
}

// verify says what an authentic quote claims. Its errors are refusals.
func (q *quoteVerifier) verify(ctx context.Context, raw []byte, now time.Time) (*appraisal.Claims, *v1.Attested, error) {
	begun := q.clock()
	claims, attested, err := q.judge(ctx, raw, now)
	q.record(q.clock().Sub(begun), err)
	return claims, attested, err
}

func (q *quoteVerifier) judge(ctx context.Context, raw []byte, now time.Time) (*appraisal.Claims, *v1.Attested, error) {
	key, err := dcap.PlatformOf(raw)
	if err != nil {
		return nil, nil, quoteRefusal(err)
	}
	checked, _, err := q.cache.Get(ctx, key)
	if err != nil {
		return nil, nil, collateralRefusal(key, err)
	}
	r, err := checked.Verify(raw, now)
	if err != nil {
		return nil, nil, quoteRefusal(err)
	}
	if r.Quote.SGX == nil {
		return nil, nil, refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is a TD's, not an SGX enclave's").On("quote").Want("TDX", "SGX")
	}
	return appraisal.ClaimsOf(r), &v1.Attested{
		Mode: q.mode, Mrenclave: r.MREnclave[:], Mrsigner: r.MRSigner[:], IsvProdId: uint32(r.ISVProdID), IsvSvn: uint32(r.ISVSVN),
		Debug: r.Debug, TcbStatus: string(r.Status), AdvisoryIds: r.AdvisoryIDs, TcbEvaluationDataNumber: r.EvaluationDataNumber(),
		TcbDate: timestamppb.New(r.TCBDate), Fmspc: r.FMSPC, Root: r.RootSubject, ExpiresAt: timestamppb.New(r.ExpiresAt),
	}, nil
}

// collateralRefusal names what there is no valid collateral for.
func collateralRefusal(key collateral.Key, err error) error {
	r := refusal.New(v1.Reason_REASON_COLLATERAL_INVALID, "there is no valid collateral for platforms of kind %s: %w", key, err).On("collateral")
	var validity *collateral.ValidityError
	if errors.As(err, &validity) {
		return r.On(validity.Artefact).Want(validity.Limit.UTC().Format(time.RFC3339), "valid at "+validity.Now.UTC().Format(time.RFC3339))
	}
	return r
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
