package openstack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// slack is how much later than due a task may be before something is wrong with the agent.
const slack = 30 * time.Second

// check is one line of a probe.
type check struct {
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"`
	Last string `json:"last_success,omitempty"`
}

// handler serves metrics and probes. Started: each task was done once, well or not. Live: each task is done as often as it is due. Ready: each task has
// succeeded within three of its periods.
func handler(r *Recorder, mode string) http.Handler {
	probe := func(judge func(s TaskState, now time.Time) (bool, string)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			all, checks := true, map[string]check{}
			for name, s := range r.Tasks() {
				c := check{}
				c.OK, c.Why = judge(s, r.now())
				if !s.Succeeded.IsZero() {
					c.Last = s.Succeeded.UTC().Format(time.RFC3339)
				}
				checks[name] = c
				all = all && c.OK
			}
			w.Header().Set("Content-Type", "application/json")
			if !all {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"ok": all, "mode": mode, "tasks": checks}) // whoever asked has gone
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", r.Handler())
	mux.Handle("GET /startedz", probe(started))
	mux.Handle("GET /livez", probe(live))
	mux.Handle("GET /readyz", probe(ready))
	return mux
}

func started(s TaskState, _ time.Time) (bool, string) {
	if s.Turned.IsZero() {
		return false, "it was not done yet"
	}
	return true, ""
}

func live(s TaskState, now time.Time) (bool, string) {
	last := s.Turned
	if last.IsZero() {
		last = s.Begun
	}
	if late := now.Sub(last); late > s.Every+s.Every/5+s.Timeout+slack {
		return false, fmt.Sprintf("it was last done %v ago: restart the agent", late.Round(time.Second))
	}
	return true, ""
}

func ready(s TaskState, now time.Time) (bool, string) {
	if !s.Succeeded.IsZero() && now.Sub(s.Succeeded) <= 3*s.Every+s.Timeout {
		return true, ""
	}
	if s.Err != nil {
		return false, s.Err.Error()
	}
	return false, "it was not done yet"
}
