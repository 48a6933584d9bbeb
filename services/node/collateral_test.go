package node

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/pccs"
)

// withPCCS makes both nodes fetch their collateral from a PCCS over HTTP, which hangs while down is set.
func withPCCS(t *testing.T, down *atomic.Bool) change {
	return func(r *rig, _ *policy.Policy) {
		dir := r.src.cfg.Collateral.Dir
		handler := pccs.Handler(func() (*pccs.Library, error) { return pccs.LoadDir(dir) })
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if down.Load() {
				<-req.Context().Done()
				return
			}
			handler.ServeHTTP(w, req)
		}))
		t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
		for _, n := range []*testNode{r.src, r.dst} {
			n.cfg.Collateral = config.Collateral{PCCS: server.URL}
		}
	}
}

func TestAPCCSThatHangsDelaysNoMigrationWhileTheCacheIsValid(t *testing.T) {
	var down atomic.Bool
	r := newRig(t, withPCCS(t, &down))
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	r.dst.stop()
	r.dst.start(t) // from the cache on its disk
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	expires := r.dst.sessions(t)[0].GetPeerAttested().GetExpiresAt().AsTime()
	down.Store(false) // a fetch that fails at once says the same sooner
	r.src.skew.Store(int64(time.Until(expires) + time.Minute))
	_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "when the cache and what the PCCS has are expired", err, v1.Reason_REASON_COLLATERAL_INVALID)
}

func TestAReloadFetchesARevocationFromThePCCS(t *testing.T) {
	var down atomic.Bool
	dir := ""
	r := newRig(t, func(r *rig, _ *policy.Policy) { dir = r.src.cfg.Collateral.Dir }, withPCCS(t, &down))
	r.armed(t, "m1")
	r.dst.cfg.Collateral.Dir = dir // where issue writes
	r.revoke(t, r.dst)
	got, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetCollateralChanged() || len(got.GetAborted()) != 1 || got.GetAborted()[0].GetRefusal().GetReason() != v1.Reason_REASON_CERTIFICATE_REVOKED {
		t.Errorf("got %v", got)
	}
}
