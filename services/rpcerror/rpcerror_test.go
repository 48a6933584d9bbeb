package rpcerror

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func TestARefusalCrossesTheWireWhole(t *testing.T) {
	sent := refusal.New(v1.Reason_REASON_INTEGRITY_MISMATCH, "qemu differs").On("vmm/qemu").Want("aa", "bb").Do("look")
	got := Refusal(Status(sent))
	if *got != *sent {
		t.Errorf("got %+v, sent %+v", got, sent)
	}
	if code := status.Code(Status(sent)); code != codes.PermissionDenied {
		t.Errorf("code %v", code)
	}
}

func TestARefusalThatWrapsAnotherCallsStatusKeepsItsReason(t *testing.T) {
	sent := refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "compute2 is away: %w", status.Error(codes.Unavailable, "connection reset")).Do("look")
	if got, ok := Typed(Status(sent)); !ok || got.Reason != sent.Reason || got.Remedy != "look" {
		t.Errorf("got %+v, sent %+v", got, sent)
	}
}

func TestAPeerIsToldNothingThatItCouldNotSee(t *testing.T) {
	for reason, want := range map[v1.Reason]v1.Reason{
		v1.Reason_REASON_INTEGRITY_MISMATCH: v1.Reason_REASON_PEER_REFUSED,
		v1.Reason_REASON_DRAINING:           v1.Reason_REASON_DRAINING,
	} {
		got := Refusal(ForPeer(refusal.New(reason, "qemu differs").On("vmm/qemu").Want("aa", "bb")))
		if got.Reason != want || got.Message != "refused" || got.Item != "" || got.Found != "" || got.Expected != "" {
			t.Errorf("a peer gets %+v", got)
		}
	}
}

func TestAnErrorWithoutARefusalSaysWhetherTheCallGotThrough(t *testing.T) {
	for err, want := range map[error]v1.Reason{
		status.Error(codes.Unavailable, "no"):      v1.Reason_REASON_PEER_UNAVAILABLE,
		status.Error(codes.DeadlineExceeded, "no"): v1.Reason_REASON_PEER_UNAVAILABLE,
		status.Error(codes.Internal, "no"):         v1.Reason_REASON_INTERNAL,
		errors.New("no"):                           v1.Reason_REASON_INTERNAL,
	} {
		if got := Refusal(err); got.Reason != want {
			t.Errorf("%v: %v, want %v", err, got.Reason, want)
		}
	}
	if Refusal(nil) != nil || Status(nil) != nil || ForPeer(nil) != nil {
		t.Error("nil does not stay nil")
	}
	if status.Code(Status(context.Canceled)) != codes.Canceled {
		t.Error("a cancelled call is no longer cancelled")
	}
}

func TestEveryReasonHasACode(t *testing.T) {
	for number := range v1.Reason_name {
		if c := code(v1.Reason(number)); c == codes.OK || c == codes.Unknown {
			t.Errorf("%v: %v", v1.Reason(number), c)
		}
	}
}

func TestAReasonOfALaterReleaseIsUnspecified(t *testing.T) {
	st, err := status.New(codes.PermissionDenied, "no").WithDetails(&errdetails.ErrorInfo{
		Reason: "SOMETHING_NEW", Domain: Domain, Metadata: map[string]string{"message": "what is new", "remedy": "upgrade"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := Refusal(st.Err())
	if got.Reason != v1.Reason_REASON_UNSPECIFIED || got.Message != "what is new" || got.Remedy != "upgrade" {
		t.Errorf("got %+v", got)
	}
}
