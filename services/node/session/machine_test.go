package session

import (
	"errors"
	"testing"
)

// TestEveryEventInEveryStateHasADefinedOutcome is the table of docs/protocol.md, "Session", cell by cell: "-" is a refusal that
// leaves the session as it was.
func TestEveryEventInEveryStateHasADefinedOutcome(t *testing.T) {
	const no = State(0)
	table := map[State][len(events)]State{
		//              attest    appraise   arm    transfer      commit     abort    expire   restart
		Offered:      {Attested, no, no, no, no, Aborted, Aborted, Aborted},
		Attested:     {no, Appraised, no, no, no, Aborted, Aborted, Aborted},
		Appraised:    {no, Appraised, Armed, no, no, Aborted, Aborted, Aborted},
		Armed:        {no, no, no, Transferring, Committed, Aborted, Aborted, Aborted},
		Transferring: {no, no, no, Transferring, Committed, Aborted, Aborted, Aborted},
		Committed:    {no, no, no, no, Committed, no, no, no},
		Aborted:      {no, no, no, no, no, Aborted, Aborted, Aborted},
	}
	if len(table) != len(states) {
		t.Fatalf("the table has %d states, the machine %d", len(table), len(states))
	}
	for _, s := range states {
		for i, e := range events {
			got, err := Next(s, e)
			want := table[s][i]
			if want == no {
				var te *TransitionError
				if !errors.As(err, &te) || got != s || te.State != s || te.Event != e {
					t.Errorf("%s + %s: got %s, %v; want a refusal that changes nothing", s, e, got, err)
				}
			} else if err != nil || got != want {
				t.Errorf("%s + %s: got %s, %v; want %s", s, e, got, err, want)
			}
		}
	}
}

func TestNoEventRevivesAnEndedSession(t *testing.T) {
	for _, s := range []State{Committed, Aborted} {
		for _, e := range events {
			if got, _ := Next(s, e); got != s {
				t.Errorf("%s + %s became %s", s, e, got)
			}
		}
	}
}

func TestStatesAndEventsHaveNames(t *testing.T) {
	for _, s := range states {
		if s.String()[0] == 's' {
			t.Errorf("state %d has no name", int(s))
		}
	}
	if State(99).String() != "state(99)" || Event(99).String() != "event(99)" {
		t.Error("an unknown value does not say its number")
	}
	if _, err := Next(State(99), Arm); err == nil {
		t.Error("an unknown state accepts an event")
	}
}
