package cli

import (
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// verdictSchema names the shape of every verdict in JSON. Fields are added under it, never changed.
const verdictSchema = "safeconduct/verdict/v1"

// Words of a verdict.
const (
	accepted     = "accepted"
	refused      = "refused"
	notAuthentic = "not_authentic"
	unreachable  = "unreachable"
	failed       = "failed"
)

// verdict is what attest, preflight and quote verify have in common. docs/cli.md specifies it.
type verdict struct {
	Schema string `json:"schema"`
	// Mode is "intel" or "simulated".
	Mode string `json:"mode"`
	// Warning says in a simulated mode that it protects nothing.
	Warning  string  `json:"warning,omitempty"`
	Verdict  string  `json:"verdict"`
	Accepted bool    `json:"accepted"`
	Checks   []check `json:"checks"`
}

// Outcomes of a check.
const (
	passed    = "passed"
	notPassed = "failed"
	notJudged = "not_judged"
)

// check is one thing that was judged, or was not.
type check struct {
	Check   string `json:"check"`
	Outcome string `json:"outcome"`
	// Found is what was seen; Expected what would have passed, where it did not.
	Found    string  `json:"found,omitempty"`
	Expected string  `json:"expected,omitempty"`
	Reason   string  `json:"reason,omitempty"`
	Message  string  `json:"message,omitempty"`
	Item     string  `json:"item,omitempty"`
	Do       string  `json:"do,omitempty"`
	Took     float64 `json:"milliseconds,omitempty"`
}

// failing is a check that a refusal has failed.
func failing(name string, r *v1.Refusal) check {
	return check{
		Check: name, Outcome: notPassed, Found: r.GetFound(), Expected: r.GetExpected(), Reason: refusal.Name(r.GetReason()),
		Message: r.GetMessage(), Item: r.GetItem(), Do: orElse(r.GetRemedy(), refusal.Remedies(r.GetReason())),
	}
}

const simulatedWarning = "SIMULATED: no hardware protects anything here; for development and tests only"

// modeName is the mode for machines.
func modeName(m v1.Mode) string { return enumName(m.String(), "MODE_") }

// modeLine is the mode for people: nobody may take a simulation for the real thing.
func modeLine(mode string) string {
	switch mode {
	case "intel":
		return "intel (SGX hardware under Intel's root)"
	case "simulated":
		return simulatedWarning
	}
	return strings.ToUpper(mode) + ": what runs here is not known"
}

func newVerdict(mode v1.Mode, word string, checks []check) verdict {
	v := verdict{Schema: verdictSchema, Mode: modeName(mode), Verdict: word, Accepted: word == accepted, Checks: checks}
	if mode != v1.Mode_MODE_INTEL {
		v.Warning = modeLine(v.Mode)
	}
	return v
}

// code is the exit code of a verdict.
func (v *verdict) code() int {
	switch v.Verdict {
	case accepted:
		return ExitOK
	case notAuthentic:
		return ExitNotAuthentic
	case unreachable:
		return ExitUnreachable
	case failed:
		return ExitInternal
	}
	return ExitRefused
}

// wordOf is the verdict that a refusal makes.
func wordOf(reason v1.Reason) string {
	switch exitOf(reason) {
	case ExitNotAuthentic:
		return notAuthentic
	case ExitUnreachable:
		return unreachable
	case ExitInternal:
		return failed
	}
	return refused
}

// conclude ends a command whose verdict was printed.
func (v *verdict) conclude(err error) error {
	if err == nil && v.code() != ExitOK {
		return ended{v.code()}
	}
	return err
}

// head prints mode and verdict; they come first, so that nobody misses them.
func (v *verdict) head(s *sheet) {
	s.field("verdict", strings.ToUpper(strings.ReplaceAll(v.Verdict, "_", " ")))
	s.field("mode", modeLine(v.Mode))
}

// list prints the checks, one a line, and under each that failed what to do.
func (v *verdict) list(s *sheet) {
	s.blank()
	for _, c := range v.Checks {
		c.print(s)
	}
}

func (c *check) print(s *sheet) {
	switch c.Outcome {
	case passed:
		s.line("  ok      %-22s %s", c.Check, orElse(c.Found, c.Message))
	case notJudged:
		s.line("  -       %-22s not judged: %s", c.Check, c.Message)
	default:
		s.line("  FAILED  %-22s %s: %s", c.Check, c.Reason, c.Message)
		for _, f := range []struct{ name, value string }{{"item", c.Item}, {"found", c.Found}, {"expected", c.Expected}, {"do", c.Do}} {
			if f.value != "" {
				s.line("            %-9s %s", f.name, f.value)
			}
		}
	}
}
