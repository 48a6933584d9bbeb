package node

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

// dying is an enclave whose quoting daemon can be made to die.
type dying struct {
	tee.Enclave
	dead *atomic.Bool
}

func (d dying) Quote(ctx context.Context, data [tee.ReportDataSize]byte) ([]byte, error) {
	if d.dead.Load() {
		return nil, errors.New("aesmd does not answer")
	}
	return d.Enclave.Quote(ctx, data)
}

func TestAQuotingDaemonThatDiesIsNoticedAndNamed(t *testing.T) {
	var dead atomic.Bool
	r := newRig(t, watched, func(r *rig, _ *policy.Policy) {
		r.src.wrap = func(e tee.Enclave) tee.Enclave { return dying{e, &dead} }
	})
	eventually(t, "ready", func() bool { code, _ := r.src.probe(t, "/readyz"); return code == http.StatusOK })
	dead.Store(true)
	_, err := r.src.attestation().GetEvidence(t.Context(), &v1.GetEvidenceRequest{Nonce: random(32)})
	want(t, "evidence", err, v1.Reason_REASON_QUOTE_FAILED)
	_, err = r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "a migration", err, v1.Reason_REASON_QUOTE_FAILED)
	status, err := r.src.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil || status.GetOwnRefusal().GetReason() != v1.Reason_REASON_QUOTE_FAILED {
		t.Errorf("the status says %v, %v", status.GetOwnRefusal(), err)
	}
	// A reload has the node look at itself before its minute is over.
	r.policy.SVN = 2
	r.writePolicy(t)
	if _, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not ready, with the reason", func() bool {
		_, a := r.src.probe(t, "/readyz")
		return !a.OK && a.Checks[1].Reason == "QUOTE_FAILED"
	})
	if got := r.src.series(t)[`safeconduct_quotes_total{outcome="failed"}`]; got == "" || got == "0" {
		t.Errorf("quotes that failed: %q", got)
	}
	dead.Store(false)
	r.policy.SVN = 3
	r.writePolicy(t)
	if _, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready again", func() bool { code, _ := r.src.probe(t, "/readyz"); return code == http.StatusOK })
}

func TestADebugEnclaveIsRefusedByItsPeer(t *testing.T) {
	r := newRig(t, func(r *rig, _ *policy.Policy) {
		m := testMeasurement()
		m.Debug = true
		var err error
		if r.dst.enclave, err = simulated.Open(filepath.Join(r.dst.dir, "platform"), m); err != nil {
			panic(err)
		}
	})
	_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "a debug enclave", err, v1.Reason_REASON_DEBUG_ENCLAVE)
}

func TestWhatIsNoQuoteIsRefusedAsOne(t *testing.T) {
	r := newRig(t)
	evidence, err := r.dst.attestation().GetEvidence(t.Context(), &v1.GetEvidenceRequest{Nonce: random(32)})
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), evidence.GetQuote()...)
	flipped[100] ^= 1
	for name, quote := range map[string][]byte{"bytes": random(2000), "nothing": nil, "a flipped bit": flipped} {
		got, err := r.src.attestation().Appraise(t.Context(), &v1.AppraiseRequest{Quote: quote, Host: "compute2"})
		if err != nil || got.GetAccepted() || got.GetRefusals()[0].GetReason() != v1.Reason_REASON_QUOTE_INVALID {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestAnAppraisalThatIsOldForTheDestinationIsNotArmed(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	r.dst.skew.Store(int64(2*defaultArmMaxAge + time.Second)) // the source, by its own clock, sees no need to make it again
	_, err := r.src.arm("m1")
	want(t, "arm", err, v1.Reason_REASON_INTEGRITY_STALE)
}

func TestAHostThatCannotBeMeasuredSaysSo(t *testing.T) {
	r := newRig(t, func(r *rig, _ *policy.Policy) {
		log := filepath.Join(r.src.dir, "boot.log")
		if err := os.WriteFile(log, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.src.cfg.Integrity.TPM, r.src.cfg.Integrity.BootLog, r.src.cfg.Integrity.PCRs = swtpmtest.Start(t), log, []int{0}
	})
	integrity := v1.NewIntegrityServiceClient(r.src.conn)
	if _, err := integrity.Measure(t.Context(), &v1.MeasureRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.src.cfg.Integrity.BootLog); err != nil {
		t.Fatal(err)
	}
	_, err := integrity.Measure(t.Context(), &v1.MeasureRequest{})
	want(t, "a boot log that is gone", err, v1.Reason_REASON_MEASUREMENT_FAILED)
}

func TestAStateDirectoryThatFailsIsAnInternalErrorWithItsCauseInTheLogOnly(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(r.src.cfg.StateDir, "sealed", "escrow")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where a directory is to be
		t.Fatal(err)
	}
	_, err := r.src.secrets().Escrow(t.Context(), &v1.EscrowRequest{InstanceId: vmID, Secret: []byte("a passphrase")})
	want(t, "escrow", err, v1.Reason_REASON_INTERNAL)
}

func TestASessionThatWasAbortedAnswersSoToWhoAsksAgain(t *testing.T) {
	r := newRig(t)
	req := &v1.EstablishRequest{InstanceId: vmID, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE, AttemptId: random(16)}
	s, err := r.src.establishAttempt(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId(), Reason: "an operator"}); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.establishAttempt(t.Context(), req)
	want(t, "the same attempt", err, v1.Reason_REASON_ABORTED)
	if at := r.dst.session(t, s.GetSessionId()); at.GetRefusal().GetReason() != v1.Reason_REASON_ABORTED {
		t.Errorf("the destination says %v", at.GetRefusal())
	}
}

func TestASessionThatIsOpenWhenTheServiceStopsEndsAsRestarted(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	r.src.stop()
	all := r.src.audited(t)
	for _, rec := range all {
		if rec.Event == "session" && rec.Migration == "m1" && rec.Reason == "RESTARTED" && rec.State == "aborted" {
			return
		}
	}
	t.Errorf("no session ended with %v: %v", v1.Reason_REASON_RESTARTED, briefs(all))
}
