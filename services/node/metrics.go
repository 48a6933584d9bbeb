package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// metrics are what Prometheus scrapes. Every series carries the mode. Labels come from enums and from method names only, so
// nothing that a peer sends can make a new one.
type metrics struct {
	registry *prometheus.Registry
	steps    *prometheus.HistogramVec
	blobs    *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	refusals *prometheus.CounterVec
	sessions *prometheus.GaugeVec
	calls    *prometheus.CounterVec
}

// buckets fit both a blob of 50 us and a handshake of 5 s.
var latencyBuckets = []float64{5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, .1, .25, .5, 1, 2.5, 5, 10}

func newMetrics(mode, version string) *metrics {
	labels := prometheus.Labels{"mode": mode}
	histogram := func(name, help string, by ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, ConstLabels: labels, Buckets: latencyBuckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, by)
	}
	counter := func(name, help string, by ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, by)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		steps:    histogram("safeconduct_handshake_step_duration_seconds", "Time of one step of the handshake, by step and outcome.", "step", "outcome"),
		blobs:    histogram("safeconduct_blob_duration_seconds", "Time the enclave took to protect or unprotect one blob, by direction.", "direction"),
		bytes:    counter("safeconduct_blob_plaintext_bytes_total", "Bytes of plaintext protected or unprotected, by direction.", "direction"),
		refusals: counter("safeconduct_refusals_total", "Refusals, by typed reason.", "reason"),
		calls:    counter("safeconduct_calls_total", "Calls served, by method and outcome.", "method", "outcome"),
		sessions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "safeconduct_sessions", Help: "Open sessions, by state.", ConstLabels: labels,
		}, []string{"state"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "safeconduct_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"mode": mode, "version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.steps, m.blobs, m.bytes, m.refusals, m.calls, m.sessions, info, collectors.NewGoCollector())
	return m
}

func outcome(refused bool) string {
	if refused {
		return "refused"
	}
	return "ok"
}

func stepName(s v1.Step) string {
	switch s {
	case v1.Step_STEP_PEER_ATTESTATION:
		return "peer_attestation"
	case v1.Step_STEP_INTEGRITY_EXCHANGE:
		return "integrity_exchange"
	case v1.Step_STEP_KEY_DERIVATION:
		return "key_derivation"
	default:
		return "unspecified"
	}
}

func (m *metrics) step(step *v1.StepReport) {
	refused := step.GetRefusal() != nil
	m.steps.WithLabelValues(stepName(step.GetStep()), outcome(refused)).Observe(step.GetElapsed().AsDuration().Seconds())
}

func (m *metrics) blob(role v1.Role, b *v1.BlobReport) {
	direction := "protect"
	if role == v1.Role_ROLE_DESTINATION {
		direction = "unprotect"
	}
	m.blobs.WithLabelValues(direction).Observe(b.GetElapsed().AsDuration().Seconds())
	m.bytes.WithLabelValues(direction).Add(float64(b.GetPlaintextBytes()))
}

func (m *metrics) refused(reason v1.Reason) {
	if _, known := v1.Reason_name[int32(reason)]; !known {
		reason = v1.Reason_REASON_UNSPECIFIED
	}
	m.refusals.WithLabelValues(refusal.Name(reason)).Inc()
}

func (m *metrics) transition(c session.Change) {
	if c.Previous != 0 && !c.Previous.Ended() {
		m.sessions.WithLabelValues(c.Previous.String()).Dec()
	}
	if !c.Session.State.Ended() {
		m.sessions.WithLabelValues(c.Session.State.String()).Inc()
	}
}

// call counts a call; method is one that the server has, for interceptors see no other.
func (m *metrics) call(method string, err error) {
	m.calls.WithLabelValues(method, outcome(err != nil)).Inc()
	if err != nil {
		m.refused(rpcerror.Refusal(err).Reason)
	}
}
