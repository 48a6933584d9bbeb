package metrics

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// buckets fit both a blob of 50 us and a handshake of 5 s. A Prometheus that takes native histograms gets those besides.
func buckets() []float64 {
	return []float64{5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, .1, .25, .5, 1, 2.5, 5, 10}
}

// Recorder counts what happens on one node. Its methods may be called concurrently, and none blocks.
type Recorder struct {
	registry *prometheus.Registry
	labels   prometheus.Labels
	phases   *prometheus.HistogramVec
	counters map[string]*prometheus.CounterVec
}

// New returns a recorder for a node of a mode ("intel", "simulated") and version.
func New(mode, version string) *Recorder {
	r := &Recorder{
		registry: prometheus.NewRegistry(), labels: prometheus.Labels{"mode": mode}, counters: map[string]*prometheus.CounterVec{},
	}
	for _, m := range Catalogue() {
		switch m.Kind {
		case Histogram:
			r.phases = prometheus.NewHistogramVec(prometheus.HistogramOpts{
				Name: m.Name, Help: m.Help, ConstLabels: r.labels, Buckets: buckets(),
				NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
			}, names(m.Labels))
			for _, values := range combinations(m.Labels) { // as below
				r.phases.WithLabelValues(values...)
			}
			r.registry.MustRegister(r.phases)
		case Counter:
			c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help, ConstLabels: r.labels}, names(m.Labels))
			// Every series is there from the start, at 0: rate() then sees the first event.
			for _, values := range combinations(m.Labels) {
				c.WithLabelValues(values...)
			}
			r.counters[m.Name] = c
			r.registry.MustRegister(c)
		case Gauge: // see Watch; the one that never changes is here
			if m.Name == BuildInfo {
				g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.Name, Help: m.Help, ConstLabels: r.labels}, names(m.Labels))
				g.WithLabelValues(version, runtime.Version()).Set(1)
				r.registry.MustRegister(g)
			}
		}
	}
	r.registry.MustRegister(collectors.NewGoCollector())
	return r
}

func names(labels []Label) []string {
	var out []string
	for _, l := range labels {
		out = append(out, l.Name)
	}
	return out
}

// combinations are all values that labels can have together; none if one of them is bounded by something else.
func combinations(labels []Label) [][]string {
	all := [][]string{nil}
	for _, l := range labels {
		var next [][]string
		for _, head := range all {
			for _, v := range l.Values {
				next = append(next, append(append([]string(nil), head...), v))
			}
		}
		all = next
	}
	return all
}

// Handler serves the metrics.
func (r *Recorder) Handler() http.Handler {
	return promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{Registry: r.registry, MaxRequestsInFlight: 4})
}

func (r *Recorder) count(name string, n float64, values ...string) {
	r.counters[name].WithLabelValues(values...).Add(n)
}

func outcomeOf(err error) string {
	if err != nil {
		return refused
	}
	return ok
}

// Phase records that a phase took so long and ended so.
func (r *Recorder) Phase(p Phase, took time.Duration, err error) {
	r.phases.WithLabelValues(string(p), outcomeOf(err)).Observe(max(0, took.Seconds()))
}

// Step records a step of a handshake.
func (r *Recorder) Step(step *v1.StepReport) {
	var err error
	if step.GetRefusal() != nil {
		err = refusal.FromProto(step.GetRefusal())
	}
	took := step.GetElapsed().AsDuration()
	switch step.GetStep() {
	case v1.Step_STEP_PEER_ATTESTATION:
		r.Phase(PhaseHandshake, took, err)
	case v1.Step_STEP_INTEGRITY_EXCHANGE:
		r.Phase(PhaseIntegrity, took, err)
	case v1.Step_STEP_KEY_DERIVATION:
		r.Phase(PhaseKeys, took, err)
	default: // a step of a later release
	}
}

// Quote records that this enclave was asked for a quote. A caller that went away is no failure of the enclave.
func (r *Recorder) Quote(took time.Duration, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	r.Phase(PhaseEvidence, took, err)
	if err != nil {
		r.count(Quotes, 1, failed)
		return
	}
	r.count(Quotes, 1, ok)
}

// Crossed records plaintext that crossed the enclave, by one of the directions and kinds of this package.
func (r *Recorder) Crossed(role v1.Role, kind string, n uint64) {
	direction := DirectionProtect
	if role == v1.Role_ROLE_DESTINATION {
		direction = DirectionUnprotect
	}
	r.count(ProtectedBytes, float64(n), direction, kind)
}

// Refused counts a refusal. A reason that this release does not know counts as UNSPECIFIED.
func (r *Recorder) Refused(side Side, reason v1.Reason) {
	if _, known := v1.Reason_name[int32(reason)]; !known {
		reason = v1.Reason_REASON_UNSPECIFIED
	}
	r.count(Refusals, 1, refusal.Name(reason), string(side))
}

// Call counts a call and, if it was refused, its reason; method is one that the server has, for interceptors see no other.
func (r *Recorder) Call(side Side, method string, err error) {
	r.count(Calls, 1, method, outcomeOf(err))
	if err != nil && !errors.Is(err, context.Canceled) {
		r.Refused(side, rpcerror.Refusal(err).Reason)
	}
}

// Ended counts a session that ended in a final state.
func (r *Recorder) Ended(state session.State) { r.count(SessionsEnded, 1, state.String()) }

// SelfCheck counts what this node found of itself.
func (r *Recorder) SelfCheck(err error) { r.count(SelfChecks, 1, outcomeOf(err)) }

// Reloaded counts a reload.
func (r *Recorder) Reloaded(err error) { r.count(Reloads, 1, outcomeOf(err)) }

// Fetched implements collateral.Observer.
func (r *Recorder) Fetched(_ collateral.Key, _ time.Duration, err error) {
	outcome := "unavailable"
	switch {
	case err == nil:
		outcome = ok
	case errors.Is(err, collateral.ErrRollback):
		outcome = "rolled_back"
	case errors.Is(err, collateral.ErrExpired), errors.Is(err, collateral.ErrNotYetValid):
		outcome = "expired"
	case errors.Is(err, collateral.ErrRejected):
		outcome = "rejected"
	}
	r.count(CollateralFetches, 1, outcome)
}

// SealedFailed counts an operation of the sealed store that failed: "get", "put", "delete" or "list".
func (r *Recorder) SealedFailed(operation string) { r.count(SealedErrors, 1, operation) }

// Receipt counts a receipt that was stored, signed by both nodes or by this one alone.
func (r *Recorder) Receipt(both bool) {
	signed := "one"
	if both {
		signed = "both"
	}
	r.count(Receipts, 1, signed)
}

// NoReceipt counts an armed migration that ended without one.
func (r *Recorder) NoReceipt() { r.count(ReceiptsMissing, 1) }

// Audited counts a record of the audit log.
func (r *Recorder) Audited(err error) {
	if err != nil {
		r.count(AuditErrors, 1)
		return
	}
	r.count(AuditRecords, 1)
}
