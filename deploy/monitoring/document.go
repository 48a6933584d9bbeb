package monitoring

import (
	"fmt"
	"strings"

	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// Document is docs/metrics.md.
func Document() string {
	var b strings.Builder
	b.WriteString(`# Metrics

A node serves them at ` + "`/metrics`" + ` of ` + "`http.listen`" + `, in Prometheus's text format, and in protobuf with native histograms beside the classic buckets to
whoever asks for that. A Prometheus with ` + "`--enable-feature=native-histograms`" + ` then keeps the native ones alone, unless its scrape configuration says
` + "`scrape_classic_histograms: true`" + ` (from 2.45; ` + "`always_scrape_classic_histograms`" + ` in 3): the queries below and the dashboard are for the classic ones. This file is generated from services/node/metrics/catalogue.go and
deploy/monitoring/questions.go; a test checks it, another that a node serves these and no other. Beside them there are client_golang's own ` + "`go_*`" + ` and
` + "`promhttp_*`" + `. The process collector is left out: in an enclave it is empty.

Every metric of ours has the label ` + "`mode`" + `: intel, or simulated, which protects nothing. No label has a value that a peer or a caller could choose. Names,
labels and values are not removed or given another meaning within a major release.

Alert rules with their tests are in deploy/prometheus, and [alerts.md](alerts.md) says what to do about each; the Grafana dashboard is in
deploy/grafana. ` + "`make demo`" + ` has a Prometheus scrape two nodes and puts every query below to it.

## The metrics

`)
	list(&b, metrics.Catalogue())
	b.WriteString("## The metrics of safeconduct-agent\n\nIt serves them itself, at `/metrics` of its own `http.listen` ([agent.md](agent.md)). They are in services/node/metrics/agent.go.\n\n")
	list(&b, metrics.AgentCatalogue())
	b.WriteString("## Phases\n\n| phase | what is timed |\n|---|---|\n")
	for _, p := range metrics.Phases() {
		fmt.Fprintf(&b, "| %s | %s |\n", p.Phase, p.Means)
	}
	b.WriteString(`
The classic buckets go from 50 us to 10 s. A phase that was refused has outcome refused: leave it out where you look for slowness.

## Questions and queries

For all nodes, over five minutes. In the dashboard the node, the mode and the range are variables.
`)
	fill := strings.NewReplacer("$window", "5m", `{instance=~"$instance", mode=~"$mode"}`, "", `{instance=~"$instance", mode=~"$mode", `, "{")
	for _, r := range Rows() {
		fmt.Fprintf(&b, "\n### %s\n", r.Title)
		for _, q := range r.Questions {
			fmt.Fprintf(&b, "\n%s: %s.\n\n    %s\n", q.Title, q.Means, fill.Replace(q.Expr))
		}
	}
	return b.String()
}

// list writes the metrics of one catalogue.
func list(b *strings.Builder, all []metrics.Metric) {
	for _, m := range all {
		fmt.Fprintf(b, "### %s\n\n%s: %s\n", m.Name, m.Kind, m.Help)
		for i, l := range m.Labels {
			if i == 0 {
				b.WriteString("\n")
			}
			switch {
			case l.Bound != "":
				fmt.Fprintf(b, "- `%s`: %s\n", l.Name, l.Bound)
			case l.Name == "reason":
				b.WriteString("- `reason`: the names in [errors.md](errors.md)\n")
			case l.Name == "phase":
				b.WriteString("- `phase`: [below](#phases)\n")
			default:
				fmt.Fprintf(b, "- `%s`: %s\n", l.Name, strings.Join(l.Values, ", "))
			}
		}
		b.WriteString("\n")
	}
}
