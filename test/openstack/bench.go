package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one migration of the bench.
type sample struct {
	Protected bool `json:"protected"`
	// TotalS is from the request to the end that Nova tells, to 0.2 s; LibvirtMS and DowntimeMS are libvirt's own account of its job.
	TotalS     float64 `json:"total_s"`
	LibvirtMS  float64 `json:"libvirt_ms"`
	DowntimeMS float64 `json:"downtime_ms"`
}

// bench migrates two servers with a vTPM in turns, one protected and one as it would be without Safeconduct, and makes the table of the paper's table 2.
func bench(ctx context.Context, c *cloud, note func(string, ...any)) error {
	c.pace = quick
	defer func() { c.pace = slow }()
	c.standing = nil
	if err := c.clear(ctx, nil); err != nil {
		return err
	}
	if err := c.eachCompute(ctx, func(h *compute) error { return h.allowBaseline(ctx) }); err != nil {
		return err
	}
	var servers [2]*server
	for i, name := range []string{"unprotected", "protected"} {
		s, err := c.boot(ctx, kind{name: name, flavor: flavorUser, by: c.admin, asked: func(s *server) error {
			if name == "protected" {
				return nil
			}
			return c.eachCompute(ctx, func(h *compute) error { return h.WriteFile("/etc/e2e-unprotected", []byte(s.id+"\n"), 0o644) })
		}})
		if err != nil {
			return err
		}
		servers[i] = s
	}
	var samples []sample
	for round := range c.options.rounds {
		for i, s := range servers {
			v, err := s.view(ctx)
			if err != nil {
				return err
			}
			m, err := s.moved(ctx, c.admin, c.other(v.Host).Name)
			if err != nil {
				return fmt.Errorf("round %d: %w", round+1, err)
			}
			one := sample{Protected: i == 1, TotalS: m.took.Seconds()}
			if one.LibvirtMS, one.DowntimeMS, err = c.host(m.to).jobTimes(ctx, s.id); err != nil {
				return err
			}
			if one.Protected {
				if err := c.receipt(ctx, s, m); err != nil {
					return err
				}
			}
			samples = append(samples, one)
		}
	}
	raw, err := json.MarshalIndent(samples, "", "  ")
	if err != nil {
		return err
	}
	table := tabulate(samples)
	for line := range strings.Lines(table) {
		note("%s", strings.TrimRight(line, "\n"))
	}
	return errors.Join(os.WriteFile(filepath.Join(c.options.out, "bench.json"), raw, 0o644), os.WriteFile(filepath.Join(c.options.out, "bench.txt"), []byte(table), 0o644))
}

// allowBaseline has a host run the bench's unprotected server.
func (h *compute) allowBaseline(ctx context.Context) error {
	driver, err := files.ReadFile("bench/e2e_baseline.py")
	if err != nil {
		return err
	}
	choice, err := files.ReadFile("bench/swtpm")
	if err != nil {
		return err
	}
	err = errors.Join(
		h.WriteFile(overlayDir+"/nova/virt/e2e_baseline.py", driver, 0o644),
		h.WriteFile("/etc/e2e-unprotected", nil, 0o644),
		h.WriteFile("/usr/bin/swtpm", choice, 0o755),
		os.Symlink(helper, h.Path("/opt/e2e/swtpm")),
	)
	if err != nil {
		return err
	}
	return h.reconfigure(ctx, func(s *settings) { s.Driver = "e2e_baseline.BaselineDriver" })
}

// jobTimes are libvirt's account, at the destination, of the migration that brought a server: the job's whole time and the server's downtime, in ms.
func (h *compute) jobTimes(ctx context.Context, id string) (total, downtime float64, err error) {
	lines, err := h.virsh(ctx, "domjobinfo", id, "--completed", "--keep-completed")
	if err != nil {
		return 0, 0, err
	}
	for _, words := range lines {
		line := strings.Join(words, " ")
		for prefix, to := range map[string]*float64{"Time elapsed: ": &total, "Total downtime: ": &downtime} {
			if text, ok := strings.CutPrefix(line, prefix); ok {
				if *to, err = strconv.ParseFloat(strings.TrimSuffix(text, " ms"), 64); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	if total == 0 || downtime == 0 {
		return 0, 0, fmt.Errorf("libvirt of %s does not tell the job's times: %v", h.Name, lines)
	}
	return total, downtime, nil
}

// tabulate gives median and range of both kinds, and the difference of the medians.
func tabulate(samples []sample) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-28s %28s %28s %18s\n", "", "unprotected", "protected", "difference")
	for _, row := range []struct {
		name string
		of   func(sample) float64
	}{
		{"total, request to end, s", func(s sample) float64 { return s.TotalS }}, {"libvirt's job, ms", func(s sample) float64 { return s.LibvirtMS }},
		{"downtime, ms", func(s sample) float64 { return s.DowntimeMS }},
	} {
		var both [2][]float64
		for _, s := range samples {
			i := 0
			if s.Protected {
				i = 1
			}
			both[i] = append(both[i], row.of(s))
		}
		fmt.Fprintf(&b, "%-28s", row.name)
		for i := range both {
			slices.Sort(both[i])
			n := len(both[i])
			fmt.Fprintf(&b, " %28s", fmt.Sprintf("%.1f (%.1f to %.1f), n=%d", median(both[i]), both[i][0], both[i][n-1], n))
		}
		difference := median(both[1]) - median(both[0])
		fmt.Fprintf(&b, " %18s\n", fmt.Sprintf("%+.1f (%+.1f %%)", difference, 100*difference/median(both[0])))
	}
	return b.String()
}

// median of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quick is how often the bench looks for the end of a migration.
const quick = 200 * time.Millisecond
