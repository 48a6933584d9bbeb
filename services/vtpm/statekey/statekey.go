// Package statekey keeps a vTPM's state at rest under a key of the node's enclave: it gets the key for swtpm when the state is the one that was recorded
// last, and has each state that swtpm writes recorded, until swtpm has ended.
//
// Open, then ForSWTPM or ForSetup for the program that is started, Close when it has ended. What is guarded against whom is in docs/threat-model.md:
// everything here is a process of the host.
package statekey

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// KeySize is the size of a state key in bytes.
const KeySize = 32

const (
	// DefaultPatience bounds Open. libvirt gives swtpm a second to show its control socket, and Open comes before.
	DefaultPatience = 800 * time.Millisecond
	// retryPause is between two attempts to reach the node service.
	retryPause = 50 * time.Millisecond
	// gap is the least time between two records, so that a guest that writes much does not keep the enclave's disk busy. A host that crashes meanwhile
	// leaves a state that is not recorded.
	gap = 100 * time.Millisecond
	// callTimeout bounds one record; lastPatience all attempts at the last one, when swtpm has ended and the node service is down.
	callTimeout  = 2 * time.Second
	lastPatience = 5 * time.Second
)

// Opened is what the node service says of a state that it opens. The receiver wipes the key.
type Opened struct {
	Key        []byte
	Generation uint64
	// Recorded is the digest of the state that was recorded last; empty: none was.
	Recorded []byte
}

// Keeper is the node service. Its refusals are *refusal.Refusal; any other error is worth another attempt.
type Keeper interface {
	OpenState(ctx context.Context, digest []byte, follows bool) (Opened, error)
	RecordState(ctx context.Context, previous, digest []byte) (generation uint64, err error)
}

// Options of Open.
type Options struct {
	Keeper Keeper
	// Dir is swtpm's state directory. It exists.
	Dir string
	// Follows: swtpm waits for a migration over storage that both hosts share, so that what is in Dir is the source's.
	Follows bool
	// Patience bounds Open; 0 means DefaultPatience.
	Patience time.Duration
	Log      *slog.Logger
}

// State is an opened state. ForSWTPM or ForSetup is called once, Close in any case.
type State struct {
	o       Options
	key     []byte
	watcher *fsnotify.Watcher
	// life ends with Close; watching is the goroutine that records.
	end      context.CancelFunc
	watching sync.WaitGroup

	// recorded is the digest that the node service holds; sent one whose record was not answered; refused one that it will not take. They are the
	// goroutine's until watching is over.
	recorded, sent, refused []byte
}

// Open asks the node service for the key of the state in o.Dir, and watches it from then on. It waits, for a moment, for a node service that is down and
// for an earlier helper of the VM to end. Errors: those of Keeper, of the file system, and ErrTooLarge.
func Open(ctx context.Context, o Options) (_ *State, err error) {
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	watcher, err := fsnotify.NewWatcher() // before the digest: nothing that is written after it is missed
	if err != nil {
		return nil, fmt.Errorf("watching the state: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, watcher.Close())
		}
	}()
	if err := watcher.Add(o.Dir); err != nil {
		return nil, fmt.Errorf("watching the state in %s: %w", o.Dir, err)
	}
	digest, err := Digest(o.Dir)
	if err != nil {
		return nil, err
	}
	opened, err := ask(ctx, &o, digest)
	if err != nil {
		return nil, fmt.Errorf("the key of the state in %s: %w", o.Dir, err)
	}
	if len(opened.Key) != KeySize {
		clear(opened.Key)
		return nil, fmt.Errorf("the key of the state in %s has %d bytes, not %d", o.Dir, len(opened.Key), KeySize)
	}
	o.Log.Info("the state at rest is under a key of the enclave", "generation", opened.Generation, "new", len(digest) == 0)
	s := &State{o: o, key: opened.Key, watcher: watcher, recorded: opened.Recorded}
	ctx, s.end = context.WithCancel(context.WithoutCancel(ctx)) // what swtpm writes when it is stopped is recorded too
	s.watching.Go(func() { s.watch(ctx) })
	return s, nil
}

func ask(ctx context.Context, o *Options, digest []byte) (Opened, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Patience)
	defer cancel()
	for {
		opened, err := o.Keeper.OpenState(ctx, digest, o.Follows)
		if err == nil || final(err) || !pause(ctx, retryPause) {
			return opened, err
		}
	}
}

// final says that another attempt would be refused as this one was. An earlier helper of the VM that is attached is about to end.
func final(err error) bool {
	r := new(refusal.Refusal)
	if !errors.As(err, &r) {
		return false
	}
	switch r.Reason {
	case v1.Reason_REASON_HELPER_CONFLICT, v1.Reason_REASON_PEER_UNAVAILABLE, v1.Reason_REASON_INTERNAL, v1.Reason_REASON_RESTARTED:
		return false
	default:
		return true
	}
}

// pause waits and says whether ctx still lasts.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ForSWTPM returns a pipe with the key, which the child inherits under the same number and the caller closes once the child has started, and swtpm's
// arguments for it.
func (s *State) ForSWTPM() (*os.File, []string, error) {
	defer s.wipe()
	f, err := pipe(s.key)
	if err != nil {
		return nil, nil, err
	}
	return f, []string{"--key", fmt.Sprintf("fd=%d,mode=aes-256-cbc,format=binary", f.Fd())}, nil
}

// ForSetup is ForSWTPM for swtpm_setup, which takes the key in hex.
func (s *State) ForSetup() (*os.File, []string, error) {
	defer s.wipe()
	text := make([]byte, hex.EncodedLen(len(s.key)))
	defer clear(text)
	hex.Encode(text, s.key)
	f, err := pipe(text)
	if err != nil {
		return nil, nil, err
	}
	return f, []string{"--keyfile-fd", fmt.Sprint(f.Fd()), "--cipher", "aes-256-cbc"}, nil
}

func (s *State) wipe() {
	clear(s.key)
	s.key = nil
}

var errTaken = errors.New("the state key was taken before")

// pipe returns the reading end of a pipe that has text to read and then ends. A pipe takes that much without a reader.
func pipe(text []byte) (*os.File, error) {
	if len(text) == 0 {
		return nil, errTaken
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("the pipe for the state key: %w", err)
	}
	_, err = w.Write(text)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("the pipe for the state key: %w", err), r.Close())
	}
	return r, nil
}

// Close ends the watch and has the last state recorded; it is called when the program that writes it has ended. A state that could not be recorded is
// an error: the VM does not start with it until an operator accepts it.
func (s *State) Close() error {
	s.end()
	s.watching.Wait()
	s.wipe()
	ctx, cancel := context.WithTimeout(context.Background(), lastPatience)
	defer cancel()
	for {
		err := s.record(ctx)
		if errors.Is(err, refusal.Because(v1.Reason_REASON_NO_STATE_KEY)) {
			err = nil // the VM has left: nothing is to be opened here
		}
		if settled(err) || !pause(ctx, retryPause) {
			return errors.Join(err, s.watcher.Close())
		}
	}
}

// settled says that there is no use in trying the same again.
func settled(err error) bool { return err == nil || final(err) || errors.Is(err, errHere) }

// watch records what swtpm writes until ctx ends.
func (s *State) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-s.watcher.Events:
			if !ok || !isState(e.Name) {
				continue
			}
		case err := <-s.watcher.Errors: // such as events that were lost
			s.o.Log.Warn("watching the state", "why", err)
		}
		if !s.persist(ctx) {
			return
		}
	}
}

// persist records until it is settled, and then leaves the gap. It says whether ctx still lasts.
func (s *State) persist(ctx context.Context) bool {
	for wait := gap; ; wait = min(2*wait, lastPatience) {
		err := s.record(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case settled(err):
			return pause(ctx, gap)
		case wait == gap: // once: a node that is down stays down for a while
			s.o.Log.Warn("the state that swtpm has written is not recorded yet; trying on", "why", err)
		}
		if !pause(ctx, wait) {
			return false
		}
	}
}

// errHere marks errors of this host's file system.
var errHere = errors.New("the state cannot be read")

// record has the state as it is now recorded, unless it is. A record that was not answered is said again first, as it was: it may have been taken.
func (s *State) record(ctx context.Context) error {
	if s.sent != nil {
		if err := s.send(ctx, s.sent); err != nil {
			return err
		}
	}
	digest, err := settle(s.o.Dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errHere, err)
	}
	if len(digest) == 0 || bytes.Equal(digest, s.recorded) {
		return nil
	}
	return s.send(ctx, digest)
}

func (s *State) send(ctx context.Context, digest []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s.sent = digest
	generation, err := s.o.Keeper.RecordState(ctx, s.recorded, digest)
	switch {
	case err == nil:
		s.recorded, s.sent = digest, nil
		s.o.Log.Debug("state recorded", "generation", generation)
	case final(err):
		s.sent = nil
		if !bytes.Equal(s.refused, digest) {
			s.explain(err)
		}
		s.refused = digest
	}
	return err
}

// explain logs a refusal. A key that is no longer here is what a migration leaves.
func (s *State) explain(err error) {
	if errors.Is(err, refusal.Because(v1.Reason_REASON_NO_STATE_KEY)) {
		s.o.Log.Info("what swtpm writes is recorded no more: the VM has left, or its migration here has ended", "why", err)
		return
	}
	r := refusal.From(err)
	s.o.Log.Error("the state that swtpm has written is not recorded", "reason", refusal.Name(r.Reason), "why", err, "found", r.Found, "expected", r.Expected,
		"do", r.RemedyText())
}
