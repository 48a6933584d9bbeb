package node

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/tee"
)

func (n *testNode) receipts() v1.ReceiptServiceClient { return v1.NewReceiptServiceClient(n.conn) }

// awaitReceipts waits until the node has stored n receipts: it does so a moment after the session's end.
func (n *testNode) awaitReceipts(t *testing.T, count int) []*v1.ReceiptSummary {
	t.Helper()
	for range 1000 {
		got, err := n.receipts().ListReceipts(t.Context(), &v1.ListReceiptsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.GetReceipts()) >= count {
			return got.GetReceipts()
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s has fewer than %d receipts", n.name, count)
	return nil
}

// verify verifies a receipt as an auditor does: with the root and the policy, and neither node.
func (r *rig) verify(t *testing.T, n *testNode, id []byte) *receipt.Report {
	t.Helper()
	got, err := n.receipts().ExportReceipt(t.Context(), &v1.ExportReceiptRequest{ReceiptId: id})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(r.dir, "policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := policy.ParseKeys(publicPEM(t, r.signer.Public().(ed25519.PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Open(raw, keys)
	if err != nil {
		t.Fatal(err)
	}
	report, err := receipt.Verifier{Roots: map[tee.Mode]dcap.RootPin{tee.ModeSimulated: n.root.Pin}, Policy: p}.Verify(got.GetReceipt())
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestBothNodesKeepTheSameReceiptOfAMigrationAndItVerifiesOffline(t *testing.T) {
	r := newRig(t)
	r.src.escrowed(t, "", "passphrase")
	s := r.armed(t, "m1")
	r.crossBoth(t)
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	a, b := r.src.awaitReceipts(t, 1)[0], r.dst.awaitReceipts(t, 1)[0]
	if string(a.GetReceiptId()) != string(b.GetReceiptId()) || !a.GetBothSigned() || !b.GetBothSigned() || a.GetOutcome() != receipt.Committed ||
		a.GetMigrationId() != "m1" || a.GetInstanceId() != vmID || a.GetMode() != v1.Mode_MODE_SIMULATED {
		t.Errorf("source has %v\ndestination has %v", a, b)
	}
	for _, n := range []*testNode{r.src, r.dst} {
		report := r.verify(t, n, a.GetReceiptId())
		if !report.Accepted || report.SignedBy != receipt.SignedByBoth || report.Record.Secrets != 1 || len(report.Record.State) != 2 {
			t.Errorf("%s: %+v", n.name, report.Failed())
		}
	}
	r.src.stop()
	r.src.start(t)
	if got := r.src.awaitReceipts(t, 1); len(got) != 1 {
		t.Errorf("after a restart: %v", got)
	}
	_, err := r.src.receipts().ExportReceipt(t.Context(), &v1.ExportReceiptRequest{ReceiptId: make([]byte, 32)})
	want(t, "a receipt that there is not", err, v1.Reason_REASON_NO_RECEIPT)
	_, err = r.src.receipts().ExportReceipt(t.Context(), &v1.ExportReceiptRequest{ReceiptId: []byte{1}})
	want(t, "no receipt id", err, v1.Reason_REASON_INVALID_REQUEST)
}

func TestAnAbortedMigrationLeavesARecordToo(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func(t *testing.T, r *rig, s *v1.Session)
		signed receipt.SignedBy
	}{
		"told to the peer": {func(t *testing.T, r *rig, s *v1.Session) {
			if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId(), Reason: "the migration failed"}); err != nil {
				t.Fatal(err)
			}
		}, receipt.SignedByBoth},
		"when the peer cannot be told": {func(t *testing.T, r *rig, s *v1.Session) {
			r.dst.stop()
			if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
				t.Fatal(err)
			}
		}, receipt.SignedBySource},
		"by its time being up": {func(_ *testing.T, r *rig, _ *v1.Session) { r.src.skew.Store(int64(3 * time.Hour)) }, receipt.SignedBySource},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tc.end(t, r, r.armed(t, "m1"))
			got := r.src.awaitReceipts(t, 1)[0]
			report := r.verify(t, r.src, got.GetReceiptId())
			if got.GetOutcome() != receipt.Aborted || !report.Accepted || report.SignedBy != tc.signed {
				t.Errorf("%v, signed by %s, %v", got, report.SignedBy, report.Failed())
			}
		})
	}
}

func TestASessionThatWasNeverArmedLeavesNone(t *testing.T) {
	r := newRig(t)
	s, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	armed := r.armed(t, "m1")
	r.crossBoth(t)
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: armed.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	if got := r.src.awaitReceipts(t, 1); len(got) != 1 || got[0].GetOutcome() != receipt.Committed {
		t.Errorf("got %v", got)
	}
}

// The VM has moved: clocks that are apart, so that the destination cannot vouch for the times, stop no commit.
func TestAPeerThatDoesNotSignStopsNoCommit(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	r.crossBoth(t)
	r.src.skew.Store(int64(6 * time.Minute))
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	got := r.src.awaitReceipts(t, 1)[0]
	if report := r.verify(t, r.src, got.GetReceiptId()); got.GetBothSigned() || !report.Accepted || report.SignedBy != receipt.SignedBySource {
		t.Errorf("%v, %v", got, report.Failed())
	}
	if at := r.dst.session(t, s.GetSessionId()); at.GetState() != v1.SessionState_SESSION_STATE_COMMITTED {
		t.Errorf("the destination is %v", at.GetState())
	}
}

// A migration that ends at the destination after both blobs were opened there leaves the secret with the VM, which may run on: docs/protocol, F1.
func TestASecretStaysWhereTheVMMayRun(t *testing.T) {
	r := newRig(t)
	r.src.escrowed(t, "", "passphrase")
	s := r.armed(t, "m1")
	r.crossBoth(t)
	if _, err := r.dst.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	r.dst.stop()
	r.dst.start(t)
	for _, n := range []*testNode{r.src, r.dst} {
		if n == r.src {
			if _, err := n.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := n.release(nil, ""); err != nil || got != "passphrase" {
			t.Errorf("%s: %q, %v", n.name, got, err)
		}
	}
}

// What does not open is anybody's who has seen the session's id: it ends nothing.
func TestAForgedMessageEndsNoSession(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	client := r.dst.peerClient(t)
	_, err := client.Arm(t.Context(), &v1.PeerServiceArmRequest{SessionId: s.GetSessionId(), Message: &v1.SealedMessage{Counter: 9, Ciphertext: random(64)}})
	if err == nil {
		t.Error("a forged message was answered")
	}
	_, err = client.Transfer(t.Context(), &v1.TransferRequest{SessionId: s.GetSessionId(), Message: &v1.SealedMessage{Ciphertext: random(64)}})
	if err == nil {
		t.Error("a forged transfer was answered")
	}
	if at := r.dst.session(t, s.GetSessionId()); at.GetState() != v1.SessionState_SESSION_STATE_ARMED {
		t.Errorf("the session is %v", at.GetState())
	}
	r.crossBoth(t)
}
