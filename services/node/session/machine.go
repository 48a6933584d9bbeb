// Package session is the life of a migration session: its state machine and the bounded table that holds sessions.
//
// The machine is a total, pure function (Next); the table adds names, deadlines, single use and watchers. Neither knows gRPC,
// QEMU or how keys are made: what a session's keys are is the owner's, who wipes them when told the session has ended.
package session

import "fmt"

// State of a session. A session is for one migration, one instance, one ordered pair of nodes, one attempt.
type State int

// The states, in the order of a migration that goes well. Committed and Aborted are final.
const (
	Offered State = iota + 1
	Attested
	Appraised
	Armed
	Transferring
	Committed
	Aborted
)

// states lists every state, in order.
var states = [...]State{Offered, Attested, Appraised, Armed, Transferring, Committed, Aborted}

func (s State) String() string {
	switch s {
	case Offered:
		return "offered"
	case Attested:
		return "attested"
	case Appraised:
		return "appraised"
	case Armed:
		return "armed"
	case Transferring:
		return "transferring"
	case Committed:
		return "committed"
	case Aborted:
		return "aborted"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// Ended says that the session's keys are gone.
func (s State) Ended() bool { return s == Committed || s == Aborted }

// Live says that state may cross under the session.
func (s State) Live() bool { return s == Armed || s == Transferring }

// Event is what can happen to a session.
type Event int

// The events.
const (
	// Attest: phase 1 ended well.
	Attest Event = iota + 1
	// Appraise: phase 2 ended well, the first time or again.
	Appraise
	// Arm: both nodes bound the session to a migration id.
	Arm
	// Transfer: a blob begins to cross.
	Transfer
	// Commit: the migration succeeded.
	Commit
	// Abort: a refusal, a failure, a caller's or the peer's abort.
	Abort
	// Expire: the session's time is up.
	Expire
	// Restart: the node service starts and finds the session open.
	Restart
)

// events lists every event, in order.
var events = [...]Event{Attest, Appraise, Arm, Transfer, Commit, Abort, Expire, Restart}

func (e Event) String() string {
	switch e {
	case Attest:
		return "attest"
	case Appraise:
		return "appraise"
	case Arm:
		return "arm"
	case Transfer:
		return "transfer"
	case Commit:
		return "commit"
	case Abort:
		return "abort"
	case Expire:
		return "expire"
	case Restart:
		return "restart"
	}
	return fmt.Sprintf("event(%d)", int(e))
}

// TransitionError says that an event has no place in a state. The session stays as it was.
type TransitionError struct {
	State State
	Event Event
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("a session that is %s cannot %s", e.State, e.Event)
}

// Next is the state machine, total over (State, Event):
//
//	offered -> attested -> appraised -> armed -> transferring -> committed
//	                \__________ any failure, abort, expiry, restart ______/ -> aborted
//
// A repeated Commit or Abort of a session that ended so is the same outcome again (callers retry); every other event on an ended session
// is refused, so that nothing of a session survives its end. An appraised session may be appraised again (its log grew old).
// A VM that never had its state asked for may still commit from armed: a guest without vTPM traffic is not our business to fail.
func Next(s State, e Event) (State, error) {
	refused := func() (State, error) { return s, &TransitionError{State: s, Event: e} }
	if s.Ended() {
		switch {
		case s == Committed && e == Commit, s == Aborted && (e == Abort || e == Expire || e == Restart):
			return s, nil
		}
		return refused()
	}
	switch e {
	case Abort, Expire, Restart:
		return Aborted, nil
	case Attest:
		if s == Offered {
			return Attested, nil
		}
	case Appraise:
		if s == Attested || s == Appraised {
			return Appraised, nil
		}
	case Arm:
		if s == Appraised {
			return Armed, nil
		}
	case Transfer:
		if s.Live() {
			return Transferring, nil
		}
	case Commit:
		if s.Live() {
			return Committed, nil
		}
	}
	return refused()
}
