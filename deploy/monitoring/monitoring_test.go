package monitoring

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/safeconduct/safeconduct/services/node/metrics"
)

var update = flag.Bool("update", false, "write docs/metrics.md and deploy/grafana/safeconduct.json")

func golden(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not current: go test ./deploy/monitoring -update", path)
	}
}

func docs(name string) string { return filepath.Join("..", "..", "docs", name) }

const (
	dashboardFile = "../grafana/safeconduct.json"
	rulesFile     = "../prometheus/safeconduct.rules.yaml"
)

func TestTheDocumentAndTheDashboardAreCurrent(t *testing.T) {
	golden(t, docs("metrics.md"), Document())
	raw, err := Dashboard()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, dashboardFile, string(raw))
}

// metricNames are the names of ours in a text, without what a histogram or a family of series adds.
func metricNames(text string) []string {
	var out []string
	for _, name := range regexp.MustCompile(`safeconduct_[a-z_]+`).FindAllString(text, -1) {
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if strings.HasPrefix(name, metrics.PhaseDuration) {
				name = strings.TrimSuffix(name, suffix)
			}
		}
		out = append(out, name)
	}
	return out
}

func TestNothingIsAskedThatIsNotServed(t *testing.T) {
	var served []string
	for _, m := range metrics.Catalogue() {
		served = append(served, m.Name)
	}
	asked := map[string]bool{}
	check := func(where, text string) {
		for _, name := range metricNames(text) {
			asked[name] = true
			if !slices.Contains(served, name) {
				t.Errorf("%s asks for %s, which no node serves", where, name)
			}
		}
	}
	titles := map[string]bool{}
	for _, r := range Rows() {
		for _, q := range r.Questions {
			check(q.Title, q.Expr)
			if titles[q.Title] || q.Means == "" || q.Legend == "" || q.Unit == "" {
				t.Errorf("%s is there twice, or lacks something", q.Title)
			}
			titles[q.Title] = true
		}
	}
	for _, file := range []string{rulesFile, "../prometheus/safeconduct.rules.test.yaml", docs("alerts.md"), docs("operate.md"), docs("errors.md")} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		check(file, string(raw))
	}
	for _, name := range served {
		if !asked[name] && !slices.Contains([]string{metrics.Calls, metrics.AuditRecords, metrics.SelfChecks, metrics.CollateralAge, metrics.Draining}, name) {
			t.Errorf("nothing asks for %s", name)
		}
	}
}

type alert struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	raw, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Groups []struct {
			Name  string  `yaml:"name"`
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, g := range f.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

func TestEveryAlertHasASeverityARunbookAndATestThatItFiresAndOneThatItDoesNot(t *testing.T) {
	runbook, err := os.ReadFile(docs("alerts.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("../prometheus/safeconduct.rules.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts(t) {
		if s := a.Labels["severity"]; s != "critical" && s != "warning" && s != "info" {
			t.Errorf("%s has severity %q", a.Alert, s)
		}
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" || a.Annotations["runbook"] != "docs/alerts.md#"+strings.ToLower(a.Alert) {
			t.Errorf("%s has annotations %v", a.Alert, a.Annotations)
		}
		if !strings.Contains(string(runbook), "\n## "+a.Alert+"\n") {
			t.Errorf("docs/alerts.md has no section %s", a.Alert)
		}
		cases := regexp.MustCompile(`alertname: `+a.Alert+`\n +exp_alerts:( \[\])?`).FindAllString(string(tests), -1)
		quiet := slices.ContainsFunc(cases, func(s string) bool { return strings.HasSuffix(s, "[]") })
		fires := slices.ContainsFunc(cases, func(s string) bool { return !strings.HasSuffix(s, "[]") })
		if !quiet || !fires {
			t.Errorf("%s: its tests show it firing %v, quiet %v", a.Alert, fires, quiet)
		}
	}
}

func TestPromtoolAcceptsTheRulesAndTheirTests(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool: make deps installs it")
	}
	for _, args := range [][]string{
		{"check", "rules", "safeconduct.rules.yaml"}, {"test", "rules", "safeconduct.rules.test.yaml"}, {"check", "config", "--syntax-only", "prometheus.yaml"},
	} {
		c := exec.CommandContext(t.Context(), promtool, args...)
		c.Dir = "../prometheus"
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
