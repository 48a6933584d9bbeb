package node

import (
	"bytes"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

func exporting(_ *rig, p *policy.Policy) { p.ExportedKeys = []string{policy.ExportTunnel} }

func (n *testNode) derive(t *testing.T, purpose string, context []byte) (*v1.DeriveKeyResponse, error) {
	t.Helper()
	return n.crypto().DeriveKey(t.Context(), &v1.DeriveKeyRequest{InstanceId: vmID, Purpose: purpose, Context: context})
}

func TestBothNodesExportTheSameKeyForAPurposeThatPolicyNames(t *testing.T) {
	r := newRig(t, exporting)
	_, err := r.src.derive(t, policy.ExportTunnel, nil)
	want(t, "without a session", err, v1.Reason_REASON_NO_ARMED_SESSION)
	s := r.armed(t, "m1")
	var keys [][]byte
	for _, context := range []string{"a", "b"} {
		a, errA := r.src.derive(t, policy.ExportTunnel, []byte(context))
		b, errB := r.dst.derive(t, policy.ExportTunnel, []byte(context))
		if errA != nil || errB != nil || len(a.GetKey()) != 32 || !bytes.Equal(a.GetKey(), b.GetKey()) || !bytes.Equal(a.GetSessionId(), s.GetSessionId()) {
			t.Fatalf("%v; %v", errA, errB)
		}
		keys = append(keys, a.GetKey())
	}
	if bytes.Equal(keys[0], keys[1]) {
		t.Error("two contexts have one key")
	}
	_, err = r.src.derive(t, "state", nil)
	want(t, "a purpose that policy does not name", err, v1.Reason_REASON_POLICY_REFUSED)
	_, err = r.src.derive(t, policy.ExportTunnel, make([]byte, 65))
	want(t, "a long context", err, v1.Reason_REASON_INVALID_REQUEST)
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*testNode{r.src, r.dst} {
		_, err = n.derive(t, policy.ExportTunnel, nil)
		want(t, "after an abort", err, v1.Reason_REASON_NO_ARMED_SESSION)
	}
}

func TestNoKeyIsExportedByDefault(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	_, err := r.src.derive(t, policy.ExportTunnel, nil)
	want(t, "without exported_keys", err, v1.Reason_REASON_POLICY_REFUSED)
}
