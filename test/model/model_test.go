// Package model holds what keeps the machine-checked model of the session (docs/protocol/session.pml) and the code that it is a model of
// together. run.sh has Spin check the model itself.
package model

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/services/node/session"
)

const (
	modelFile  = "../../docs/protocol/session.pml"
	runnerFile = "run.sh"
	begin, end = "/* transitions: begin */", "/* transitions: end */"
)

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// named returns every value of a numbered type whose String knows it, by its name in the model: "Offered" for "offered".
func named[T ~int](t *testing.T, name func(T) string, unknown string) map[string]T {
	t.Helper()
	values := make(map[string]T)
	for v := T(1); !strings.HasPrefix(name(v), unknown); v++ {
		s := name(v)
		values[strings.ToUpper(s[:1])+s[1:]] = v
	}
	if len(values) == 0 {
		t.Fatalf("no value of %s... has a name", unknown)
	}
	return values
}

type cell struct {
	state session.State
	event session.Event
}

// transitions reads the model's table. A cell that is not there is refused.
func transitions(model string, states map[string]session.State, events map[string]session.Event) (map[cell]session.State, []string) {
	_, rest, found := strings.Cut(model, begin)
	block, _, ended := strings.Cut(rest, end)
	if !found || !ended {
		return nil, []string{"the marks around the model's transitions are gone"}
	}
	row := regexp.MustCompile(`^:: s == (\w+) && e == (\w+) -> out = (\w+)$`)
	table, complaints := make(map[cell]session.State), []string(nil)
	for line := range strings.SplitSeq(strings.TrimSpace(block), "\n") {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			complaints = append(complaints, "not a transition: "+line)
			continue
		}
		from, event, to := states[m[1]], events[m[2]], states[m[3]]
		if from == 0 || event == 0 || to == 0 {
			complaints = append(complaints, "a name that package session does not know: "+line)
			continue
		}
		if _, twice := table[cell{from, event}]; twice {
			complaints = append(complaints, "a second transition from one cell: "+line)
		}
		table[cell{from, event}] = to
	}
	return table, complaints
}

// disagreements compares a table with the code, over every state and event.
func disagreements(table map[cell]session.State, states map[string]session.State, events map[string]session.Event) []string {
	var out []string
	for _, s := range states {
		for _, e := range events {
			want, err := session.Next(s, e)
			got, allowed := table[cell{s, e}]
			if allowed != (err == nil) || allowed && got != want {
				out = append(out, s.String()+" + "+e.String())
			}
		}
	}
	return out
}

func TestTheModelHasTheTransitionsOfTheCode(t *testing.T) {
	states, events := named(t, session.State.String, "state("), named(t, session.Event.String, "event(")
	table, complaints := transitions(read(t, modelFile), states, events)
	for _, c := range complaints {
		t.Error(c)
	}
	for _, d := range disagreements(table, states, events) {
		t.Errorf("the model and session.Next disagree on %s", d)
	}
}

func TestATransitionThatTheCodeDoesNotHaveIsFound(t *testing.T) {
	states, events := named(t, session.State.String, "state("), named(t, session.Event.String, "event(")
	model := read(t, modelFile)
	const row = ":: s == Appraised && e == Arm -> out = Armed"
	for name, altered := range map[string]string{
		"another outcome":      strings.Replace(model, row, ":: s == Appraised && e == Arm -> out = Transferring", 1),
		"a missing transition": strings.Replace(model, row, "", 1),
		"a new transition":     strings.Replace(model, row, row+"\n:: s == Aborted && e == Commit -> out = Committed", 1),
		"a second transition":  strings.Replace(model, row, row+"\n:: s == Appraised && e == Arm -> out = Aborted", 1),
		"an unknown state":     strings.Replace(model, row, row+"\n:: s == Paused && e == Arm -> out = Armed", 1),
		"no marks":             strings.ReplaceAll(model, begin, ""),
	} {
		t.Run(name, func(t *testing.T) {
			table, complaints := transitions(altered, states, events)
			if len(complaints)+len(disagreements(table, states, events)) == 0 {
				t.Error("not found")
			}
		})
	}
}

func TestTheModelNumbersStatesAndEventsAsTheCodeDoes(t *testing.T) {
	defines := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^#define (\w+) (\d+)$`).FindAllStringSubmatch(read(t, modelFile), -1) {
		defines[m[1]] = m[2]
	}
	for name, s := range named(t, session.State.String, "state(") {
		if defines[name] != strconv.Itoa(int(s)) {
			t.Errorf("%s is %q in the model, %d in the code", name, defines[name], int(s))
		}
	}
	for name, e := range named(t, session.Event.String, "event(") {
		if defines[name] != strconv.Itoa(int(e)) {
			t.Errorf("%s is %q in the model, %d in the code", name, defines[name], int(e))
		}
	}
}

func TestEveryMutantOfTheModelIsRun(t *testing.T) {
	names := func(text, pattern string) []string {
		var out []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	inModel, run := names(read(t, modelFile), `\bMUTANT_([A-Z_]+[A-Z])\b`), names(read(t, runnerFile), `(?m)^start reject ([A-Z_]+) `)
	if len(run) < 6 || !slices.Equal(inModel, run) {
		t.Errorf("the model has mutants %v\nand run.sh runs %v", inModel, run)
	}
}
