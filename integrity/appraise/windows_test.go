package appraise

import (
	"testing"
	"time"
)

func TestTheNextEndIsTheFirstThatIsStillToCome(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := Digest{1}, Digest{2}, Digest{3}
	for name, tc := range map[string]struct {
		refs ReferenceValues
		want time.Duration // from now; 0 for none
	}{
		"nothing ends": {ReferenceValues{Files: map[string]File{"f": {SHA256: []Digest{a}}}}, 0},
		"what has ended counts no more": {
			ReferenceValues{Files: map[string]File{"f": {NotAfter: map[Digest]time.Time{a: now.Add(-time.Hour)}}}}, 0,
		},
		"the first of several files": {ReferenceValues{Files: map[string]File{
			"f": {NotAfter: map[Digest]time.Time{a: now.Add(-time.Hour), b: now.Add(3 * time.Hour)}}, "g": {NotAfter: map[Digest]time.Time{c: now.Add(2 * time.Hour)}},
		}}, 2 * time.Hour},
		"a PCR before every file": {ReferenceValues{
			Files:        map[string]File{"f": {NotAfter: map[Digest]time.Time{a: now.Add(3 * time.Hour)}}},
			PCRsNotAfter: map[int]map[Digest]time.Time{4: {b: now.Add(time.Hour)}},
		}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := tc.refs.NextEnd(now)
			if ok != (tc.want != 0) || ok && got != now.Add(tc.want) {
				t.Errorf("got %v, %v, want %v from now", got, ok, tc.want)
			}
		})
	}
}
