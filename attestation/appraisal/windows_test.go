package appraisal

import (
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/policy"
)

func TestAnEnclaveIsAcceptedUntilTheLastOfItsRulesEnds(t *testing.T) {
	c := claims()
	now := expectation().Now
	rule := func(from, to time.Duration) policy.Enclave {
		e := policy.Enclave{MREnclave: c.MREnclave[:]}
		if from != 0 {
			e.NotBefore = now.Add(from)
		}
		if to != 0 {
			e.NotAfter = now.Add(to)
		}
		return e
	}
	other := rule(0, time.Hour)
	other.MREnclave = make(policy.Hex, 32)
	for name, tc := range map[string]struct {
		rules    []policy.Enclave
		until    time.Duration // from now; 0 for never
		accepted bool
		next     time.Duration // of the whole policy; 0 for never
	}{
		"a rule without an end":            {[]policy.Enclave{rule(0, 0)}, 0, true, 0},
		"a rule with an end":               {[]policy.Enclave{rule(0, time.Hour)}, time.Hour, true, time.Hour},
		"the last of two":                  {[]policy.Enclave{rule(0, time.Hour), rule(0, 2*time.Hour)}, 2 * time.Hour, true, time.Hour},
		"one with, one without an end":     {[]policy.Enclave{rule(0, time.Hour), rule(0, 0)}, 0, true, time.Hour},
		"a rule that has ended":            {[]policy.Enclave{rule(0, -time.Hour)}, 0, false, 0},
		"a rule that ends now":             {[]policy.Enclave{rule(-time.Hour, 0), {MREnclave: c.MREnclave[:], NotAfter: now}}, 0, true, 0},
		"a rule that is not in force yet":  {[]policy.Enclave{rule(time.Hour, 2*time.Hour)}, 0, false, 0},
		"a rule of another enclave":        {[]policy.Enclave{other}, 0, false, time.Hour},
		"no rule":                          {nil, 0, false, 0},
		"another's ends before this one's": {[]policy.Enclave{other, rule(0, 5*time.Hour)}, 5 * time.Hour, true, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			p := &policy.Policy{Enclaves: tc.rules}
			at := func(d time.Duration) time.Time {
				if d == 0 {
					return time.Time{}
				}
				return now.Add(d)
			}
			until, accepted := AcceptedUntil(c, p, now)
			if accepted != tc.accepted || !until.Equal(at(tc.until)) {
				t.Errorf("accepted %v until %v, want %v until %v", accepted, until, tc.accepted, at(tc.until))
			}
			if next, ok := p.NextEnd(now); ok != (tc.next != 0) || !next.Equal(at(tc.next)) {
				t.Errorf("the policy's next end is %v, %v, want %v", next, ok, at(tc.next))
			}
		})
	}
}
