package policy

import "time"

// NextEnd is when the next enclave rule that is in force now ends, among those that have an end; false if none has.
func (p *Policy) NextEnd(now time.Time) (next time.Time, ok bool) {
	for _, e := range p.Enclaves {
		if !e.InForce(now) || e.NotAfter.IsZero() {
			continue
		}
		if !ok || e.NotAfter.Before(next) {
			next, ok = e.NotAfter, true
		}
	}
	return next, ok
}

// InForce says whether the rule's bounds in time include now.
func (e *Enclave) InForce(now time.Time) bool {
	return (e.NotBefore.IsZero() || !now.Before(e.NotBefore)) && (e.NotAfter.IsZero() || now.Before(e.NotAfter))
}
