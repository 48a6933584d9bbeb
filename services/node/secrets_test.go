package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

func (n *testNode) secrets() v1.SecretServiceClient { return v1.NewSecretServiceClient(n.conn) }

func (n *testNode) escrowed(t *testing.T, id, secret string) {
	t.Helper()
	if _, err := n.secrets().Escrow(t.Context(), &v1.EscrowRequest{InstanceId: vmID, SecretId: id, Secret: []byte(secret)}); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) release(session []byte, id string) (string, error) {
	got, err := n.secrets().Release(context.Background(), &v1.ReleaseRequest{InstanceId: vmID, SessionId: session, SecretId: id})
	return string(got.GetSecret()), err
}

func (n *testNode) listed(t *testing.T) int {
	t.Helper()
	got, err := n.secrets().ListSecrets(t.Context(), &v1.ListSecretsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return len(got.GetSecrets())
}

// crossBoth takes both blobs of a vTPM across.
func (r *rig) crossBoth(t *testing.T) {
	t.Helper()
	for _, kind := range []v1.StateType{permanent, volatile} {
		sealed, err := r.src.protect(kind, random(100))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dst.unprotect(kind, sealed); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecretsTravelWithTheVMAndLeaveTheSourceLast(t *testing.T) {
	for _, dialler := range []string{"source", "destination"} {
		t.Run(dialler+" dials", func(t *testing.T) {
			r := newRig(t)
			r.src.escrowed(t, "v1", "an old passphrase")
			r.src.escrowed(t, "v2", "a new passphrase")
			var s *v1.Session
			var err error
			if dialler == "source" {
				s, err = r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
			} else {
				s, err = r.dst.establish(t.Context(), "compute1", v1.Role_ROLE_DESTINATION)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.dst.release(nil, "v1")
			want(t, "at the destination without the session", err, v1.Reason_REASON_SESSION_CONFLICT)
			_, err = r.src.release(s.GetSessionId(), "v1")
			want(t, "by the session at the source", err, v1.Reason_REASON_NO_SESSION)
			_, err = r.src.secrets().Forget(t.Context(), &v1.ForgetRequest{InstanceId: vmID})
			want(t, "forgetting while a session is open", err, v1.Reason_REASON_SESSION_CONFLICT)
			if got, err := r.dst.release(s.GetSessionId(), "v2"); err != nil || got != "a new passphrase" {
				t.Fatalf("%q, %v", got, err)
			}
			_, err = r.dst.release(s.GetSessionId(), "v2")
			want(t, "a second release", err, v1.Reason_REASON_ALREADY_USED)
			if _, err := r.src.arm("m1"); err != nil {
				t.Fatal(err)
			}
			r.crossBoth(t)
			if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
				t.Fatal(err)
			}
			if n := r.src.listed(t); n != 0 {
				t.Errorf("%d secrets are left at the source", n)
			}
			_, err = r.dst.release(s.GetSessionId(), "v1")
			want(t, "by a session that is over", err, v1.Reason_REASON_WRONG_STATE)
			r.dst.stop()
			r.dst.start(t) // the host boots: the VM's secret without its owner
			if got, err := r.dst.release(nil, "v1"); err != nil || got != "an old passphrase" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestAnAbortedMigrationLeavesTheSecretAtTheSourceOnly(t *testing.T) {
	r := newRig(t)
	r.src.escrowed(t, "", "passphrase")
	s := r.armed(t, "m1")
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // it is dropped in the background
		if r.dst.listed(t) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := r.dst.listed(t); n != 0 {
		t.Errorf("%d secrets are left at the destination", n)
	}
	_, err := r.dst.release(s.GetSessionId(), "")
	want(t, "by an aborted session", err, v1.Reason_REASON_WRONG_STATE)
	if got, err := r.src.release(nil, ""); err != nil || got != "passphrase" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoSecretIsReleasedToAPeerThatNoLongerStands(t *testing.T) {
	r := newRig(t, expiring)
	r.src.escrowed(t, "", "passphrase")
	s, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	r.policy.SVN++
	r.policy.Enclaves = []policy.Enclave{{MREnclave: make([]byte, 32)}}
	r.reload(t, r.dst)
	_, err = r.dst.release(s.GetSessionId(), "")
	want(t, "after a policy that does not accept the source", err, v1.Reason_REASON_WRONG_STATE)
}

func TestSecretsRestSealed(t *testing.T) {
	r := newRig(t)
	r.src.escrowed(t, "", "a passphrase that must not lie on a disk")
	files := 0
	if err := filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte("a passphrase that must not")) {
			t.Errorf("%s holds it in clear", path)
		}
		return err
	}); err != nil || files == 0 {
		t.Fatal(files, err)
	}
	_, err := r.src.secrets().Escrow(t.Context(), &v1.EscrowRequest{InstanceId: "x", Secret: []byte("x")})
	want(t, "no instance", err, v1.Reason_REASON_INVALID_REQUEST)
}
