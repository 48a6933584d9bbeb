package cli

import (
	"slices"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Whatever a verifier refuses for, as many rows fail as there are refusals, and none of them passes.
func TestNoRefusalIsLostInTheRows(t *testing.T) {
	for n := range v1.Reason_name {
		for _, item := range []string{"", "tcb status", "advisories", "compute1"} {
			for _, attested := range []*v1.Attested{nil, attestedAs(v1.Mode_MODE_INTEL, "compute1")} {
				refusals := []*v1.Refusal{
					{Reason: v1.Reason(n), Item: item}, {Reason: v1.Reason(n), Item: item}, {Reason: v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED},
				}
				rows := evidenceChecks(attested, refusals, asked{binding: true, host: "compute1"})
				fell := 0
				for _, c := range rows {
					if c.Outcome == notPassed {
						fell++
					} else if c.Reason != "" {
						t.Errorf("%v: a row with a reason has not failed: %+v", v1.Reason(n), c)
					}
				}
				if fell != len(refusals) {
					t.Errorf("%v on %q: %d rows failed, want %d", v1.Reason(n), item, fell, len(refusals))
				}
			}
		}
	}
}

func TestWhatWasNotAskedForDidNotPass(t *testing.T) {
	rows := evidenceChecks(attestedAs(v1.Mode_MODE_INTEL, ""), nil, asked{unjudged: "there is no policy"})
	for _, c := range rows {
		if (c.Outcome == passed) != (c.Check == checkEvidence) {
			t.Errorf("%+v", c)
		}
	}
	for _, c := range evidenceChecks(nil, []*v1.Refusal{{Reason: v1.Reason_REASON_QUOTE_INVALID}}, asked{binding: true, host: "x"}) {
		if c.Outcome == passed {
			t.Errorf("of evidence that is not authentic, %+v", c)
		}
	}
	debug := attestedAs(v1.Mode_MODE_INTEL, "")
	debug.Debug = true
	rows = evidenceChecks(debug, []*v1.Refusal{{Reason: v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED}}, asked{})
	if got := outcomeOf(rows, checkDebug); got != notJudged {
		t.Errorf("debug of an enclave that no rule accepts: %s", got)
	}
}

func TestTheStatusOfAnEARIsNeverBetterThanTheVerdictOrTheVector(t *testing.T) {
	tiers := []string{"none", "affirming", "warning", "contraindicated"}
	tierOf := func(claim int) string {
		switch {
		case claim >= arContraindicated:
			return "contraindicated"
		case claim >= arWarning:
			return "warning"
		}
		return "affirming"
	}
	behind := attestedAs(v1.Mode_MODE_INTEL, "h")
	behind.TcbStatus = "SWHardeningNeeded"
	for name, c := range map[string]struct {
		mode     v1.Mode
		attested *v1.Attested
		word     string
		refusals []*v1.Refusal
		ask      asked
		want     string
	}{
		"accepted on hardware": {v1.Mode_MODE_INTEL, attestedAs(v1.Mode_MODE_INTEL, "h"), accepted, nil, asked{host: "h"},
			"affirming"},
		"accepted with a tolerated state": {v1.Mode_MODE_INTEL, behind, accepted, nil, asked{host: "h"}, "warning"},
		"accepted in a simulation": {v1.Mode_MODE_SIMULATED, attestedAs(v1.Mode_MODE_SIMULATED, "h"), accepted, nil, asked{host: "h"},
			"warning"},
		"accepted in no known mode": {v1.Mode_MODE_UNSPECIFIED, attestedAs(v1.Mode_MODE_UNSPECIFIED, "h"), accepted, nil,
			asked{host: "h"}, "warning"},
		"refused": {v1.Mode_MODE_INTEL, attestedAs(v1.Mode_MODE_INTEL, "h"), refused, []*v1.Refusal{tcbRefusal()}, asked{host: "h"},
			"contraindicated"},
		"not authentic": {v1.Mode_MODE_INTEL, nil, notAuthentic, []*v1.Refusal{{Reason: v1.Reason_REASON_QUOTE_INVALID}}, asked{},
			"contraindicated"},
		"not reached": {v1.Mode_MODE_INTEL, nil, unreachable, nil, asked{}, "none"},
	} {
		v := newVerdict(c.mode, c.word, evidenceChecks(c.attested, c.refusals, c.ask))
		if c.word == unreachable {
			v.Checks = nil
		}
		got := appraisalOf(&v, c.attested, "")
		if got.Status != c.want {
			t.Errorf("%s: %s, want %s", name, got.Status, c.want)
		}
		if w := worst(got.Vector); len(got.Vector) > 0 && got.Status != "none" && slices.Index(tiers, got.Status) < slices.Index(tiers,
			tierOf(w)) {
			t.Errorf("%s: status %s is better than the vector's %d", name, got.Status, w)
		}
	}
	v := newVerdict(v1.Mode_MODE_INTEL, refused, append(evidenceChecks(behind, nil, asked{unjudged: "there is no policy"}),
		failing(checkPolicy, noPolicy().Proto())))
	if got := appraisalOf(&v, behind, ""); got.Status != "none" || len(got.Vector) != 0 {
		t.Errorf("without a policy: %+v", got)
	}
}
