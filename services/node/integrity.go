package node

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// integrityServer implements IntegrityService.
type integrityServer struct {
	v1.UnimplementedIntegrityServiceServer
	*node
}

// GetLog implements IntegrityService.
func (i *integrityServer) GetLog(context.Context, *v1.GetLogRequest) (*v1.GetLogResponse, error) {
	raw, at := i.logs.last()
	if raw == nil {
		return nil, refusal.New(v1.Reason_REASON_MEASUREMENT_FAILED, "this host was not measured since the service started").Do("call Measure")
	}
	log, err := hostlog.Parse(raw)
	if err != nil {
		return nil, err
	}
	return &v1.GetLogResponse{Log: log, MeasuredAt: timestamppb.New(at)}, nil
}

// Measure implements IntegrityService.
func (i *integrityServer) Measure(ctx context.Context, _ *v1.MeasureRequest) (*v1.MeasureResponse, error) {
	measured, err := i.logs.Log(ctx, [32]byte{})
	if err != nil {
		return nil, err
	}
	log, err := hostlog.Parse(measured.Raw)
	if err != nil {
		return nil, err
	}
	return &v1.MeasureResponse{Log: log}, nil
}

// GetPolicy implements IntegrityService.
func (i *integrityServer) GetPolicy(context.Context, *v1.GetPolicyRequest) (*v1.GetPolicyResponse, error) {
	p := i.judge().policy
	return &v1.GetPolicyResponse{Policy: p.Raw, Digest: p.Digest[:], Mode: i.mode}, nil
}

// Endorse implements IntegrityService.
func (i *integrityServer) Endorse(ctx context.Context, _ *v1.EndorseRequest) (*v1.EndorseResponse, error) {
	if i.logs.tpm == nil {
		return &v1.EndorseResponse{Mode: i.mode}, nil
	}
	e, err := i.logs.tpm.Endorse(ctx)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_MEASUREMENT_FAILED, "the host's TPM: %w", err).On("tpm")
	}
	return &v1.EndorseResponse{AkPublic: e.AKPublic, EkPublic: e.EKPublic, EkCertificate: e.Certificate, EkChain: e.Chain, Mode: i.mode}, nil
}
