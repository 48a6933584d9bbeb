package session

import (
	"context"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Identity is what a session is for. It never changes.
type Identity struct {
	Attempt AttemptID
	// Instance is the VM's UUID in canonical lower case.
	Instance            string
	Role                v1.Role
	Source, Destination string
}

// Peer is the host at the other end.
func (i Identity) Peer() string {
	if i.Role == v1.Role_ROLE_SOURCE {
		return i.Destination
	}
	return i.Source
}

// Record is a copy of what is known of a session. It holds no secret.
type Record struct {
	Identity
	ID          ID
	State       State
	Refusal     *refusal.Refusal
	MigrationID string
	Created     time.Time
	// Armed is when the session was bound to its migration; zero if it was not.
	Armed time.Time
	// AppraisedAt is when the peer's integrity log was last appraised.
	AppraisedAt time.Time
	Expires     time.Time
	Steps       []*v1.StepReport
	Attested    *v1.Attested
	Appraisal   *v1.Appraised
	// Blobs that crossed whole, in order. Their protobufs are never changed once here.
	Blobs []*v1.BlobReport
	// ImageBytes is the plaintext of images that crossed in whole parts.
	ImageBytes uint64
}

func (r Record) clone() Record {
	r.Steps, r.Blobs = slices.Clone(r.Steps), slices.Clone(r.Blobs)
	return r
}

// Session is one migration session in a table. All methods may be called concurrently.
type Session struct {
	table  *Table
	ctx    context.Context
	cancel context.CancelCauseFunc
	// settled is closed when the handshake has ended, well or not.
	settled chan struct{}

	// Under table.mu.
	rec     Record
	claimed []v1.StateType
	images  map[string]*image
	// closing: a commit has begun, and nothing further crosses.
	closing bool
	// Parts of images that were not authentic.
	partFailures int
	secrets      Secrets
}

// Context ends when the session ends; its cause says why.
func (s *Session) Context() context.Context { return s.ctx }

// Record returns a copy of what is known now.
func (s *Session) Record() Record {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.rec.clone()
}

// Settled is closed when the session's handshake has ended, well or not.
func (s *Session) Settled() <-chan struct{} { return s.settled }

func (s *Session) settle() {
	select {
	case <-s.settled:
	default:
		close(s.settled)
	}
}

// Secrets returns the session's secrets: nil before it is appraised, destroyed ones once it has ended. The caller must bear their being
// destroyed while it uses them.
func (s *Session) Secrets() Secrets {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.secrets
}

// Step records the outcome of one step of the handshake.
func (s *Session) Step(step *v1.StepReport) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.rec.Steps = append(s.rec.Steps, step)
	if step.GetAttested() != nil {
		s.rec.Attested = step.GetAttested()
	}
	if step.GetAppraised() != nil {
		s.rec.Appraisal = step.GetAppraised()
	}
}

// Attested moves the session on after phase 1 and gives it the name that both nodes share.
func (s *Session) Attested(id ID) error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if s.table.findLocked(func(o *Session) bool { return o.rec.ID == id }) != nil {
		return refusal.New(v1.Reason_REASON_ALREADY_USED, "session id %s was used before", id)
	}
	previous := s.rec.ID
	s.rec.ID = id // before the transition, so that watchers see it
	if err := s.table.advanceLocked(s, Attest, nil); err != nil {
		s.rec.ID = previous
		return err
	}
	return nil
}

// Appraised moves the session on after phase 2, gives it its secrets and takes the place of any unarmed session of the same
// instance: the conductor tries one destination after another and never says which it gave up. An armed incoming session gives way too, when
// its source shows by a new handshake that it has lost it. On an error the secrets are
// destroyed.
func (s *Session) Appraised(secrets Secrets) error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	live := t.findLocked(func(o *Session) bool {
		return o != s && o.rec.Instance == s.rec.Instance && o.rec.State.Live() && !o.rec.lostBy(s.rec.Identity)
	})
	if live != nil {
		secrets.End(s.rec.clone())
		return refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "instance %s has a live session %s", s.rec.Instance, live.rec.ID)
	}
	if err := t.advanceLocked(s, Appraise, nil); err != nil {
		secrets.End(s.rec.clone())
		return err
	}
	s.secrets, s.rec.AppraisedAt = secrets, t.now()
	s.settle()
	why := refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "a newer session %s for the instance took its place", s.rec.ID)
	for _, o := range t.attempts {
		if o != s && o.rec.Instance == s.rec.Instance && (o.rec.State == Appraised || o.rec.State.Live()) {
			t.mustAdvanceLocked(o, Abort, why)
		}
	}
	return nil
}

// Reappraised records that the peer's log was appraised anew.
func (s *Session) Reappraised(appraisal *v1.Appraised) error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if err := s.table.advanceLocked(s, Appraise, nil); err != nil {
		return err
	}
	s.rec.AppraisedAt, s.rec.Appraisal = s.table.now(), appraisal
	return nil
}

// Arm binds the session to a migration id, which this node accepts once. Arming again with the same id changes nothing.
func (s *Session) Arm(migrationID string) error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	if s.rec.State.Live() {
		if s.rec.MigrationID == migrationID {
			return nil
		}
		return refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s is armed for another migration", s.rec.ID).
			Want(s.rec.MigrationID, migrationID)
	}
	if _, err := Next(s.rec.State, Arm); err != nil {
		return t.advanceLocked(s, Arm, nil)
	}
	if other := t.findLocked(func(o *Session) bool {
		return o != s && o.rec.Instance == s.rec.Instance && o.rec.State.Live()
	}); other != nil {
		return refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "instance %s has a live session %s", s.rec.Instance, other.rec.ID)
	}
	fresh, err := t.ledger.Use(migrationID)
	if err != nil {
		return refusal.New(v1.Reason_REASON_INTERNAL, "record of migration ids: %w", err)
	}
	if !fresh {
		return refusal.New(v1.Reason_REASON_ALREADY_USED, "migration id %s was armed before on this node", migrationID)
	}
	now := t.now()
	s.rec.MigrationID, s.rec.Armed, s.rec.Expires = migrationID, now, now.Add(t.limits.ArmedTTL)
	return t.advanceLocked(s, Arm, nil) // Next accepted it above
}

// EndBlob records a blob that crossed whole. It refuses if the session ended meanwhile: what crossed must then not be used.
func (s *Session) EndBlob(report *v1.BlobReport) error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if s.rec.State.Ended() {
		return refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s ended while the blob crossed", s.rec.ID).
			Want(s.rec.State.String(), Transferring.String())
	}
	s.rec.Blobs = append(s.rec.Blobs, report)
	return nil
}

// Commit ends the session well. Its secrets are destroyed.
func (s *Session) Commit() error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.table.expireLocked()
	if s.rec.State.Live() {
		if err := s.wholeLocked(); err != nil {
			return err
		}
	}
	return s.table.advanceLocked(s, Commit, nil)
}

// Abort ends the session otherwise, for why. Its secrets are destroyed.
func (s *Session) Abort(why *refusal.Refusal) error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.table.advanceLocked(s, Abort, why)
}
