package measure

import (
	"os"
	"testing"
)

// BenchmarkMeasureProgram measures QEMU, or a shell where there is none, with its libraries, when nothing has changed since the last time.
func BenchmarkMeasureProgram(b *testing.B) {
	path := "/usr/bin/qemu-system-x86_64"
	if _, err := os.Stat(path); err != nil {
		path = "/bin/sh"
	}
	m, err := New(Config{Items: []Item{{Name: "p", Kind: KindProgram, Path: path}}})
	if err != nil {
		b.Fatal(err)
	}
	entries, err := m.Measure(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Measure(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(entries)), "files")
}
