package node

import (
	"context"
	"errors"
	"time"

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
		return nil, nil, appraisal.QuoteRefusal(err)
	}
	checked, _, err := q.cache.Get(ctx, key)
	if err != nil {
		return nil, nil, collateralRefusal(key, err)
	}
	r, err := checked.Verify(raw, now)
	if err != nil {
		return nil, nil, appraisal.QuoteRefusal(err)
	}
	if r.Quote.SGX == nil {
		return nil, nil, refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is a TD's, not an SGX enclave's").On("quote").Want("TDX", "SGX")
	}
	return appraisal.ClaimsOf(r), appraisal.AttestedOf(r, q.mode), nil
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
