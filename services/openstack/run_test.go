package openstack

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// sample is the sum of a metric's series.
func sample(t *testing.T, r *Recorder, name string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return total
}

func TestAScrapeHasEveryMetricOfTheCatalogueAndNoOther(t *testing.T) {
	r := NewRecorder("simulated", "v1.2.3", time.Now)
	for _, name := range []string{"traits", "preflight", "sessions", "fleet"} {
		r.Begin(name, time.Minute, time.Minute)
	}
	r.Preflight("compute2", false, 4711) // a reason of another release
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*dto.MetricFamily{}
	for _, f := range families {
		found[f.GetName()] = f
	}
	kinds := map[metrics.Kind]dto.MetricType{metrics.Counter: dto.MetricType_COUNTER, metrics.Gauge: dto.MetricType_GAUGE}
	names := regexp.MustCompile(`^safeconduct_agent_[a-z_]+$`)
	for _, m := range metrics.AgentCatalogue() {
		f := found[m.Name]
		if f == nil || f.GetType() != kinds[m.Kind] || f.GetHelp() != m.Help || !names.MatchString(m.Name) {
			t.Errorf("%s: the scrape has %v", m.Name, f)
			continue
		}
		delete(found, m.Name)
		series := 1
		for _, l := range m.Labels {
			series *= max(1, len(l.Values))
			if (len(l.Values) == 0) == (l.Bound == "") {
				t.Errorf("%s: label %s needs its values, or what bounds it", m.Name, l.Name)
			}
		}
		if len(f.GetMetric()) != series {
			t.Errorf("%s has %d series, want %d", m.Name, len(f.GetMetric()), series)
		}
		for _, s := range f.GetMetric() {
			if !slices.ContainsFunc(s.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == "mode" && l.GetValue() == "simulated" }) {
				t.Errorf("%s does not say its mode", m.Name)
			}
		}
	}
	for name := range found {
		if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is in the scrape and not in the catalogue", name)
		}
	}
}

// running is a whole agent, with pauses of a millisecond.
func running(t *testing.T, cfg Config) (record *Recorder, log *book, address string, stop func() error) {
	t.Helper()
	log = new(book)
	where := make(chan net.Addr, 1)
	a := &agent{
		cfg: cfg, log: log.logger(), cloud: NewCloud(cfg.OpenStack), record: NewRecorder(string(cfg.Mode), "v1", time.Now), guests: Processes{Proc: t.TempDir()},
		helper: func() (bool, string) { return true, "" }, spread: func(time.Duration) time.Duration { return time.Millisecond }, wait: Wait,
		listening: func(l net.Addr) { where <- l },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx); a.cloud.Close() }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	select {
	case l := <-where:
		return a.record, log, "http://" + l.String(), stop
	case err := <-done:
		stopped = true
		t.Fatal(err)
		return nil, nil, "", nil
	}
}

func nodeConfig(t *testing.T, f *fakeCloud, n *fakeNode) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Mode, cfg.Host, cfg.Node, cfg.OpenStack = "intel", "compute1", n.target, f.config(t)
	cfg.Traits.ResourceProvider, cfg.Traits.Tunnel, cfg.HTTP.Listen = "compute1", off, "127.0.0.1:0"
	cfg.Preflight.MaxPeers = 10
	return cfg
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func TestTheAgentOutlivesEveryServiceAndWithdrawsItsTraitsAtTheEnd(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	f.services = []map[string]any{
		{"id": "1", "binary": "nova-compute", "host": "compute1", "state": "up", "status": "enabled"},
		{"id": "2", "binary": "nova-compute", "host": "compute2", "state": "up", "status": "disabled"},
		{"id": "3", "binary": "nova-compute", "host": "compute3", "state": "down", "status": "enabled"},
	}
	f.down[Identity] = 503 // Keystone is down when the agent starts
	record, log, address, stop := running(t, nodeConfig(t, f, n))
	full := func() bool { return slices.Contains(f.has(), string(TraitVTPM)) }
	bare := func() bool { return slices.Equal(f.has(), foreign) }
	until(t, "Keystone was asked in vain", func() bool { return sample(t, record, metrics.AgentCloudErrors) > 0 })
	if code, body := get(t, address+"/readyz"); code != 503 || !strings.Contains(body, "identity") {
		t.Errorf("/readyz: %d, %s", code, body)
	}
	f.change(func() { f.down[Identity] = 0 })
	until(t, "the traits are there", full)
	until(t, "compute2 is preflighted", func() bool { return sample(t, record, metrics.AgentPreflightPeer) == 1 })
	until(t, "it is ready", func() bool { code, _ := get(t, address+"/readyz"); return code == 200 })
	for _, probe := range []string{"/livez", "/startedz", "/metrics"} {
		if code, body := get(t, address+probe); code != 200 || probe != "/metrics" && !json.Valid([]byte(body)) {
			t.Errorf("%s: %d, %s", probe, code, body)
		}
	}
	// Placement is down while the node falls: the traits go as soon as Placement is back.
	f.change(func() { f.down[Placement] = 503 })
	n.change(func() {
		n.status = &v1.GetStatusResponse{Mode: v1.Mode_MODE_INTEL, Host: "compute1", Draining: true, AcceptedByOwnPolicy: true}
	})
	failures := sample(t, record, metrics.AgentCloudErrors)
	until(t, "Placement was asked in vain", func() bool { return sample(t, record, metrics.AgentCloudErrors) > failures })
	f.change(func() { f.down[Placement] = 0 })
	until(t, "the traits are gone", bare)
	n.change(func() {
		n.status = &v1.GetStatusResponse{Mode: v1.Mode_MODE_INTEL, Host: "compute1", AcceptedByOwnPolicy: true}
	})
	until(t, "the traits are back", full)
	// The node service restarts.
	n.server.Stop()
	until(t, "the traits are gone", bare)
	n.serve(t)
	until(t, "the traits are back", full)
	// Every token expires, and Nova is down meanwhile.
	f.change(func() { f.valid, f.down[Compute] = "", 500 })
	before := sample(t, record, metrics.AgentPasses)
	until(t, "some passes were done", func() bool { return sample(t, record, metrics.AgentPasses) > before+20 })
	if !full() {
		t.Error("the traits went with the token")
	}
	f.change(func() { f.down[Compute] = 0 })
	until(t, "it is ready", func() bool { code, _ := get(t, address+"/readyz"); return code == 200 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !bare() {
		t.Errorf("after the end: %v", f.has())
	}
	if strings.Contains(log.String(), secret) || strings.Contains(log.String(), tokenStart) {
		t.Error("a secret is in the log")
	}
	if n := strings.Count(log.String(), "task=traits"); n > 40 {
		t.Errorf("the log has %d lines of one task: what stays down is told once", n)
	}
}

func TestTraitsAreLeftAtTheEndWhereThatIsAsked(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	cfg := nodeConfig(t, f, n)
	cfg.Traits.KeepOnStop = true
	_, _, _, stop := running(t, cfg)
	until(t, "the traits are there", func() bool { return slices.Contains(f.has(), string(TraitAttested)) })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !slices.Contains(f.has(), string(TraitAttested)) {
		t.Error("withdrawn")
	}
}

func TestAMistakeInTheCredentialsFilesIsSaidAtOnce(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Mode, cfg.Host, cfg.OpenStack.Clouds = "intel", "compute1", &Clouds{File: "/does/not/exist", Cloud: "x"}
	if err := Run(t.Context(), cfg, silent()); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("got %v", err)
	}
}

func TestPreflightsGoRoundTheHostsThatAreUp(t *testing.T) {
	n := newFakeNode(t)
	n.refuse["c"] = v1.Reason_REASON_TCB_NOT_ACCEPTED
	hosts := []string{"a", "b", "c", "d", "self"}
	log := new(book)
	p := &Preflighter{
		Host: "self", Hosts: func(context.Context) ([]string, error) { return slices.Clone(hosts), nil }, Preflight: n.client(t).Preflight,
		Peers: 3, MaxPeers: 4, Timeout: 10 * time.Second, Record: NewRecorder("intel", "v1", time.Now), Log: log.logger(),
	}
	pass := func() {
		t.Helper()
		if err := p.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	pass()
	if got := strings.Join(n.asked, ""); got != "abcdab" {
		t.Errorf("asked %s", got)
	}
	if got := sample(t, p.Record, metrics.AgentPreflightPeer); got != 3 {
		t.Errorf("%v peers accepted", got)
	}
	if n := strings.Count(log.String(), "TCB_NOT_ACCEPTED"); n != 1 {
		t.Errorf("the refusal is told %d times:\n%s", n, log)
	}
	hosts = []string{"c", "self"} // the others went away: so do their series
	pass()
	if got := sample(t, p.Record, metrics.AgentPreflightPeer); got != 0 || len(p.known) != 1 {
		t.Errorf("%v accepted, known %v", got, p.known)
	}
	hosts = []string{"self"}
	pass()
	hosts = []string{"a", "b", "c", "d", "e", "f"}
	n.asked = nil
	pass()
	pass()
	if slices.Contains(n.asked, "e") || !strings.Contains(log.String(), "max_peers") {
		t.Errorf("asked %v, more than max_peers", n.asked)
	}
	n.server.Stop()
	if err := p.Pass(t.Context()); err == nil {
		t.Error("the node service is down, and that is no error")
	}
}

func TestAPeerThatDoesNotAnswerDoesNotKeepTheOthersWaiting(t *testing.T) {
	asked := []string{}
	p := &Preflighter{
		Host: "self", Hosts: func(context.Context) ([]string, error) { return []string{"a", "b"}, nil },
		Preflight: func(ctx context.Context, peer string) (*v1.PreflightResponse, error) {
			if asked = append(asked, peer); peer == "a" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &v1.PreflightResponse{Accepted: true}, nil
		},
		Peers: 2, MaxPeers: 4, Timeout: time.Millisecond, Record: NewRecorder("intel", "v1", time.Now), Log: silent(),
	}
	if err := p.Pass(t.Context()); err != nil || len(asked) != 2 || p.known["a"] {
		t.Errorf("got %v, asked %v, known %v", err, asked, p.known)
	}
}

func TestACentralAgentSeesWhichHostsAreAttested(t *testing.T) {
	f := newFakeCloud(t)
	for _, h := range []string{"compute1", "compute2"} {
		f.services = append(f.services, map[string]any{"id": h, "binary": "nova-compute", "host": h, "state": "up", "status": "enabled"})
	}
	f.migrations = []Migration{
		{UUID: "m1", Instance: "i", Status: "running", Source: "compute1", Destination: "compute2"},
		{UUID: "m2", Instance: "i", Status: "running", Source: "compute1", Destination: "compute1"},
		{UUID: "m3", Instance: "i", Status: "accepted", Source: "compute1"},
		{UUID: "m4", Instance: "i", Status: "completed", Source: "compute1", Destination: "compute2"},
	}
	cloud, log := f.cloud(t), new(book)
	w := &Watcher{
		Hosts: cloud.ComputesUp, Hypervisors: cloud.Hypervisors, With: cloud.ProvidersWith, Migrations: cloud.LiveMigrations,
		Record: NewRecorder("intel", "v1", time.Now), Log: log.logger(),
	}
	want := func(what string, attested, other, not float64) {
		t.Helper()
		if err := w.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		families, _ := w.Record.registry.Gather()
		got := map[string]float64{}
		for _, fam := range families {
			for _, m := range fam.GetMetric() {
				if fam.GetName() == metrics.AgentFleetHosts {
					for _, l := range m.GetLabel() {
						if l.GetName() == "state" {
							got[l.GetValue()] = m.GetGauge().GetValue()
						}
					}
				}
			}
		}
		if got["attested"] != attested || got["other_mode"] != other || got["not_attested"] != not {
			t.Errorf("%s: %v", what, got)
		}
	}
	want("nobody has made the trait yet", 0, 0, 2)
	f.change(func() { f.made[string(TraitAttested)] = true; f.traits = with(TraitAttested) })
	want("compute1 has it", 1, 0, 1)
	want("and still has", 1, 0, 1)
	f.change(func() { f.made[string(TraitSimulated)] = true; f.traits = with(TraitAttested, TraitSimulated) })
	want("compute1 is simulated, and the cloud is not", 0, 1, 1)
	if n := strings.Count(log.String(), "migration=m1"); n != 1 {
		t.Errorf("m1 is told of %d times:\n%s", n, log)
	}
	if strings.Contains(log.String(), "migration=m3") || strings.Contains(log.String(), "migration=m4") {
		t.Error("a migration without a destination, or one that has ended, is told of")
	}
	for _, a := range f.asked {
		if !strings.HasPrefix(a, "GET ") && !strings.HasPrefix(a, "POST /identity/") {
			t.Errorf("a central agent changes nothing: %s", a)
		}
	}
}

func TestTheWholeAgentAbortsASession(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	cfg := nodeConfig(t, f, n)
	cfg.Sessions.Grace = time.Millisecond
	n.status.AttachedInstances = []string{instance} // the server is here
	n.sessions = []*v1.Session{{
		SessionId: []byte("0123456789abcdef"), InstanceId: instance, Role: source, State: v1.SessionState_SESSION_STATE_ARMED, MigrationId: ours,
		CreatedAt: timestamppb.New(time.Now().Add(-time.Hour)),
	}}
	f.migrations = []Migration{{UUID: ours, Instance: instance, Status: "failed"}}
	record, _, _, stop := running(t, cfg)
	until(t, "it is aborted", func() bool { return sample(t, record, metrics.AgentSessionsAborted) == 1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
}
