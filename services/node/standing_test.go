package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func (n *testNode) session(t *testing.T, id []byte) *v1.Session {
	t.Helper()
	got, err := n.migration().Get(t.Context(), &v1.GetRequest{SessionId: id})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetSession()
}

func (n *testNode) sessions(t *testing.T) []*v1.Session {
	t.Helper()
	got, err := n.migration().List(t.Context(), &v1.ListRequest{IncludeEnded: true})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetSessions()
}

func TestAPreflightShowsBothVerdictsAndLeavesNoSession(t *testing.T) {
	r := newRig(t)
	for _, role := range []v1.Role{v1.Role_ROLE_UNSPECIFIED, v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		got, err := r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute2", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		if !got.GetAccepted() || len(got.GetSteps()) != 3 || got.GetRefusal() != nil || got.GetMode() != v1.Mode_MODE_SIMULATED {
			t.Errorf("%v: %v", role, got)
		}
		if a := got.GetSteps()[0].GetAttested(); a.GetHost() != "compute2" || len(a.GetMrenclave()) != 32 {
			t.Errorf("%v: the peer is %v", role, a)
		}
	}
	for _, n := range []*testNode{r.src, r.dst} {
		if s := n.sessions(t); len(s) != 0 {
			t.Errorf("%s keeps %v", n.name, s)
		}
	}
}

func TestAPreflightNamesWhatWouldBeRefused(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(r.dst.file, []byte("another VMM"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute2"})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetAccepted() || got.GetRefusal().GetReason() != v1.Reason_REASON_INTEGRITY_MISMATCH || got.GetRefusal().GetItem() != "vmm/qemu" {
		t.Errorf("got %v", got)
	}
	got, err = r.dst.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute1"})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetAccepted() || got.GetRefusal().GetReason() != v1.Reason_REASON_PEER_REFUSED {
		t.Errorf("the other way: %v", got)
	}
}

func TestPreflightsThatMakeNoSense(t *testing.T) {
	r := newRig(t)
	_, err := r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute1"})
	want(t, "the call", err, v1.Reason_REASON_SAME_NODE)
	_, err = r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute2", Role: 7})
	want(t, "the call", err, v1.Reason_REASON_INVALID_REQUEST)
	got, err := r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "elsewhere"})
	if err != nil || got.GetAccepted() || got.GetRefusal().GetReason() != v1.Reason_REASON_UNKNOWN_PEER {
		t.Errorf("an unknown peer: %v, %v", got, err)
	}
	_, err = r.src.establishAttempt(t.Context(), &v1.EstablishRequest{InstanceId: preflightInstance, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE})
	want(t, "the call", err, v1.Reason_REASON_INVALID_REQUEST)
}

// reload loads the rig's policy on n.
func (r *rig) reload(t *testing.T, n *testNode) *v1.ReloadResponse {
	t.Helper()
	r.writePolicy(t)
	got, err := n.admin().Reload(t.Context(), &v1.ReloadRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAPolicyThatNoLongerAcceptsThePeerEndsItsSessions(t *testing.T) {
	for name, change := range map[string]struct {
		to   func(*policy.Policy)
		want v1.Reason
	}{
		"its enclave":      {func(p *policy.Policy) { p.Enclaves[0].MREnclave = make([]byte, 32) }, v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED},
		"its platform":     {func(p *policy.Policy) { p.Platforms = p.Platforms[:1] }, v1.Reason_REASON_PLATFORM_NOT_ENROLLED},
		"its TCB":          {func(p *policy.Policy) { p.TCB.Statuses = []string{"OutOfDate"} }, v1.Reason_REASON_TCB_NOT_ACCEPTED},
		"its measured VMM": {func(p *policy.Policy) { p.Integrity.Files["vmm/qemu"].SHA256[0][0] ^= 1 }, v1.Reason_REASON_INTEGRITY_MISMATCH},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.armed(t, "m1")
			if got := r.reload(t, r.src); got.GetPolicyChanged() || len(got.GetAborted()) != 0 {
				t.Fatalf("nothing changed, yet: %v", got)
			}
			change.to(r.policy)
			r.policy.SVN++
			got := r.reload(t, r.src)
			if !got.GetPolicyChanged() || got.GetPolicySvn() != 2 || len(got.GetAborted()) != 1 {
				t.Fatalf("got %v", got)
			}
			if why := got.GetAborted()[0].GetRefusal(); why.GetReason() != change.want || !strings.Contains(why.GetMessage(), "no longer is") {
				t.Errorf("aborted for %v, want %v", why, change.want)
			}
			if state := r.dst.session(t, s.GetSessionId()).GetState(); state != v1.SessionState_SESSION_STATE_ABORTED {
				t.Errorf("the destination was not told: %v", state)
			}
			_, err := r.src.protect(permanent, []byte("state"))
			want(t, "the call", err, v1.Reason_REASON_NO_ARMED_SESSION)
		})
	}
}

func TestANewPolicyThatStillAcceptsThePeerLeavesItsSessions(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	r.policy.SVN++
	for _, n := range []*testNode{r.src, r.dst} {
		if got := r.reload(t, n); !got.GetPolicyChanged() || len(got.GetAborted()) != 0 {
			t.Fatalf("%s: %v", n.name, got)
		}
	}
	sealed, err := r.src.protect(permanent, []byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := r.dst.unprotect(permanent, sealed); err != nil || string(plain) != "state" {
		t.Errorf("%q, %v", plain, err)
	}
}

func TestAReloadThatFailsLeavesThePolicyInForce(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	raw, err := json.Marshal(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "policy.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.admin().Reload(t.Context(), &v1.ReloadRequest{})
	want(t, "a policy that is not signed", err, v1.Reason_REASON_POLICY_REFUSED)
	r.policy.TCB.MinEvaluationDataNumber = 1 // another content
	r.writePolicy(t)
	_, err = r.src.admin().Reload(t.Context(), &v1.ReloadRequest{})
	want(t, "another policy of the same version", err, v1.Reason_REASON_POLICY_ROLLED_BACK)
	if state := r.src.session(t, s.GetSessionId()).GetState(); state != v1.SessionState_SESSION_STATE_ARMED {
		t.Errorf("the session is %v", state)
	}
}

func TestAnOlderPolicyIsRefusedAfterARestartToo(t *testing.T) {
	r := newRig(t)
	older, err := os.ReadFile(filepath.Join(r.dir, "policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.policy.SVN = 5
	r.reload(t, r.src)
	if err := os.WriteFile(filepath.Join(r.dir, "policy.json"), older, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.admin().Reload(t.Context(), &v1.ReloadRequest{})
	want(t, "on a reload", err, v1.Reason_REASON_POLICY_ROLLED_BACK)
	r.src.stop()
	err = Run(t.Context(), r.src.cfg, r.src.enclave, r.src.root, discardLog())
	want(t, "after a restart", err, v1.Reason_REASON_POLICY_ROLLED_BACK)
}

// expiring makes the collateral of both nodes end an hour from now, while an armed session would live for two.
func expiring(r *rig, _ *policy.Policy) {
	if err := r.authority.WriteCollateral(r.dst.cfg.Collateral.Dir, simulated.CollateralOptions{Validity: 2 * time.Hour}); err != nil {
		panic(err)
	}
}

func TestNoKeyIsReleasedOnCollateralThatHasExpired(t *testing.T) {
	r := newRig(t, expiring)
	r.armed(t, "m1")
	sealed, err := r.src.protect(permanent, []byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	r.dst.skew.Store(int64(61 * time.Minute))
	_, err = r.dst.unprotect(permanent, sealed)
	want(t, "an hour later", err, v1.Reason_REASON_COLLATERAL_INVALID)
}

func TestCollateralThatWasRenewedInTimeKeepsTheSession(t *testing.T) {
	r := newRig(t, expiring)
	r.armed(t, "m1")
	sealed, err := r.src.protect(permanent, []byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	r.issue(t, simulated.CollateralOptions{})
	if got, err := r.dst.admin().Reload(t.Context(), &v1.ReloadRequest{}); err != nil || !got.GetCollateralChanged() || len(got.GetAborted()) != 0 {
		t.Fatalf("%v, %v", got, err)
	}
	r.dst.skew.Store(int64(61 * time.Minute))
	if plain, err := r.dst.unprotect(permanent, sealed); err != nil || string(plain) != "state" {
		t.Errorf("%q, %v", plain, err)
	}
}

func TestAPlatformRevokedMeanwhileIsNotArmed(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	r.revoke(t, r.dst)
	got, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetCollateralChanged() || len(got.GetAborted()) != 1 || got.GetAborted()[0].GetRefusal().GetReason() != v1.Reason_REASON_CERTIFICATE_REVOKED {
		t.Errorf("got %v", got)
	}
	_, err = r.src.arm("m1")
	want(t, "the call", err, v1.Reason_REASON_NO_SESSION)
}

func TestADrainWaitsForSessionsAndThenStopsTheService(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	stream, err := r.dst.admin().Drain(context.Background(), &v1.DrainRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetOpenSessions() != 1 || first.GetDrained() {
		t.Fatalf("%v, %v", first, err)
	}
	_, err = r.dst.establish(t.Context(), "compute1", v1.Role_ROLE_SOURCE)
	want(t, "the call", err, v1.Reason_REASON_DRAINING)
	_, err = r.src.establishAttempt(t.Context(), &v1.EstablishRequest{
		InstanceId: "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c12", PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE,
	})
	want(t, "the call", err, v1.Reason_REASON_DRAINING)
	again, err := r.dst.admin().Drain(t.Context(), &v1.DrainRequest{})
	if err == nil {
		_, err = again.Recv()
	}
	want(t, "the call", err, v1.Reason_REASON_DRAINING)

	// What runs finishes.
	for _, kind := range []v1.StateType{permanent, volatile} {
		sealed, err := r.src.protect(kind, []byte("state"))
		if err != nil {
			t.Fatal(err)
		}
		if kind == permanent {
			_, err = r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()})
			want(t, "a commit with half of the state", err, v1.Reason_REASON_WRONG_STATE)
		}
		if _, err := r.dst.unprotect(kind, sealed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("the drain's last word did not come: %v", err)
		}
		if m.GetDrained() {
			if len(m.GetAborted()) != 0 {
				t.Errorf("aborted %v", m.GetAborted())
			}
			break
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last word: %v", err)
	}
	r.dst.stop() // returns because Run has: the drain stopped it
}

func TestADrainAbortsWhatHasNotEndedByItsDeadline(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	stream, err := r.src.admin().Drain(context.Background(), &v1.DrainRequest{Deadline: durationpb.New(0)})
	if err != nil {
		t.Fatal(err)
	}
	var last *v1.DrainResponse
	for !last.GetDrained() {
		if last, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if len(last.GetAborted()) != 1 || last.GetAborted()[0].GetRefusal().GetReason() != v1.Reason_REASON_DRAINING {
		t.Errorf("aborted %v", last.GetAborted())
	}
	if state := r.dst.session(t, s.GetSessionId()).GetState(); state != v1.SessionState_SESSION_STATE_ABORTED {
		t.Errorf("the peer was not told: %v", state)
	}
	refused, err := r.dst.admin().Drain(t.Context(), &v1.DrainRequest{Deadline: durationpb.New(2 * time.Hour)})
	if err == nil {
		_, err = refused.Recv()
	}
	want(t, "the call", err, v1.Reason_REASON_INVALID_REQUEST)
}

func TestStatusTellsWhatANodeIs(t *testing.T) {
	r := newRig(t)
	got, err := r.src.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetHost() != "compute1" || got.GetMode() != v1.Mode_MODE_SIMULATED || got.GetPolicySvn() != 1 || !got.GetAcceptedByOwnPolicy() || got.GetDraining() {
		t.Errorf("got %v", got)
	}
	if m := testMeasurement(); string(got.GetAttested().GetMrenclave()) != string(m.MREnclave[:]) || got.GetCollateralExpiresAt() == nil {
		t.Errorf("attested %v", got.GetAttested())
	}
	if err := os.WriteFile(r.src.file, []byte("another VMM"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = r.src.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetAcceptedByOwnPolicy() || got.GetOwnRefusal().GetReason() != v1.Reason_REASON_INTEGRITY_MISMATCH {
		t.Errorf("a changed VMM: %v", got.GetOwnRefusal())
	}
}

// revoke makes the rig's authority revoke a node's processor.
func (r *rig) revoke(t *testing.T, n *testNode) {
	t.Helper()
	r.issue(t, simulated.CollateralOptions{CRLNumber: 2, RevokedPCKs: []*big.Int{n.enclave.PCKSerial()}})
}

// issue makes new collateral where both nodes read theirs.
func (r *rig) issue(t *testing.T, o simulated.CollateralOptions) {
	t.Helper()
	if err := r.authority.WriteCollateral(r.dst.cfg.Collateral.Dir, o); err != nil {
		t.Fatal(err)
	}
}
