package node

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// probed is what a probe says, in a line.
func probed(all []checked) string {
	var wrong []string
	for _, c := range all {
		if !c.OK {
			wrong = append(wrong, c.Name+": "+c.Why)
		}
	}
	return strings.Join(wrong, "; ")
}

func TestStartedLiveAndReadyAreThreeThings(t *testing.T) {
	accepted := &standingOfSelf{}
	for name, tc := range map[string]struct {
		change               func(h *healthState, now *atomic.Int64)
		started, live, ready string // what is wrong; empty for nothing
	}{
		"a service that has just begun": {
			func(*healthState, *atomic.Int64) {}, "listeners: not yet; first self-check: not yet", "", "service: starting; self-check: starting",
		},
		"one that listens and has accepted itself": {
			func(h *healthState, _ *atomic.Int64) { h.change(func() { h.started, h.self = true, accepted }) }, "", "", "",
		},
		"one that refuses itself": {func(h *healthState, _ *atomic.Int64) {
			r := refusal.New(v1.Reason_REASON_TCB_NOT_ACCEPTED, "old microcode")
			h.change(func() { h.started, h.self = true, &standingOfSelf{refusal: r} })
		}, "", "", "self-check: old microcode"},
		"one whose quote daemon has died in silence": {func(h *healthState, now *atomic.Int64) {
			h.change(func() { h.started, h.self = true, accepted })
			now.Add(int64(6 * time.Minute))
			h.change(func() { h.beat = h.uptime() })
		}, "", "", "self-check: this node last accepted itself 6m0s ago; since then no check has come to an end"},
		"one whose session loop is stuck": {func(h *healthState, now *atomic.Int64) {
			h.change(func() { h.started, h.self = true, accepted })
			now.Add(int64(31 * time.Second))
		}, "", "session loop: it has not turned for 31s", ""},
		"one that drains": {func(h *healthState, _ *atomic.Int64) {
			h.change(func() { h.started, h.self, h.draining = true, accepted, true })
		}, "", "", "service: draining"},
		"one that stops": {func(h *healthState, _ *atomic.Int64) {
			h.change(func() { h.started, h.self, h.stopping = true, accepted, true })
		}, "", "", "service: stopping"},
		"one that cannot write its audit log": {func(h *healthState, _ *atomic.Int64) {
			h.change(func() { h.started, h.self, h.auditing = true, accepted, errors.New("no space left on device") })
		}, "", "", "audit log: no space left on device"},
	} {
		t.Run(name, func(t *testing.T) {
			var now atomic.Int64
			h := newHealth(func() time.Duration { return time.Duration(now.Load()) }, selfCheckStale)
			defer h.grpc.Shutdown()
			tc.change(h, &now)
			for what, got := range map[string][2]string{
				"started": {probed(h.hasStarted()), tc.started}, "live": {probed(h.live()), tc.live}, "ready": {probed(h.ready()), tc.ready},
			} {
				if !strings.HasPrefix(got[0], got[1]) || got[1] == "" && got[0] != "" {
					t.Errorf("%s: %q, want %q", what, got[0], got[1])
				}
			}
			h.change(func() {}) // what a turn of the loop does
			for service, wrong := range map[string]string{"": tc.ready, serviceReady: tc.ready, serviceLive: tc.live, serviceStarted: tc.started} {
				resp, err := h.grpc.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
				if err != nil || (resp.GetStatus() == healthpb.HealthCheckResponse_SERVING) != (wrong == "") {
					t.Errorf("grpc.health.v1 %q: %v, %v, want wrong %q", service, resp, err, wrong)
				}
			}
		})
	}
}

func TestANodeChecksItselfAgainEveryPeriodAndWhenItIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		h := newHealth(func() time.Duration { return time.Since(begun) }, selfCheckStale)
		var times []time.Duration
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.watch(ctx, time.Minute, func(context.Context) *standingOfSelf {
				times = append(times, time.Since(begun))
				return &standingOfSelf{}
			})
		}()
		time.Sleep(150 * time.Second)
		h.soon()
		synctest.Wait()
		stop()
		<-done
		want := []time.Duration{0, time.Minute, 2 * time.Minute, 150 * time.Second}
		if len(times) != len(want) {
			t.Fatalf("checked at %v, want %v", times, want)
		}
		for i := range want {
			if times[i] != want[i] {
				t.Errorf("checked at %v, want %v", times, want)
			}
		}
		if h.acceptedAgo() != 0 {
			t.Errorf("accepted %v ago", h.acceptedAgo())
		}
	})
}
