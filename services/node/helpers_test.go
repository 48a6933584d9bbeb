package node

import (
	"bytes"
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

const otherVM = "0c6f1d3e-5b1f-4d62-9b0a-000000000001"

// stranger is another connection of the same uid.
func (n *testNode) stranger(t *testing.T) *testNode {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.cfg.Local.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &testNode{name: n.name, cfg: n.cfg, conn: conn}
}

func TestAVMWhoseSwtpmHasNoHelperIsNotArmed(t *testing.T) {
	r := newRig(t)
	r.src.detach()
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	_, err := r.src.arm("m1")
	want(t, "Arm without a helper", err, v1.Reason_REASON_HELPER_NOT_ATTACHED)
	armed := make(chan error, 1)
	go func() {
		_, err := r.src.arm("m1")
		armed <- err
	}()
	r.src.attach(t, vmID) // the node service has just started, and the helper comes back: the session is still there
	if err := <-armed; err != nil {
		t.Error(err)
	}
}

func TestAVMWithoutAVTPMNeedsNoHelper(t *testing.T) {
	r := newRig(t)
	r.src.detach()
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.migration().Arm(t.Context(), &v1.ArmRequest{
		InstanceId: vmID, DestinationHost: "compute2", MigrationId: "m1", ReturnPath: true, WithoutVtpm: true,
	}); err != nil {
		t.Error(err)
	}
}

func TestStateCrossesForTheVMsOwnHelperOnly(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	stranger := r.src.stranger(t)
	_, err := stranger.protect(volatile, random(10))
	want(t, "a blob of a VM with another helper", err, v1.Reason_REASON_HELPER_CONFLICT)
	_, err = attach(stranger.crypto(), vmID)
	want(t, "a second helper", err, v1.Reason_REASON_HELPER_CONFLICT)
	ciphertext, err := r.src.protect(volatile, random(10)) // the stranger has used up nothing
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.dst.stranger(t).unprotect(volatile, ciphertext)
	want(t, "plaintext for another than the helper", err, v1.Reason_REASON_HELPER_CONFLICT)
	r.dst.detach()
	_, err = r.dst.unprotect(volatile, ciphertext)
	want(t, "plaintext without a helper", err, v1.Reason_REASON_HELPER_NOT_ATTACHED)
	r.dst.attach(t, vmID)
	if _, err := r.dst.unprotect(volatile, ciphertext); err != nil {
		t.Error(err)
	}
}

func TestAHelperThatIsGoneGivesItsPlaceUp(t *testing.T) {
	r := newRig(t)
	r.src.detach()
	stranger := r.src.stranger(t)
	stranger.attach(t, vmID)
	_ = stranger.conn.Close() // as when its process is killed
	for {
		if _, err := attach(r.src.crypto(), vmID); err == nil {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("the place is not given up")
		}
	}
}

func TestTheStatusNamesTheVMsWithAHelper(t *testing.T) {
	r := newRig(t)
	r.src.attach(t, otherVM)
	got, err := r.src.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := got.GetAttachedInstances(); len(got) != 2 || got[0] != otherVM || got[1] != vmID {
		t.Errorf("%v", got)
	}
	_, err = attach(r.src.crypto(), "not a UUID")
	want(t, "a name that is no UUID", err, v1.Reason_REASON_INVALID_REQUEST)
}

func sealing(_ *rig, p *policy.Policy) { p.LocalSave = "seal" }

func TestALocalSaveRestoresOnTheNodeThatMadeIt(t *testing.T) {
	r := newRig(t, sealing)
	state, more := random(5000), random(9000)
	permanent, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, state)
	if err != nil {
		t.Fatal(err)
	}
	vol, err := r.src.protect(volatile, more)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(permanent, state[:32]) || bytes.Contains(vol, more[:32]) {
		t.Fatal("the save is in clear")
	}
	for kind, blob := range map[v1.StateType][]byte{v1.StateType_STATE_TYPE_PERMANENT: permanent, volatile: vol} {
		_, err := r.dst.unprotect(kind, blob)
		want(t, "another node", err, v1.Reason_REASON_SEALED_DATA_INVALID)
	}
	_, err = r.src.unprotect(volatile, vol)
	want(t, "the volatile blob first", err, v1.Reason_REASON_SEALED_DATA_INVALID)
	if got, err := r.src.unprotect(v1.StateType_STATE_TYPE_PERMANENT, permanent); err != nil || !bytes.Equal(got, state) {
		t.Fatalf("%v", err)
	}
	if got, err := r.src.unprotect(volatile, vol); err != nil || !bytes.Equal(got, more) {
		t.Fatalf("%v", err)
	}
	_, err = r.src.unprotect(volatile, permanent)
	want(t, "one blob for the other", err, v1.Reason_REASON_SEALED_DATA_INVALID)
	vol[len(vol)-1] ^= 1
	_, err = r.src.unprotect(volatile, vol)
	want(t, "a flipped bit", err, v1.Reason_REASON_SEALED_DATA_INVALID)
}

func TestBlobsOfTwoSavesDoNotMakeATPM(t *testing.T) {
	r := newRig(t, sealing)
	first, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100)); err != nil {
		t.Fatal(err)
	}
	vol, err := r.src.protect(volatile, random(100))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.unprotect(v1.StateType_STATE_TYPE_PERMANENT, first); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.unprotect(volatile, vol)
	want(t, "the volatile blob of another save", err, v1.Reason_REASON_SEALED_DATA_INVALID)
}

func TestALocalSaveOfOneVMIsOfNoUseToAnother(t *testing.T) {
	r := newRig(t, sealing)
	blob, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100))
	if err != nil {
		t.Fatal(err)
	}
	r.src.attach(t, otherVM)
	rpc, err := r.src.crypto().UnprotectState(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_ = rpc.Send(&v1.UnprotectStateRequest{Body: &v1.UnprotectStateRequest_Header{Header: &v1.StateHeader{
		InstanceId: otherVM, Type: v1.StateType_STATE_TYPE_PERMANENT, Data: blob,
	}}})
	_ = rpc.CloseSend()
	_, err = collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
	want(t, "another VM", err, v1.Reason_REASON_SEALED_DATA_INVALID)
}

func TestWithoutThePolicysLeaveNoStateIsSavedOrRestored(t *testing.T) {
	r := newRig(t, sealing)
	blob, err := r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100))
	if err != nil {
		t.Fatal(err)
	}
	r.policy.SVN, r.policy.LocalSave = 2, ""
	r.writePolicy(t)
	if _, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{}); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.protect(v1.StateType_STATE_TYPE_PERMANENT, random(100))
	want(t, "a save", err, v1.Reason_REASON_NO_ARMED_SESSION)
	_, err = r.src.unprotect(v1.StateType_STATE_TYPE_PERMANENT, blob)
	want(t, "a restore of an earlier save", err, v1.Reason_REASON_NO_ARMED_SESSION)
}
