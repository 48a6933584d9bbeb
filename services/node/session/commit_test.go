package session

import (
	"errors"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func wantWrongState(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, refusal.Because(v1.Reason_REASON_WRONG_STATE)) {
		t.Errorf("%s: %v", what, err)
	}
}

func TestABlobThatIsUnderWayStopsACommit(t *testing.T) {
	table, _ := newTable(Limits{})
	s, _ := mustArm(t, table, outgoing(vm), "m1")
	who := s.Record().Identity
	blob := func(kind v1.StateType) {
		t.Helper()
		if _, err := table.BeginBlob(who.Instance, who.Role, kind); err != nil {
			t.Fatal(err)
		}
	}
	end := func(kind v1.StateType) {
		t.Helper()
		if err := s.EndBlob(&v1.BlobReport{Type: kind}); err != nil {
			t.Fatal(err)
		}
	}
	blob(v1.StateType_STATE_TYPE_PERMANENT)
	wantWrongState(t, "while the first blob crosses", s.BeginCommit())
	wantWrongState(t, "Commit itself", s.Commit())
	end(v1.StateType_STATE_TYPE_PERMANENT)
	wantWrongState(t, "with one of two", s.BeginCommit())
	blob(v1.StateType_STATE_TYPE_VOLATILE)
	wantWrongState(t, "while the second blob crosses", s.BeginCommit())
	end(v1.StateType_STATE_TYPE_VOLATILE)
	if err := s.BeginCommit(); err != nil {
		t.Fatal(err)
	}
	_, err := table.BeginBlob(who.Instance, who.Role, v1.StateType_STATE_TYPE_SAVESTATE)
	wantWrongState(t, "a blob after the commit has begun", err)
	_, err = table.BeginPart(who.Instance, who.Role, Part{Name: "x"})
	wantWrongState(t, "an image after the commit has begun", err)
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
}
