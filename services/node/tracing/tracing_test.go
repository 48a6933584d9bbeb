package tracing

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func TestBadSettingsAreRefusedWithTheReason(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		o    Options
		want string // empty: accepted
	}{
		"https":                             {Options{Endpoint: "https://otel.example:4317"}, ""},
		"https with a token":                {Options{Endpoint: "https://otel.example:4317", TokenFile: file("secret\n")}, ""},
		"http":                              {Options{Endpoint: "http://127.0.0.1:4317"}, ""},
		"http with a token":                 {Options{Endpoint: "http://127.0.0.1:4317", TokenFile: file("secret")}, "nothing secret is sent in clear"},
		"no port":                           {Options{Endpoint: "https://otel.example"}, "is not https://HOST:PORT"},
		"a path":                            {Options{Endpoint: "https://otel.example:4318/v1/traces"}, "is not https://HOST:PORT"},
		"another scheme":                    {Options{Endpoint: "ftp://otel.example:1"}, "is not https://HOST:PORT"},
		"nothing":                           {Options{}, "is not https://HOST:PORT"},
		"a CA that is not there":            {Options{Endpoint: "https://otel.example:4317", CA: "/nonexistent"}, "tracing.ca"},
		"a CA that is none":                 {Options{Endpoint: "https://otel.example:4317", CA: file("x")}, "holds no certificate"},
		"an empty token":                    {Options{Endpoint: "https://otel.example:4317", TokenFile: file("\n")}, "does not hold one token"},
		"a token in two lines":              {Options{Endpoint: "https://otel.example:4317", TokenFile: file("a\nb")}, "does not hold one token"},
		"more than everything":              {Options{Endpoint: "http://127.0.0.1:4317", Ratio: 1.5}, "sample_ratio"},
		"an environment that would decide":  {Options{Endpoint: "http://127.0.0.1:4317", Environ: []string{"A=b", "OTEL_TRACES_SAMPLER=always_off"}}, "OTEL_TRACES_SAMPLER"},
		"an environment that has no say":    {Options{Endpoint: "http://127.0.0.1:4317", Environ: []string{"PATH=/bin"}}, ""},
		"a token file that cannot be read":  {Options{Endpoint: "https://otel.example:4317", TokenFile: "/nonexistent"}, "tracing.token_file"},
		"a ratio below everything is wrong": {Options{Endpoint: "http://127.0.0.1:4317", Ratio: -1}, "sample_ratio"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.o.Log = slog.New(slog.DiscardHandler)
			err := Check(tc.o)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret\n") {
				t.Error("the error holds the token")
			}
			started, serr := Start(t.Context(), tc.o)
			if (serr == nil) != (err == nil) {
				t.Errorf("Check says %v, Start %v", err, serr)
			}
			started.Close(t.Context())
		})
	}
}

func TestARequestOfNovasIsItsOwnTrace(t *testing.T) {
	const id = "7d2f0a52-6f8e-4c1c-a5ad-3b9e5a0c1f11"
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, tc := range map[string]struct {
		carrier propagation.MapCarrier
		ratio   float64
		want    string
		sampled bool
	}{
		"a request id":                {propagation.MapCarrier{RequestID: "req-" + id}, 1, "7d2f0a526f8e4c1ca5ad3b9e5a0c1f11", true},
		"one that is not sampled":     {propagation.MapCarrier{RequestID: "req-" + id}, 0, "7d2f0a526f8e4c1ca5ad3b9e5a0c1f11", false},
		"W3C context goes before":     {propagation.MapCarrier{RequestID: "req-" + id, "traceparent": parent}, 0, "0af7651916cd43dd8448eb211c80319c", true},
		"nothing":                     {propagation.MapCarrier{}, 1, "", false},
		"something else":              {propagation.MapCarrier{RequestID: "req-" + strings.Repeat("x", 4096)}, 1, "", false},
		"a request id of zeros":       {propagation.MapCarrier{RequestID: "req-00000000-0000-0000-0000-000000000000"}, 1, "", false},
		"a broken W3C context beside": {propagation.MapCarrier{RequestID: "req-" + id, "traceparent": "00-zz"}, 1, "7d2f0a526f8e4c1ca5ad3b9e5a0c1f11", true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := novaContext{sampler: sdk.TraceIDRatioBased(tc.ratio)}.Extract(context.Background(), tc.carrier)
			if got := ID(ctx); got != tc.want || trace.SpanContextFromContext(ctx).IsSampled() != tc.sampled {
				t.Errorf("got trace %q, sampled %v", got, trace.SpanContextFromContext(ctx).IsSampled())
			}
		})
	}
}

func TestTracingThatIsOffDoesNothing(t *testing.T) {
	var off *Tracing
	if off.Local() != nil || off.Peer() != nil || off.Dial() != nil {
		t.Error("it has options")
	}
	ctx, end := off.Span(t.Context(), "x")
	end("")
	off.Past(ctx, "x", 1, "")
	About(ctx, "a", "b")
	off.Close(ctx)
	if ctx != t.Context() || ID(ctx) != "" {
		t.Error("it makes something")
	}
}
