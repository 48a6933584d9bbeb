package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/image"
)

// files are where one image travels: plain on the source, sealed between, opened at the destination.
type files struct{ plain, sealed, opened string }

func newFiles(t *testing.T, content []byte) files {
	t.Helper()
	dir := t.TempDir()
	f := files{filepath.Join(dir, "plain"), filepath.Join(dir, "sealed"), filepath.Join(dir, "opened")}
	if err := os.WriteFile(f.plain, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f files) protect(ctx context.Context, r *rig, progress func(done, all int64)) error {
	return image.Protect(ctx, r.src.crypto(), image.Options{
		Instance: vmID, Name: "nv.img", In: f.plain, Out: f.sealed, Part: mib, Progress: progress,
	})
}

func (f files) unprotect(ctx context.Context, r *rig, progress func(done, all int64)) error {
	return image.Unprotect(ctx, r.dst.crypto(), image.Options{Instance: vmID, Name: "nv.img", In: f.sealed, Out: f.opened, Progress: progress})
}

func (f files) wantOpened(t *testing.T, content []byte) {
	t.Helper()
	got, err := os.ReadFile(f.opened)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("opened %d bytes of %d, %v", len(got), len(content), err)
	}
	for _, left := range []string{f.opened + ".part", f.opened + ".progress", f.sealed + ".part", f.sealed + ".progress"} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is left", filepath.Base(left))
		}
	}
}

func TestAFileOfAnySizeCrosses(t *testing.T) {
	for name, size := range map[string]int{"empty": 0, "one byte": 1, "exactly two parts": 2 * mib, "many parts": 5*mib + 17} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.armed(t, "m1")
			content := random(size)
			f := newFiles(t, content)
			if err := f.protect(t.Context(), r, nil); err != nil {
				t.Fatal(err)
			}
			var last, all int64
			if err := f.unprotect(t.Context(), r, func(d, a int64) { last, all = d, a }); err != nil {
				t.Fatal(err)
			}
			f.wantOpened(t, content)
			if last != all || all == 0 {
				t.Errorf("progress ended at %d of %d", last, all)
			}
		})
	}
}

func TestATransferThatBrokeOffGoesOnWhereItStopped(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	content := random(6*mib + 5)
	f := newFiles(t, content)
	brokenAfter := func(parts int, run func(context.Context, *rig, func(done, all int64)) error) int {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		err := run(ctx, r, func(int64, int64) {
			if n++; n == parts {
				cancel()
			}
		})
		if err == nil {
			t.Fatal("it did not break off")
		}
		return n
	}
	for _, side := range []struct {
		name string
		run  func(context.Context, *rig, func(done, all int64)) error
	}{{"protect", f.protect}, {"unprotect", f.unprotect}} {
		done := brokenAfter(2, side.run) + brokenAfter(3, side.run)
		if err := side.run(t.Context(), r, func(int64, int64) { done++ }); err != nil {
			t.Fatalf("%s: %v", side.name, err)
		}
		if done != 7 {
			t.Errorf("%s: %d parts were done, not 7: some were done again", side.name, done)
		}
	}
	f.wantOpened(t, content)
}

func TestATransferOfAnotherSessionBeginsAnew(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	content := random(3 * mib)
	f := newFiles(t, content)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := f.protect(ctx, r, func(int64, int64) { cancel() }); err == nil {
		t.Fatal("it did not break off")
	}
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	if err := f.protect(t.Context(), r, nil); !errors.Is(err, refusal.Because(v1.Reason_REASON_NO_ARMED_SESSION)) {
		t.Fatalf("without a session: %v", err)
	}
	r.armed(t, "m2")
	if err := f.protect(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.unprotect(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	f.wantOpened(t, content)
}

func TestAnInputThatChangedIsRefused(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	f := newFiles(t, random(3*mib))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := f.protect(ctx, r, func(int64, int64) { cancel() }); err == nil {
		t.Fatal("it did not break off")
	}
	if err := os.Chtimes(f.plain, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := f.protect(t.Context(), r, nil); !errors.Is(err, image.ErrChanged) {
		t.Errorf("got %v", err)
	}
}

func TestAnAlteredContainerGivesNoFile(t *testing.T) {
	for name, alter := range map[string]func([]byte) []byte{
		"cut short":                 func(b []byte) []byte { return b[:len(b)-1] },
		"without its last part":     func(b []byte) []byte { return b[:8+17+binary.BigEndian.Uint64(b[8+9:])] },
		"something behind it":       func(b []byte) []byte { return append(b, 0) },
		"another magic":             func(b []byte) []byte { b[0] ^= 1; return b },
		"a flipped bit in a part":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a first part said to last": func(b []byte) []byte { b[8+8] = 1; return b },
		"an offset that is not so":  func(b []byte) []byte { b[8+7] ^= 1; return b },
		"an empty file":             func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.armed(t, "m1")
			f := newFiles(t, random(2*mib+3))
			if err := f.protect(t.Context(), r, nil); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(f.sealed)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f.sealed, alter(raw), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := f.unprotect(t.Context(), r, nil); err == nil {
				t.Error("it is accepted")
			}
			if _, err := os.Stat(f.opened); err == nil {
				t.Error("a file appeared")
			}
		})
	}
}
