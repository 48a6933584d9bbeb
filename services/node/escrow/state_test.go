package escrow

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func state(n int) []byte {
	return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, DigestSize/2)
}

func (s *Store) opens(t *testing.T, o Opening) Opened {
	t.Helper()
	out, err := s.OpenState(t.Context(), vm, o, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Key) != StateKeySize {
		t.Fatalf("a key of %d bytes", len(out.Key))
	}
	return out
}

func (s *Store) refuses(t *testing.T, what string, o Opening, reason v1.Reason) {
	t.Helper()
	out, err := s.OpenState(t.Context(), vm, o, rand.Reader)
	want(t, what, err, reason)
	if out.Key != nil {
		t.Errorf("%s: a key all the same", what)
	}
}

func (s *Store) records(t *testing.T, previous, digest []byte, generation uint64) {
	t.Helper()
	got, err := s.RecordState(t.Context(), vm, previous, digest)
	if err != nil || got != generation {
		t.Fatalf("generation %d, %v, expected %d", got, err, generation)
	}
}

func TestAStateKeyIsMadeOnceAndOpensWhatWasRecordedLast(t *testing.T) {
	d := newDisk()
	s := open(t, d)
	made := s.opens(t, Opening{})
	if !made.Made || made.Generation != 0 || made.Recorded != nil {
		t.Errorf("%+v", made)
	}
	s.records(t, nil, state(1), 1)
	s.records(t, state(1), state(2), 2)
	writes := d.writes
	s.records(t, state(1), state(2), 2) // said again
	if d.writes != writes {
		t.Error("the same state again was written")
	}
	s = open(t, d) // the node restarts
	again := s.opens(t, Opening{Digest: state(2)})
	if again.Made || !bytes.Equal(again.Key, made.Key) || again.Generation != 2 || !bytes.Equal(again.Recorded, state(2)) {
		t.Errorf("%+v", again)
	}
}

func TestAnOldStatePutBackIsRefusedUntilAnOperatorAcceptsIt(t *testing.T) {
	s := open(t, newDisk())
	s.opens(t, Opening{})
	for i := range 5 {
		s.records(t, map[bool][]byte{false: state(i), true: nil}[i == 0], state(i+1), uint64(i+1))
	}
	s.refuses(t, "generation 3", Opening{Digest: state(3)}, v1.Reason_REASON_STATE_ROLLED_BACK)
	_, err := s.OpenState(t.Context(), vm, Opening{Digest: state(3)}, rand.Reader)
	if r := refusal.From(err); r.Item != vm || !bytes.Contains([]byte(r.Found), []byte("generation 3")) || !bytes.Contains([]byte(r.Expected), []byte("generation 5")) {
		t.Errorf("%+v", r)
	}
	s.refuses(t, "a state that nobody recorded", Opening{Digest: state(99)}, v1.Reason_REASON_STATE_NOT_RECORDED)
	_, err = s.RecordState(t.Context(), vm, state(5), state(3))
	want(t, "recording an old state as a new one", err, v1.Reason_REASON_STATE_ROLLED_BACK)
	_, err = s.RecordState(t.Context(), vm, state(4), state(9))
	want(t, "recording by one who does not know the last state", err, v1.Reason_REASON_STATE_ROLLED_BACK)
	_, err = s.RecordState(t.Context(), vm, state(77), state(9))
	want(t, "recording after a state that was never recorded", err, v1.Reason_REASON_STATE_NOT_RECORDED)

	_, err = s.AcceptState(t.Context(), vm, state(3))
	want(t, "accepting another than the one that was refused last", err, v1.Reason_REASON_INVALID_REQUEST)
	listed, err := s.States(t.Context(), "")
	if err != nil || len(listed) != 1 || !bytes.Equal(listed[0].Refused, state(99)) || listed[0].Generation != 5 {
		t.Fatalf("%+v, %v", listed, err)
	}
	if g, err := s.AcceptState(t.Context(), vm, state(99)); err != nil || g != 6 {
		t.Fatalf("%d, %v", g, err)
	}
	s.opens(t, Opening{Digest: state(99)})
	s.refuses(t, "what counted before", Opening{Digest: state(5)}, v1.Reason_REASON_STATE_ROLLED_BACK)
	if g, err := s.AcceptState(t.Context(), vm, state(5)); err != nil || g != 7 {
		t.Fatalf("an old one can be accepted too: %d, %v", g, err)
	}
	s.opens(t, Opening{Digest: state(5)})
	s.records(t, state(5), state(6), 8)
	_, err = s.AcceptState(t.Context(), vm, state(99))
	want(t, "a refusal that a newer state has settled", err, v1.Reason_REASON_INVALID_REQUEST)
}

func TestTheHistoryIsBounded(t *testing.T) {
	s := open(t, newDisk())
	s.opens(t, Opening{})
	var last []byte
	for i := range MaxEarlier + 10 {
		s.records(t, last, state(i+1), uint64(i+1))
		last = state(i + 1)
	}
	s.refuses(t, "the oldest that is known", Opening{Digest: state(10)}, v1.Reason_REASON_STATE_ROLLED_BACK)
	s.refuses(t, "one before it", Opening{Digest: state(9)}, v1.Reason_REASON_STATE_NOT_RECORDED)
	if h := new(history); h.generationOf(nil) != 0 {
		t.Error("nothing has a generation")
	}
}

func TestAStateThatIsGoneBeginsAnewUnderTheSameKeyAndDoesNotComeBack(t *testing.T) {
	s := open(t, newDisk())
	first := s.opens(t, Opening{})
	s.records(t, nil, state(1), 1)
	second := s.opens(t, Opening{})
	if second.Made || !second.Gone || !bytes.Equal(second.Key, first.Key) || !bytes.Equal(second.Recorded, state(1)) {
		t.Errorf("%+v", second)
	}
	s.records(t, state(1), state(2), 2)
	s.refuses(t, "what was gone", Opening{Digest: state(1)}, v1.Reason_REASON_STATE_ROLLED_BACK)
}

func TestACopiedStateHasNoKeyElsewhere(t *testing.T) {
	s := open(t, newDisk())
	s.refuses(t, "a state that came without its key", Opening{Digest: state(1)}, v1.Reason_REASON_NO_STATE_KEY)
	s.refuses(t, "the same, said to follow without a session", Opening{Digest: state(1), Follows: true}, v1.Reason_REASON_NO_STATE_KEY)
	_, err := s.RecordState(t.Context(), vm, nil, state(1))
	want(t, "recording", err, v1.Reason_REASON_NO_STATE_KEY)
	if listed, err := s.List(t.Context(), ""); err != nil || len(listed) != 0 {
		t.Errorf("%v, %v", listed, err)
	}
	s.refuses(t, "while none may be made", Opening{NoKey: refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "x")}, v1.Reason_REASON_SESSION_CONFLICT)
	if _, err := s.OpenState(t.Context(), vm, Opening{}, bytes.NewReader([]byte("too short"))); err == nil {
		t.Error("a key without randomness")
	}
}

// moved takes every secret of the VM from one store to another, as a session does.
func moved(t *testing.T, from, to *Store, session SessionID) {
	t.Helper()
	must(t, from.Each(t.Context(), vm, func(id string, secret []byte, _ int) error { return to.Receive(t.Context(), session, vm, id, secret) }))
}

func TestTheStateKeyMovesWithTheVM(t *testing.T) {
	src, dst := open(t, newDisk()), open(t, newDisk())
	key := src.opens(t, Opening{}).Key
	src.records(t, nil, state(1), 1)
	must(t, src.Escrow(t.Context(), vm, "v1", []byte("a passphrase")))
	moved(t, src, dst, first)
	unused, err := dst.StateKeyUnused(t.Context(), first, vm)
	if err != nil || !unused {
		t.Errorf("%t, %v", unused, err)
	}
	dst.refuses(t, "a copy of the source's state at the destination", Opening{Session: &first, Digest: state(1)}, v1.Reason_REASON_STATE_NOT_RECORDED)
	here := dst.opens(t, Opening{Session: &first})
	if !bytes.Equal(here.Key, key) || here.Made || here.Generation != 0 {
		t.Errorf("%+v", here)
	}
	if unused, err := dst.StateKeyUnused(t.Context(), first, vm); err != nil || unused {
		t.Errorf("%t, %v", unused, err)
	}
	dst.records(t, nil, state(2), 1)
	src.opens(t, Opening{Digest: state(1)}) // until the commit it is the source's
	must(t, dst.Promote(t.Context(), first, vm))
	must(t, src.Moved(t.Context(), vm))
	src.refuses(t, "the source's state after the VM has left", Opening{Digest: state(1)}, v1.Reason_REASON_NO_STATE_KEY)
	dst.opens(t, Opening{Digest: state(2)})
	dst.records(t, state(2), state(3), 2)

	// There and back: a stay has nothing to do with an earlier one.
	moved(t, dst, src, second)
	src.refuses(t, "what was left behind", Opening{Session: &second, Digest: state(1)}, v1.Reason_REASON_STATE_NOT_RECORDED)
	src.opens(t, Opening{Session: &second, Digest: state(3), Follows: true}) // on storage that both share
	src.records(t, nil, state(4), 1)
	must(t, src.Promote(t.Context(), second, vm))
	must(t, dst.Moved(t.Context(), vm))
	if got := src.opens(t, Opening{Digest: state(4)}); !bytes.Equal(got.Key, key) {
		t.Error("another key came back")
	}
}

func TestAnAbortLeavesTheStateKeyAtTheSource(t *testing.T) {
	src, dst := open(t, newDisk()), open(t, newDisk())
	src.opens(t, Opening{})
	src.records(t, nil, state(1), 1)
	moved(t, src, dst, first)
	dst.opens(t, Opening{Session: &first})
	dst.records(t, nil, state(2), 1)
	must(t, dst.Discard(t.Context(), first, vm))
	dst.refuses(t, "what the session left", Opening{Digest: state(2)}, v1.Reason_REASON_NO_STATE_KEY)
	_, err := dst.RecordState(t.Context(), vm, state(2), state(3))
	want(t, "what swtpm still writes", err, v1.Reason_REASON_NO_STATE_KEY)
	src.opens(t, Opening{Digest: state(1)})
}

func TestASessionInDoubtLeavesTheKeyWhereTheVMMayBe(t *testing.T) {
	src, dst := open(t, newDisk()), open(t, newDisk())
	key := src.opens(t, Opening{}).Key
	moved(t, src, dst, first)
	dst.opens(t, Opening{Session: &first})
	dst.records(t, nil, state(2), 1)
	// The session ends without a commit, and the VM runs here.
	if got := dst.opens(t, Opening{Digest: state(2)}); !bytes.Equal(got.Key, key) {
		t.Error("another key")
	}
	dst.records(t, state(2), state(3), 2)
	moved(t, dst, src, second) // it goes back
	must(t, src.Promote(t.Context(), second, vm))
	must(t, dst.Moved(t.Context(), vm))
	dst.refuses(t, "after it has left", Opening{Digest: state(3)}, v1.Reason_REASON_NO_STATE_KEY)
}

func TestAVMWithoutAStateKeyGetsOneFromItsDestination(t *testing.T) {
	s := open(t, newDisk())
	old := s.opens(t, Opening{}) // a stay that ended without this enclave's knowing, such as a cold migration
	s.records(t, nil, state(1), 1)
	made := s.opens(t, Opening{Session: &first})
	if !made.Made || bytes.Equal(made.Key, old.Key) {
		t.Error("a key of an earlier stay serves a new one")
	}
	s.records(t, nil, state(2), 1)
	must(t, s.Promote(t.Context(), first, vm))
	if got := s.opens(t, Opening{Digest: state(2)}); !bytes.Equal(got.Key, made.Key) {
		t.Error("another key")
	}
	s.refuses(t, "the earlier stay's", Opening{Digest: state(1)}, v1.Reason_REASON_STATE_NOT_RECORDED)
}

func TestASessionDoesNotTakeAVMItsKeyThatIsHere(t *testing.T) {
	s := open(t, newDisk())
	key := s.opens(t, Opening{}).Key
	s.records(t, nil, state(1), 1)
	must(t, s.Receive(t.Context(), first, vm, StateKeyID, make([]byte, StateKeySize))) // a peer says that it brings the VM
	if got := s.opens(t, Opening{Session: &first, Digest: state(1)}); !bytes.Equal(got.Key, key) {
		t.Error("the peer's key")
	}
	s.records(t, state(1), state(2), 2)
	must(t, s.Discard(t.Context(), first, vm))
	s.opens(t, Opening{Digest: state(2)})
}

func TestNobodyIsReleasedAStateKey(t *testing.T) {
	s := open(t, newDisk())
	want(t, "escrowing one", s.Escrow(t.Context(), vm, StateKeyID, make([]byte, StateKeySize)), v1.Reason_REASON_INVALID_REQUEST)
	s.opens(t, Opening{})
	_, _, err := s.ReleaseLocal(t.Context(), vm, StateKeyID)
	want(t, "by name", err, v1.Reason_REASON_NO_SECRET)
	_, _, err = s.ReleaseLocal(t.Context(), vm, "")
	want(t, "as the only one", err, v1.Reason_REASON_NO_SECRET)
	must(t, s.Escrow(t.Context(), vm, "v1", []byte("x")))
	s.wantLocal(t, "", "x")
	must(t, s.Receive(t.Context(), first, vm, StateKeyID, make([]byte, StateKeySize)))
	_, _, err = s.ReleaseIncoming(t.Context(), first, vm, StateKeyID)
	want(t, "with a session", err, v1.Reason_REASON_NO_SECRET)
	want(t, "a peer's key of another size", s.Receive(t.Context(), first, vm, StateKeyID, []byte("x")), v1.Reason_REASON_PROTOCOL_VIOLATION)
	if forgotten, err := s.Forget(t.Context(), vm, ""); err != nil || !forgotten {
		t.Errorf("%t, %v", forgotten, err)
	}
	s.refuses(t, "after Forget", Opening{Digest: state(1)}, v1.Reason_REASON_NO_STATE_KEY)
}

// A crash at any write leaves the history as it was before or as it is after: what is recorded opens, and what swtpm wrote beyond it does not.
func TestACrashBetweenWriteAndRecordIsNoticed(t *testing.T) {
	for _, after := range []bool{false, true} {
		for at := 2; at <= 4; at++ { // the first write makes the key
			t.Run(fmt.Sprintf("at write %d, applied %t", at, after), func(t *testing.T) {
				d := newDisk()
				d.failAt, d.after = at, after
				s := open(t, d)
				key := s.opens(t, Opening{}).Key
				var last []byte
				written := 0
				for i := 1; i <= 3; i++ {
					written = i
					if _, err := s.RecordState(t.Context(), vm, last, state(i)); err != nil {
						if !errors.Is(err, errDisk) {
							t.Fatal(err)
						}
						break
					}
					last = state(i)
				}
				s = open(t, d)
				recorded := at - 2
				if after {
					recorded++
				}
				if written > recorded {
					s.refuses(t, "written and not recorded", Opening{Digest: state(written)}, v1.Reason_REASON_STATE_NOT_RECORDED)
				}
				if recorded > 0 {
					if got := s.opens(t, Opening{Digest: state(recorded)}); !bytes.Equal(got.Key, key) {
						t.Error("another key")
					}
				}
				if written > recorded {
					s.refuses(t, "again", Opening{Digest: state(written)}, v1.Reason_REASON_STATE_NOT_RECORDED)
					if _, err := s.AcceptState(t.Context(), vm, state(written)); err != nil {
						t.Fatal(err)
					}
					s.opens(t, Opening{Digest: state(written)})
				}
			})
		}
	}
}
