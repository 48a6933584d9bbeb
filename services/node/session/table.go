package session

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// ID names a session: 16 bytes, the same on both nodes, public.
type ID [16]byte

// AttemptID is the dialler's name for a session, 16 random bytes.
type AttemptID [16]byte

func (id ID) String() string        { return hex.EncodeToString(id[:]) }
func (id AttemptID) String() string { return hex.EncodeToString(id[:]) }

// Secrets are what a session must lose when it ends. End is told how it ended, once, under the table's lock: it must not block or call back.
type Secrets interface{ End(Record) }

// Ledger remembers the migration ids that were armed, for as long as the node's state directory lives.
type Ledger interface {
	// Use records id. It answers false if the id was recorded before. The record is durable when Use returns.
	Use(id string) (fresh bool, err error)
}

// Limits of a table. Every zero field means the default in its comment.
type Limits struct {
	// Open bounds sessions that have not ended (1024).
	Open int
	// Remembered bounds ended sessions kept for List and for typed answers (4096).
	Remembered int
	// UnarmedTTL is how long a session may live before it is armed (5 minutes).
	UnarmedTTL time.Duration
	// ArmedTTL is how long an armed session may live (2 hours): libvirt's job outlives nova-compute, so this is a long lease.
	ArmedTTL time.Duration
}

// WithDefaults puts the defaults in for zero fields.
func (l Limits) WithDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Open, 1024)
	def(&l.Remembered, 4096)
	if l.UnarmedTTL <= 0 {
		l.UnarmedTTL = 5 * time.Minute
	}
	if l.ArmedTTL <= 0 {
		l.ArmedTTL = 2 * time.Hour
	}
	return l
}

// Change is one transition, as watchers and the audit see it.
type Change struct {
	Session  Record
	Previous State
	Event    Event
	At       time.Time
}

// Table holds the sessions of one node. All methods may be called concurrently.
type Table struct {
	limits Limits
	now    func() time.Time
	ledger Ledger
	notify func(Change)

	mu       sync.Mutex
	attempts map[AttemptID]*Session
	ended    []AttemptID // oldest first
	watchers map[*Watcher]struct{}
}

// NewTable returns an empty table. notify, if not nil, is called with every transition, in order, under the table's lock: it must not
// block or call back.
func NewTable(limits Limits, ledger Ledger, now func() time.Time, notify func(Change)) *Table {
	if notify == nil {
		notify = func(Change) {}
	}
	return &Table{
		limits: limits.WithDefaults(), now: now, ledger: ledger, notify: notify,
		attempts: make(map[AttemptID]*Session), watchers: make(map[*Watcher]struct{}),
	}
}

// Begin opens a session in state offered. It refuses an attempt id that was seen before, an instance that has a live session, and
// anything beyond the limits.
func (t *Table) Begin(who Identity) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	if old, ok := t.attempts[who.Attempt]; ok {
		return nil, refusal.New(v1.Reason_REASON_ALREADY_USED, "attempt %s was used before; its session is %s", who.Attempt, old.rec.State)
	}
	if s := t.findLocked(func(s *Session) bool {
		return s.rec.Instance == who.Instance && s.rec.State.Live() && !s.rec.lostBy(who)
	}); s != nil {
		return nil, refusal.New(v1.Reason_REASON_SESSION_CONFLICT,
			"instance %s has a live session %s (%s to %s)", who.Instance, s.rec.ID, s.rec.Source, s.rec.Destination)
	}
	if len(t.attempts)-len(t.ended) >= t.limits.Open {
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "this node has %d open sessions already", t.limits.Open)
	}
	now := t.now()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Session{table: t, ctx: ctx, cancel: cancel, settled: make(chan struct{}), rec: Record{
		Identity: who, State: Offered, Created: now, Expires: now.Add(t.limits.UnarmedTTL),
	}}
	t.attempts[who.Attempt] = s
	t.announceLocked(s, 0, 0)
	return s, nil
}

// lostBy says that who, once it is appraised, shows that the session at hand is lost at its source: a source never begins a second session
// beside a live one, so it has ended this one, or restarted, and could not tell.
func (r *Record) lostBy(who Identity) bool {
	return r.Role == v1.Role_ROLE_DESTINATION && who.Role == r.Role && who.Instance == r.Instance && who.Source == r.Source
}

func (t *Table) findLocked(ok func(*Session) bool) *Session {
	var found *Session
	for _, s := range t.attempts {
		if ok(s) && (found == nil || s.rec.Created.After(found.rec.Created)) {
			found = s
		}
	}
	return found
}

// ByAttempt returns the session of an attempt, ended or not, or nil.
func (t *Table) ByAttempt(id AttemptID) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	return t.attempts[id]
}

// ByID returns the session named id, ended or not; REASON_NO_SESSION if there is none.
func (t *Table) ByID(id ID) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	if s := t.findLocked(func(s *Session) bool { return s.rec.ID == id && id != ID{} }); s != nil {
		return s, nil
	}
	return nil, refusal.New(v1.Reason_REASON_NO_SESSION, "this node knows no session %s", id)
}

// Appraised returns the newest appraised (or already armed) session of an outgoing migration.
func (t *Table) Appraised(instance, destination string) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	s := t.findLocked(func(s *Session) bool {
		return s.rec.Instance == instance && s.rec.Destination == destination && s.rec.Role == v1.Role_ROLE_SOURCE &&
			(s.rec.State == Appraised || s.rec.State.Live())
	})
	if s == nil {
		return nil, t.missingLocked(v1.Reason_REASON_NO_SESSION, "appraised", instance, v1.Role_ROLE_SOURCE)
	}
	return s, nil
}

// Live returns the instance's armed session, whichever way it goes.
func (t *Table) Live(instance string) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	s := t.findLocked(func(s *Session) bool { return s.rec.Instance == instance && s.rec.State.Live() })
	if s == nil {
		return nil, refusal.New(v1.Reason_REASON_NO_ARMED_SESSION, "there is no armed session for instance %s", instance).
			Want("no session", "an armed session")
	}
	return s, nil
}

// missingLocked explains why a session that a caller asked for is not there.
func (t *Table) missingLocked(reason v1.Reason, wanted, instance string, role v1.Role) error {
	direction := map[v1.Role]string{v1.Role_ROLE_SOURCE: "outgoing", v1.Role_ROLE_DESTINATION: "incoming"}[role]
	r := refusal.New(reason, "there is no %s %s session for instance %s", wanted, direction, instance)
	last := t.findLocked(func(s *Session) bool { return s.rec.Instance == instance && s.rec.Role == role })
	if last == nil {
		return r.Want("no session", "an "+wanted+" session")
	}
	found := fmt.Sprintf("session %s, %s", last.rec.ID, last.rec.State)
	if last.rec.Refusal != nil {
		found += " (" + refusal.Name(last.rec.Refusal.Reason) + ": " + last.rec.Refusal.Message + ")"
	}
	return r.Want(found, "an "+wanted+" session")
}

// List returns a copy of every session the filter accepts, oldest first.
func (t *Table) List(keep func(Record) bool) []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	var out []Record
	for _, s := range t.attempts {
		if keep(s.rec) {
			out = append(out, s.rec.clone())
		}
	}
	slices.SortFunc(out, func(a, b Record) int { return a.Created.Compare(b.Created) })
	return out
}

// BeginBlob claims one blob of the instance's live session for crossing. A blob type is claimed once in the life of a session,
// whatever becomes of it: a stream is encrypted once and decrypted once.
func (t *Table) BeginBlob(instance string, role v1.Role, kind v1.StateType) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	s := t.findLocked(func(s *Session) bool {
		return s.rec.Instance == instance && s.rec.Role == role && s.rec.State.Live()
	})
	if s == nil {
		return nil, t.missingLocked(v1.Reason_REASON_NO_ARMED_SESSION, "armed", instance, role)
	}
	if s.closing {
		return nil, s.closed()
	}
	if slices.Contains(s.claimed, kind) {
		return nil, refusal.New(v1.Reason_REASON_ALREADY_USED, "the %s blob of session %s was used before", BlobName(kind), s.rec.ID)
	}
	if err := t.advanceLocked(s, Transfer, nil); err != nil {
		return nil, err
	}
	s.claimed = append(s.claimed, kind)
	return s, nil
}

// BlobName is swtpm's word for a blob type.
func BlobName(kind v1.StateType) string {
	switch kind {
	case v1.StateType_STATE_TYPE_PERMANENT:
		return "permanent"
	case v1.StateType_STATE_TYPE_VOLATILE:
		return "volatile"
	case v1.StateType_STATE_TYPE_SAVESTATE:
		return "savestate"
	default:
		return fmt.Sprintf("type-%d", int(kind))
	}
}

// Expire ends every session whose time is up. The owner calls it every second or so; every look-up does it too.
func (t *Table) Expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
}

func (t *Table) expireLocked() {
	now := t.now()
	for _, s := range t.attempts {
		if !s.rec.State.Ended() && !now.Before(s.rec.Expires) {
			why := refusal.New(v1.Reason_REASON_SESSION_EXPIRED, "the session was %s and its time was up at %s",
				s.rec.State, s.rec.Expires.UTC().Format(time.RFC3339))
			t.mustAdvanceLocked(s, Expire, why)
		}
	}
}

// AbortAll ends every open session that keep does not accept, and returns what it ended.
func (t *Table) AbortAll(event Event, why *refusal.Refusal, keep func(Record) bool) []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Record
	for _, s := range t.attempts {
		if !s.rec.State.Ended() && !keep(s.rec) {
			t.mustAdvanceLocked(s, event, why)
			out = append(out, s.rec.clone())
		}
	}
	return out
}

// mustAdvanceLocked is for events that every open state accepts.
func (t *Table) mustAdvanceLocked(s *Session, e Event, why *refusal.Refusal) {
	if err := t.advanceLocked(s, e, why); err != nil {
		panic(err) // Next accepts Abort, Expire and Restart in every open state; its test enumerates them
	}
}

func (t *Table) advanceLocked(s *Session, e Event, why *refusal.Refusal) error {
	next, err := Next(s.rec.State, e)
	if err != nil {
		var te *TransitionError
		errors.As(err, &te)
		r := refusal.New(v1.Reason_REASON_WRONG_STATE, "%w", err).Want(te.State.String(), "a state that accepts "+te.Event.String())
		if s.rec.Refusal != nil {
			r.Found += " (" + refusal.Name(s.rec.Refusal.Reason) + ": " + s.rec.Refusal.Message + ")"
		}
		return r
	}
	previous := s.rec.State
	if next == previous {
		return nil
	}
	s.rec.State = next
	if why != nil {
		s.rec.Refusal = why
	}
	if next.Ended() {
		t.endLocked(s)
	}
	t.announceLocked(s, previous, e)
	return nil
}

// endLocked destroys what must not survive and forgets the oldest ended session beyond the bound.
func (t *Table) endLocked(s *Session) {
	if s.secrets != nil {
		s.secrets.End(s.rec.clone())
	}
	s.settle()
	cause := errSessionOver
	if s.rec.Refusal != nil {
		cause = s.rec.Refusal
	}
	s.cancel(cause)
	t.ended = append(t.ended, s.rec.Attempt)
	if len(t.ended) > t.limits.Remembered {
		delete(t.attempts, t.ended[0])
		t.ended = t.ended[1:]
	}
}

var errSessionOver = errors.New("the session is over")
