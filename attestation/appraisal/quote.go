package appraisal

import (
	"errors"
	"slices"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// AttestedOf is what was verified of a quote, in the words of the API.
func AttestedOf(r *dcap.Result, mode v1.Mode) *v1.Attested {
	attested := &v1.Attested{
		Mode: mode, Mrenclave: r.MREnclave[:], Mrsigner: r.MRSigner[:], IsvProdId: uint32(r.ISVProdID), IsvSvn: uint32(r.ISVSVN), Debug: r.Debug,
		TcbStatus: string(r.Status), AdvisoryIds: r.AdvisoryIDs, TcbEvaluationDataNumber: r.EvaluationDataNumber(), Fmspc: r.FMSPC,
		Root: r.RootSubject, ExpiresAt: timestamppb.New(r.ExpiresAt),
	}
	if !r.TCBDate.IsZero() {
		attested.TcbDate = timestamppb.New(r.TCBDate)
	}
	return attested
}

// QuoteRefusal gives a failed verification its reason: revoked, the collateral's fault, or the quote's.
func QuoteRefusal(err error) *refusal.Refusal {
	e, ok := errors.AsType[*dcap.Error](err)
	if !ok {
		return refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is not verified: %w", err)
	}
	return refusal.New(reasonOf(e), "the quote is not verified: %w", err).On(string(e.Artefact)).Want(e.Found, e.Expected)
}

func reasonOf(e *dcap.Error) v1.Reason {
	ofQuote := slices.Contains([]dcap.Artefact{dcap.ArtefactPCKCertificate, dcap.ArtefactPCKCA, dcap.ArtefactPCKChain}, e.Artefact)
	switch e.Check {
	case dcap.CheckRevoked:
		return v1.Reason_REASON_CERTIFICATE_REVOKED
	case dcap.CheckMissing, dcap.CheckCRL, dcap.CheckSignature, dcap.CheckDocument, dcap.CheckPlatform:
		return v1.Reason_REASON_COLLATERAL_INVALID
	case dcap.CheckValidity:
		if !ofQuote {
			return v1.Reason_REASON_COLLATERAL_INVALID
		}
	case dcap.CheckChain, dcap.CheckRoot:
		if e.Artefact == dcap.ArtefactSigningChain {
			return v1.Reason_REASON_COLLATERAL_INVALID
		}
	default: // the quote's own fault
	}
	return v1.Reason_REASON_QUOTE_INVALID
}
