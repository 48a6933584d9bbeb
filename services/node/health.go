package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Names of grpc.health.v1 beside "", which is ready's: whether the service has started, lives, and is ready.
const (
	serviceStarted = "safeconduct.started"
	serviceLive    = "safeconduct.live"
	serviceReady   = "safeconduct.ready"
)

// After beatStale without a turn of the loop that ends sessions, the process is not alive: a lock is held for good, or an enclave has no thread left.
const beatStale = 30 * time.Second

// checked is one thing that a probe looked at. Why is what is wrong, or something worth knowing.
type checked struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"`
	// Of a refusal.
	Reason   string `json:"reason,omitempty"`
	Item     string `json:"item,omitempty"`
	Found    string `json:"found,omitempty"`
	Expected string `json:"expected,omitempty"`
	Do       string `json:"do,omitempty"`
}

// standingOfSelf is what this node's last check of itself found.
type standingOfSelf struct {
	refusal  *refusal.Refusal
	claims   *appraisal.Claims
	attested *v1.Attested
}

// healthState is whether the service has started, lives, and is ready. They are three things: a node that is not ready refuses migrations and is not to be
// restarted for it, which would not help; one that does not live is.
type healthState struct {
	grpc  *health.Server
	again chan struct{}
	// uptime is the time since some moment, by a clock that nobody sets.
	uptime func() time.Duration
	// stale is after how long without success a check of itself counts no more.
	stale time.Duration

	mu       sync.Mutex
	started  bool
	stopping bool
	draining bool
	auditing error
	self     *standingOfSelf // nil until the first check has ended
	accepted time.Duration   // uptime at which this node last accepted itself
	beat     time.Duration
}

func newHealth(uptime func() time.Duration, stale time.Duration) *healthState {
	h := &healthState{grpc: health.NewServer(), again: make(chan struct{}, 1), uptime: uptime, stale: stale}
	h.change(func() { h.beat = uptime() })
	return h
}

// change alters the state and tells grpc.health.v1.
func (h *healthState) change(f func()) {
	h.mu.Lock()
	f()
	h.mu.Unlock()
	for _, p := range []struct {
		name  string
		probe func() []checked
	}{{"", h.ready}, {serviceReady, h.ready}, {serviceLive, h.live}, {serviceStarted, h.hasStarted}} {
		state := healthpb.HealthCheckResponse_SERVING
		if !allOK(p.probe()) {
			state = healthpb.HealthCheckResponse_NOT_SERVING
		}
		h.grpc.SetServingStatus(p.name, state)
	}
}

func allOK(all []checked) bool {
	for _, c := range all {
		if !c.OK {
			return false
		}
	}
	return true
}

// hasStarted says whether every listener is open and this node has looked at itself once.
func (h *healthState) hasStarted() []checked {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []checked{{Name: "listeners", OK: h.started}, {Name: "first self-check", OK: h.self != nil}}
	for i := range out {
		if !out[i].OK {
			out[i].Why = "not yet"
		}
	}
	return out
}

// live says whether the service does its work at all.
func (h *healthState) live() []checked {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := checked{Name: "session loop", OK: true}
	if ago := h.uptime() - h.beat; ago > beatStale {
		c.OK, c.Why, c.Do = false, fmt.Sprintf("it has not turned for %v", ago.Round(time.Second)), "restart the service: something in it is stuck"
	}
	return []checked{c}
}

// ready says whether a migration would be accepted.
func (h *healthState) ready() []checked {
	h.mu.Lock()
	defer h.mu.Unlock()
	service := checked{Name: "service", OK: h.started && !h.stopping && !h.draining}
	switch {
	case h.stopping:
		service.Why = "stopping"
	case h.draining:
		service.Why, service.Do = "draining: no new sessions", refusal.Remedies(v1.Reason_REASON_DRAINING)
	case !h.started:
		service.Why = "starting"
	}
	audit := checked{Name: "audit log", OK: h.auditing == nil}
	if h.auditing != nil {
		audit.Why, audit.Do = h.auditing.Error(), "look at the disk of audit.dir; the node is ready again with the first record that is written"
	}
	return []checked{service, h.selfCheckLocked(), audit}
}

func (h *healthState) selfCheckLocked() checked {
	c := checked{Name: "self-check"}
	ago := (h.uptime() - h.accepted).Round(time.Second)
	switch {
	case h.self == nil:
		c.Why = "starting: this node has not attested itself yet"
	case h.self.refusal != nil:
		r := h.self.refusal
		c.Why, c.Reason, c.Item, c.Found, c.Expected, c.Do = r.Message, refusal.Name(r.Reason), r.Item, r.Found, r.Expected, r.RemedyText()
	case ago > h.stale:
		c.Why = fmt.Sprintf("this node last accepted itself %v ago; since then no check has come to an end", ago)
		c.Do = "look whether aesmd, the PCCS and the TPM answer"
	default:
		c.OK, c.Why = true, fmt.Sprintf("this node accepted itself %v ago", ago)
	}
	return c
}

// isReady is ready in a word.
func (h *healthState) isReady() bool { return allOK(h.ready()) }

// acceptedAgo is the time since this node last accepted itself, or since the start.
func (h *healthState) acceptedAgo() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uptime() - h.accepted
}

// lastSelf is what the last check of itself found; nil before the first.
func (h *healthState) lastSelf() *standingOfSelf {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.self
}

// setAuditing follows the audit log, and returns what was wrong with it before. A record that was written does not make it well again: only all of them
// being durable does.
func (h *healthState) setAuditing(written bool, err error) (before error) {
	h.mu.Lock()
	before = h.auditing
	same := err == nil && (written || before == nil)
	h.mu.Unlock()
	if !same {
		h.change(func() { h.auditing = err })
	}
	return before
}

// soon makes watch check without waiting for its next turn.
func (h *healthState) soon() {
	select {
	case h.again <- struct{}{}:
	default: // one is asked for already
	}
}

// watch checks this node, as its peers would, every period until ctx ends. Quote daemons die in silence, and it notices.
func (h *healthState) watch(ctx context.Context, period time.Duration, check func(context.Context) *standingOfSelf) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		if self := check(ctx); ctx.Err() == nil {
			h.change(func() {
				h.self = self
				if self.refusal == nil {
					h.accepted = h.uptime()
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.again:
		}
	}
}
