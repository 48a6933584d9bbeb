package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func TestEveryReasonIsExplainedOnce(t *testing.T) {
	seen := map[v1.Reason]bool{}
	for _, e := range explanations() {
		name := refusal.Name(e.reason)
		if seen[e.reason] {
			t.Errorf("%s is explained twice", name)
		}
		seen[e.reason] = true
		if e.means == "" || len(e.causes) == 0 || len(e.look) == 0 || strings.HasSuffix(e.means, ".") {
			t.Errorf("%s: %+v", name, e)
		}
		run(t, "explain", name).exits(t, ExitOK)
	}
	for n := range v1.Reason_name {
		if !seen[v1.Reason(n)] {
			t.Errorf("%v is not explained", v1.Reason(n))
		}
	}
}

func TestEveryReasonHasAnExitCodeAndAVerdictOfItsOwnKind(t *testing.T) {
	for n := range v1.Reason_name {
		reason := v1.Reason(n)
		code := exitOf(reason)
		if code < ExitRefused || code > ExitInternal {
			t.Errorf("%v: exit code %d", reason, code)
		}
		v := verdict{Verdict: wordOf(reason)}
		if got := v.code(); got != code && code != ExitUsage {
			t.Errorf("%v: exit code %d, as a verdict %d", reason, code, got)
		}
	}
	if v := (verdict{}); v.code() == ExitOK {
		t.Error("the zero verdict is accepted")
	}
}

// mentions finds the commands that a text tells an operator to run.
var mentions = regexp.MustCompile(`safeconduct((?: [a-z]+(?:-[a-z]+)*)+)`)

// checkMentions fails for every command in a text that there is not.
func checkMentions(t *testing.T, where, text string) int {
	t.Helper()
	root := testRoot()
	found := 0
	for _, m := range mentions.FindAllStringSubmatch(text, -1) {
		words := strings.Fields(m[1])
		c, rest, err := root.Find(words)
		if err != nil || c == root {
			t.Errorf("%s: there is no command %q", where, m[0])
			continue
		}
		found++
		if c.HasAvailableSubCommands() && len(rest) > 0 {
			t.Errorf("%s: %q: %q is no command of %s", where, m[0], rest[0], c.CommandPath())
		}
	}
	return found
}

func TestTheCommandsThatExplanationsAndErrorsNameExist(t *testing.T) {
	total := 0
	for _, e := range explanations() {
		total += checkMentions(t, refusal.Name(e.reason), strings.Join(append(e.look, e.causes...), "\n"))
	}
	if total < 20 {
		t.Errorf("only %d commands were found: the pattern is wrong", total)
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile(`see (safeconduct [a-z ]+)`)
	for _, file := range sources {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range quoted.FindAllStringSubmatch(string(raw), -1) {
			if m[1] != "safeconduct help" && !strings.HasSuffix(file, "_test.go") {
				checkMentions(t, file, strings.TrimSuffix(strings.TrimSuffix(m[1], " for all reasons"), ", or whether safeconductd still runs"))
			}
		}
	}
}
