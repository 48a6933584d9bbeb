package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/escrow"
)

// written is the digest of a state that a test says swtpm has written.
func written(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}

func (n *testNode) openState(digest []byte) (*v1.OpenStateResponse, error) {
	return n.crypto().OpenState(context.Background(), &v1.OpenStateRequest{InstanceId: vmID, Digest: digest})
}

func (n *testNode) opened(t *testing.T, digest []byte) *v1.OpenStateResponse {
	t.Helper()
	got, err := n.openState(digest)
	if err != nil || len(got.GetKey()) != escrow.StateKeySize {
		t.Fatalf("a key of %d bytes, %v", len(got.GetKey()), err)
	}
	return got
}

func (n *testNode) record(previous, digest []byte) (uint64, error) {
	got, err := n.crypto().RecordState(context.Background(), &v1.RecordStateRequest{InstanceId: vmID, Previous: previous, Digest: digest})
	return got.GetGeneration(), err
}

func (n *testNode) recorded(t *testing.T, previous, digest []byte) {
	t.Helper()
	if _, err := n.record(previous, digest); err != nil {
		t.Fatal(err)
	}
}

func TestTheStateKeyCrossesWithTheVMAndTheSourceCannotOpenAfterwards(t *testing.T) {
	r := newRig(t)
	key := r.src.opened(t, nil).GetKey()
	r.src.recorded(t, nil, written("1"))
	_, err := r.dst.openState(written("1"))
	want(t, "a copy of the state directory on another node", err, v1.Reason_REASON_NO_STATE_KEY)

	s, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	here := r.dst.opened(t, nil)
	if !bytes.Equal(here.GetKey(), key) || here.GetGeneration() != 0 {
		t.Error("another key at the destination, or a history")
	}
	r.dst.recorded(t, nil, written("empty"))
	r.src.opened(t, written("1")) // nothing of the state has left yet
	if _, err := r.src.arm("m1"); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.openState(written("1"))
	want(t, "the source while its state may leave", err, v1.Reason_REASON_SESSION_CONFLICT)
	r.src.recorded(t, written("1"), written("2")) // the guest still runs
	r.crossBoth(t)
	r.dst.recorded(t, written("empty"), written("3"))
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"1", "2"} {
		_, err = r.src.openState(written(left))
		want(t, "the source after the commit", err, v1.Reason_REASON_NO_STATE_KEY)
	}
	_, err = r.src.record(written("2"), written("4"))
	want(t, "a last write at the source", err, v1.Reason_REASON_NO_STATE_KEY)
	_, err = r.dst.openState(written("2"))
	want(t, "the source's state at the destination", err, v1.Reason_REASON_STATE_NOT_RECORDED)
	_, err = r.dst.openState(written("empty"))
	want(t, "the destination's state of before", err, v1.Reason_REASON_STATE_ROLLED_BACK)
	r.dst.stop()
	r.dst.start(t)
	if got := r.dst.opened(t, written("3")); !bytes.Equal(got.GetKey(), key) || got.GetGeneration() != 2 {
		t.Errorf("generation %d, or another key", got.GetGeneration())
	}
}

func TestAnAbortedMigrationLeavesTheStateKeyAtTheSource(t *testing.T) {
	r := newRig(t)
	r.src.opened(t, nil)
	r.src.recorded(t, nil, written("1"))
	s := r.armed(t, "m1")
	r.dst.opened(t, nil)
	r.dst.recorded(t, nil, written("2"))
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	for r.dst.listed(t) != 0 && t.Context().Err() == nil { // it is dropped in the background
		continue
	}
	_, err := r.dst.openState(written("2"))
	want(t, "what is left at the destination", err, v1.Reason_REASON_NO_STATE_KEY)
	r.src.opened(t, written("1"))
}

func TestADestinationWithoutTheModeTakesNoStateOfAVMThatHasIt(t *testing.T) {
	r := newRig(t)
	r.src.opened(t, nil)
	s := r.armed(t, "m1")
	sealed, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.dst.unprotect(v1.StateType_STATE_TYPE_PERMANENT, sealed)
	want(t, "a helper that did not ask for the key", err, v1.Reason_REASON_STATE_KEY_UNUSED)
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	r.src.opened(t, nil)
}

func TestAVMComesUnderAStateKeyByAMigration(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	made := r.dst.opened(t, nil)
	r.dst.recorded(t, nil, written("1"))
	r.crossBoth(t)
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	if got := r.dst.opened(t, written("1")); !bytes.Equal(got.GetKey(), made.GetKey()) {
		t.Error("another key")
	}
	receipts, err := v1.NewReceiptServiceClient(r.dst.conn).ListReceipts(t.Context(), &v1.ListReceiptsRequest{})
	if err != nil || len(receipts.GetReceipts()) != 1 {
		t.Errorf("%v, %v", receipts, err)
	}
}

func TestAVMThatIsLeavingGetsNoNewStateKey(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	_, err := r.src.openState(nil)
	want(t, "a key that would stay behind", err, v1.Reason_REASON_SESSION_CONFLICT)
}

func TestAStateIsOpenedAndRecordedByTheVMsOwnHelper(t *testing.T) {
	r := newRig(t)
	r.src.opened(t, nil)
	stranger := r.src.stranger(t)
	_, err := stranger.openState(nil)
	want(t, "opening beside the VM's helper", err, v1.Reason_REASON_HELPER_CONFLICT)
	_, err = stranger.record(nil, written("1"))
	want(t, "recording beside it", err, v1.Reason_REASON_HELPER_CONFLICT)
	r.src.detach()
	if _, err := stranger.openState(nil); err != nil {
		t.Errorf("a helper that is about to start swtpm: %v", err)
	}
}

func TestWhatIsNoStateIsRefused(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for _, c := range []struct {
		name string
		call func() error
		want v1.Reason
	}{
		{"no UUID", func() error {
			_, err := r.src.crypto().OpenState(ctx, &v1.OpenStateRequest{InstanceId: "x"})
			return err
		}, v1.Reason_REASON_INVALID_REQUEST},
		{"half a digest", func() error { _, err := r.src.openState(written("1")[:16]); return err }, v1.Reason_REASON_INVALID_REQUEST},
		{"no digest to record", func() error { _, err := r.src.record(nil, nil); return err }, v1.Reason_REASON_INVALID_REQUEST},
		{"half a previous digest", func() error { _, err := r.src.record(written("1")[:16], written("2")); return err }, v1.Reason_REASON_INVALID_REQUEST},
		{"no UUID to record", func() error {
			_, err := r.src.crypto().RecordState(ctx, &v1.RecordStateRequest{InstanceId: "x", Digest: written("1")})
			return err
		}, v1.Reason_REASON_INVALID_REQUEST},
		{"a state that follows with no session", func() error {
			_, err := r.src.crypto().OpenState(ctx, &v1.OpenStateRequest{InstanceId: vmID, Digest: written("1"), StateFollows: true})
			return err
		}, v1.Reason_REASON_NO_SESSION},
		{"accepting half a digest", func() error {
			_, err := r.src.admin().AcceptState(ctx, &v1.AcceptStateRequest{InstanceId: vmID, Digest: []byte("x")})
			return err
		}, v1.Reason_REASON_INVALID_REQUEST},
		{"accepting for no UUID", func() error {
			_, err := r.src.admin().AcceptState(ctx, &v1.AcceptStateRequest{InstanceId: "x", Digest: written("1")})
			return err
		}, v1.Reason_REASON_INVALID_REQUEST},
		{"listing for no UUID", func() error {
			_, err := r.src.admin().ListStates(ctx, &v1.ListStatesRequest{InstanceId: "x"})
			return err
		}, v1.Reason_REASON_INVALID_REQUEST},
	} {
		want(t, c.name, c.call(), c.want)
	}
}

func TestAnOperatorAcceptsTheStateThatWasRefused(t *testing.T) {
	r := newRig(t)
	r.src.opened(t, nil)
	r.src.recorded(t, nil, written("1"))
	r.src.recorded(t, written("1"), written("2"))
	_, err := r.src.openState(written("1"))
	want(t, "an old state", err, v1.Reason_REASON_STATE_ROLLED_BACK)
	listed, err := r.src.admin().ListStates(t.Context(), &v1.ListStatesRequest{InstanceId: vmID})
	if err != nil || len(listed.GetStates()) != 1 {
		t.Fatal(listed, err)
	}
	got := listed.GetStates()[0]
	if got.GetGeneration() != 2 || !bytes.Equal(got.GetDigest(), written("2")) || !bytes.Equal(got.GetRefusedDigest(), written("1")) ||
		got.GetRefusedReason() != v1.Reason_REASON_STATE_ROLLED_BACK || got.GetRefusedGeneration() != 1 || got.GetRecordedAt() == nil || got.GetRefusedAt() == nil {
		t.Errorf("%v", got)
	}
	accept := func(n *testNode, digest []byte) (*v1.AcceptStateResponse, error) {
		return n.admin().AcceptState(t.Context(), &v1.AcceptStateRequest{InstanceId: vmID, Digest: digest})
	}
	_, err = accept(r.src.stranger(t), written("1"))
	want(t, "while the VM's helper is attached", err, v1.Reason_REASON_HELPER_CONFLICT)
	_, err = accept(r.src, written("7"))
	want(t, "another state", err, v1.Reason_REASON_INVALID_REQUEST)
	if answer, err := accept(r.src, written("1")); err != nil || answer.GetGeneration() != 3 {
		t.Fatal(answer, err)
	}
	if got := r.src.opened(t, written("1")); got.GetGeneration() != 3 || !bytes.Equal(got.GetRecorded(), written("1")) {
		t.Errorf("%v", got.GetGeneration())
	}
}
