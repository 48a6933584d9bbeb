package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safeconduct/safeconduct/deploy/monitoring"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// window of the rates that are asked for. The demo is over in less.
const window = "5m"

// monitored gives a host its listener for metrics.
func (d *demo) monitored(h *host) error {
	at := h.ip + ":9464"
	if h.netns == "" {
		if err := freePorts(&at); err != nil {
			return err
		}
	}
	h.metrics = at
	h.Config += "http:\n  listen: " + at + "\n"
	return nil
}

// inFirst turns a command into one that runs where compute1 does, from where both nodes can be reached.
func (d *demo) inFirst(args ...string) []string {
	if enter := d.nodes["compute1"].Enter; enter != nil {
		return enter(args)
	}
	return args
}

// watch starts a Prometheus that scrapes both nodes, with the alert rules.
func (d *demo) watch(ctx context.Context) error {
	dir := filepath.Join(d.dir, "prometheus")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	rules, err := filepath.Abs("deploy/prometheus/safeconduct.rules.yaml")
	if err != nil {
		return err
	}
	var targets []string
	for _, h := range d.nodes {
		targets = append(targets, fmt.Sprintf("%q", h.metrics))
	}
	slices.Sort(targets)
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs:\n  - job_name: safeconduct\n    static_configs:\n      - targets: [%s]\n",
		rules, strings.Join(targets, ", "))
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	if err := freePorts(&d.prometheus); err != nil {
		return err
	}
	args := d.inFirst("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+d.prometheus)
	p, err := d.start(filepath.Join(dir, "prometheus.log"), nil, args[0], args[1:]...)
	if err != nil {
		return err
	}
	if err := cluster.Until(ctx, "Prometheus does not scrape both nodes", func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("it ended: see %s", filepath.Join(dir, "prometheus.log"))
		default:
		}
		answer, err := d.query(ctx, `count(up{job="safeconduct"} == 1)`)
		if err == nil && !strings.Contains(answer, "=> 2 ") {
			err = fmt.Errorf("it answers %q", answer)
		}
		return err
	}); err != nil {
		return err
	}
	say("Prometheus (Debian's) scrapes both nodes each second, with the alert rules of deploy/prometheus")
	return nil
}

// query is Prometheus's answer: a line for each series, empty for none.
func (d *demo) query(ctx context.Context, expr string) (string, error) {
	args := d.inFirst("promtool", "query", "instant", "http://"+d.prometheus, expr)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("promtool: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// askPrometheus puts every query of the dashboard, which are those of docs/metrics.md, to the Prometheus that watched the demo.
func (d *demo) askPrometheus(ctx context.Context) error {
	title("What the operator's Prometheus saw")
	raw, err := os.ReadFile("deploy/grafana/safeconduct.json")
	if err != nil {
		return err
	}
	all, err := monitoring.Expressions(raw, window)
	if err != nil {
		return err
	}
	series, silent := 0, 0
	for name, expr := range all {
		answer, err := d.query(ctx, expr)
		if err != nil {
			return fmt.Errorf("query %q: %w", name, err)
		}
		if answer == "" && !monitoring.MayBeEmpty(name) {
			return fmt.Errorf("query %q has no answer: %s", name, expr)
		}
		if answer == "" {
			silent++
		} else {
			series += strings.Count(answer, "\n") + 1
		}
	}
	d.report.Queries, d.report.QuerySeries = len(all), series
	say("%d queries of the Grafana dashboard: %d answered, with %d series; %d have nothing to tell, as they may", len(all), len(all)-silent, series, silent)
	for _, q := range []struct{ what, expr, want string }{
		{"blobs protected at the source and opened at the destination",
			`sum(safeconduct_phase_duration_seconds_count{phase=~"protect|unprotect", outcome="ok"}) >= 4`, "=> "},
		{"a refusal for each of the scenes that this node lived to count", `count(count by (reason) (safeconduct_refusals_total > 0)) >= 2`, "=> "},
		{"the alert that these nodes are simulated is on its way, for both", `count(ALERTS{alertname="SafeconductSimulated"})`, "=> 2 "},
		{"both nodes are ready", `count(safeconduct_ready == 1)`, "=> 2 "},
	} {
		answer, err := d.query(ctx, q.expr)
		if err != nil {
			return err
		}
		if !strings.Contains(answer, q.want) {
			return fmt.Errorf("%s: Prometheus answers %q to %s", q.what, answer, q.expr)
		}
		say("%s", q.what)
	}
	return nil
}
