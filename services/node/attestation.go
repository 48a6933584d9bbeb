package node

import (
	"context"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// Bounds of a nonce, in bytes.
const (
	minNonce = 16
	maxNonce = 64
)

// attestationServer implements AttestationService.
type attestationServer struct {
	v1.UnimplementedAttestationServiceServer
	*node
}

// publicAttestation is the part of AttestationService that the peer port serves: evidence, no judgement.
type publicAttestation struct {
	v1.UnimplementedAttestationServiceServer
	inner *attestationServer
}

// GetEvidence implements AttestationService. Quotes cost: strangers share the handshakes' bound.
func (p *publicAttestation) GetEvidence(ctx context.Context, req *v1.GetEvidenceRequest) (*v1.GetEvidenceResponse, error) {
	if !p.inner.handshakes.TryAcquire(1) {
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "too many handshakes are under way")
	}
	defer p.inner.handshakes.Release(1)
	return p.inner.GetEvidence(ctx, req)
}

// evidenceReportData is what evidence outside a handshake is bound to: a label that no handshake uses, and the caller's nonce.
func evidenceReportData(nonce []byte) [64]byte {
	return transcript.H512("safeconduct/v1/evidence", nonce)
}

func checkNonce(nonce []byte) error {
	if len(nonce) < minNonce || len(nonce) > maxNonce {
		return invalid("nonce", "the nonce has %d bytes, not %d to %d", len(nonce), minNonce, maxNonce)
	}
	return nil
}

// GetEvidence implements AttestationService.
func (a *attestationServer) GetEvidence(ctx context.Context, req *v1.GetEvidenceRequest) (*v1.GetEvidenceResponse, error) {
	if err := checkNonce(req.GetNonce()); err != nil {
		return nil, err
	}
	quote, err := a.enclave.Quote(ctx, evidenceReportData(req.GetNonce()))
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_QUOTE_FAILED, "this enclave could not make its quote: %w", err)
	}
	return &v1.GetEvidenceResponse{Mode: a.mode, Quote: quote, Host: a.host}, nil
}

// Appraise implements AttestationService.
func (a *attestationServer) Appraise(ctx context.Context, req *v1.AppraiseRequest) (*v1.AppraiseResponse, error) {
	var bound *[64]byte
	if len(req.GetNonce()) > 0 {
		if err := checkNonce(req.GetNonce()); err != nil {
			return nil, err
		}
		data := evidenceReportData(req.GetNonce())
		bound = &data
	}
	verdict := a.judge().appraise(ctx, req.GetQuote(), bound, req.GetHost())
	out := &v1.AppraiseResponse{Accepted: len(verdict.Refusals) == 0}
	if verdict.Attested != nil {
		out.Attested = verdict.Attested
	}
	for _, r := range verdict.Refusals {
		out.Refusals = append(out.Refusals, r.Proto())
	}
	return out, nil
}
