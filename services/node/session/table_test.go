package session

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

const vm = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

// clock is a clock that moves when told.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) step(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

type memoryLedger map[string]bool

func (m memoryLedger) Use(id string) (bool, error) {
	fresh := !m[id]
	m[id] = true
	return fresh, nil
}

type keys struct{ destroyed int }

func (k *keys) End(Record) { k.destroyed++ }

func newTable(limits Limits) (*Table, *clock) {
	c := &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	return NewTable(limits, memoryLedger{}, c.now, nil), c
}

func outgoing(instance string) Identity {
	id := Identity{Instance: instance, Role: v1.Role_ROLE_SOURCE, Source: "compute1", Destination: "compute2"}
	_, _ = rand.Read(id.Attempt[:])
	return id
}

func mustAppraise(t *testing.T, table *Table, who Identity) (*Session, *keys) {
	t.Helper()
	s, err := table.Begin(who)
	if err != nil {
		t.Fatal(err)
	}
	var id ID
	_, _ = rand.Read(id[:])
	k := &keys{}
	if err := s.Attested(id); err != nil {
		t.Fatal(err)
	}
	if err := s.Appraised(k); err != nil {
		t.Fatal(err)
	}
	return s, k
}

func mustArm(t *testing.T, table *Table, who Identity, migration string) (*Session, *keys) {
	t.Helper()
	s, k := mustAppraise(t, table, who)
	if err := s.Arm(migration); err != nil {
		t.Fatal(err)
	}
	return s, k
}

func wantReason(t *testing.T, err error, reason v1.Reason) {
	t.Helper()
	if !errors.Is(err, refusal.Because(reason)) {
		t.Errorf("got %v, want %v", err, reason)
	}
}

func TestAMigrationThatGoesWell(t *testing.T) {
	table, _ := newTable(Limits{})
	s, k := mustArm(t, table, outgoing(vm), "m1")
	for _, kind := range []v1.StateType{v1.StateType_STATE_TYPE_PERMANENT, v1.StateType_STATE_TYPE_VOLATILE} {
		got, err := table.BeginBlob(vm, v1.Role_ROLE_SOURCE, kind)
		if err != nil || got != s {
			t.Fatalf("blob %v: %v", kind, err)
		}
		if err := got.EndBlob(&v1.BlobReport{Type: kind, PlaintextBytes: 10}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	rec := s.Record()
	if rec.State != Committed || len(rec.Blobs) != 2 || k.destroyed != 1 || s.Context().Err() == nil {
		t.Errorf("%+v, keys destroyed %d times, context %v", rec, k.destroyed, s.Context().Err())
	}
	if err := s.Commit(); err != nil {
		t.Errorf("a second commit: %v", err)
	}
}

func TestNothingOfASessionSurvivesItsEnd(t *testing.T) {
	table, _ := newTable(Limits{})
	s, k := mustArm(t, table, outgoing(vm), "m1")
	if err := s.Abort(refusal.New(v1.Reason_REASON_ABORTED, "by hand")); err != nil {
		t.Fatal(err)
	}
	if k.destroyed != 1 {
		t.Error("the keys live on")
	}
	_, err := table.BeginBlob(vm, v1.Role_ROLE_SOURCE, v1.StateType_STATE_TYPE_VOLATILE)
	wantReason(t, err, v1.Reason_REASON_NO_ARMED_SESSION)
	if err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("it does not say how the last session ended: %v", err)
	}
	wantReason(t, s.Arm("m2"), v1.Reason_REASON_WRONG_STATE)
	wantReason(t, s.Commit(), v1.Reason_REASON_WRONG_STATE)
	wantReason(t, s.EndBlob(&v1.BlobReport{}), v1.Reason_REASON_WRONG_STATE)
	_, err = table.Begin(s.Record().Identity)
	wantReason(t, err, v1.Reason_REASON_ALREADY_USED)
}

func TestABlobIsClaimedOnce(t *testing.T) {
	table, _ := newTable(Limits{})
	mustArm(t, table, outgoing(vm), "m1")
	if _, err := table.BeginBlob(vm, v1.Role_ROLE_SOURCE, v1.StateType_STATE_TYPE_VOLATILE); err != nil {
		t.Fatal(err)
	}
	_, err := table.BeginBlob(vm, v1.Role_ROLE_SOURCE, v1.StateType_STATE_TYPE_VOLATILE)
	wantReason(t, err, v1.Reason_REASON_ALREADY_USED)
	_, err = table.BeginBlob(vm, v1.Role_ROLE_DESTINATION, v1.StateType_STATE_TYPE_PERMANENT)
	wantReason(t, err, v1.Reason_REASON_NO_ARMED_SESSION)
	_, err = table.BeginBlob(strings.Replace(vm, "0c", "1d", 1), v1.Role_ROLE_SOURCE, v1.StateType_STATE_TYPE_PERMANENT)
	wantReason(t, err, v1.Reason_REASON_NO_ARMED_SESSION)
}

func TestAMigrationIDIsArmedOnce(t *testing.T) {
	table, _ := newTable(Limits{})
	s, _ := mustArm(t, table, outgoing(vm), "m1")
	if err := s.Arm("m1"); err != nil {
		t.Errorf("the same id again: %v", err)
	}
	wantReason(t, s.Arm("m2"), v1.Reason_REASON_WRONG_STATE)
	if err := s.Abort(refusal.New(v1.Reason_REASON_ABORTED, "x")); err != nil {
		t.Fatal(err)
	}
	second, _ := mustAppraise(t, table, outgoing(vm))
	wantReason(t, second.Arm("m1"), v1.Reason_REASON_ALREADY_USED)
	if got := second.Record().State; got != Appraised {
		t.Errorf("the refused session is %s", got)
	}
}

func TestOneVMHasOneLiveSession(t *testing.T) {
	table, _ := newTable(Limits{})
	first, k := mustAppraise(t, table, outgoing(vm))
	racing, err := table.Begin(outgoing(vm))
	if err != nil {
		t.Fatal(err)
	}
	second, _ := mustAppraise(t, table, outgoing(vm))
	if got := first.Record(); got.State != Aborted || k.destroyed != 1 {
		t.Errorf("the unarmed session that was superseded is %s", got.State)
	}
	wantReason(t, first.Record().Refusal, v1.Reason_REASON_SESSION_CONFLICT)
	if err := second.Arm("m1"); err != nil {
		t.Fatal(err)
	}
	_, err = table.Begin(outgoing(vm))
	wantReason(t, err, v1.Reason_REASON_SESSION_CONFLICT)
	late := &keys{}
	if err := racing.Attested(ID{1}); err != nil {
		t.Fatal(err)
	}
	wantReason(t, racing.Appraised(late), v1.Reason_REASON_SESSION_CONFLICT)
	if late.destroyed != 1 {
		t.Error("the keys of the handshake that came too late live on")
	}
}

func TestASessionIDIsTakenOnce(t *testing.T) {
	table, _ := newTable(Limits{})
	s, _ := mustAppraise(t, table, outgoing(vm))
	other, err := table.Begin(outgoing(strings.Replace(vm, "0c", "1d", 1)))
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, other.Attested(s.Record().ID), v1.Reason_REASON_ALREADY_USED)
	_, err = table.ByID(ID{})
	wantReason(t, err, v1.Reason_REASON_NO_SESSION)
}

func TestSessionsExpire(t *testing.T) {
	table, clock := newTable(Limits{UnarmedTTL: time.Minute, ArmedTTL: time.Hour})
	unarmed, k1 := mustAppraise(t, table, outgoing(vm))
	armed, k2 := mustArm(t, table, outgoing(strings.Replace(vm, "0c", "1d", 1)), "m1")
	clock.step(time.Minute - 1)
	table.Expire()
	if unarmed.Record().State != Appraised {
		t.Error("expired early")
	}
	clock.step(1)
	table.Expire()
	if unarmed.Record().State != Aborted || k1.destroyed != 1 || armed.Record().State != Armed {
		t.Errorf("after a minute: %s, %s", unarmed.Record().State, armed.Record().State)
	}
	wantReason(t, unarmed.Record().Refusal, v1.Reason_REASON_SESSION_EXPIRED)
	clock.step(time.Hour)
	_, err := table.BeginBlob(armed.Record().Instance, v1.Role_ROLE_SOURCE, v1.StateType_STATE_TYPE_VOLATILE)
	wantReason(t, err, v1.Reason_REASON_NO_ARMED_SESSION)
	if k2.destroyed != 1 {
		t.Error("the keys of the expired session live on")
	}
	if cause := context.Cause(armed.Context()); !errors.Is(cause, refusal.Because(v1.Reason_REASON_SESSION_EXPIRED)) {
		t.Errorf("the session's context ended with %v", cause)
	}
}

func TestTheTableIsBounded(t *testing.T) {
	table, clock := newTable(Limits{Open: 3, Remembered: 5})
	ids := make([]Identity, 20)
	for i := range ids {
		ids[i] = outgoing(strings.Replace(vm, "0c6f", "00"+string("0123456789abcdef"[i%16])+string("01"[i/16]), 1))
	}
	for _, id := range ids[:3] {
		if _, err := table.Begin(id); err != nil {
			t.Fatal(err)
		}
	}
	_, err := table.Begin(ids[3])
	wantReason(t, err, v1.Reason_REASON_LIMIT_EXCEEDED)
	all := func(Record) bool { return true }
	none := func(Record) bool { return false }
	if got := table.AbortAll(Restart, refusal.New(v1.Reason_REASON_RESTARTED, "x"), none); len(got) != 3 {
		t.Errorf("aborted %d", len(got))
	}
	for _, id := range ids[3:] {
		clock.step(time.Second)
		if _, err := table.Begin(id); err != nil {
			t.Fatal(err)
		}
		table.AbortAll(Abort, refusal.New(v1.Reason_REASON_ABORTED, "x"), none)
	}
	if got := table.List(all); len(got) != 5 || got[4].Attempt != ids[19].Attempt {
		t.Errorf("%d sessions are remembered", len(got))
	}
}

func TestWatchersSeeEveryTransitionAndASlowOneIsDropped(t *testing.T) {
	table, _ := newTable(Limits{})
	first, _ := mustAppraise(t, table, outgoing(vm))
	w, now := table.Watch()
	if len(now) != 1 || now[0].State != Appraised {
		t.Errorf("the present: %+v", now)
	}
	if err := first.Arm("m1"); err != nil {
		t.Fatal(err)
	}
	if c := <-w.C; c.Previous != Appraised || c.Session.State != Armed || c.Session.MigrationID != "m1" || c.Event != Arm {
		t.Errorf("got %+v", c)
	}
	other := strings.Replace(vm, "0c", "1d", 1)
	for range watchBuffer {
		s, err := table.Begin(outgoing(other))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Abort(refusal.New(v1.Reason_REASON_ABORTED, "x")); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range w.C { // ends, because the watcher was dropped
		n++
	}
	if n != watchBuffer {
		t.Errorf("%d changes were kept", n)
	}
	w.Stop()
}

func TestAnIDUsedInAnEarlierLifeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "used")
	use := func(id string) bool {
		l, err := OpenLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fresh, err := l.Use(id)
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	if !use("m1") || use("m1") || !use("m2") || use("m2") || use("m1") {
		t.Error("the ledger forgets, or remembers what never was")
	}
}

func TestTheLedgerBearsACrashAndNoOtherDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "used")
	l, err := OpenLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"m1", "m2"} {
		if _, err := l.Use(id); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 65; cut < 130; cut++ { // a crash while m2 was written
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLedger(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		for id, want := range map[string]bool{"m1": false, "m2": true, "m3": true} {
			if fresh, err := l.Use(id); err != nil || fresh != want {
				t.Errorf("cut at %d: %s is fresh: %v, %v", cut, id, fresh, err)
			}
		}
		l.Close()
	}
	if err := os.WriteFile(path, append([]byte("rubbish\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(path); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("damage: %v", err)
	}
}
