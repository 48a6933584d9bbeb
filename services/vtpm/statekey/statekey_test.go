package statekey

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/escrow"
)

func TestTheDigestIsOfSwtpmsFilesAndOfNothingElse(t *testing.T) {
	dir := t.TempDir()
	of := func() string {
		t.Helper()
		d, err := Digest(dir)
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(d)
	}
	if of() != "" {
		t.Error("an empty directory has a state")
	}
	for _, other := range []string{".lock", "TMP2-00.permall", "pid", "tpm2-00.permall.bak"} {
		if err := os.WriteFile(filepath.Join(dir, other), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if of() != "" {
		t.Error("other files are a state")
	}
	write(t, dir, permall, "one")
	one := of()
	// printf 'safeconduct/v1/state-at-rest\017tpm2-00.permall' | cat - <(printf one | sha256sum | cut -c1-64 | xxd -r -p) | sha256sum
	if one != "d07271422a9d2d5c66198b12e97a229754616dbe53947b43684a247d7611c18c" {
		t.Errorf("the digest is %s", one)
	}
	write(t, dir, "tpm2-00.volatilestate", "two")
	both := of()
	write(t, dir, "tpm2-00.volatilestate", "three")
	if both == one || of() == both {
		t.Error("the volatile state does not count")
	}
	if err := os.Remove(filepath.Join(dir, "tpm2-00.volatilestate")); err != nil {
		t.Fatal(err)
	}
	if of() != one {
		t.Error("the same state has another digest")
	}
}

func TestAStateThatIsNoneOfSwtpmsIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, permall), make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Digest(dir); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	_ = os.Remove(filepath.Join(dir, permall))
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, permall)); err != nil {
		t.Fatal(err)
	}
	if _, err := Digest(dir); err == nil {
		t.Error("a link is followed")
	}
	_ = os.Remove(filepath.Join(dir, permall))
	if err := os.Mkdir(filepath.Join(dir, permall), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Digest(dir); err == nil {
		t.Error("a directory has a digest")
	}
	if s, err := Open(t.Context(), options(newNode(), dir)); err == nil {
		t.Error("opened", s.Close())
	}
	if s, err := Open(t.Context(), options(newNode(), filepath.Join(dir, "none"))); !errors.Is(err, os.ErrNotExist) {
		t.Error(s, err)
	}
}

func TestTheKeyGoesByAPipeAndIsTakenOnce(t *testing.T) {
	n := newNode()
	s := opens(t, n, t.TempDir())
	f, args, err := s.ForSWTPM()
	if err != nil {
		t.Fatal(err)
	}
	key, err := io.ReadAll(f)
	if err != nil || len(key) != KeySize || bytes.Equal(key, make([]byte, KeySize)) {
		t.Errorf("%d bytes, %v", len(key), err)
	}
	if !strings.HasPrefix(args[1], "fd=") || !strings.HasSuffix(args[1], ",mode=aes-256-cbc,format=binary") {
		t.Errorf("%v", args)
	}
	if _, _, err := s.ForSetup(); !errors.Is(err, errTaken) {
		t.Errorf("taken again: %v", err)
	}
	if err := errors.Join(f.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	s = opens(t, n, t.TempDir())
	f, args, err = s.ForSetup()
	if err != nil || args[0] != "--keyfile-fd" || args[2] != "--cipher" {
		t.Fatal(args, err)
	}
	if text, err := io.ReadAll(f); err != nil || string(text) != hex.EncodeToString(key) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(f.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

func TestEveryWriteIsRecordedAndOldStatesAreNotOpened(t *testing.T) {
	n, dir, backup := newNode(), t.TempDir(), t.TempDir()
	s := opens(t, n, dir)
	write(t, dir, permall, "1")
	n.await(t, dir)
	copyState(t, dir, backup)
	write(t, dir, permall, "2")
	n.await(t, dir)
	write(t, dir, permall, "3")
	if err := s.Close(); err != nil { // the last write, too
		t.Fatal(err)
	}
	n.await(t, dir)
	if err := opens(t, n, dir).Close(); err != nil {
		t.Error(err)
	}
	copyState(t, backup, dir)
	refuses(t, "an old state", n, dir, v1.Reason_REASON_STATE_ROLLED_BACK)
	write(t, dir, permall, "of another origin")
	refuses(t, "an unknown state", n, dir, v1.Reason_REASON_STATE_NOT_RECORDED)
	refuses(t, "a copy on another node", newNode(), dir, v1.Reason_REASON_NO_STATE_KEY)
}

func TestACrashBetweenWriteAndRecordIsForTheOperator(t *testing.T) {
	n, dir := newNode(), t.TempDir()
	s := opens(t, n, dir)
	write(t, dir, permall, "1")
	n.await(t, dir)
	n.fails(true)
	write(t, dir, permall, "2")
	s.end() // the host crashes: nothing is recorded at the end
	s.watching.Wait()
	_ = s.watcher.Close()
	n.fails(false)
	refuses(t, "what was written and not recorded", n, dir, v1.Reason_REASON_STATE_NOT_RECORDED)
	digest, err := Digest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.AcceptState(t.Context(), vm, digest); err != nil {
		t.Fatal(err)
	}
	if err := opens(t, n, dir).Close(); err != nil {
		t.Error(err)
	}
}

func TestANodeThatIsDownOrLosesAnswersMissesNoState(t *testing.T) {
	n, dir := newNode(), t.TempDir()
	s := opens(t, n, dir)
	n.fails(true)
	write(t, dir, permall, "1")
	write(t, dir, permall, "2")
	n.mu.Lock()
	recorded := n.recorded
	n.down, n.mute = false, true // it records, and is not heard
	n.mu.Unlock()
	<-recorded
	write(t, dir, permall, "3")
	n.fails(false)
	n.await(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := opens(t, n, dir).Close(); err != nil {
		t.Error(err)
	}
}

func TestANodeThatIsDownOpensNothing(t *testing.T) {
	n := newNode()
	n.fails(true)
	o := options(n, t.TempDir())
	o.Patience = 2 * retryPause
	if s, err := Open(t.Context(), o); !errors.Is(err, errDown) {
		t.Error(s, err)
	}
}

// busy is a Keeper whose VM has another helper, for a moment.
type busy struct {
	*node
	left int
}

func (b *busy) OpenState(ctx context.Context, digest []byte, follows bool) (Opened, error) {
	if b.left--; b.left >= 0 {
		return Opened{}, refusal.New(v1.Reason_REASON_HELPER_CONFLICT, "another")
	}
	return b.node.OpenState(ctx, digest, follows)
}

func TestAnEarlierHelperOfTheVMIsWaitedFor(t *testing.T) {
	o := options(nil, t.TempDir())
	o.Keeper = &busy{node: newNode(), left: 3}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// short is a Keeper whose key is of another size.
type short struct{ *node }

func (s *short) OpenState(context.Context, []byte, bool) (Opened, error) {
	return Opened{Key: make([]byte, KeySize-1)}, nil
}

func TestAKeyOfAnotherSizeIsRefused(t *testing.T) {
	o := options(nil, t.TempDir())
	o.Keeper = &short{newNode()}
	if s, err := Open(t.Context(), o); err == nil {
		t.Error(s.Close())
	}
}

func TestARecordThatIsRefusedIsSaidOnceAndLoudly(t *testing.T) {
	n, dir := newNode(), t.TempDir()
	var log bytes.Buffer
	o := options(n, dir)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, permall, "1")
	n.await(t, dir)
	if _, err := n.Store.RecordState(t.Context(), vm, s.digestNow(t), bytes.Repeat([]byte{7}, 32)); err != nil { // by somebody else
		t.Fatal(err)
	}
	write(t, dir, permall, "2")
	want(t, "the last record", s.Close(), v1.Reason_REASON_STATE_ROLLED_BACK)
	if got := strings.Count(log.String(), "level=ERROR"); got != 1 || !strings.Contains(log.String(), "reason=STATE_ROLLED_BACK") {
		t.Errorf("%d errors in the log:\n%s", got, log.String())
	}
}

func (s *State) digestNow(t *testing.T) []byte {
	t.Helper()
	d, err := Digest(s.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAVMThatHasLeftIsNoError(t *testing.T) {
	n, dir := newNode(), t.TempDir()
	s := opens(t, n, dir)
	if _, err := n.Forget(t.Context(), vm, ""); err != nil {
		t.Fatal(err)
	}
	write(t, dir, permall, "1")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = opens(t, n, t.TempDir())
	if err := os.RemoveAll(s.o.Dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("the directory is gone: %v", err)
	}
}

func TestAStateOnSharedStorageFollowsTheVM(t *testing.T) {
	src, dst, shared := newNode(), newNode(), t.TempDir()
	s := opens(t, src, shared)
	write(t, shared, permall, "the source's")
	src.await(t, shared)
	move(t, src, dst)
	o := options(dst, shared)
	if _, err := Open(t.Context(), o); err == nil {
		t.Error("the source's state is opened as the destination's")
	}
	o.Follows = true
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	write(t, shared, permall, "the destination's")
	dst.await(t, shared)
	if err := errors.Join(d.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

var session = escrow.SessionID{1}

// move takes the VM's secrets from one node to the other, in a session that is open afterwards.
func move(t *testing.T, from, to *node) {
	t.Helper()
	if err := from.Each(t.Context(), vm, func(id string, secret []byte, _ int) error {
		return to.Receive(t.Context(), session, vm, id, secret)
	}); err != nil {
		t.Fatal(err)
	}
	to.session = &session
}

// commit ends it well.
func commit(t *testing.T, from, to *node) {
	t.Helper()
	to.session = nil
	if err := errors.Join(to.Promote(t.Context(), session, vm), from.Moved(t.Context(), vm)); err != nil {
		t.Fatal(err)
	}
}
