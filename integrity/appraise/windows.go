package appraise

import "time"

// NextEnd is when the next value that is accepted now ends to be, among those whose acceptance has an end; false if none has.
func (r *ReferenceValues) NextEnd(now time.Time) (next time.Time, ok bool) {
	look := func(ends map[Digest]time.Time) {
		for _, end := range ends {
			if end.After(now) && (!ok || end.Before(next)) {
				next, ok = end, true
			}
		}
	}
	for _, f := range r.Files {
		look(f.NotAfter)
	}
	for _, ends := range r.PCRsNotAfter {
		look(ends)
	}
	return next, ok
}
