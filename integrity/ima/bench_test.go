package ima

import (
	"bytes"
	"crypto"
	"fmt"
	"runtime/metrics"
	"testing"
)

// benchEntries is the size of a list on a large host that measures for months.
const benchEntries = 200_000

// longList makes a list with paths and signatures of ordinary lengths.
func longList() []written {
	list := make([]written, 0, benchEntries)
	for i := range benchEntries {
		path := fmt.Sprintf("/usr/lib/python3/dist-packages/package%d/module_with_a_name_%d.py", i/50, i)
		if i%10 == 0 {
			list = append(list, sig(path, digest(136, byte(i))))
			continue
		}
		list = append(list, ng(path, byte(i)))
	}
	return list
}

// BenchmarkPrefix parses and replays 200,000 entries in the SHA-256 bank, up to a quote of the last, and checks each recorded hash.
// peak-heap-bytes is what the heap grew by at most, as seen every 1000 entries, garbage included; the list itself is not in it.
func BenchmarkPrefix(b *testing.B) {
	list := longList()
	want := quoted(extended256(list...))
	for name, raw := range map[string][]byte{"binary": binaryList(list...), "ascii": asciiList(list...)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(raw)))
			sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
			heap := func() uint64 { metrics.Read(sample); return sample[0].Value.Uint64() }
			var peak uint64
			for b.Loop() {
				before := heap()
				m, err := Prefix(bytes.NewReader(raw), Limits{}, want, func(e *Entry) error {
					if !e.RecordedMatches() {
						return CheckStructure
					}
					if now := heapEvery(e.Number, heap); now > before {
						peak = max(peak, now-before)
					}
					return nil
				})
				if err != nil || m.Entries != benchEntries {
					b.Fatal(m, err)
				}
			}
			b.ReportMetric(float64(peak), "peak-heap-bytes")
			b.ReportMetric(float64(len(raw))/benchEntries, "bytes/entry")
		})
	}
}

func heapEvery(n int, heap func() uint64) uint64 {
	if n%1000 != 0 {
		return 0
	}
	return heap()
}

// BenchmarkReplayFourBanks is what a node that is asked for every bank does.
func BenchmarkReplayFourBanks(b *testing.B) {
	raw := binaryList(longList()...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Replay(bytes.NewReader(raw), Limits{}, crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512); err != nil {
			b.Fatal(err)
		}
	}
}
