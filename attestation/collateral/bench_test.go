package collateral

import (
	"testing"
	"time"
)

func BenchmarkGetOfAValidSet(b *testing.B) {
	c := open(b, Config[string]{Source: &toySource{fetch: always(toySet("a", 1, time.Now().Add(-time.Hour), month))}})
	gets(b, c, keyA, "a")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Get(b.Context(), keyA); err != nil {
			b.Fatal(err)
		}
	}
}
