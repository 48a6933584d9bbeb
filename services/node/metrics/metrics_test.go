package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// everything makes every metric have every value that it can have.
func everything() *Recorder {
	r := New("simulated", "v1.2.3")
	for _, p := range Phases() {
		r.Phase(p.Phase, 50*time.Microsecond, nil)
		r.Phase(p.Phase, 5*time.Second, errors.New("no"))
	}
	for _, side := range []Side{Local, Peer} {
		for n := range v1.Reason_name {
			r.Refused(side, v1.Reason(n))
		}
	}
	s := State{
		CollateralAge: map[string]time.Duration{}, CollateralExpires: map[string]time.Duration{}, Certificates: map[string]time.Duration{}, Windows: map[string]time.Duration{},
	}
	for _, m := range Catalogue() {
		for into, name := range map[*map[string]time.Duration]string{
			&s.CollateralAge: CollateralAge, &s.CollateralExpires: CollateralExpires, &s.Certificates: CertificateExpires, &s.Windows: PolicyWindow,
		} {
			if m.Name == name {
				for _, v := range m.Labels[0].Values {
					(*into)[v] = time.Hour
				}
			}
		}
	}
	r.Call(Local, "/safeconduct.v1.MigrationService/Arm", nil)
	r.Call(Local, "/safeconduct.v1.MigrationService/Arm", errors.New("no"))
	r.Watch(func() State { return s })
	return r
}

func TestAScrapeHasEveryMetricOfTheCatalogueAndNoOther(t *testing.T) {
	families, err := everything().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*dto.MetricFamily{}
	for _, f := range families {
		found[f.GetName()] = f
	}
	kinds := map[Kind]dto.MetricType{Counter: dto.MetricType_COUNTER, Gauge: dto.MetricType_GAUGE, Histogram: dto.MetricType_HISTOGRAM}
	for _, m := range Catalogue() {
		f := found[m.Name]
		if f == nil {
			t.Errorf("%s is not in the scrape", m.Name)
			continue
		}
		delete(found, m.Name)
		if f.GetType() != kinds[m.Kind] || f.GetHelp() != m.Help {
			t.Errorf("%s is a %v with help %q", m.Name, f.GetType(), f.GetHelp())
		}
		series := 1
		for _, l := range m.Labels {
			series *= max(1, len(l.Values))
		}
		if len(f.GetMetric()) != series {
			t.Errorf("%s has %d series, want %d", m.Name, len(f.GetMetric()), series)
		}
		for _, s := range f.GetMetric() {
			checkLabels(t, m, s)
		}
	}
	for name := range found {
		if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is in the scrape and not in the catalogue", name)
		}
	}
}

func checkLabels(t *testing.T, m Metric, s *dto.Metric) {
	t.Helper()
	got := map[string]string{}
	for _, l := range s.GetLabel() {
		got[l.GetName()] = l.GetValue()
	}
	if got["mode"] != "simulated" || len(got) != len(m.Labels)+1 {
		t.Errorf("%s has labels %v", m.Name, got)
	}
	for _, l := range m.Labels {
		if v, ok := got[l.Name]; !ok || l.Bound == "" && !slices.Contains(l.Values, v) {
			t.Errorf("%s has %s=%q, which the catalogue does not name", m.Name, l.Name, v)
		}
	}
}

func TestEveryLabelIsBounded(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Catalogue() {
		if seen[m.Name] || !regexp.MustCompile(`^safeconduct_[a-z_]+$`).MatchString(m.Name) || m.Help == "" {
			t.Errorf("%s is there twice, has a bad name, or no help", m.Name)
		}
		seen[m.Name] = true
		for _, l := range m.Labels {
			if (len(l.Values) == 0) == (l.Bound == "") {
				t.Errorf("%s: label %s needs its values, or what bounds it", m.Name, l.Name)
			}
		}
	}
}

func TestWhatIsCountedIsWhatHappened(t *testing.T) {
	type count struct {
		name   string
		labels string
	}
	for name, tc := range map[string]struct {
		do   func(*Recorder)
		want []count
	}{
		"a call that was refused counts with its reason": {
			func(r *Recorder) { r.Call(Peer, "/s/M", refusal.New(v1.Reason_REASON_DRAINING, "no")) },
			[]count{{Calls, "method=/s/M outcome=refused"}, {Refusals, "caller=peer reason=DRAINING"}},
		},
		"an untyped error is INTERNAL": {
			func(r *Recorder) { r.Call(Local, "/s/M", errors.New("no")) },
			[]count{{Calls, "method=/s/M outcome=refused"}, {Refusals, "caller=local reason=INTERNAL"}},
		},
		"a caller that went away was not refused": {
			func(r *Recorder) { r.Call(Local, "/s/M", context.Canceled) }, []count{{Calls, "method=/s/M outcome=refused"}},
		},
		"a reason of another release": {func(r *Recorder) { r.Refused(Peer, 4711) }, []count{{Refusals, "caller=peer reason=UNSPECIFIED"}}},
		"a quote that failed":         {func(r *Recorder) { r.Quote(time.Second, errors.New("no")) }, []count{{Quotes, "outcome=failed"}}},
		"a quote":                     {func(r *Recorder) { r.Quote(time.Second, nil) }, []count{{Quotes, "outcome=ok"}}},
		"a quote that nobody waited for is no failure of the enclave": {
			func(r *Recorder) { r.Quote(time.Second, fmt.Errorf("x: %w", context.Canceled)) }, nil,
		},
		"collateral that was forged": {
			func(r *Recorder) { r.Fetched(collateral.Key{}, 0, fmt.Errorf("x: %w", collateral.ErrRejected)) }, []count{{CollateralFetches, "outcome=rejected"}},
		},
		"collateral that expired is rejected for that": {
			func(r *Recorder) {
				r.Fetched(collateral.Key{}, 0, fmt.Errorf("%w: %w", collateral.ErrRejected, collateral.ErrExpired))
			},
			[]count{{CollateralFetches, "outcome=expired"}},
		},
		"old collateral": {
			func(r *Recorder) { r.Fetched(collateral.Key{}, 0, &collateral.RollbackError{}) }, []count{{CollateralFetches, "outcome=rolled_back"}},
		},
		"no answer of the PCCS": {
			func(r *Recorder) { r.Fetched(collateral.Key{}, 0, errors.New("no route")) }, []count{{CollateralFetches, "outcome=unavailable"}},
		},
		"a session that ended":     {func(r *Recorder) { r.Ended(session.Aborted) }, []count{{SessionsEnded, "outcome=aborted"}}},
		"a receipt of one node":    {func(r *Recorder) { r.Receipt(false) }, []count{{Receipts, "signed=one"}}},
		"a migration without one":  {func(r *Recorder) { r.NoReceipt() }, []count{{ReceiptsMissing, ""}}},
		"a sealed blob not found":  {func(r *Recorder) { r.SealedFailed("get") }, []count{{SealedErrors, "operation=get"}}},
		"an audit record":          {func(r *Recorder) { r.Audited(nil) }, []count{{AuditRecords, ""}}},
		"an audit record not kept": {func(r *Recorder) { r.Audited(errors.New("no space")) }, []count{{AuditErrors, ""}}},
		"bytes that came in": {
			func(r *Recorder) { r.Crossed(v1.Role_ROLE_DESTINATION, KindImage, 1) }, []count{{ProtectedBytes, "direction=unprotect kind=image"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := New("simulated", "v")
			tc.do(r)
			families, err := r.registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var got []count
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if f.GetType() != dto.MetricType_COUNTER || m.GetCounter().GetValue() == 0 || strings.HasPrefix(f.GetName(), "go_") {
						continue
					}
					var labels []string
					for _, l := range m.GetLabel() {
						if l.GetName() != "mode" {
							labels = append(labels, l.GetName()+"="+l.GetValue())
						}
					}
					got = append(got, count{f.GetName(), strings.Join(labels, " ")})
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// A blob of 50 us and a handshake of 5 s each fall into a bucket of their own size, in both kinds of histogram.
func TestBothKindsOfHistogramFit50MicrosecondsAnd5Seconds(t *testing.T) {
	r := New("simulated", "v")
	for _, took := range []time.Duration{45 * time.Microsecond, 4900 * time.Millisecond} {
		r.Phase(PhaseProtect, took, nil)
	}
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == PhaseDuration })
	series := families[i].GetMetric()
	h := series[slices.IndexFunc(series, func(m *dto.Metric) bool { return m.GetHistogram().GetSampleCount() == 2 })].GetHistogram()
	at := func(bound float64) uint64 {
		for _, b := range h.GetBucket() {
			if b.GetUpperBound() == bound {
				return b.GetCumulativeCount()
			}
		}
		t.Fatalf("there is no bucket %v", bound)
		return 0
	}
	if at(5e-5) != 1 || at(2.5) != 1 || at(5) != 2 || at(10) != 2 {
		t.Errorf("classic buckets: %v", h.GetBucket())
	}
	if h.Schema == nil || len(h.GetPositiveSpan()) != 2 || h.GetSchema() < 2 {
		t.Errorf("native buckets: schema %v, spans %v", h.Schema, h.GetPositiveSpan())
	}
}

func TestAScraperThatAsksForProtobufGetsNativeHistograms(t *testing.T) {
	server := httptest.NewServer(everything().Handler())
	defer server.Close()
	for accept, want := range map[string]string{
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
		"text/plain": "text/plain",
	} {
		req, _ := http.NewRequest(http.MethodGet, server.URL, nil)
		req.Header.Set("Accept", accept)
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("asked for %s, got %s", accept, got)
		}
	}
}

func TestPromtoolHasNothingToSay(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool: apt install prometheus")
	}
	server := httptest.NewServer(everything().Handler())
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = resp.Body
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
