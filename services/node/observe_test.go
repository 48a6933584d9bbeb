package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// watched gives both nodes their listener for metrics and probes.
func watched(r *rig, _ *policy.Policy) {
	for _, n := range []*testNode{r.src, r.dst} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		n.cfg.HTTP.Listen = l.Addr().String()
		l.Close()
	}
}

func (n *testNode) get(t testing.TB, path string) (int, []byte) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + n.cfg.HTTP.Listen + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, raw
}

// series are the node's metrics, by name and labels as the text format writes them, without the mode.
func (n *testNode) series(t testing.TB) map[string]string {
	t.Helper()
	_, raw := n.get(t, "/metrics")
	out := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
		if line := s.Text(); strings.HasPrefix(line, "safeconduct_") {
			i := strings.LastIndexByte(line, ' ')
			name := strings.NewReplacer(`mode="simulated",`, "", `,mode="simulated"`, "", `{mode="simulated"}`, "").Replace(line[:i])
			if name == line[:i] {
				t.Errorf("%s does not say that it is simulated", line)
			}
			out[name] = line[i+1:]
		}
	}
	return out
}

func (n *testNode) wantSeries(t testing.TB, want map[string]string) {
	t.Helper()
	got := n.series(t)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s: %s is %q, want %q", n.name, name, got[name], value)
		}
	}
}

func TestAMigrationShowsInTheMetricsOfBothNodes(t *testing.T) {
	r := newRig(t, watched)
	r.src.escrowed(t, "", "a passphrase")
	s := r.armed(t, "m1")
	for _, kind := range []v1.StateType{permanent, volatile} {
		ciphertext, err := r.src.protect(kind, random(500))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dst.unprotect(kind, ciphertext); err != nil {
			t.Fatal(err)
		}
	}
	r.src.wantSeries(t, map[string]string{`safeconduct_sessions{state="transferring"}`: "1"})
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	phase := func(p metrics.Phase) string {
		return fmt.Sprintf(`safeconduct_phase_duration_seconds_count{outcome="ok",phase=%q}`, p)
	}
	r.src.wantSeries(t, map[string]string{
		phase(metrics.PhaseHandshake): "1", phase(metrics.PhaseIntegrity): "1", phase(metrics.PhaseKeys): "1", phase(metrics.PhaseEstablish): "1",
		phase(metrics.PhaseSecret): "1", phase(metrics.PhaseArm): "1", phase(metrics.PhaseProtect): "2", phase(metrics.PhaseCommit): "1",
		`safeconduct_protected_bytes_total{direction="protect",kind="state"}`: "1000",
		`safeconduct_sessions_ended_total{outcome="committed"}`:               "1",
		`safeconduct_sessions{state="transferring"}`:                          "0",
		`safeconduct_receipts_total{signed="both"}`:                           "1",
		`safeconduct_receipts_missing_total`:                                  "0",
		`safeconduct_policy_svn`:                                              "1",
	})
	r.dst.wantSeries(t, map[string]string{
		phase(metrics.PhaseUnprotect): "2", phase(metrics.PhaseCommit): "1", phase(metrics.PhaseHandshake): "1",
		`safeconduct_protected_bytes_total{direction="unprotect",kind="state"}`: "1000",
	})
	got := r.src.series(t)
	for _, name := range []string{
		`safeconduct_collateral_expires_in_seconds{of="own"}`, `safeconduct_collateral_age_seconds{of="own"}`,
		`safeconduct_certificate_expires_in_seconds{certificate="own_evidence"}`, phase(metrics.PhaseVerify), phase(metrics.PhaseEvidence),
	} {
		if got[name] == "" || got[name] == "0" || strings.HasPrefix(got[name], "-") {
			t.Errorf("%s is %q", name, got[name])
		}
	}
	if _, there := got[`safeconduct_policy_window_closes_in_seconds{window="own_enclave"}`]; there {
		t.Error("a window closes in a policy that has none")
	}
}

func TestARefusalCountsOnceOnEachNodeThatRefuses(t *testing.T) {
	r := newRig(t, watched)
	if _, err := r.src.establish(t.Context(), "compute9", v1.Role_ROLE_SOURCE); err == nil {
		t.Fatal("an unknown peer is not refused")
	}
	r.dst.cfg.Peers[0].Host = "compute7" // the destination no longer knows the source
	r.dst.stop()
	r.dst.start(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err == nil {
		t.Fatal("a source that the destination does not know is not refused")
	}
	r.src.wantSeries(t, map[string]string{
		`safeconduct_refusals_total{caller="local",reason="UNKNOWN_PEER"}`: "1", `safeconduct_refusals_total{caller="local",reason="PEER_REFUSED"}`: "1",
	})
	eventually(t, "the destination counts what it refused", func() bool {
		return r.dst.series(t)[`safeconduct_refusals_total{caller="peer",reason="UNKNOWN_PEER"}`] == "1"
	})
}

func TestAPolicyThatEndsShowsWhen(t *testing.T) {
	end := time.Now().Add(time.Hour)
	r := newRig(t, watched, func(_ *rig, p *policy.Policy) { p.Enclaves[0].NotAfter = end })
	eventually(t, "both windows are there", func() bool {
		got := r.src.series(t)
		own, all := got[`safeconduct_policy_window_closes_in_seconds{window="own_enclave"}`], got[`safeconduct_policy_window_closes_in_seconds{window="enclaves"}`]
		return strings.HasPrefix(own, "35") && strings.HasPrefix(all, "35")
	})
}

// TestNothingThatAPeerSendsMakesANewSeries has a stranger call the peer port with whatever comes to mind, and looks for anything that was not there
// before, but the series of its own calls.
func TestNothingThatAPeerSendsMakesANewSeries(t *testing.T) {
	r := newRig(t, watched)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	hostile := r.dst.peerClient(t)
	rng := rand.New(rand.NewPCG(1, 2))
	attack := func() {
		junk := make([]byte, rng.IntN(200))
		for i := range junk {
			junk[i] = byte(rng.Uint32())
		}
		host := fmt.Sprintf("host-%d", rng.Uint32())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		message := &v1.SealedMessage{Ciphertext: junk}
		_, _ = hostile.Arm(ctx, &v1.PeerServiceArmRequest{SessionId: junk, Message: message})
		_, _ = hostile.Transfer(ctx, &v1.TransferRequest{SessionId: random(16), Message: message})
		_, _ = hostile.Conclude(ctx, &v1.ConcludeRequest{SessionId: random(16), Message: message})
		rpc, err := hostile.Handshake(ctx)
		if err != nil {
			return
		}
		open := func(suite, instance, source string) *v1.Frame {
			return &v1.Frame{Body: &v1.Frame_Open{Open: &v1.Open{
				Suite: suite, Mode: v1.Mode_MODE_SIMULATED, AttemptId: random(16), InstanceId: instance, SourceHost: source, DestinationHost: "compute2",
				DiallerRole: v1.Role_ROLE_SOURCE,
			}}}
		}
		const suite = "safeconduct/v1 X25519MLKEM768 HKDF-SHA384 AES-256-GCM Ed25519"
		vm := fmt.Sprintf("0c6f1d3e-5b1f-4d62-9b0a-%012x", rng.Uint32())
		frames := []*v1.Frame{
			open(suite, vm, host), open(suite, vm, "compute1"), open(suite, string(junk), "compute1"), open(host, vm, "compute1"),
			{Body: &v1.Frame_Refused{Refused: &v1.Refused{Reason: v1.Reason(rng.Int32())}}},
		}
		_ = rpc.Send(&v1.HandshakeRequest{Frame: frames[rng.IntN(len(frames))]})
		_ = rpc.CloseSend()
		for {
			if _, err := rpc.Recv(); err != nil {
				return
			}
		}
	}
	attack()
	names := func() []string {
		var out []string
		for name := range r.dst.series(t) {
			out = append(out, name)
		}
		slices.Sort(out)
		return out
	}
	before := names()
	for range 300 {
		attack()
	}
	after := slices.DeleteFunc(names(), func(s string) bool { return slices.Contains(before, s) })
	// A method that is called for the first time, or with another outcome, has its series from then on: there are as many as methods.
	after = slices.DeleteFunc(after, func(s string) bool { return strings.HasPrefix(s, "safeconduct_calls_total{method=\"/safeconduct.v1.") })
	if len(after) > 0 {
		t.Errorf("300 calls of a stranger made series: %v", after)
	}
}

func (n *testNode) probe(t testing.TB, path string) (int, probeAnswer) {
	t.Helper()
	code, raw := n.get(t, path)
	var a probeAnswer
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatalf("%s: %v in %s", path, err, raw)
	}
	if a.Host != n.name || a.Mode != "MODE_SIMULATED" || a.OK != (code == http.StatusOK) || (a.Problem == "") != a.OK {
		t.Errorf("%s: %d %+v", path, code, a)
	}
	return code, a
}

func (n *testNode) grpcHealth(t testing.TB, service string) healthpb.HealthCheckResponse_ServingStatus {
	t.Helper()
	resp, err := healthpb.NewHealthClient(n.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetStatus()
}

func TestANodeThatItsPolicyRefusesIsAliveAndNotReady(t *testing.T) {
	r := newRig(t, watched)
	serving := healthpb.HealthCheckResponse_SERVING
	eventually(t, "ready", func() bool { code, _ := r.src.probe(t, "/readyz"); return code == http.StatusOK })
	for _, service := range []string{"", serviceReady, serviceLive, serviceStarted} {
		if got := r.src.grpcHealth(t, service); got != serving {
			t.Errorf("grpc.health.v1 %q: %v", service, got)
		}
	}
	r.src.wantSeries(t, map[string]string{`safeconduct_ready`: "1"})

	r.policy.SVN, r.policy.Enclaves[0].MREnclave[0] = 2, 9
	r.writePolicy(t)
	if _, err := r.src.admin().Reload(t.Context(), &v1.ReloadRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not ready", func() bool { code, _ := r.src.probe(t, "/readyz"); return code == http.StatusServiceUnavailable })
	_, a := r.src.probe(t, "/readyz")
	i := slices.IndexFunc(a.Checks, func(c checked) bool { return c.Name == "self-check" })
	if c := a.Checks[i]; c.OK || c.Reason != "MEASUREMENT_NOT_ALLOWED" || c.Found == "" || c.Expected == "" || c.Do == "" {
		t.Errorf("it does not say why: %+v", a)
	}
	for _, path := range []string{"/livez", "/startedz"} {
		if code, _ := r.src.probe(t, path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
	}
	if r.src.grpcHealth(t, "") == serving || r.src.grpcHealth(t, serviceReady) == serving || r.src.grpcHealth(t, serviceLive) != serving {
		t.Error("grpc.health.v1 does not agree with the probes")
	}
	r.src.wantSeries(t, map[string]string{`safeconduct_ready`: "0"})
}
