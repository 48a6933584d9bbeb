package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one migration of the bench.
type sample struct {
	Protected bool `json:"protected"`
	// TotalMS is from the request to nova-compute's word, at the source, that the migration is finished. LibvirtMS and DowntimeMS are libvirt's own
	// account of its job.
	TotalMS    float64 `json:"total_ms"`
	LibvirtMS  float64 `json:"libvirt_ms"`
	DowntimeMS float64 `json:"downtime_ms"`
	// HandshakeMS is the session's part of the total, HelpersMS what both helpers take over the state while the server stands still; of protected
	// migrations only.
	HandshakeMS float64 `json:"handshake_ms,omitempty"`
	HelpersMS   float64 `json:"helpers_ms,omitempty"`
}

// bench migrates two servers with a vTPM in turns, one protected and one as it would be without Safeconduct, and makes the table of the paper's table 2.
func bench(ctx context.Context, c *cloud, note func(string, ...any)) error {
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
	for round := range warmUp + c.options.rounds {
		for i, s := range servers {
			v, err := s.view(ctx)
			if err != nil {
				return err
			}
			one, err := c.measure(ctx, s, v.Host)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, s.name, err)
			}
			if round >= warmUp {
				one.Protected = i == 1
				samples = append(samples, *one)
			}
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

// warmUp are rounds that do not count: each host has received each server once, and Nova's caches are filled.
const warmUp = 2

// measure migrates a server once.
func (c *cloud) measure(ctx context.Context, s *server, from string) (*sample, error) {
	source, began := c.host(from), time.Now()
	m, err := s.moved(ctx, c.admin, c.other(from).Name)
	if err != nil {
		return nil, err
	}
	destination, one := c.host(m.to), &sample{}
	finished, err := source.finished(s)
	if err != nil {
		return nil, err
	}
	one.TotalMS = float64(finished.Sub(began).Microseconds()) / 1000
	if one.LibvirtMS, one.DowntimeMS, err = destination.jobTimes(ctx, s.id); err != nil {
		return nil, err
	}
	session, err := c.session(ctx, s, m.to)
	if err != nil || session == nil || session.GetMigrationId() != m.uuid {
		return one, err // unprotected
	}
	one.HandshakeMS = float64(session.GetAppraisedAt().AsTime().Sub(session.GetCreatedAt().AsTime()).Microseconds()) / 1000
	for h, word := range map[*compute]string{source: "protected", destination: "restored"} {
		took, err := h.helperTime(s, word, len(session.GetBlobs()))
		if err != nil {
			return nil, err
		}
		one.HelpersMS += float64(took.Microseconds()) / 1000
	}
	return one, c.receipt(ctx, s, m)
}

// finished is when nova-compute said last that the server has migrated away.
func (h *compute) finished(s *server) (time.Time, error) {
	raw, err := os.ReadFile(filepath.Join(h.cloud.options.out, h.Name, "nova-compute.log"))
	if err != nil {
		return time.Time{}, err
	}
	said := regexp.MustCompile(`(?m)^(\S+ \S+) .*\[instance: `+s.id+`\] Migrating instance to \S+ finished successfully`).FindAllSubmatch(raw, -1)
	if len(said) == 0 {
		return time.Time{}, fmt.Errorf("nova-compute of %s does not say that the migration is finished", h.Name)
	}
	return time.ParseInLocation("2006-01-02 15:04:05.000", string(said[len(said)-1][1]), time.UTC)
}

// helperTime is what the helper of a server took over the last blobs.
func (h *compute) helperTime(s *server, word string, blobs int) (total time.Duration, err error) {
	logs, err := filepath.Glob(h.Path("/var/log/swtpm/libvirt/qemu/*-swtpm.log"))
	if err != nil {
		return 0, err
	}
	told := regexp.MustCompile(`msg="vTPM state ` + word + `".* instance=` + s.id + ` .*elapsed=(\S+)`)
	for _, log := range logs {
		raw, err := os.ReadFile(log)
		if err != nil {
			return 0, err
		}
		all := told.FindAllSubmatch(raw, -1)
		for _, one := range all[max(0, len(all)-blobs):] {
			took, err := time.ParseDuration(string(one[1]))
			if err != nil {
				return 0, err
			}
			total += took
		}
	}
	if total == 0 {
		return 0, fmt.Errorf("the helper of %s on %s does not say that it has %s anything", s.name, h.Name, word)
	}
	return total, nil
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
		{"total, request to end, ms", func(s sample) float64 { return s.TotalMS }}, {"libvirt's job, ms", func(s sample) float64 { return s.LibvirtMS }},
		{"downtime, ms", func(s sample) float64 { return s.DowntimeMS }}, {"handshake, in total, ms", func(s sample) float64 { return s.HandshakeMS }},
		{"helpers, in downtime, ms", func(s sample) float64 { return s.HelpersMS }},
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
		if median(both[0]) == 0 { // there is none of it
			fmt.Fprintln(&b)
			continue
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
