package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Limits bound connections, at either end.
type Limits struct {
	// PerVM is the most that one VM has at once: QEMU's migration with multifd, and its disks.
	PerVM int
	// All is the most that the host has.
	All int
}

// direction of a VM: where it goes, seen from this host.
type direction uint8

const (
	outgoing direction = iota
	incoming
)

func (d direction) String() string {
	if d == incoming {
		return "incoming"
	}
	return "outgoing"
}

// Flows are the connections that a tunnel carries, counted and bounded. Labels of the metrics come from the lists in this package, so nothing that a peer
// sends makes a new series.
type Flows struct {
	limits   Limits
	registry *prometheus.Registry
	bytes    *prometheus.CounterVec
	open     *prometheus.GaugeVec
	ended    *prometheus.CounterVec
	refusals *prometheus.CounterVec

	mu    sync.Mutex
	last  uint64
	flows map[uint64]*flow
	each  map[string]int
}

// NewFlows returns Flows without any. Every series carries the mode.
func NewFlows(limits Limits, mode, version string) *Flows {
	labels := prometheus.Labels{"mode": mode}
	counter := func(name, help string, by ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, by)
	}
	f := &Flows{
		limits: limits, registry: prometheus.NewRegistry(), flows: map[uint64]*flow{}, each: map[string]int{},
		bytes: counter("safeconduct_tunnel_bytes_total", "Bytes of plaintext carried, by channel and by whether this host sent or received them.",
			"channel", "direction"),
		ended:    counter("safeconduct_tunnel_connections_total", "Connections that have ended, by channel and outcome.", "channel", "outcome"),
		refusals: counter("safeconduct_tunnel_refusals_total", "Connections of other hosts that were refused, by reason.", "reason"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "safeconduct_tunnel_connections", Help: "Open connections, by channel and by where the VM goes.", ConstLabels: labels,
		}, []string{"channel", "vm"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "safeconduct_tunnel_build_info", Help: "Always 1; the labels say what runs.", ConstLabels: prometheus.Labels{"mode": mode, "version": version},
	})
	info.Set(1)
	for _, c := range channels {
		for _, d := range []string{"sent", "received"} {
			f.bytes.WithLabelValues(c, d)
		}
		for _, o := range []string{"whole", "broken"} {
			f.ended.WithLabelValues(c, o)
		}
		for _, d := range []direction{outgoing, incoming} {
			f.open.WithLabelValues(c, d.String())
		}
	}
	f.registry.MustRegister(f.bytes, f.ended, f.refusals, f.open, info, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return f
}

// flow is one connection, from its acceptance to its end.
type flow struct {
	flows     *Flows
	id        uint64
	instance  string
	session   SessionID
	channel   Channel
	direction direction
	begun     time.Time
	peer      atomic.Pointer[net.Addr] // once it carries something
	in, out   atomic.Int64
	sum       [2]prometheus.Counter // of out, of in
}

// Progress of one connection.
type Progress struct {
	Instance string    `json:"instance_id"`
	Session  string    `json:"session_id"`
	Channel  string    `json:"channel"`
	VM       string    `json:"vm"`
	Peer     string    `json:"peer"`
	Since    time.Time `json:"since"`
	Sent     int64     `json:"sent_bytes"`
	Received int64     `json:"received_bytes"`
}

// begin counts a connection. Error: ErrLimit.
func (f *Flows) begin(instance string, session SessionID, c Channel, d direction) (*flow, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.each[instance] >= f.limits.PerVM || len(f.flows) >= f.limits.All {
		return nil, fmt.Errorf("%w: instance %s has %d of %d, the host %d of %d", ErrLimit, instance, f.each[instance], f.limits.PerVM, len(f.flows), f.limits.All)
	}
	f.last++
	w := &flow{
		flows: f, id: f.last, instance: instance, session: session, channel: c, direction: d, begun: time.Now(),
		sum: [2]prometheus.Counter{f.bytes.WithLabelValues(c.String(), "sent"), f.bytes.WithLabelValues(c.String(), "received")},
	}
	f.flows[w.id] = w
	f.each[instance]++
	f.open.WithLabelValues(c.String(), d.String()).Inc()
	return w, nil
}

// carries says that the connection is up.
func (w *flow) carries(peer net.Addr) { w.peer.Store(&peer) }

func (w *flow) sent(n int)     { w.out.Add(int64(n)); w.sum[0].Add(float64(n)) }
func (w *flow) received(n int) { w.in.Add(int64(n)); w.sum[1].Add(float64(n)) }

// end says how the connection ended: err is nil if both sides ended it.
func (w *flow) end(log *slog.Logger, err error) {
	f := w.flows
	f.mu.Lock()
	delete(f.flows, w.id)
	if f.each[w.instance]--; f.each[w.instance] == 0 {
		delete(f.each, w.instance)
	}
	f.mu.Unlock()
	f.open.WithLabelValues(w.channel.String(), w.direction.String()).Dec()
	attrs := append(w.attributes(), "elapsed", time.Since(w.begun))
	if err != nil {
		f.ended.WithLabelValues(w.channel.String(), "broken").Inc()
		log.Warn("a connection of the tunnel broke", append(attrs, "why", err)...)
		return
	}
	f.ended.WithLabelValues(w.channel.String(), "whole").Inc()
	log.Info("a connection of the tunnel ended", attrs...)
}

func (w *flow) progress() Progress {
	p := Progress{
		Instance: w.instance, Session: fmt.Sprintf("%x", w.session), Channel: w.channel.String(), VM: w.direction.String(), Since: w.begun,
		Sent: w.out.Load(), Received: w.in.Load(),
	}
	if peer := w.peer.Load(); peer != nil {
		p.Peer = (*peer).String()
	}
	return p
}

func (w *flow) attributes() []any {
	p := w.progress()
	return []any{"instance", p.Instance, "session", p.Session, "channel", p.Channel, "vm", p.VM, "peer", p.Peer, "sent_bytes", p.Sent, "received_bytes", p.Received}
}

// Progress returns every open connection, the oldest first.
func (f *Flows) Progress() []Progress {
	f.mu.Lock()
	flows := make([]*flow, 0, len(f.flows))
	for _, w := range f.flows {
		flows = append(flows, w)
	}
	f.mu.Unlock()
	slices.SortFunc(flows, func(a, b *flow) int { return int(a.id) - int(b.id) })
	out := make([]Progress, len(flows))
	for i, w := range flows {
		out[i] = w.progress()
	}
	return out
}

// watch logs what each VM's connections carry, as long as they do.
func (f *Flows) watch(ctx context.Context, log *slog.Logger, every <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-every:
		}
		type key struct{ instance, channel, vm string }
		sums, order := map[key]*Progress{}, []key(nil)
		counts := map[key]int{}
		for _, p := range f.Progress() {
			k := key{p.Instance, p.Channel, p.VM}
			if sums[k] == nil {
				sums[k] = &Progress{}
				order = append(order, k)
			}
			sums[k].Sent += p.Sent
			sums[k].Received += p.Received
			counts[k]++
		}
		for _, k := range order {
			log.Info("the tunnel carries", "instance", k.instance, "channel", k.channel, "vm", k.vm, "connections", counts[k],
				"sent_bytes", sums[k].Sent, "received_bytes", sums[k].Received)
		}
	}
}

// refused counts a connection of another host that was refused.
func (f *Flows) refused(err error) { f.refusals.WithLabelValues(refusedFor(err)).Inc() }

// refusedFor is the reason's label: one of a few, or a typed reason of the node service.
func refusedFor(err error) string {
	for _, r := range []struct {
		is   error
		name string
	}{{ErrHello, "not_a_tunnel"}, {ErrSession, "no_session"}, {ErrProof, "no_proof"}, {ErrLimit, "limit"}} {
		if errors.Is(err, r.is) {
			return r.name
		}
	}
	if r := new(refusal.Refusal); errors.As(err, &r) {
		return refusal.Name(r.Reason)
	}
	return "other"
}
