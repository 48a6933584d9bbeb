package escrow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// The key under which swtpm keeps a VM's state at rest is one of the VM's secrets, made here instead of brought here, under an id of its own. So it
// travels, is promoted, discarded and forgotten as the others are, with their guarantees. With it, in the same sealed blob, is which state was written
// last: a state that was put back is not opened. What that is worth, against whom, is in docs/threat-model.md.
//
// A history belongs to a stay on this node: a key that comes in with a session comes without one, and the first state that is recorded begins it.
const (
	// StateKeyID names the key among a VM's secrets. Nobody can escrow, or be released, a secret of this name.
	StateKeyID = "safeconduct:vtpm-state-key"
	// StateKeySize is the size of the key in bytes: AES-256.
	StateKeySize = 32
	// DigestSize is the size of a state's digest in bytes: SHA-256.
	DigestSize = sha256.Size
	// MaxEarlier is how many generations before the last one are recognised. One that is older is refused as one that was never recorded.
	MaxEarlier = 256
)

// history is which states swtpm has written under a key on this node.
type history struct {
	// Generation counts the states that were recorded; Latest is the digest of the last one, At when that was.
	Generation uint64    `json:"generation,omitempty"`
	Latest     []byte    `json:"latest,omitempty"`
	At         time.Time `json:"at,omitzero"`
	// Earlier are the digests before it, the oldest first, one after the other.
	Earlier []byte `json:"earlier,omitempty"`
	// Opened: the key was handed out in this stay.
	Opened bool `json:"opened,omitempty"`
	// Refused is the digest of a state that was refused after the last one that was recorded.
	Refused   []byte    `json:"refused,omitempty"`
	RefusedAt time.Time `json:"refused_at,omitzero"`
}

// generationOf finds a digest among the earlier ones; 0: it is not there.
func (h *history) generationOf(digest []byte) uint64 {
	n := len(h.Earlier) / DigestSize
	for i := range n {
		if bytes.Equal(h.Earlier[i*DigestSize:(i+1)*DigestSize], digest) {
			return h.Generation - uint64(n-i)
		}
	}
	return 0
}

// record makes a digest the latest.
func (h *history) record(digest []byte, at time.Time) {
	if len(h.Latest) > 0 {
		h.Earlier = append(h.Earlier, h.Latest...)
	}
	h.Earlier = h.Earlier[max(0, len(h.Earlier)-MaxEarlier*DigestSize):]
	h.Generation++
	h.Latest, h.At = slices.Clone(digest), at
	h.Refused, h.RefusedAt = nil, time.Time{}
}

// check says why a digest is not the latest.
func (h *history) check(instance string, digest []byte) *refusal.Refusal {
	if bytes.Equal(h.Latest, digest) {
		return nil
	}
	found, expected := "state "+hex.EncodeToString(digest), "no state: none was recorded here"
	if h.Generation > 0 {
		expected = fmt.Sprintf("generation %d, state %x, recorded at %s", h.Generation, h.Latest, h.At.UTC().Format(time.RFC3339))
	}
	if g := h.generationOf(digest); g > 0 {
		return refusal.New(v1.Reason_REASON_STATE_ROLLED_BACK, "the state at rest of the vTPM of instance %s is of generation %d, and %d was recorded last",
			instance, g, h.Generation).On(instance).Want(fmt.Sprintf("generation %d, %s", g, found), expected)
	}
	return refusal.New(v1.Reason_REASON_STATE_NOT_RECORDED, "the state at rest of the vTPM of instance %s is not the one that was recorded last", instance).
		On(instance).Want(found, expected)
}

func (e *entry) isStateKey() bool { return e.ID == StateKeyID }

// history of a key; it has one from the first time it is handed out.
func (e *entry) history() *history {
	if e.State == nil {
		e.State = new(history)
	}
	return e.State
}

// Opening is what a helper says of a state that it wants to open.
type Opening struct {
	// Session is the open session that brings the VM here; nil: there is none.
	Session *SessionID
	// Digest of the state at rest; empty: there is none.
	Digest []byte
	// Follows: the state that counts comes with the session, whatever is at rest.
	Follows bool
	// NoKey is why no key may be made now; nil: it may.
	NoKey error
}

// Opened is a state key, which the caller wipes, and what is known of the state.
type Opened struct {
	Key        []byte
	Generation uint64
	Recorded   []byte
	// Made: the key is new. Gone: a state was recorded and there is none any more, so that a new vTPM begins.
	Made, Gone bool
}

// OpenState hands out a VM's state key if the state at rest is the one that was recorded last, or if there is none; without a key and without a state it
// makes a key from random. Refusals: REASON_NO_STATE_KEY, REASON_STATE_ROLLED_BACK, REASON_STATE_NOT_RECORDED, and what Opening.NoKey says.
func (s *Store) OpenState(ctx context.Context, instance string, o Opening, random io.Reader) (Opened, error) {
	var out Opened
	var refused *refusal.Refusal
	err := s.change(ctx, instance, func(h *holdings) (bool, error) {
		e := h.stateKey(o)
		if e == nil {
			var err error
			if e, err = h.makeStateKey(instance, o, random, s.now().UTC()); err != nil {
				return false, err
			}
			out.Made = true
		}
		state := e.history()
		follows := o.Follows && o.Session != nil && e.of(*o.Session)
		if len(o.Digest) > 0 && !follows {
			if refused = state.check(instance, o.Digest); refused != nil {
				changed := !bytes.Equal(state.Refused, o.Digest)
				state.Refused, state.RefusedAt = slices.Clone(o.Digest), s.now().UTC()
				return changed, nil
			}
		}
		out.Key, out.Generation, out.Recorded = slices.Clone(e.Secret), state.Generation, slices.Clone(state.Latest)
		out.Gone = len(o.Digest) == 0 && state.Generation > 0
		changed := out.Made || !state.Opened
		state.Opened = true
		return changed, nil
	})
	if err == nil && refused != nil {
		return Opened{}, refused
	}
	if err != nil {
		clear(out.Key)
		return Opened{}, err
	}
	return out, nil
}

// stateKey finds the key of a state: the one that comes with the session, or the one that a session has left in doubt, or the VM's own. The digest of a
// state says which it is, where it is known.
func (h *holdings) stateKey(o Opening) *entry {
	visiting := (*entry).incoming
	if o.Session != nil {
		visiting = func(e *entry) bool { return e.of(*o.Session) }
	}
	coming := h.find(func(e *entry) bool { return e.isStateKey() && visiting(e) })
	own := h.find(func(e *entry) bool { return e.isStateKey() && !e.incoming() })
	for _, e := range []*entry{coming, own} {
		if e != nil && len(o.Digest) > 0 && bytes.Equal(e.history().Latest, o.Digest) {
			return e
		}
	}
	if coming != nil || o.Session != nil && (len(o.Digest) == 0 || o.Follows) {
		return coming // a stay that begins now has nothing to do with an earlier one
	}
	return own
}

func (h *holdings) makeStateKey(instance string, o Opening, random io.Reader, now time.Time) (*entry, error) {
	if len(o.Digest) > 0 && (!o.Follows || o.Session == nil) {
		return nil, refusal.New(v1.Reason_REASON_NO_STATE_KEY, "there is state of a vTPM for instance %s, and this node's enclave has no key for it", instance).
			On(instance).Want("state "+hex.EncodeToString(o.Digest), "no state, or its key")
	}
	if o.NoKey != nil {
		return nil, o.NoKey
	}
	if len(h.Entries) >= MaxPerInstance {
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "the instance has %d secrets already", MaxPerInstance)
	}
	e := entry{ID: StateKeyID, Secret: make([]byte, StateKeySize), At: now}
	if o.Session != nil {
		e.Session = o.Session[:]
	}
	if _, err := io.ReadFull(random, e.Secret); err != nil {
		return nil, fmt.Errorf("drawing a state key: %w", err)
	}
	h.Entries = append(h.Entries, e)
	return &h.Entries[len(h.Entries)-1], nil
}

// RecordState makes digest the state of the VM that counts, in place of previous. The same again changes nothing. A state of an earlier generation is
// REASON_STATE_ROLLED_BACK: swtpm draws a new initialisation vector for each, so it has not just written it.
func (s *Store) RecordState(ctx context.Context, instance string, previous, digest []byte) (generation uint64, err error) {
	err = s.change(ctx, instance, func(h *holdings) (bool, error) {
		var first *entry
		for _, incoming := range []bool{true, false} {
			e := h.find(func(e *entry) bool { return e.isStateKey() && e.incoming() == incoming })
			if e == nil {
				continue
			}
			state := e.history()
			if first == nil {
				first = e
			}
			if bytes.Equal(state.Latest, digest) {
				generation = state.Generation
				return false, nil
			}
			if !bytes.Equal(state.Latest, previous) {
				continue
			}
			if state.generationOf(digest) > 0 {
				return false, state.check(instance, digest)
			}
			state.record(digest, s.now().UTC())
			generation = state.Generation
			return true, nil
		}
		if first == nil {
			return false, refusal.New(v1.Reason_REASON_NO_STATE_KEY, "this node's enclave has no state key of instance %s: its vTPM is not here", instance).On(instance)
		}
		return false, first.history().check(instance, previous)
	})
	return generation, err
}

// AcceptState makes a state that was refused the one that counts.
func (s *Store) AcceptState(ctx context.Context, instance string, digest []byte) (generation uint64, err error) {
	err = s.change(ctx, instance, func(h *holdings) (bool, error) {
		e := h.find(func(e *entry) bool { return e.isStateKey() && e.State != nil && bytes.Equal(e.State.Refused, digest) })
		if e == nil {
			return false, refusal.New(v1.Reason_REASON_INVALID_REQUEST, "no state %x of instance %s was refused last on this node", digest, instance).On("digest")
		}
		e.State.record(digest, s.now().UTC())
		generation = e.State.Generation
		return true, nil
	})
	return generation, err
}

// StateKeyUnused says that a session has brought a state key that nobody has opened: what comes of the VM's state would be written without it.
func (s *Store) StateKeyUnused(ctx context.Context, session SessionID, instance string) (bool, error) {
	h, err := s.snapshot(ctx, instance)
	if err != nil {
		return false, err
	}
	defer h.wipe()
	e := h.find(func(e *entry) bool { return e.isStateKey() && e.of(session) })
	return e != nil && !e.history().Opened, nil
}

// RecordedState says which state of a VM was recorded last.
type RecordedState struct {
	Instance   string
	Generation uint64
	Digest     []byte
	At         time.Time
	Incoming   bool
	// Refused is the digest of a state that was refused since, and RefusedGeneration its generation, 0 if it has none.
	Refused           []byte
	RefusedAt         time.Time
	RefusedGeneration uint64
}

// States lists the VMs whose state is under a key of the enclave, of one VM or, if instance is empty, of all. Blobs that do not open are left out.
func (s *Store) States(ctx context.Context, instance string) ([]RecordedState, error) {
	var out []RecordedState
	err := s.eachHolding(ctx, instance, func(name string, h *holdings) {
		for i := range h.Entries {
			if e := &h.Entries[i]; e.isStateKey() {
				state := e.history()
				out = append(out, RecordedState{
					Instance: name, Generation: state.Generation, Digest: state.Latest, At: state.At, Incoming: e.incoming(),
					Refused: state.Refused, RefusedAt: state.RefusedAt, RefusedGeneration: state.generationOf(state.Refused),
				})
			}
		}
	})
	return out, err
}
