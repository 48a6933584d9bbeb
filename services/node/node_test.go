package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(childEnv); file != "" {
		runChild(file)
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	permanent = v1.StateType_STATE_TYPE_PERMANENT
	volatile  = v1.StateType_STATE_TYPE_VOLATILE
)

func want(t *testing.T, what string, err error, reason v1.Reason) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: not refused, want %s", what, refusal.Name(reason))
		return
	}
	if r := rpcerror.Refusal(err); r.Reason != reason {
		t.Errorf("%s: %v, want %s", what, err, refusal.Name(reason))
	}
}

func TestAMigrationFromEstablishToCommitWhicheverSideDials(t *testing.T) {
	for _, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		t.Run(role.String(), func(t *testing.T) {
			r := newRig(t)
			var s *v1.Session
			var err error
			if role == v1.Role_ROLE_SOURCE {
				s, err = r.src.establish(t.Context(), "compute2", role)
			} else {
				s, err = r.dst.establish(t.Context(), "compute1", role)
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(s.GetSteps()) != 3 || s.GetPeerAttested().GetTcbStatus() != "UpToDate" || s.GetPeerAppraised().GetMatched() != 1 || s.GetMode() != v1.Mode_MODE_SIMULATED {
				t.Errorf("the session says %v", s)
			}
			if _, err := r.src.arm("m1"); err != nil {
				t.Fatal(err)
			}
			for kind, n := range map[v1.StateType]int{permanent: 6188, volatile: 9482} {
				plaintext := random(n)
				ciphertext, err := r.src.protect(kind, plaintext)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(ciphertext, plaintext[:32]) {
					t.Error("the ciphertext holds plaintext")
				}
				got, err := r.dst.unprotect(kind, ciphertext)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Fatalf("unprotect: %v", err)
				}
				_, err = r.dst.unprotect(kind, ciphertext)
				want(t, "a second SET with a used blob", err, v1.Reason_REASON_ALREADY_USED)
				_, err = r.src.protect(kind, plaintext)
				want(t, "a second GET", err, v1.Reason_REASON_ALREADY_USED)
			}
			for range 2 { // idempotent
				done, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()})
				if err != nil || done.GetSession().GetState() != v1.SessionState_SESSION_STATE_COMMITTED || done.GetSession().GetBytesProtected() != 6188+9482 {
					t.Fatalf("commit: %v, %v", done, err)
				}
			}
			at, err := r.dst.migration().Get(t.Context(), &v1.GetRequest{SessionId: s.GetSessionId()})
			if err != nil || at.GetSession().GetState() != v1.SessionState_SESSION_STATE_COMMITTED {
				t.Errorf("at the destination: %v, %v", at, err)
			}
			_, err = r.src.protect(volatile, random(10))
			want(t, "a GET after the end", err, v1.Reason_REASON_NO_ARMED_SESSION)
			_, err = r.src.arm("m2")
			want(t, "the same session for a second attempt", err, v1.Reason_REASON_NO_SESSION)
			_, err = r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()})
			want(t, "abort of a committed session", err, v1.Reason_REASON_WRONG_STATE)
		})
	}
}

func TestWithoutAnArmedSessionNothingCrosses(t *testing.T) {
	r := newRig(t)
	_, err := r.src.protect(volatile, random(10))
	want(t, "GET without a session", err, v1.Reason_REASON_NO_ARMED_SESSION)
	_, err = r.dst.unprotect(volatile, random(100))
	want(t, "SET without a session", err, v1.Reason_REASON_NO_ARMED_SESSION)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.protect(volatile, random(10))
	want(t, "GET before Arm", err, v1.Reason_REASON_NO_ARMED_SESSION)
	_, err = r.src.migration().Arm(t.Context(), &v1.ArmRequest{InstanceId: vmID, DestinationHost: "compute2", MigrationId: "m"})
	want(t, "Arm without return-path", err, v1.Reason_REASON_UNSAFE_MIGRATION)
	_, err = r.dst.migration().Arm(t.Context(), &v1.ArmRequest{InstanceId: vmID, DestinationHost: "compute2", MigrationId: "m", ReturnPath: true})
	want(t, "Arm at the destination", err, v1.Reason_REASON_NO_SESSION)
}

func TestAPeerThatThePolicyDoesNotAcceptIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change  change
		reason  v1.Reason // at the source, which judges first
		atOther bool      // refused by the destination: the source learns nothing more
	}{
		"an enclave of another measurement": {func(_ *rig, p *policy.Policy) { p.Enclaves[0].MREnclave[0] = 9 }, v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, false},
		"a platform that is not enrolled":   {func(_ *rig, p *policy.Policy) { p.Platforms = p.Platforms[:1] }, v1.Reason_REASON_PLATFORM_NOT_ENROLLED, false},
		"a source that is not enrolled":     {func(_ *rig, p *policy.Policy) { p.Platforms = p.Platforms[1:] }, v1.Reason_REASON_PEER_REFUSED, true},
		"a changed VMM at the destination":  {func(r *rig, _ *policy.Policy) { _ = os.WriteFile(r.dst.file, []byte("another"), 0o600) }, v1.Reason_REASON_INTEGRITY_MISMATCH, false},
		"a changed VMM at the source":       {func(r *rig, _ *policy.Policy) { _ = os.WriteFile(r.src.file, []byte("another"), 0o600) }, v1.Reason_REASON_PEER_REFUSED, true},
		"a host without the TPM asked for": {func(_ *rig, p *policy.Policy) {
			p.Integrity.TPM.Required = nil
		}, v1.Reason_REASON_INTEGRITY_MISMATCH, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.change)
			_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
			want(t, name, err, tc.reason)
			if tc.atOther {
				// The destination tells its peer first and then ends the session.
				eventually(t, "the destination's record says why", func() bool {
					all, err := r.dst.migration().List(t.Context(), &v1.ListRequest{IncludeEnded: true})
					return err == nil && len(all.GetSessions()) == 1 && all.GetSessions()[0].GetRefusal().GetReason() > v1.Reason_REASON_PEER_REFUSED
				})
			}
		})
	}
}

// TestAPeerThatDiesAtAnyStepLeavesTheVMOnTheSource stops the destination's node service before each step of a migration.
func TestAPeerThatDiesAtAnyStepLeavesTheVMOnTheSource(t *testing.T) {
	steps := []struct {
		name string
		do   func(r *rig, s **v1.Session) error
	}{
		{"establish", func(r *rig, s **v1.Session) (err error) {
			*s, err = r.src.establish(context.Background(), "compute2", v1.Role_ROLE_SOURCE)
			return err
		}},
		{"arm", func(r *rig, _ **v1.Session) error { _, err := r.src.arm("m1"); return err }},
		{"unprotect", func(r *rig, _ **v1.Session) error {
			for _, kind := range []v1.StateType{permanent, volatile} {
				ciphertext, err := r.src.protect(kind, random(1000))
				if err != nil {
					return err
				}
				if _, err = r.dst.unprotect(kind, ciphertext); err != nil {
					return err
				}
			}
			return nil
		}},
		{"commit", func(r *rig, s **v1.Session) error {
			_, err := r.src.migration().Commit(context.Background(), &v1.CommitRequest{SessionId: (*s).GetSessionId()})
			return err
		}},
	}
	for victim := range steps {
		t.Run("before "+steps[victim].name, func(t *testing.T) {
			r := newRig(t)
			var s *v1.Session
			for _, step := range steps[:victim] {
				if err := step.do(r, &s); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
			}
			r.dst.stop()
			want(t, steps[victim].name, steps[victim].do(r, &s), v1.Reason_REASON_PEER_UNAVAILABLE)
			all, err := r.src.migration().List(context.Background(), &v1.ListRequest{IncludeEnded: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, got := range all.GetSessions() {
				if got.GetState() == v1.SessionState_SESSION_STATE_COMMITTED {
					t.Error("the source believes that the migration succeeded")
				}
				if _, err := r.src.migration().Abort(context.Background(), &v1.AbortRequest{SessionId: got.GetSessionId()}); err != nil && len(got.GetSessionId()) == 16 && got.GetSessionId()[0] != 0 {
					t.Errorf("abort: %v", err)
				}
			}
		})
	}
}

func TestTheSourceRestartingEndsItsSessions(t *testing.T) {
	r := newRig(t)
	old := r.armed(t, "m1")
	r.src.stop()
	r.src.start(t)
	_, err := r.src.protect(volatile, random(10))
	want(t, "GET after a restart", err, v1.Reason_REASON_NO_ARMED_SESSION)
	// The destination still holds its side, armed; a new handshake of the same source shows that it is lost.
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	if at := r.dst.session(t, old.GetSessionId()); at.GetState() != v1.SessionState_SESSION_STATE_ABORTED {
		t.Errorf("the destination's lost session is %v", at.GetState())
	}
	_, err = r.src.arm("m1")
	want(t, "a migration id of an earlier life", err, v1.Reason_REASON_ALREADY_USED)
}

func TestAnAlteredOrForeignBlobEndsTheSession(t *testing.T) {
	for name, alter := range map[string]func([]byte) []byte{
		"a flipped bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut short":     func(b []byte) []byte { return b[:len(b)-1] },
		"empty":         func([]byte) []byte { return nil },
		"plaintext":     func(b []byte) []byte { return random(len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.armed(t, "m1")
			if _, err := r.src.protect(permanent, random(9000)); err != nil {
				t.Fatal(err)
			}
			ciphertext, err := r.src.protect(volatile, random(9000))
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.dst.unprotect(volatile, alter(bytes.Clone(ciphertext)))
			if reason := rpcerror.Refusal(err).Reason; reason != v1.Reason_REASON_CIPHERTEXT_INVALID && reason != v1.Reason_REASON_CIPHERTEXT_TRUNCATED {
				t.Errorf("got %v", err)
			}
			_, err = r.dst.unprotect(volatile, ciphertext)
			want(t, "the true blob afterwards", err, v1.Reason_REASON_NO_ARMED_SESSION)
			_, err = r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()})
			want(t, "commit", err, v1.Reason_REASON_PEER_REFUSED)
		})
	}
}

func TestAnOldAppraisalIsMadeAgainBeforeArm(t *testing.T) {
	old := func(r *rig, _ *policy.Policy) { r.src.cfg.Sessions.ArmMaxAge = "1ns" }
	r := newRig(t, old)
	s := r.armed(t, "m1")
	ciphertext, err := r.src.protect(volatile, []byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.dst.unprotect(volatile, ciphertext); err != nil || string(got) != "state" {
		t.Errorf("after renewal: %q, %v", got, err)
	}
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId(), Reason: "enough"}); err != nil {
		t.Fatal(err)
	}
	at, err := r.dst.migration().Get(t.Context(), &v1.GetRequest{SessionId: s.GetSessionId()})
	if err != nil || at.GetSession().GetState() != v1.SessionState_SESSION_STATE_ABORTED {
		t.Errorf("the destination was not told of the abort: %v, %v", at, err)
	}
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.dst.file, []byte("changed between check and use"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.arm("m2")
	want(t, "a host that changed after its appraisal", err, v1.Reason_REASON_INTEGRITY_MISMATCH)
}

func TestARepeatedEstablishReturnsTheSameSession(t *testing.T) {
	r := newRig(t)
	req := &v1.EstablishRequest{InstanceId: vmID, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE, AttemptId: random(16)}
	first, err := r.src.establishAttempt(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.src.establishAttempt(t.Context(), req)
	if err != nil || !bytes.Equal(first.GetSessionId(), second.GetSessionId()) {
		t.Errorf("the second call: %v, %v", second, err)
	}
	req.InstanceId = "1d6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"
	_, err = r.src.establishAttempt(t.Context(), req)
	want(t, "the attempt of another VM", err, v1.Reason_REASON_ALREADY_USED)
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	r := newRig(t)
	for name, req := range map[string]*v1.EstablishRequest{
		"no instance":         {PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE},
		"no role":             {InstanceId: vmID, PeerHost: "compute2"},
		"a short attempt id":  {InstanceId: vmID, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE, AttemptId: []byte{1}},
		"an attempt of zeros": {InstanceId: vmID, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE, AttemptId: make([]byte, 16)},
		"an upper-case VM":    {InstanceId: "0C6F1D3E-5B1F-4D62-9B0A-3A4F7F5F0C11", PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE},
	} {
		_, err := r.src.establishAttempt(t.Context(), req)
		want(t, name, err, v1.Reason_REASON_INVALID_REQUEST)
	}
	_, err := r.src.establish(t.Context(), "compute1", v1.Role_ROLE_SOURCE)
	want(t, "source == destination", err, v1.Reason_REASON_SAME_NODE)
	_, err = r.src.establish(t.Context(), "compute9", v1.Role_ROLE_SOURCE)
	want(t, "an unknown peer", err, v1.Reason_REASON_UNKNOWN_PEER)
	_, err = r.src.migration().Get(t.Context(), &v1.GetRequest{SessionId: make([]byte, 16)})
	want(t, "a session id of zeros", err, v1.Reason_REASON_NO_SESSION)
}

func TestEvidenceIsBoundToTheNonceAndJudgedByPolicy(t *testing.T) {
	r := newRig(t)
	client := v1.NewAttestationServiceClient(r.src.conn)
	nonce := random(32)
	evidence, err := client.GetEvidence(t.Context(), &v1.GetEvidenceRequest{Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(nonce []byte, host string) *v1.AppraiseResponse {
		v, err := v1.NewAttestationServiceClient(r.dst.conn).Appraise(t.Context(), &v1.AppraiseRequest{Quote: evidence.GetQuote(), Nonce: nonce, Host: host})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := ask(nonce, "compute1"); !v.GetAccepted() || v.GetAttested().GetTcbStatus() != "UpToDate" {
		t.Errorf("refused: %v", v)
	}
	if v := ask(random(32), "compute1"); v.GetAccepted() || v.GetRefusals()[0].GetReason() != v1.Reason_REASON_QUOTE_NOT_BOUND {
		t.Errorf("another nonce: %v", v)
	}
	if v := ask(nonce, "compute2"); v.GetAccepted() || v.GetRefusals()[0].GetReason() != v1.Reason_REASON_PLATFORM_NOT_ENROLLED {
		t.Errorf("another host's name: %v", v)
	}
	_, err = client.GetEvidence(t.Context(), &v1.GetEvidenceRequest{Nonce: nonce[:8]})
	want(t, "a short nonce", err, v1.Reason_REASON_INVALID_REQUEST)
}

func TestThePeerPortServesNothingLocal(t *testing.T) {
	r := newRig(t)
	conn, err := grpc.NewClient(r.src.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := v1.NewMigrationServiceClient(conn).List(t.Context(), &v1.ListRequest{}); err == nil {
		t.Error("MigrationService answers on the peer port")
	}
	if _, err := v1.NewAttestationServiceClient(conn).GetEvidence(t.Context(), &v1.GetEvidenceRequest{Nonce: random(32)}); err != nil {
		t.Errorf("GetEvidence: %v", err)
	}
	_, err = v1.NewPeerServiceClient(conn).Conclude(t.Context(), &v1.ConcludeRequest{SessionId: random(16), Message: &v1.SealedMessage{}})
	if err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a stranger's conclude: %v", err)
	}
}

// A result was once lost to the cancelling of its own context, one time in a few hundred on a busy machine.
func TestAResultWithinItsTimeIsNeverLost(t *testing.T) {
	n := new(node)
	var wg sync.WaitGroup
	for range 64 { // keeps the processors busy, so that the caller wakes late
		wg.Go(func() {
			for range 2000 {
				got, err := within(t.Context(), n, time.Minute, func(context.Context) (int, error) { return 1, nil })
				if got != 1 || err != nil {
					t.Errorf("%d, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	n.background.Wait()
}

func TestWhatTakesTooLongEndsWithItsReason(t *testing.T) {
	n := new(node)
	_, err := within(t.Context(), n, time.Millisecond, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
	want(t, "a slow peer", err, v1.Reason_REASON_PEER_UNAVAILABLE)
	n.background.Wait()
}
