package handshake

import (
	"context"
	"crypto/sha512"
	"errors"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

func TestAPeerIsJudgedAgainByWhatItShowed(t *testing.T) {
	p := established(t)
	before := p.dst.evidenceAppraised + p.dst.logsAppraised
	if err := p.d.Rejudge(t.Context(), p.dst, p.dst); err != nil {
		t.Fatalf("nothing changed, yet: %v", err)
	}
	if got := p.dst.evidenceAppraised + p.dst.logsAppraised; got != before+2 {
		t.Errorf("%d verdicts, not %d", got, before+2)
	}
	revoked := refusal.New(v1.Reason_REASON_CERTIFICATE_REVOKED, "revoked")
	if err := p.s.Rejudge(t.Context(), &fake{host: "compute1", refuseEvidence: revoked}, nil); !errors.Is(err, revoked) {
		t.Errorf("a revoked platform: %v", err)
	}
	mismatch := refusal.New(v1.Reason_REASON_INTEGRITY_MISMATCH, "qemu")
	if err := p.s.Rejudge(t.Context(), p.src, &fake{host: "compute1", refuseLog: mismatch}); !errors.Is(err, mismatch) {
		t.Errorf("a log that is no longer accepted: %v", err)
	}
	if err := p.s.Rejudge(t.Context(), &fake{host: "compute1", refuseEvidence: revoked}, p.src); !errors.Is(err, revoked) {
		t.Errorf("evidence is not judged before the log: %v", err)
	}
	p.s.Destroy()
	if err := p.s.Rejudge(t.Context(), p.src, p.src); !errors.Is(err, refusal.Because(v1.Reason_REASON_WRONG_STATE)) {
		t.Errorf("an ended session: %v", err)
	}
}

// largeLogs makes logs that a session does not keep.
type largeLogs struct{ *fake }

func (l largeLogs) Log(context.Context, [32]byte) (*Log, error) {
	return &Log{Raw: make([]byte, maxKeptLog+1)}, nil
}

func (l largeLogs) AppraiseLog(_ context.Context, c *LogClaim) (*v1.Appraised, error) {
	return &v1.Appraised{Host: c.Host}, nil
}

func TestALargeLogIsNotKeptAndCannotBeJudgedAgain(t *testing.T) {
	p := newPair()
	p.nodeS.Logs, p.nodeD.Logs = largeLogs{p.src}, largeLogs{p.dst}
	p.nodeS.Reference, p.nodeD.Reference = largeLogs{p.src}, largeLogs{p.dst}
	p.run(t, v1.Role_ROLE_SOURCE, nil)
	if p.errS != nil || p.errD != nil {
		t.Fatal(p.errS, p.errD)
	}
	if err := p.s.Rejudge(t.Context(), p.src, largeLogs{p.src}); !errors.Is(err, refusal.Because(v1.Reason_REASON_INTEGRITY_STALE)) {
		t.Errorf("got %v", err)
	}
	if err := p.s.Rejudge(t.Context(), p.src, nil); err != nil {
		t.Errorf("the evidence alone: %v", err)
	}
}

func TestBothSidesKeepTheSameTranscriptAndItGivesTheSessionsName(t *testing.T) {
	p := established(t)
	for side, s := range map[string]*Session{"source": p.s, "destination": p.d} {
		f := s.Transcript()
		ctx := contextHash(f.Intent, f.Mode, f.HelloS, f.HelloD)
		th1 := transcript.H384("safeconduct/v1/th1", ctx[:], f.HelloS.GetNonce(), f.HelloD.GetNonce(), f.HelloS.GetKemPublic(), f.HelloD.GetKemPublic(), f.SignD)
		hs, hd := sha512.Sum384(f.EvidenceS), sha512.Sum384(f.EvidenceD)
		th2 := transcript.H384("safeconduct/v1/th2", th1[:], hs[:], hd[:], f.SignS, f.EncS, f.EncD)
		id := transcript.H384("safeconduct/v1/session-id", th2[:])
		if [16]byte(id[:16]) != s.ID {
			t.Errorf("%s: the transcript gives session %x, not %x", side, id[:16], s.ID)
		}
		th3 := transcript.H384("safeconduct/v1/th3", th2[:], f.LogS[:], f.LogD[:], f.Nonce1, f.Nonce2, f.Nonce3, f.Nonce4)
		if th3 != s.th3 {
			t.Errorf("%s: the transcript does not give th3", side)
		}
		if len(f.HelloD.GetEvidence()) != 0 || len(f.EvidenceD) == 0 {
			t.Errorf("%s: evidence is kept twice or not at all", side)
		}
	}
}

func TestEachSideKnowsTheOthersSignature(t *testing.T) {
	p, q := established(t), established(t)
	record := []byte("record")
	bySource, err := p.s.SignReceipt(record)
	if err != nil {
		t.Fatal(err)
	}
	if !p.d.CheckReceipt(record, bySource) {
		t.Error("the destination does not know the source's signature")
	}
	if p.d.CheckReceipt([]byte("another"), bySource) || p.s.CheckReceipt(record, bySource) || q.d.CheckReceipt(record, bySource) || p.d.CheckReceipt(record, nil) {
		t.Error("a signature is accepted for another record, role or session")
	}
	p.s.Destroy()
	if _, err := p.s.SignReceipt(record); err == nil {
		t.Error("an ended session signs")
	}
}
