package node

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/config"
)

// otlp is a collector that keeps what it gets.
type otlp struct {
	collector.UnimplementedTraceServiceServer
	address string

	mu sync.Mutex
	// spans by the host that sent them.
	spans map[string][]*tracepb.Span
	modes map[string]bool
}

func (o *otlp) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		host := ""
		for _, a := range rs.GetResource().GetAttributes() {
			switch a.GetKey() {
			case "host.name":
				host = a.GetValue().GetStringValue()
			case "safeconduct.mode":
				o.modes[a.GetValue().GetStringValue()] = true
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			o.spans[host] = append(o.spans[host], ss.GetSpans()...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func startCollector(t testing.TB) *otlp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &otlp{address: l.Addr().String(), spans: map[string][]*tracepb.Span{}, modes: map[string]bool{}}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return o
}

// names of the spans of one trace, by host.
func (o *otlp) trace(id string) map[string]map[string]*tracepb.Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[string]map[string]*tracepb.Span{}
	for host, spans := range o.spans {
		out[host] = map[string]*tracepb.Span{}
		for _, s := range spans {
			if fmt.Sprintf("%x", s.GetTraceId()) == id {
				out[host][s.GetName()] = s
			}
		}
	}
	return out
}

func TestATraceFollowsARequestOfNovasThroughBothNodes(t *testing.T) {
	o := startCollector(t)
	r := newRig(t, func(r *rig, _ *policy.Policy) {
		for _, n := range []*testNode{r.src, r.dst} {
			n.cfg.Tracing = &config.Tracing{Endpoint: "http://" + o.address}
		}
	})
	r.src.escrowed(t, "", "a passphrase")
	const request, id = "req-7d2f0a52-6f8e-4c1c-a5ad-3b9e5a0c1f11", "7d2f0a526f8e4c1ca5ad3b9e5a0c1f11"
	nova := metadata.AppendToOutgoingContext(t.Context(), "x-openstack-request-id", request)
	if _, err := r.src.establish(nova, "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	const w3c = "0af7651916cd43dd8448eb211c80319c"
	traced := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+w3c+"-b7ad6b7169203331-01")
	_, err := r.src.migration().Arm(traced, &v1.ArmRequest{InstanceId: vmID, DestinationHost: "compute2", MigrationId: "m1", ReturnPath: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range r.src.audited(t) {
		if rec.Method == "MigrationService/Establish" && (rec.Trace != id || rec.Request != request) || rec.Method == "MigrationService/Arm" && rec.Trace != w3c {
			t.Errorf("the audit log does not name the trace: %+v", rec)
		}
	}
	r.src.stop() // which sends what waits
	r.dst.stop()
	for trace, want := range map[string]map[string][]string{
		id: {
			"compute1": {"safeconduct.v1.MigrationService/Establish", "establish", "safeconduct.v1.PeerService/Handshake", "peer_attestation", "integrity_exchange", "secret"},
			"compute2": {"safeconduct.v1.PeerService/Handshake", "peer_attestation", "integrity_exchange", "safeconduct.v1.PeerService/Transfer"},
		},
		w3c: {"compute1": {"safeconduct.v1.MigrationService/Arm", "arm"}, "compute2": {"safeconduct.v1.PeerService/Arm"}},
	} {
		got := o.trace(trace)
		for host, names := range want {
			for _, name := range names {
				if got[host][name] == nil {
					t.Errorf("%s has no span %s in trace %s; it has %d spans", host, name, trace, len(got[host]))
				}
			}
		}
	}
	if !o.modes["simulated"] || len(o.modes) != 1 {
		t.Errorf("the spans are of modes %v", o.modes)
	}
	var text strings.Builder
	for _, spans := range o.spans {
		for _, s := range spans {
			text.WriteString(s.String())
		}
	}
	if strings.Contains(text.String(), "a passphrase") {
		t.Error("a span holds a secret")
	}
}

func TestACollectorThatIsAwayCostsTheSpansOnly(t *testing.T) {
	r := newRig(t, func(r *rig, _ *policy.Policy) {
		r.src.cfg.Tracing = &config.Tracing{Endpoint: "http://127.0.0.1:1"}
	})
	r.armed(t, "m1")
}
