package node

import (
	"encoding/json"
	"net/http"
)

// probeAnswer is what a probe answers, with status 200 or 503.
type probeAnswer struct {
	OK   bool   `json:"ok"`
	Host string `json:"host"`
	Mode string `json:"mode"`
	// Problem is the first thing that is wrong, for a reader in a hurry.
	Problem string    `json:"problem"`
	Checks  []checked `json:"checks"`
}

// handler serves /metrics and the probes /startedz, /livez and /readyz.
func (n *node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metrics.Handler())
	for path, probe := range map[string]func() []checked{"/startedz": n.health.hasStarted, "/livez": n.health.live, "/readyz": n.health.ready} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			a := probeAnswer{OK: true, Host: n.host, Mode: n.mode.String(), Checks: probe()}
			for _, c := range a.Checks {
				if !c.OK && a.OK {
					a.OK, a.Problem = false, c.Name+": "+c.Why
				}
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			if !a.OK {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_ = json.NewEncoder(w).Encode(a) // the client's going away is not ours to handle
		})
	}
	return mux
}
