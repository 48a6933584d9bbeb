package escrow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
)

const vm = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

var (
	first, second = SessionID{1}, SessionID{2}
	errDisk       = errors.New("the disk failed")
)

// disk is a Sealed in memory that can fail at one of its writes, before or after it has taken effect.
type disk struct {
	mu     sync.Mutex
	blobs  map[string][]byte
	writes int
	failAt int // 0: never
	after  bool
	unread error // what every Get fails with
}

func newDisk() *disk { return &disk{blobs: map[string][]byte{}} }

func (d *disk) write(do func()) error {
	d.writes++
	if d.writes != d.failAt {
		do()
		return nil
	}
	if d.after {
		do()
	}
	return errDisk
}

func (d *disk) Put(_ context.Context, kind, name string, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(func() { d.blobs[kind+"/"+name] = bytes.Clone(b) })
}

func (d *disk) Get(_ context.Context, kind, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unread != nil {
		return nil, d.unread
	}
	b, ok := d.blobs[kind+"/"+name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", sealed.ErrNotFound, name)
	}
	return bytes.Clone(b), nil
}

func (d *disk) Delete(_ context.Context, kind, name string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.blobs[kind+"/"+name]
	return ok, d.write(func() { delete(d.blobs, kind+"/"+name) })
}

func (d *disk) List(kind string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.blobs {
		names = append(names, strings.TrimPrefix(name, kind+"/"))
	}
	slices.Sort(names)
	return names, nil
}

func open(t *testing.T, d *disk) *Store {
	t.Helper()
	return Open(d, time.Now)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, what string, err error, reason v1.Reason) {
	t.Helper()
	if !errors.Is(err, refusal.Because(reason)) {
		t.Errorf("%s: got %v, want %s", what, err, refusal.Name(reason))
	}
}

func (s *Store) wantLocal(t *testing.T, id, secret string) {
	t.Helper()
	got, name, err := s.ReleaseLocal(t.Context(), vm, id)
	if err != nil || string(got) != secret || id != "" && name != id {
		t.Errorf("secret %s: %q (%s), %v", id, got, name, err)
	}
}

func TestASecretIsEscrowedOnceUnderItsName(t *testing.T) {
	d := newDisk()
	s := open(t, d)
	must(t, s.Escrow(t.Context(), vm, "", []byte("passphrase")))
	writes := d.writes
	must(t, s.Escrow(t.Context(), vm, "", []byte("passphrase")))
	if d.writes != writes {
		t.Error("the same secret was written again")
	}
	want(t, "another secret under the same name", s.Escrow(t.Context(), vm, "", []byte("other")), v1.Reason_REASON_SECRET_CONFLICT)
	must(t, s.Escrow(t.Context(), vm, "v2", []byte("newer")))
	s.wantLocal(t, "v2", "newer")
	s.wantLocal(t, DefaultID, "passphrase")
	_, _, err := s.ReleaseLocal(t.Context(), vm, "")
	want(t, "one of two without a name", err, v1.Reason_REASON_INVALID_REQUEST)
	open(t, d).wantLocal(t, "v2", "newer") // after a restart

	forgotten, err := s.Forget(t.Context(), vm, "v2")
	if err != nil || !forgotten {
		t.Errorf("%t, %v", forgotten, err)
	}
	s.wantLocal(t, "", "passphrase")
	if forgotten, err := s.Forget(t.Context(), vm, ""); err != nil || !forgotten || len(d.blobs) != 0 {
		t.Errorf("%t, %v, %d blobs left", forgotten, err, len(d.blobs))
	}
	if forgotten, err := s.Forget(t.Context(), vm, ""); err != nil || forgotten {
		t.Errorf("nothing to forget: %t, %v", forgotten, err)
	}
	_, _, err = s.ReleaseLocal(t.Context(), vm, "")
	want(t, "a secret that was forgotten", err, v1.Reason_REASON_NO_SECRET)
}

func TestWhatIsNotASecretOrAName(t *testing.T) {
	s := open(t, newDisk())
	for name, err := range map[string]error{
		"an empty secret":    s.Escrow(t.Context(), vm, "", nil),
		"a long secret":      s.Escrow(t.Context(), vm, "", make([]byte, MaxSecret+1)),
		"a long name":        s.Escrow(t.Context(), vm, strings.Repeat("x", 129), []byte("x")),
		"a name with spaces": s.Escrow(t.Context(), vm, "a b", []byte("x")),
		"an empty incoming":  s.Receive(t.Context(), first, vm, "", nil),
		"a bad name coming":  s.Receive(t.Context(), first, vm, "\n", []byte("x")),
	} {
		want(t, name, err, v1.Reason_REASON_INVALID_REQUEST)
	}
	for i := range MaxPerInstance {
		must(t, s.Escrow(t.Context(), vm, fmt.Sprint(i), []byte("x")))
	}
	want(t, "one too many", s.Escrow(t.Context(), vm, "more", []byte("x")), v1.Reason_REASON_LIMIT_EXCEEDED)
}

func TestAnIncomingSecretIsReleasedOnceAndStaysAfterTheCommit(t *testing.T) {
	d := newDisk()
	s := open(t, d)
	must(t, s.Escrow(t.Context(), vm, "v1", []byte("of an earlier stay")))
	must(t, s.Receive(t.Context(), first, vm, "v1", []byte("one")))
	must(t, s.Receive(t.Context(), first, vm, "v2", []byte("two")))
	must(t, s.Receive(t.Context(), first, vm, "v2", []byte("two")))
	want(t, "another secret in the same session", s.Receive(t.Context(), first, vm, "v2", []byte("x")), v1.Reason_REASON_SECRET_CONFLICT)
	_, _, err := s.ReleaseIncoming(t.Context(), second, vm, "v2")
	want(t, "an incoming secret of another session", err, v1.Reason_REASON_NO_SECRET)

	got, name, err := s.ReleaseIncoming(t.Context(), first, vm, "v2")
	if err != nil || string(got) != "two" || name != "v2" {
		t.Errorf("%q, %s, %v", got, name, err)
	}
	_, _, err = s.ReleaseIncoming(t.Context(), first, vm, "v2")
	want(t, "a second release", err, v1.Reason_REASON_ALREADY_USED)

	must(t, s.Promote(t.Context(), second, vm)) // brings nothing
	must(t, s.Promote(t.Context(), first, vm))
	must(t, s.Promote(t.Context(), first, vm))
	must(t, s.Discard(t.Context(), first, vm)) // the session's end
	for _, s := range []*Store{s, open(t, d)} {
		s.wantLocal(t, "v1", "one")
		s.wantLocal(t, "v2", "two")
	}
	var sent []string
	must(t, s.Each(t.Context(), vm, func(id string, secret []byte, remaining int) error {
		sent = append(sent, fmt.Sprintf("%s=%s,%d", id, secret, remaining))
		return nil
	}))
	if !slices.Equal(sent, []string{"v1=one,1", "v2=two,0"}) {
		t.Errorf("sent %v", sent)
	}
	must(t, s.Moved(t.Context(), vm))
	if len(d.blobs) != 0 {
		t.Error("a secret of a VM that has left is still here")
	}
}

func TestAnAbortDropsWhatCameIn(t *testing.T) {
	s := open(t, newDisk())
	must(t, s.Escrow(t.Context(), vm, "own", []byte("own")))
	must(t, s.Receive(t.Context(), first, vm, "came", []byte("came")))
	must(t, s.Discard(t.Context(), first, vm))
	_, _, err := s.ReleaseIncoming(t.Context(), first, vm, "came")
	want(t, "after an abort", err, v1.Reason_REASON_NO_SECRET)
	s.wantLocal(t, "own", "own")
	all, err := s.List(t.Context(), "")
	if err != nil || len(all) != 1 || all[0].ID != "own" || all[0].Incoming || all[0].Instance != vm {
		t.Errorf("it leaves %v, %v", all, err)
	}
}

// The VM may run here although the session ended, or the service was started again, before the commit was told.
func TestASecretLeftInDoubtStaysWithTheVM(t *testing.T) {
	d := newDisk()
	s := open(t, d)
	must(t, s.Escrow(t.Context(), vm, "v1", []byte("of an earlier stay")))
	must(t, s.Receive(t.Context(), first, vm, "v1", []byte("came")))
	s = open(t, d)
	s.wantLocal(t, "v1", "came")
	s.wantLocal(t, "", "came")
	var sent []string
	must(t, s.Each(t.Context(), vm, func(id string, secret []byte, _ int) error { // it leaves from here
		sent = append(sent, id+"="+string(secret))
		return nil
	}))
	if !slices.Equal(sent, []string{"v1=came"}) {
		t.Errorf("sent %v", sent)
	}
	must(t, s.Moved(t.Context(), vm))
	if len(d.blobs) != 0 {
		t.Error("a secret of a VM that has left is still here")
	}
}

func TestWhatWasLeftInDoubtGoesWithTheNextSessionOrWithForget(t *testing.T) {
	s := open(t, newDisk())
	must(t, s.Receive(t.Context(), first, vm, "v1", []byte("one")))
	must(t, s.Receive(t.Context(), second, vm, "v2", []byte("two"))) // the VM was at the source after all
	s.wantLocal(t, "", "two")
	_, _, err := s.ReleaseLocal(t.Context(), vm, "v1")
	want(t, "what an earlier session brought", err, v1.Reason_REASON_NO_SECRET)
	if forgotten, err := s.Forget(t.Context(), vm, ""); err != nil || !forgotten {
		t.Errorf("%t, %v", forgotten, err)
	}
	_, _, err = s.ReleaseLocal(t.Context(), vm, "")
	want(t, "after Forget", err, v1.Reason_REASON_NO_SECRET)
}

// TestACrashAtEveryWriteLosesNoSecret runs a migration between two nodes whose disks fail at one write, before or after it took effect, and then both
// services restart: the secret is on one of them at least, and the destination hands it out for the session at most once.
func TestACrashAtEveryWriteLosesNoSecret(t *testing.T) {
	for fail := 1; ; fail++ {
		reached := false
		for _, after := range []bool{false, true} {
			src, dst := newDisk(), newDisk()
			s, d := open(t, src), open(t, dst)
			must(t, s.Escrow(t.Context(), vm, "", []byte("the secret")))
			src.writes, dst.writes = 0, 0
			which := src // writes are counted over both disks: those of the destination come first
			if fail <= 3 {
				which, dst.failAt, dst.after = dst, fail, after
			} else {
				src.failAt, src.after = fail-3, after
			}
			releases := 0
			err := func() error {
				if err := s.Each(t.Context(), vm, func(id string, secret []byte, _ int) error {
					return d.Receive(t.Context(), first, vm, id, secret)
				}); err != nil {
					return err
				}
				if _, _, err := d.ReleaseIncoming(t.Context(), first, vm, ""); err != nil {
					return err
				}
				releases++
				if err := d.Promote(t.Context(), first, vm); err != nil { // the destination's commit
					return err
				}
				return s.Moved(t.Context(), vm) // then the source's
			}()
			reached = reached || errors.Is(err, errDisk)
			which.failAt = 0
			s, d = open(t, src), open(t, dst)
			here, _, errS := s.ReleaseLocal(t.Context(), vm, "")
			there, _, errD := d.ReleaseLocal(t.Context(), vm, "")
			if string(here) != "the secret" && string(there) != "the secret" {
				t.Errorf("write %d, after %t: the secret is lost: %v; %v", fail, after, errS, errD)
			}
			if _, _, err := d.ReleaseIncoming(t.Context(), first, vm, ""); err == nil {
				releases++
			}
			if releases > 1 {
				t.Errorf("write %d, after %t: released %d times", fail, after, releases)
			}
		}
		if !reached {
			if fail < 5 {
				t.Errorf("only %d writes were tried", fail-1)
			}
			return
		}
	}
}

func TestABlobThatDoesNotOpenStopsOnlyItsOwnVM(t *testing.T) {
	const other = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c12"
	d := newDisk()
	s := open(t, d)
	must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
	d.blobs["escrow/"+other] = []byte("not JSON")
	s = open(t, d)
	s.wantLocal(t, "", "x")
	_, _, err := s.ReleaseLocal(t.Context(), other, "")
	want(t, "the damaged one", err, v1.Reason_REASON_SEALED_DATA_INVALID)
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	_, err = s.Forget(t.Context(), other, "v1")
	want(t, "forgetting one of the damaged", err, v1.Reason_REASON_SEALED_DATA_INVALID)
	if forgotten, err := s.Forget(t.Context(), other, ""); err != nil || !forgotten || len(d.blobs) != 1 {
		t.Errorf("%t, %v, %d blobs left", forgotten, err, len(d.blobs))
	}
}

func TestABlobIsCondemnedForWhatItIsAndNotForADiskThatFails(t *testing.T) {
	d := newDisk()
	s := open(t, d)
	must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
	for _, c := range []struct {
		unread    error
		condemned bool
	}{
		{sealed.ErrNotAuthentic, true}, {sealed.ErrRollback, true}, {sealed.ErrMode, true}, {sealed.ErrWrongBlob, true},
		{sealed.ErrMalformed, true}, {sealed.ErrVersion, true},
		{errDisk, false}, {sealed.ErrSealKey, false}, {context.Canceled, false},
	} {
		d.unread = c.unread
		_, _, err := s.ReleaseLocal(t.Context(), vm, "")
		if got := errors.Is(err, refusal.Because(v1.Reason_REASON_SEALED_DATA_INVALID)); got != c.condemned || !errors.Is(err, c.unread) {
			t.Errorf("%v: got %v", c.unread, err)
		}
		if _, err := s.Forget(t.Context(), vm, ""); !c.condemned && (err == nil || len(d.blobs) != 1) {
			t.Errorf("a secret was dropped because of %v", c.unread)
		}
		d.unread = nil
		must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
	}
}

func TestTheSourceForgetsOnlyWhatItHasSent(t *testing.T) {
	keep := func(string, []byte, int) error { return nil }
	t.Run("a secret escrowed while the VM moved stays", func(t *testing.T) {
		s := open(t, newDisk())
		must(t, s.Escrow(t.Context(), vm, "v1", []byte("old")))
		must(t, s.Each(t.Context(), vm, keep))
		must(t, s.Escrow(t.Context(), vm, "v2", []byte("new")))
		must(t, s.Moved(t.Context(), vm))
		s.wantLocal(t, "", "new")
	})
	t.Run("one that replaced another under the same id stays", func(t *testing.T) {
		s := open(t, newDisk())
		must(t, s.Escrow(t.Context(), vm, "", []byte("old")))
		must(t, s.Each(t.Context(), vm, keep))
		_, err := s.Forget(t.Context(), vm, "")
		must(t, err)
		must(t, s.Escrow(t.Context(), vm, "", []byte("new")))
		must(t, s.Moved(t.Context(), vm))
		s.wantLocal(t, "", "new")
	})
	t.Run("one that has come back with the VM stays", func(t *testing.T) {
		s := open(t, newDisk())
		must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
		must(t, s.Each(t.Context(), vm, keep))
		must(t, s.Receive(t.Context(), first, vm, "", []byte("x")))
		must(t, s.Promote(t.Context(), first, vm))
		must(t, s.Moved(t.Context(), vm)) // late
		s.wantLocal(t, "", "x")
	})
	t.Run("one that the destination did not take stays", func(t *testing.T) {
		s := open(t, newDisk())
		must(t, s.Escrow(t.Context(), vm, "a", []byte("taken")))
		must(t, s.Escrow(t.Context(), vm, "b", []byte("not taken")))
		err := s.Each(t.Context(), vm, func(id string, _ []byte, _ int) error {
			if id == "b" {
				return errDisk
			}
			return nil
		})
		if !errors.Is(err, errDisk) {
			t.Error(err)
		}
		must(t, s.Moved(t.Context(), vm))
		s.wantLocal(t, "", "not taken")
	})
	t.Run("what another destination took before does not count", func(t *testing.T) {
		s := open(t, newDisk())
		must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
		must(t, s.Each(t.Context(), vm, keep))
		_ = s.Each(t.Context(), vm, func(string, []byte, int) error { return errDisk })
		must(t, s.Moved(t.Context(), vm))
		s.wantLocal(t, "", "x")
	})
	t.Run("nothing was sent in the life of the service", func(t *testing.T) {
		d := newDisk()
		s := open(t, d)
		must(t, s.Escrow(t.Context(), vm, "", []byte("x")))
		must(t, s.Each(t.Context(), vm, keep))
		s = open(t, d)
		must(t, s.Moved(t.Context(), vm))
		s.wantLocal(t, "", "x")
	})
}

func TestNoSecretPrints(t *testing.T) {
	e := entry{ID: "id", Secret: []byte("passphrase")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if got := fmt.Sprintf(verb, e) + fmt.Sprintf(verb, &e) + fmt.Sprintf(verb, holdings{Entries: []entry{e}}); strings.Contains(got, "passphrase") {
			t.Errorf("%s prints it", verb)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := open(t, newDisk())
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := s.Escrow(t.Context(), vm, fmt.Sprint(i), []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if listed, err := s.List(t.Context(), vm); err != nil || len(listed) != 20 {
		t.Errorf("%d, %v", len(listed), err)
	}
}
