// Package rpcerror carries a typed refusal over gRPC and back: a status with a google.rpc.ErrorInfo detail, which every caller of the node
// service reads the same way.
package rpcerror

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Domain is the domain of every google.rpc.ErrorInfo of ours.
const Domain = "safeconduct.dev"

// Status turns a refusal into what a local caller gets: a gRPC status with the reason, the finding and the remedy.
func Status(err error) error {
	if err == nil {
		return nil
	}
	var r *refusal.Refusal
	if _, ok := status.FromError(err); ok && !errors.As(err, &r) { // a refusal may wrap the status of another call, which is not this call's
		return err
	}
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	r = refusal.From(err)
	st := status.New(code(r.Reason), r.Error())
	metadata := map[string]string{"remedy": r.RemedyText()}
	for key, value := range map[string]string{"message": r.Message, "item": r.Item, "found": r.Found, "expected": r.Expected} {
		if value != "" {
			metadata[key] = value
		}
	}
	detailed, derr := st.WithDetails(&errdetails.ErrorInfo{Reason: refusal.Name(r.Reason), Domain: Domain, Metadata: metadata})
	if derr != nil {
		return st.Err()
	}
	return detailed.Err()
}

// ForPeer is what a peer gets: a code and a reason that it could have seen for itself, nothing else.
func ForPeer(err error) error {
	if err == nil {
		return nil
	}
	reason := refusal.Blunt(err).GetReason()
	return Status(refusal.New(reason, "refused"))
}

// Refusal is the inverse of Status, for clients: the refusal behind a gRPC error. An error without one is PEER_UNAVAILABLE if the call did
// not get through, else INTERNAL.
func Refusal(err error) *refusal.Refusal {
	if err == nil {
		return nil
	}
	if r, ok := Typed(err); ok {
		return r
	}
	st := status.Convert(err)
	reason := v1.Reason_REASON_INTERNAL
	if st.Code() == codes.Unavailable || st.Code() == codes.DeadlineExceeded || st.Code() == codes.Canceled {
		reason = v1.Reason_REASON_PEER_UNAVAILABLE
	}
	return refusal.New(reason, "%s: %w", st.Message(), err)
}

// Typed is the refusal that err is or carries as a status detail, if it does.
func Typed(err error) (*refusal.Refusal, bool) {
	var r *refusal.Refusal
	if errors.As(err, &r) {
		return r, true
	}
	for _, d := range status.Convert(err).Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != Domain {
			continue
		}
		m := info.GetMetadata()
		return refusal.FromProto(&v1.Refusal{
			Reason: v1.Reason(v1.Reason_value["REASON_"+info.GetReason()]), Message: m["message"],
			Item: m["item"], Found: m["found"], Expected: m["expected"], Remedy: m["remedy"],
		}), true
	}
	return nil, false
}

// code maps a reason to the gRPC code that tells a generic client whether to try again.
func code(reason v1.Reason) codes.Code {
	switch reason {
	case v1.Reason_REASON_UNSPECIFIED, v1.Reason_REASON_INTERNAL, v1.Reason_REASON_MEASUREMENT_FAILED, v1.Reason_REASON_QUOTE_FAILED:
		return codes.Internal
	case v1.Reason_REASON_INVALID_REQUEST, v1.Reason_REASON_SAME_NODE:
		return codes.InvalidArgument
	case v1.Reason_REASON_NO_SESSION, v1.Reason_REASON_NO_SECRET, v1.Reason_REASON_NO_RECEIPT, v1.Reason_REASON_UNKNOWN_PEER,
		v1.Reason_REASON_NO_STATE_KEY:
		return codes.NotFound
	case v1.Reason_REASON_PEER_UNAVAILABLE, v1.Reason_REASON_DRAINING:
		return codes.Unavailable
	case v1.Reason_REASON_LIMIT_EXCEEDED:
		return codes.ResourceExhausted
	case v1.Reason_REASON_ALREADY_USED, v1.Reason_REASON_SECRET_CONFLICT, v1.Reason_REASON_HELPER_CONFLICT:
		return codes.AlreadyExists
	case v1.Reason_REASON_ABORTED, v1.Reason_REASON_RESTARTED, v1.Reason_REASON_SESSION_EXPIRED, v1.Reason_REASON_SESSION_CONFLICT:
		return codes.Aborted
	case v1.Reason_REASON_CIPHERTEXT_INVALID, v1.Reason_REASON_CIPHERTEXT_TRUNCATED, v1.Reason_REASON_SEALED_DATA_INVALID,
		v1.Reason_REASON_STATE_ROLLED_BACK, v1.Reason_REASON_STATE_NOT_RECORDED:
		return codes.DataLoss
	case v1.Reason_REASON_NO_ARMED_SESSION, v1.Reason_REASON_WRONG_STATE, v1.Reason_REASON_UNSAFE_MIGRATION, v1.Reason_REASON_HELPER_NOT_ATTACHED,
		v1.Reason_REASON_STATE_KEY_UNUSED:
		return codes.FailedPrecondition
	default:
		return codes.PermissionDenied
	}
}
