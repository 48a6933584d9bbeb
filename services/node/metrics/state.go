package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what a node is at the moment of a scrape. A value that is not known is left out of its map; its series is then absent.
type State struct {
	// Open sessions by the name of their state, and the age of the oldest of each.
	Sessions map[string]int
	Oldest   map[string]time.Duration
	Ready    bool
	Draining bool
	// SelfCheckAge is the time since this node last accepted itself, or since its start.
	SelfCheckAge time.Duration
	// By OwnCollateral and PeersCollateral.
	CollateralAge, CollateralExpires map[string]time.Duration
	// By CertificateTLS and so on.
	Certificates map[string]time.Duration
	PolicySVN    uint64
	// By WindowOwn and so on.
	Windows map[string]time.Duration
}

// Watch adds the gauges, which ask observe at each scrape. It must not block for long, and is called once, before the first scrape.
func (r *Recorder) Watch(observe func() State) {
	w := &watcher{observe: observe, descs: map[string]*prometheus.Desc{}}
	for _, m := range Catalogue() {
		if m.Kind == Gauge && m.Name != BuildInfo {
			w.descs[m.Name] = prometheus.NewDesc(m.Name, m.Help, names(m.Labels), r.labels)
		}
	}
	r.registry.MustRegister(w)
}

// watcher implements prometheus.Collector.
type watcher struct {
	observe func() State
	descs   map[string]*prometheus.Desc
}

// Describe implements prometheus.Collector.
func (w *watcher) Describe(to chan<- *prometheus.Desc) {
	for _, d := range w.descs {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (w *watcher) Collect(to chan<- prometheus.Metric) {
	s := w.observe()
	gauge := func(name string, v float64, values ...string) {
		to <- prometheus.MustNewConstMetric(w.descs[name], prometheus.GaugeValue, v, values...)
	}
	flag := func(name string, v bool) {
		if v {
			gauge(name, 1)
		} else {
			gauge(name, 0)
		}
	}
	for _, state := range openStates() {
		gauge(Sessions, float64(s.Sessions[state]), state)
		gauge(OldestSession, s.Oldest[state].Seconds(), state)
	}
	flag(Ready, s.Ready)
	flag(Draining, s.Draining)
	gauge(SelfCheckAge, s.SelfCheckAge.Seconds())
	gauge(PolicySVN, float64(s.PolicySVN))
	for _, m := range []struct {
		name   string
		values map[string]time.Duration
	}{
		{CollateralAge, s.CollateralAge}, {CollateralExpires, s.CollateralExpires}, {CertificateExpires, s.Certificates}, {PolicyWindow, s.Windows},
	} {
		for value, d := range m.values {
			gauge(m.name, d.Seconds(), value)
		}
	}
}
