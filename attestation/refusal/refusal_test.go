package refusal

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func TestEveryReasonHasARemedy(t *testing.T) {
	for n, name := range v1.Reason_name {
		if Remedies(v1.Reason(n)) == "" {
			t.Errorf("%s has no remedy: an operator would not know what to do", name)
		}
	}
}

func TestARefusalIsFoundThroughWrapping(t *testing.T) {
	r := New(v1.Reason_REASON_TCB_NOT_ACCEPTED, "status %s: %w", "OutOfDate", io.ErrUnexpectedEOF).Want("OutOfDate", "UpToDate")
	err := fmt.Errorf("peer: %w", r)
	if !errors.Is(err, Because(v1.Reason_REASON_TCB_NOT_ACCEPTED)) || errors.Is(err, Because(v1.Reason_REASON_INTERNAL)) {
		t.Error("errors.Is does not go by reason")
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	if got := From(err); got != r {
		t.Errorf("From = %v", got)
	}
	if s := r.Error(); !strings.Contains(s, "found OutOfDate, expected UpToDate") || !strings.HasPrefix(s, "TCB_NOT_ACCEPTED: ") {
		t.Errorf("Error() = %q", s)
	}
}

func TestAnUntypedErrorIsInternal(t *testing.T) {
	if got := From(io.EOF); got.Reason != v1.Reason_REASON_INTERNAL || !errors.Is(got, io.EOF) {
		t.Errorf("From(io.EOF) = %v", got)
	}
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
}

func TestAnUnappraisedPeerLearnsNothing(t *testing.T) {
	for n := range v1.Reason_name {
		reason := v1.Reason(n)
		got := Blunt(New(reason, "secret detail")).GetReason()
		switch reason {
		case v1.Reason_REASON_PROTOCOL_VIOLATION, v1.Reason_REASON_SUITE_MISMATCH, v1.Reason_REASON_MODE_MISMATCH,
			v1.Reason_REASON_SAME_NODE, v1.Reason_REASON_LIMIT_EXCEEDED, v1.Reason_REASON_DRAINING:
			if got != reason {
				t.Errorf("Blunt(%v) = %v", reason, got)
			}
		default:
			if got != v1.Reason_REASON_PEER_REFUSED {
				t.Errorf("Blunt(%v) tells the peer %v", reason, got)
			}
		}
	}
}

func TestATextFromAPeerIsCut(t *testing.T) {
	got := FromProto(&v1.Refusal{Message: strings.Repeat("x", 10*MaxText), Found: "\xff"})
	if len(got.Message) > MaxText+3 || got.Found != "?" {
		t.Errorf("len %d, found %q", len(got.Message), got.Found)
	}
}

func TestAttributesSayWhyAndOfARefusalWhatToDo(t *testing.T) {
	plain := errors.New("no such file")
	if got := Attributes(plain); len(got) != 2 || got[0] != "why" || fmt.Sprint(got[1]) != plain.Error() {
		t.Errorf("found %v", got)
	}
	r := New(v1.Reason_REASON_NO_ARMED_SESSION, "there is none").Do("arm one")
	got := Attributes(fmt.Errorf("attach: %w", r))
	if len(got) != 6 || got[3] != "NO_ARMED_SESSION" || got[5] != "arm one" {
		t.Errorf("found %v", got)
	}
}
