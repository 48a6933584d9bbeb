package main

import (
	"fmt"
	"slices"
	"strings"
)

// table is the result in Markdown: medians over the rounds, and the two ratios that matter.
func (b *bench) table(ways []*way) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d MiB of random memory, medians of %d rounds, %d CPUs for everything\n\n", b.memory, b.rounds, b.cpus())
	fmt.Fprintln(&out, "| way | MiB/s (lowest to highest) | CPU s per GiB: QEMUs | and between them | downtime ms |")
	fmt.Fprintln(&out, "|---|---|---|---|---|")
	for _, w := range ways {
		speed := b.values(w.name, func(m *measured) float64 { return m.Throughput })
		perGiB := func(of func(*measured) float64) float64 {
			return median(b.values(w.name, func(m *measured) float64 { return of(m) / float64(m.Bytes) * (1 << 30) }))
		}
		fmt.Fprintf(&out, "| %s | %.0f (%.0f to %.0f) | %.2f | %.2f | %.0f |\n", w.name, median(speed), slices.Min(speed), slices.Max(speed),
			perGiB(func(m *measured) float64 { return m.Source + m.Destination }), perGiB(func(m *measured) float64 { return m.Between }),
			median(b.values(w.name, func(m *measured) float64 { return float64(m.Downtime) })))
	}
	fmt.Fprintln(&out)
	for _, c := range [][2]string{
		{wayTunnel, wayTLS}, {wayTunnel, wayTLSAES}, {wayTunnel + ", 4 connections", wayTLSAES + ", 4 connections"},
		{wayTunnel, wayUnixRelay}, {wayTunnel + ", 4 connections", wayUnixRelay + ", 4 connections"},
	} {
		if ratio, cpu := b.ratio(c[0], c[1]); ratio > 0 {
			fmt.Fprintf(&out, "%s : %s = %.2f in throughput, %.2f in CPU time\n", c[0], c[1], ratio, cpu)
		}
	}
	return out.String()
}

func (b *bench) values(way string, of func(*measured) float64) (all []float64) {
	for i := range b.results {
		if b.results[i].Way == way {
			all = append(all, of(&b.results[i]))
		}
	}
	return all
}

// ratio of two ways, as the median of the ratios within each round: what else the machine does then weighs on both.
func (b *bench) ratio(one, other string) (throughput, cpu float64) {
	speed, cost := func(m *measured) float64 { return m.Throughput }, func(m *measured) float64 { return m.cpu() / float64(m.Bytes) }
	quotients := func(of func(*measured) float64) float64 {
		a, c := b.values(one, of), b.values(other, of)
		if len(a) != len(c) {
			return 0
		}
		var all []float64
		for i := range a {
			all = append(all, a[i]/c[i])
		}
		return median(all)
	}
	return quotients(speed), quotients(cost)
}
