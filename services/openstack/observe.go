package openstack

import (
	"errors"
	"maps"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// outcomes, as the catalogue has them.
const (
	outcomeOK      = "ok"
	outcomeFailed  = "failed"
	outcomeRefused = "refused"
)

// Recorder counts what the agent does. Its methods may be called concurrently.
type Recorder struct {
	registry *prometheus.Registry
	counters map[string]*prometheus.CounterVec
	gauges   map[string]*prometheus.GaugeVec
	now      func() time.Time

	mu    sync.Mutex
	tasks map[string]TaskState
}

// TaskState is how a task of the agent goes.
type TaskState struct {
	Every, Timeout time.Duration
	// Begun is when the agent began to follow it, Turned when it last ended, and Succeeded when it last ended well; zero if it never did.
	Begun, Turned, Succeeded time.Time
	// Err is why it failed, if it did the last time.
	Err error
}

// NewRecorder returns a recorder for an agent of a mode ("intel", "simulated") and version.
func NewRecorder(mode, version string, now func() time.Time) *Recorder {
	r := &Recorder{
		registry: prometheus.NewRegistry(), counters: map[string]*prometheus.CounterVec{}, gauges: map[string]*prometheus.GaugeVec{},
		now: now, tasks: map[string]TaskState{},
	}
	constant := prometheus.Labels{"mode": mode}
	for _, m := range metrics.AgentCatalogue() {
		var labels []string
		series := [][]string{nil} // every combination of values: they are there from the start, at 0
		for _, l := range m.Labels {
			labels = append(labels, l.Name)
			var next [][]string
			for _, head := range series {
				for _, v := range l.Values {
					next = append(next, append(append([]string(nil), head...), v))
				}
			}
			series = next
		}
		if m.Kind == metrics.Counter {
			c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help, ConstLabels: constant}, labels)
			for _, values := range series {
				c.WithLabelValues(values...)
			}
			r.counters[m.Name] = c
			r.registry.MustRegister(c)
			continue
		}
		if m.Name == metrics.AgentPassAge { // computed at the scrape
			r.registry.MustRegister(&ages{r, prometheus.NewDesc(m.Name, m.Help, labels, constant)})
			continue
		}
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.Name, Help: m.Help, ConstLabels: constant}, labels)
		for _, values := range series {
			g.WithLabelValues(values...)
		}
		r.gauges[m.Name] = g
		r.registry.MustRegister(g)
	}
	r.gauges[metrics.AgentBuildInfo].WithLabelValues(version, runtime.Version()).Set(1)
	r.registry.MustRegister(collectors.NewGoCollector())
	return r
}

// Handler serves the metrics.
func (r *Recorder) Handler() http.Handler {
	return promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{Registry: r.registry, MaxRequestsInFlight: 4})
}

func (r *Recorder) count(name string, n int, values ...string) {
	r.counters[name].WithLabelValues(values...).Add(float64(n))
}

func (r *Recorder) gauge(name string, n float64, values ...string) {
	r.gauges[name].WithLabelValues(values...).Set(n)
}

// Begin notes that a task is followed from now on.
func (r *Recorder) Begin(task string, every, timeout time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tasks[task] = TaskState{Every: every, Timeout: timeout, Begun: r.now()}
}

// Pass notes how a task went, and why OpenStack failed if it did.
func (r *Recorder) Pass(task string, err error) {
	outcome := outcomeOK
	if err != nil {
		outcome = outcomeFailed
		for _, e := range cloudErrors(err) {
			r.count(metrics.AgentCloudErrors, 1, string(e.Service), e.Kind())
		}
	}
	r.count(metrics.AgentPasses, 1, task, outcome)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.tasks[task]
	s.Turned, s.Err = r.now(), err
	if err == nil {
		s.Succeeded = s.Turned
	}
	r.tasks[task] = s
}

// cloudErrors are all in a tree of errors.
func cloudErrors(err error) []*CloudError {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*CloudError
		for _, e := range joined.Unwrap() {
			all = append(all, cloudErrors(e)...)
		}
		return all
	}
	if e, ok := errors.AsType[*CloudError](err); ok {
		return []*CloudError{e}
	}
	return nil
}

// Tasks returns how all tasks go.
func (r *Recorder) Tasks() map[string]TaskState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.tasks)
}

// Traits records what the resource provider has now, and what the agent changed.
func (r *Recorder) Traits(has []Trait, change TraitChange, err error) {
	r.count(metrics.AgentTraitConflicts, change.Conflicts)
	if err != nil {
		return // it has what it had
	}
	r.count(metrics.AgentTraitChanges, len(change.Published), "published")
	r.count(metrics.AgentTraitChanges, len(change.Withdrawn), "withdrawn")
	for t, name := range map[Trait]string{TraitAttested: "attested", TraitVTPM: "vtpm", TraitTunnel: "tunnel", TraitSimulated: "simulated"} {
		n := 0.0
		for _, h := range has {
			if h == t {
				n = 1
			}
		}
		r.gauge(metrics.AgentTrait, n, name)
	}
}

// Preflight records one with a peer; reason is why it was refused.
func (r *Recorder) Preflight(peer string, accepted bool, reason v1.Reason) {
	if accepted {
		r.count(metrics.AgentPreflights, 1, outcomeOK)
		r.gauge(metrics.AgentPreflightPeer, 1, peer)
		return
	}
	if _, known := v1.Reason_name[int32(reason)]; !known {
		reason = v1.Reason_REASON_UNSPECIFIED
	}
	r.count(metrics.AgentPreflights, 1, outcomeRefused)
	r.count(metrics.AgentPreflightRefusals, 1, refusal.Name(reason))
	r.gauge(metrics.AgentPreflightPeer, 0, peer)
}

// ForgetPeer ends the series of a host that Nova no longer lists.
func (r *Recorder) ForgetPeer(peer string) {
	r.gauges[metrics.AgentPreflightPeer].DeleteLabelValues(peer)
}

// Sessions records the open sessions by what Nova says of them.
func (r *Recorder) Sessions(by map[Verdict]int) {
	for _, v := range verdicts() {
		r.gauge(metrics.AgentSessions, float64(by[v]), string(v))
	}
}

// Aborted counts a session that the agent ended.
func (r *Recorder) Aborted(v Verdict) { r.count(metrics.AgentSessionsAborted, 1, string(v)) }

// Fleet records what a central agent saw.
func (r *Recorder) Fleet(hosts map[HostState]int, attested, notAttested int) {
	for _, s := range hostStates() {
		r.gauge(metrics.AgentFleetHosts, float64(hosts[s]), string(s))
	}
	r.gauge(metrics.AgentFleetMigrations, float64(attested), "attested")
	r.gauge(metrics.AgentFleetMigrations, float64(notAttested), "not_attested")
}

// ages implements prometheus.Collector for the one gauge that grows by itself.
type ages struct {
	r    *Recorder
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (a *ages) Describe(to chan<- *prometheus.Desc) { to <- a.desc }

// Collect implements prometheus.Collector.
func (a *ages) Collect(to chan<- prometheus.Metric) {
	for task, s := range a.r.Tasks() {
		since := s.Succeeded
		if since.IsZero() {
			since = s.Begun
		}
		to <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, max(0, a.r.now().Sub(since).Seconds()), task)
	}
}
