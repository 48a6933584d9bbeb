package node

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// readiness is whether the node can attest itself: a node that cannot would refuse every migration.
type readiness struct {
	grpc    *health.Server
	problem atomic.Pointer[string]
	again   chan struct{}
}

// soon makes watch check without waiting for its next turn.
func (r *readiness) soon() {
	select {
	case r.again <- struct{}{}:
	default: // one is asked for already
	}
}

func newReadiness() *readiness {
	r := &readiness{grpc: health.NewServer(), again: make(chan struct{}, 1)}
	r.set("starting")
	return r
}

// set records the problem, or "" for none, and tells grpc.health.v1.
func (r *readiness) set(problem string) {
	r.problem.Store(&problem)
	state := healthpb.HealthCheckResponse_SERVING
	if problem != "" {
		state = healthpb.HealthCheckResponse_NOT_SERVING
	}
	r.grpc.SetServingStatus("", state)
}

// watch attests this node to itself every period until ctx ends.
func (r *readiness) watch(ctx context.Context, period time.Duration, check func(context.Context) (*v1.Attested, error)) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		if _, err := check(ctx); err != nil && ctx.Err() == nil {
			r.set(err.Error())
		} else if err == nil {
			r.set("")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.again:
		}
	}
}

// handler serves /metrics, /livez and /readyz.
func (n *node) handler(r *readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{Registry: n.metrics.registry}))
	answer := func(w http.ResponseWriter, problem string) {
		w.Header().Set("Content-Type", "application/json")
		if problem != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		// The client's going away is not ours to handle.
		_ = json.NewEncoder(w).Encode(map[string]any{"ok": problem == "", "problem": problem, "host": n.host, "mode": n.mode.String()})
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, "") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, *r.problem.Load()) })
	return mux
}
