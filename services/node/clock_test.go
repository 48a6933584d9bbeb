package node

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

func TestASecondMigrationOfOneInstanceIsRefused(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "a second session beside a live one", err, v1.Reason_REASON_SESSION_CONFLICT)
	_, err = r.dst.establish(t.Context(), "compute1", v1.Role_ROLE_SOURCE)
	want(t, "a migration back while one comes in", err, v1.Reason_REASON_SESSION_CONFLICT)
	_, err = r.dst.establish(t.Context(), "compute1", v1.Role_ROLE_DESTINATION)
	if reason := rpcerror.Refusal(err).Reason; reason != v1.Reason_REASON_PEER_REFUSED {
		t.Errorf("the destination asks again beside a live session: %v", err)
	}
	_, err = r.src.arm("m2")
	want(t, "another migration id for a live session", err, v1.Reason_REASON_WRONG_STATE)
	if _, err := r.src.arm("m1"); err != nil {
		t.Errorf("the same id again: %v", err)
	}
}

func TestAMigrationIDServesOnce(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	_, err := r.src.arm("m1")
	want(t, "an id that was used", err, v1.Reason_REASON_ALREADY_USED)
}

func TestSourceAndDestinationAreTwoNodes(t *testing.T) {
	r := newRig(t)
	for _, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		_, err := r.src.establish(t.Context(), "compute1", role)
		want(t, role.String(), err, v1.Reason_REASON_SAME_NODE)
	}
}

func TestAClockThatIsSteppedForwardEndsSessionsWithTheirReason(t *testing.T) {
	for name, step := range map[string]struct {
		by    time.Duration
		armed bool
		want  v1.Reason
	}{
		"past the life of an unarmed session": {6 * time.Minute, false, v1.Reason_REASON_NO_SESSION},
		"past the life of an armed session":   {3 * time.Hour, true, v1.Reason_REASON_NO_ARMED_SESSION},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if step.armed {
				r.armed(t, "m1")
			} else if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
				t.Fatal(err)
			}
			r.src.skew.Store(int64(step.by))
			var err error
			if step.armed {
				_, err = r.src.protect(volatile, random(10))
			} else {
				_, err = r.src.arm("m1")
			}
			want(t, "afterwards", err, step.want)
			if found := rpcerror.Refusal(err).Found; !strings.Contains(found, "SESSION_EXPIRED") {
				t.Errorf("the refusal does not say that it expired: %q", found)
			}
		})
	}
}

func TestAnAppraisalOfTheFutureIsMadeAgain(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	r.src.skew.Store(-int64(time.Minute)) // the clock was stepped back: the appraisal's age is unknown
	if _, err := r.src.arm("m1"); err != nil {
		t.Fatal(err)
	}
	if s := r.src.sessions(t); len(s) != 1 || s[0].GetAppraisedAt().AsTime().After(time.Now().Add(-30*time.Second)) {
		t.Errorf("the appraisal was not made again: %v", s)
	}
}

func TestClocksThatAreFarApartRefuseEachOther(t *testing.T) {
	for _, by := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		r := newRig(t)
		r.dst.skew.Store(int64(by))
		_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
		want(t, by.String(), err, v1.Reason_REASON_INTEGRITY_MISMATCH)
		if r := rpcerror.Refusal(err); r.Item != "measured_at" {
			t.Errorf("the refusal names %q", r.Item)
		}
	}
}
