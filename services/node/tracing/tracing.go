// Package tracing sends OpenTelemetry traces of the node service over OTLP/gRPC. It is off unless the configuration names a collector. A trace follows one
// request of Nova's through both nodes: W3C trace context crosses the local socket and the peer port, and a request that comes with Nova's request id
// alone is in the trace that has that id's UUID as its own.
//
// Spans carry names of methods and phases, ids of VMs, sessions and migrations, and reasons of refusals: nothing secret, and nothing that decides anything.
// What a peer sends as its context is taken as it is; at worst it names a wrong trace.
package tracing

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
)

// RequestID is the metadata key of Nova's request id: "req-" and a UUID.
const RequestID = "x-openstack-request-id"

// Bounds of what waits to be sent; what is beyond is dropped.
const (
	maxQueue      = 2048
	maxBatch      = 256
	exportTimeout = 5 * time.Second
	maxToken      = 16 << 10
)

// Options of tracing.
type Options struct {
	// Endpoint is the collector's: https://HOST:PORT, or http://HOST:PORT for one on this host.
	Endpoint string
	// CA of the collector's certificate, a file in PEM; empty means the system's.
	CA string
	// TokenFile holds a bearer token; empty for none.
	TokenFile string
	// Ratio of the requests that are traced, from 0 to 1, where the caller has not decided.
	Ratio float64
	// Host, Mode and Version of this node.
	Host, Mode, Version string
	Log                 *slog.Logger
	// Environ is the environment, as os.Environ gives it.
	Environ []string
}

// Tracing is what makes and sends spans. Its nil value does nothing.
type Tracing struct {
	provider *sdk.TracerProvider
	sampler  sdk.Sampler
}

// Check says what is wrong with the options, as Start would.
func Check(o Options) error {
	_, err := settings(o)
	return err
}

// Start begins to send spans. It does not wait for the collector: one that is away costs the spans.
func Start(ctx context.Context, o Options) (*Tracing, error) {
	options, err := settings(o)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	sampler := sdk.TraceIDRatioBased(o.Ratio)
	return &Tracing{sampler: sampler, provider: sdk.NewTracerProvider(
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "safeconductd"), attribute.String("service.version", o.Version),
			attribute.String("host.name", o.Host), attribute.String("safeconduct.mode", o.Mode),
		)),
		sdk.WithSampler(sdk.ParentBased(sampler)),
		sdk.WithBatcher(&telling{SpanExporter: exporter, log: o.Log},
			sdk.WithMaxQueueSize(maxQueue), sdk.WithMaxExportBatchSize(maxBatch), sdk.WithExportTimeout(exportTimeout)),
	)}, nil
}

// settings reads what the options name.
func settings(o Options) ([]otlptracegrpc.Option, error) {
	for _, e := range o.Environ {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "OTEL_") {
			return nil, fmt.Errorf("tracing: the environment has %s, which the OpenTelemetry library would follow: tracing is configured in the configuration file only", name)
		}
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Port() == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("tracing.endpoint: %q is not https://HOST:PORT or http://HOST:PORT", o.Endpoint)
	}
	if o.Ratio < 0 || o.Ratio > 1 {
		return nil, fmt.Errorf("tracing.sample_ratio: %v is not between 0 and 1", o.Ratio)
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(u.Host), otlptracegrpc.WithTimeout(exportTimeout)}
	if u.Scheme == "http" {
		if o.TokenFile != "" || o.CA != "" {
			return nil, errors.New("tracing: a token or a CA is for https only: nothing secret is sent in clear")
		}
		return append(options, otlptracegrpc.WithInsecure()), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("tracing.ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tracing.ca: %s holds no certificate", o.CA)
		}
	}
	options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(config)))
	if o.TokenFile != "" {
		raw, err := os.ReadFile(o.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("tracing.token_file: %w", err)
		}
		token := strings.TrimSpace(string(raw))
		if token == "" || len(token) > maxToken || strings.ContainsAny(token, "\r\n") {
			return nil, fmt.Errorf("tracing.token_file: %s does not hold one token in one line", o.TokenFile)
		}
		options = append(options, otlptracegrpc.WithHeaders(map[string]string{"authorization": "Bearer " + token}))
	}
	return options, nil
}

// telling says once that spans cannot be sent, and once that they can again.
type telling struct {
	sdk.SpanExporter
	log *slog.Logger

	mu     sync.Mutex
	failed bool
}

// ExportSpans implements sdk.SpanExporter.
func (t *telling) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := t.SpanExporter.ExportSpans(ctx, spans)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil && !t.failed:
		t.log.Warn("traces cannot be sent and are dropped", "why", err, "do", "look whether the collector of tracing.endpoint answers")
	case err == nil && t.failed:
		t.log.Info("traces are sent again")
	}
	t.failed = err != nil
	return nil
}

// Close sends what waits, for a moment, and ends.
func (t *Tracing) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // spans that do not get out by then are lost, as those of a collector that is away
}

// Local are the options of the server that callers on this host use: they may bring Nova's request id.
func (t *Tracing) Local() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(t.options(novaContext{sampler: t.sampler})...))}
}

// Peer are the options of the server that other nodes use.
func (t *Tracing) Peer() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(t.options(propagation.TraceContext{})...))}
}

// Dial are the options of clients of other nodes.
func (t *Tracing) Dial() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(t.options(propagation.TraceContext{})...))}
}

func (t *Tracing) options(p propagation.TextMapPropagator) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithMeterProvider(noop.NewMeterProvider()), otelgrpc.WithPropagators(p),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return strings.HasPrefix(info.FullMethodName, "/safeconduct.v1.") }),
	}
}

// Span begins a span; the function that it returns ends it. reason is that of a refusal, or empty.
func (t *Tracing) Span(ctx context.Context, name string) (context.Context, func(reason string)) {
	if t == nil {
		return ctx, func(string) {}
	}
	ctx, span := t.provider.Tracer("safeconduct").Start(ctx, name)
	return ctx, func(reason string) { end(span, reason, time.Time{}) }
}

// Past records a span that has ended now and took so long.
func (t *Tracing) Past(ctx context.Context, name string, took time.Duration, reason string) {
	if t == nil {
		return
	}
	now := time.Now()
	_, span := t.provider.Tracer("safeconduct").Start(ctx, name, trace.WithTimestamp(now.Add(-took)))
	end(span, reason, now)
}

func end(span trace.Span, reason string, at time.Time) {
	if reason != "" {
		span.SetAttributes(attribute.String("safeconduct.reason", reason))
	}
	if at.IsZero() {
		span.End()
		return
	}
	span.End(trace.WithTimestamp(at))
}

// About sets what the span of ctx's call is about: pairs of names and values; empty values are left out.
func About(ctx context.Context, pairs ...string) {
	span := trace.SpanFromContext(ctx)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			span.SetAttributes(attribute.String("safeconduct."+pairs[i], pairs[i+1]))
		}
	}
}

// ID is the trace id that ctx belongs to, or empty.
func ID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}

// novaContext is W3C trace context, and where that is missing, Nova's request id.
type novaContext struct {
	propagation.TraceContext
	sampler sdk.Sampler
}

// Extract implements propagation.TextMapPropagator.
func (n novaContext) Extract(ctx context.Context, carrier propagation.TextMapCarrier) context.Context {
	ctx = n.TraceContext.Extract(ctx, carrier)
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	id, err := uuid.Parse(strings.TrimPrefix(carrier.Get(RequestID), "req-"))
	if err != nil || id == uuid.Nil {
		return ctx
	}
	// The span of Nova's that is the parent is not known: one that the request id makes stands for it.
	digest := sha256.Sum256(id[:])
	config := trace.SpanContextConfig{TraceID: trace.TraceID(id), SpanID: trace.SpanID(digest[:8]), Remote: true}
	if n.sampler.ShouldSample(sdk.SamplingParameters{ParentContext: ctx, TraceID: config.TraceID}).Decision == sdk.RecordAndSample {
		config.TraceFlags = trace.FlagsSampled
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(config))
}
