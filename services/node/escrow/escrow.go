// Package escrow keeps the secrets of VMs (the passphrases that encrypt their vTPMs at rest) in the enclave's sealed storage: those of VMs that
// live here, and those that came in with a session that has not ended.
//
// All of a VM's secrets are one sealed blob, so that every operation is one atomic write: a crash leaves what was before or what is after. Why a
// secret is never lost from both sides, nor handed out twice by one session:
//
//   - The source forgets a secret (Moved) only after the destination has answered that it committed, and the destination answers only after its
//     Promote is on disk. A crash anywhere before leaves the source's copy; one between the two leaves both.
//   - It forgets those that it has sent, no others: one that was escrowed while the VM moved is on the source alone, and so is one that has come
//     back with the VM since.
//   - An incoming secret whose session ends without a commit is dropped only if the VM cannot be running here (the caller knows: it has not opened
//     the vTPM's state). Else it is kept, and found by ReleaseLocal: libvirt's migration does not stop because a session has. So does a restart
//     keep what it finds. What is kept goes with Forget, or when the VM's next session brings its own. docs/protocol/session.pml checks that with
//     this rule a VM's secret is always where the VM is.
//   - Release of an incoming secret is recorded before it is handed out. A crash in between costs the release, not the secret: the session is over
//     anyway.
//
// What sealed storage cannot notice after a restart (crypto/sealed), a host that puts an old blob back, gives the host a secret of a VM that was
// here once and was forgotten: it must start this same enclave and ask for it as nova-compute.
package escrow

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
)

// Bounds.
const (
	// MaxSecret is the size of a secret in bytes.
	MaxSecret = 4096
	// MaxPerInstance is the number of one VM's secrets, incoming ones included.
	MaxPerInstance = 64
	// MaxInstances is the number of VMs with secrets on one node.
	MaxInstances = 100_000
	// DefaultID names a secret that was given no name.
	DefaultID = "default"

	maxID = 128
	kind  = "escrow"
)

// Sealed is where the secrets rest; crypto/sealed.Store is one.
type Sealed interface {
	Put(ctx context.Context, kind, name string, plaintext []byte) error
	Get(ctx context.Context, kind, name string) ([]byte, error)
	Delete(ctx context.Context, kind, name string) (bool, error)
	List(kind string) ([]string, error)
}

// SessionID names the session that an incoming secret came with.
type SessionID = [16]byte

// Store is the escrow of one node. It is safe for concurrent use. Its errors are refusals, or those of Sealed.
type Store struct {
	sealed Sealed
	now    func() time.Time

	mu sync.Mutex
	// sent is what the last Each of a VM has delivered, until Moved.
	sent map[string]*delivery
}

// delivery names entries that have crossed. An entry that was replaced since under the same id is another one; clocks may be too coarse to tell
// two of them apart by their times alone.
type delivery struct{ entries map[string]crossed }

type crossed struct {
	at     time.Time
	digest [sha256.Size]byte
}

func (d *delivery) has(e *entry) bool {
	c, ok := d.entries[e.ID]
	return ok && c.at.Equal(e.At) && c.digest == sha256.Sum256(e.Secret)
}

// entry is one secret, as it is sealed. It does not print.
type entry struct {
	ID     string    `json:"id"`
	Secret []byte    `json:"secret"`
	At     time.Time `json:"at"`
	// Of an incoming secret: its session, and whether it was handed out.
	Session  []byte `json:"session,omitempty"`
	Released bool   `json:"released,omitempty"`
	// Of a state key: which state was written under it.
	State *history `json:"state,omitempty"`
}

// Format keeps the secret out of fmt.
func (e entry) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "[secret %s]", e.ID) }

func (e *entry) incoming() bool { return len(e.Session) > 0 }

// holdings are all secrets of one VM.
type holdings struct {
	Entries []entry `json:"entries"`
}

func (h *holdings) wipe() {
	for i := range h.Entries {
		clear(h.Entries[i].Secret)
	}
}

// Listed says that there is a secret.
type Listed struct {
	Instance, ID string
	At           time.Time
	Incoming     bool
}

// Open opens the escrow over sealed storage. It reads nothing yet.
func Open(s Sealed, now func() time.Time) *Store {
	return &Store{sealed: s, now: now, sent: make(map[string]*delivery)}
}

// drop removes entries and says whether there were any.
func (h *holdings) drop(which func(*entry) bool) bool {
	n := len(h.Entries)
	h.Entries = slices.DeleteFunc(h.Entries, func(e entry) bool {
		if which(&e) {
			clear(e.Secret)
			return true
		}
		return false
	})
	return len(h.Entries) != n
}

func (h *holdings) find(which func(*entry) bool) *entry {
	for i := range h.Entries {
		if which(&h.Entries[i]) {
			return &h.Entries[i]
		}
	}
	return nil
}

// change loads a VM's secrets, has f change them, and writes them back if it did.
func (s *Store) change(ctx context.Context, instance string, f func(*holdings) (changed bool, err error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, existed, err := s.load(ctx, instance)
	if err != nil {
		return err
	}
	defer h.wipe()
	changed, err := f(h)
	if err != nil || !changed {
		return err
	}
	if len(h.Entries) == 0 {
		_, err := s.sealed.Delete(ctx, kind, instance)
		return err
	}
	if !existed {
		if err := s.room(); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	defer clear(raw)
	return s.sealed.Put(ctx, kind, instance, raw)
}

func (s *Store) room() error {
	names, err := s.sealed.List(kind)
	if err != nil {
		return err
	}
	if len(names) >= MaxInstances {
		return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "this node has secrets of %d instances already", MaxInstances)
	}
	return nil
}

func (s *Store) load(ctx context.Context, instance string) (_ *holdings, existed bool, err error) {
	raw, err := s.sealed.Get(ctx, kind, instance)
	if errors.Is(err, sealed.ErrNotFound) {
		return new(holdings), false, nil
	}
	if err != nil && !damaged(err) {
		return nil, false, fmt.Errorf("the secrets of instance %s: %w", instance, err)
	}
	if err != nil {
		return nil, false, refusal.New(v1.Reason_REASON_SEALED_DATA_INVALID, "the secrets of instance %s: %w", instance, err).On(instance)
	}
	defer clear(raw)
	h := new(holdings)
	if err := json.Unmarshal(raw, h); err != nil {
		return nil, false, refusal.New(v1.Reason_REASON_SEALED_DATA_INVALID, "the secrets of instance %s: %w", instance, err).On(instance)
	}
	return h, true, nil
}

// damaged says whether err condemns the blob itself, as opposed to a disk, a key or a caller that failed.
func damaged(err error) bool {
	for _, e := range []error{
		sealed.ErrMalformed, sealed.ErrVersion, sealed.ErrMode, sealed.ErrWrongBlob, sealed.ErrNotAuthentic, sealed.ErrRollback,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func checkID(id string) (string, error) {
	if id == "" {
		return DefaultID, nil
	}
	if id == StateKeyID {
		return "", refusal.New(v1.Reason_REASON_INVALID_REQUEST, "secret_id %s names the key of a vTPM's state, which the enclave makes itself", id).On("secret_id")
	}
	if len(id) > maxID {
		return "", refusal.New(v1.Reason_REASON_INVALID_REQUEST, "secret_id has %d characters, not 1 to %d", len(id), maxID).On("secret_id")
	}
	for _, b := range []byte(id) {
		if b < '!' || b > '~' {
			return "", refusal.New(v1.Reason_REASON_INVALID_REQUEST, "secret_id %q has characters that are not printable ASCII", id).On("secret_id")
		}
	}
	return id, nil
}

func checkSecret(secret []byte) error {
	if len(secret) == 0 || len(secret) > MaxSecret {
		return refusal.New(v1.Reason_REASON_INVALID_REQUEST, "the secret has %d bytes, not 1 to %d", len(secret), MaxSecret).On("secret")
	}
	return nil
}

// add puts a secret in, unless it is there. same says which entry is the same secret's.
func (h *holdings) add(e entry, same func(*entry) bool) (changed bool, err error) {
	if known := h.find(same); known != nil {
		if subtle.ConstantTimeCompare(known.Secret, e.Secret) == 1 {
			return false, nil
		}
		return false, refusal.New(v1.Reason_REASON_SECRET_CONFLICT, "another secret is escrowed as %s", e.ID).On(e.ID)
	}
	if len(h.Entries) >= MaxPerInstance {
		return false, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "the instance has %d secrets already", MaxPerInstance)
	}
	e.Secret = slices.Clone(e.Secret)
	h.Entries = append(h.Entries, e)
	return true, nil
}

// Escrow seals a secret of a VM. The same secret again changes nothing; another under the same id is REASON_SECRET_CONFLICT.
func (s *Store) Escrow(ctx context.Context, instance, id string, secret []byte) error {
	id, err := checkID(id)
	if err != nil {
		return err
	}
	if err := checkSecret(secret); err != nil {
		return err
	}
	return s.change(ctx, instance, func(h *holdings) (bool, error) {
		return h.add(entry{ID: id, Secret: secret, At: s.now().UTC()}, func(e *entry) bool { return !e.incoming() && e.ID == id })
	})
}

// Each calls f with every secret that is escrowed here for a VM, and how many follow; it is wiped when f returns. The VM leaves from here, so what a
// session left in doubt is the VM's own, and becomes so first.
// What f took without an error counts as sent, until the next Each of the VM: Moved drops it.
func (s *Store) Each(ctx context.Context, instance string, f func(id string, secret []byte, remaining int) error) error {
	if err := s.change(ctx, instance, func(h *holdings) (bool, error) { return h.adopt((*entry).incoming), nil }); err != nil {
		return err
	}
	h, err := s.snapshot(ctx, instance)
	if err != nil {
		return err
	}
	defer h.wipe()
	sent := s.beginDelivery(instance)
	for i := range h.Entries {
		e := &h.Entries[i]
		if err := f(e.ID, e.Secret, len(h.Entries)-1-i); err != nil {
			return err
		}
		s.delivered(sent, e)
	}
	return nil
}

// beginDelivery takes the place of an earlier delivery, to a destination that was given up.
func (s *Store) beginDelivery(instance string) *delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &delivery{entries: make(map[string]crossed)}
	s.sent[instance] = d
	return d
}

func (s *Store) delivered(d *delivery, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.entries[e.ID] = crossed{e.At, sha256.Sum256(e.Secret)}
}

func (s *Store) snapshot(ctx context.Context, instance string) (*holdings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, _, err := s.load(ctx, instance)
	return h, err
}

// checkIncoming checks what another enclave has sent, and gives a secret without a name its own.
func checkIncoming(id *string, secret []byte) (err error) {
	if *id == StateKeyID {
		if len(secret) != StateKeySize {
			return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "a state key of %d bytes, not %d", len(secret), StateKeySize)
		}
		return nil
	}
	if *id, err = checkID(*id); err != nil {
		return err
	}
	return checkSecret(secret)
}

// Receive seals a secret that came with a session.
func (s *Store) Receive(ctx context.Context, session SessionID, instance, id string, secret []byte) error {
	if err := checkIncoming(&id, secret); err != nil {
		return err
	}
	return s.change(ctx, instance, func(h *holdings) (bool, error) {
		// What an earlier session left in doubt is no more: the VM is at the source of this one.
		dropped := h.drop(func(e *entry) bool { return e.incoming() && !e.of(session) })
		added, err := h.add(entry{ID: id, Secret: secret, At: s.now().UTC(), Session: session[:]}, func(e *entry) bool { return e.of(session) && e.ID == id })
		return added || dropped, err
	})
}

func (e *entry) of(session SessionID) bool { return string(e.Session) == string(session[:]) }

// ReleaseIncoming hands out a secret that came with a session, once. An empty id stands for the only one. The caller wipes the secret.
func (s *Store) ReleaseIncoming(ctx context.Context, session SessionID, instance, id string) (secret []byte, name string, err error) {
	err = s.change(ctx, instance, func(h *holdings) (bool, error) {
		e, err := h.one(instance, id, func(e *entry) bool { return e.of(session) })
		if err != nil {
			return false, err
		}
		if e.Released {
			return false, refusal.New(v1.Reason_REASON_ALREADY_USED, "secret %s of this session was released before", e.ID).On(e.ID)
		}
		e.Released = true
		secret, name = slices.Clone(e.Secret), e.ID
		return true, nil
	})
	if err != nil {
		clear(secret)
		return nil, "", err
	}
	return secret, name, nil
}

// ReleaseLocal hands out a secret that is escrowed here, or one that came with a session which ended in doubt; the caller sees to it that no session
// of the VM is open. An empty id stands for the only one. The caller wipes the secret.
func (s *Store) ReleaseLocal(ctx context.Context, instance, id string) (secret []byte, name string, err error) {
	h, err := s.snapshot(ctx, instance)
	if err != nil {
		return nil, "", err
	}
	defer h.wipe()
	// What came last is what the VM was migrated with.
	e, err := h.one(instance, id, (*entry).incoming)
	if errors.Is(err, refusal.Because(v1.Reason_REASON_NO_SECRET)) {
		e, err = h.one(instance, id, func(e *entry) bool { return !e.incoming() })
	}
	if err != nil {
		return nil, "", err
	}
	return slices.Clone(e.Secret), e.ID, nil
}

// one finds the entry that is named, or the only one. A state key is no secret to be released: OpenState hands it out, to the VM's helper.
func (h *holdings) one(instance, id string, among func(*entry) bool) (*entry, error) {
	var found *entry
	n := 0
	for i := range h.Entries {
		e := &h.Entries[i]
		if among(e) && !e.isStateKey() && (id == "" || e.ID == id) {
			found = e
			n++
		}
	}
	switch {
	case n == 0:
		return nil, refusal.New(v1.Reason_REASON_NO_SECRET, "no secret %s of instance %s is here", id, instance).On(id)
	case n > 1:
		return nil, refusal.New(v1.Reason_REASON_INVALID_REQUEST, "instance %s has %d secrets: name one", instance, n).On("secret_id")
	}
	return found, nil
}

// Promote makes what came with a session the VM's own, in place of anything escrowed under the same id from an earlier stay. It is on disk when
// Promote returns. A session without secrets changes nothing.
func (s *Store) Promote(ctx context.Context, session SessionID, instance string) error {
	return s.change(ctx, instance, func(h *holdings) (bool, error) {
		return h.adopt(func(e *entry) bool { return e.of(session) }), nil
	})
}

// adopt makes incoming secrets the VM's own, in place of others under the same ids, and says whether there were any.
func (h *holdings) adopt(which func(*entry) bool) bool {
	var ids []string
	for i := range h.Entries {
		if which(&h.Entries[i]) {
			ids = append(ids, h.Entries[i].ID)
		}
	}
	h.drop(func(e *entry) bool { return !e.incoming() && slices.Contains(ids, e.ID) })
	for i := range h.Entries {
		if e := &h.Entries[i]; which(e) {
			e.Session, e.Released = nil, false
		}
	}
	return len(ids) > 0
}

// Discard drops what came with a session. After Promote there is nothing to drop.
func (s *Store) Discard(ctx context.Context, session SessionID, instance string) error {
	return s.change(ctx, instance, func(h *holdings) (bool, error) {
		return h.drop(func(e *entry) bool { return e.of(session) }), nil
	})
}

// Moved drops the secrets of a VM that Each has sent: it has left, and the other node has said that they are its own. It drops nothing after a
// restart, which has ended every session.
func (s *Store) Moved(ctx context.Context, instance string) error {
	s.mu.Lock()
	sent := s.sent[instance]
	s.mu.Unlock()
	if sent == nil {
		return nil
	}
	err := s.change(ctx, instance, func(h *holdings) (bool, error) {
		return h.drop(func(e *entry) bool { return !e.incoming() && sent.has(e) }), nil
	})
	if err != nil {
		return err // sent is kept: the caller may try again
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent[instance] == sent {
		delete(s.sent, instance)
	}
	return nil
}

// Forget drops one secret of a VM, or all of them if id is empty, those left in doubt included, and says whether there was one. The caller sees to
// it that no session of the VM is open. Of a VM whose secrets do not open,
// only all can be dropped.
func (s *Store) Forget(ctx context.Context, instance, id string) (bool, error) {
	forgotten := false
	err := s.change(ctx, instance, func(h *holdings) (bool, error) {
		forgotten = h.drop(func(e *entry) bool { return id == "" || e.ID == id })
		return forgotten, nil
	})
	if id == "" && errors.Is(err, refusal.Because(v1.Reason_REASON_SEALED_DATA_INVALID)) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.sealed.Delete(ctx, kind, instance)
	}
	return forgotten && err == nil, err
}

// List says which secrets are here, of one VM or, if instance is empty, of all. Blobs that do not open are left out.
func (s *Store) List(ctx context.Context, instance string) ([]Listed, error) {
	var out []Listed
	err := s.eachHolding(ctx, instance, func(name string, h *holdings) {
		for _, e := range h.Entries {
			out = append(out, Listed{Instance: name, ID: e.ID, At: e.At, Incoming: e.incoming()})
		}
	})
	return out, err
}

// eachHolding calls f with the secrets of one VM or, if instance is empty, of each; they are wiped when f returns.
func (s *Store) eachHolding(ctx context.Context, instance string, f func(instance string, h *holdings)) error {
	names := []string{instance}
	if instance == "" {
		var err error
		if names, err = s.sealed.List(kind); err != nil {
			return err
		}
	}
	for _, name := range names {
		h, err := s.snapshot(ctx, name)
		if errors.Is(err, refusal.Because(v1.Reason_REASON_SEALED_DATA_INVALID)) && instance == "" {
			continue
		}
		if err != nil {
			return err
		}
		f(name, h)
		h.wipe()
	}
	return nil
}
