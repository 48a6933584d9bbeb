package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// What ends a session's connections.
var (
	errAborted   = errors.New("the session has ended without a commit")
	errCommitted = errors.New("the session was committed a while ago")
	errLost      = errors.New("the node service cannot be asked whether the session still stands")
	errStopped   = errors.New("the tunnel stops")
)

// Armed is a session under which the tunnel carries.
type Armed struct {
	ID       SessionID
	Instance string
	// Source: this host is the VM's source, and Peer its destination's name; otherwise the reverse.
	Source bool
	Peer   string
}

// Sessions are the armed sessions of the node service, as far as it has told. It is what decides how long a connection lives.
type Sessions struct {
	mode  v1.Mode
	drain time.Duration
	log   *slog.Logger
	// opened is called with each session that is armed; ctx ends with it.
	opened func(ctx context.Context, a Armed)

	mu         sync.Mutex
	live       map[SessionID]*life
	byInstance map[string]*life
	news       chan struct{} // closed and replaced when a session is armed
}

type life struct {
	Armed
	ctx    context.Context
	cancel context.CancelCauseFunc
	// draining, if not nil, cancels when the connections of a committed session have had their time.
	draining *time.Timer
}

// NewSessions returns the sessions of a node service in a mode, without any. opened, if not nil, is called with each session that is armed, and a
// context that ends with it; it does not block.
func NewSessions(mode v1.Mode, drain time.Duration, log *slog.Logger, opened func(ctx context.Context, a Armed)) *Sessions {
	return &Sessions{
		mode: mode, drain: drain, log: log, opened: opened, live: map[SessionID]*life{}, byInstance: map[string]*life{}, news: make(chan struct{}),
	}
}

// Incoming implements Incoming.
func (s *Sessions) Incoming(ctx context.Context, instance string) (SessionID, context.Context, error) {
	for {
		s.mu.Lock()
		l, news := s.byInstance[instance], s.news
		expected := l != nil && !l.Source && l.draining == nil
		s.mu.Unlock()
		if expected {
			return l.ID, l.ctx, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return SessionID{}, nil, fmt.Errorf("%w: instance %.36q is not expected on this host", ErrSession, instance)
		}
	}
}

// Update takes the state of one session.
func (s *Sessions) Update(ctx context.Context, v *v1.Session) {
	if len(v.GetSessionId()) != sessionSize || len(v.GetInstanceId()) != instanceSize {
		return
	}
	id := SessionID(v.GetSessionId())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch v.GetState() {
	case v1.SessionState_SESSION_STATE_ARMED, v1.SessionState_SESSION_STATE_TRANSFERRING:
		s.arm(ctx, id, v)
	case v1.SessionState_SESSION_STATE_COMMITTED:
		// The VM has moved; its connections are about to end by themselves.
		if l := s.live[id]; l != nil && l.draining == nil {
			l.draining = time.AfterFunc(s.drain, func() { s.end(id, errCommitted) })
		}
	case v1.SessionState_SESSION_STATE_ABORTED:
		s.endLocked(id, errAborted)
	default: // not yet armed
	}
}

func (s *Sessions) arm(ctx context.Context, id SessionID, v *v1.Session) {
	if s.live[id] != nil {
		return
	}
	if v.GetMode() != s.mode {
		s.log.Error("a session of another mode is not carried: correct mode in the tunnel's configuration", "session", fmt.Sprintf("%x", id),
			"found", v.GetMode().String(), "expected", s.mode.String())
		return
	}
	if old := s.byInstance[v.GetInstanceId()]; old != nil {
		s.endLocked(old.ID, errAborted) // a VM has one session
	}
	l := &life{Armed: Armed{
		ID: id, Instance: v.GetInstanceId(), Source: v.GetRole() == v1.Role_ROLE_SOURCE, Peer: v.GetDestinationHost(),
	}}
	if !l.Source {
		l.Peer = v.GetSourceHost()
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	s.live[id], s.byInstance[l.Instance] = l, l
	close(s.news)
	s.news = make(chan struct{})
	s.log.Info("session armed", "instance", l.Instance, "session", fmt.Sprintf("%x", id), "source", l.Source, "peer", l.Peer)
	if s.opened != nil {
		s.opened(l.ctx, l.Armed)
	}
}

// Only ends every session that is not among these: the node service has been asked for all that are open.
func (s *Sessions) Only(open []*v1.Session) {
	known := map[SessionID]bool{}
	for _, v := range open {
		if len(v.GetSessionId()) == sessionSize {
			known[SessionID(v.GetSessionId())] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.live {
		if !known[id] && l.draining == nil {
			s.endLocked(id, errAborted)
		}
	}
}

// EndAll ends every session.
func (s *Sessions) EndAll(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.live {
		s.endLocked(id, why)
	}
}

func (s *Sessions) end(id SessionID, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(id, why)
}

func (s *Sessions) endLocked(id SessionID, why error) {
	l := s.live[id]
	if l == nil {
		return
	}
	if l.draining != nil {
		l.draining.Stop()
	}
	delete(s.live, id)
	if s.byInstance[l.Instance] == l {
		delete(s.byInstance, l.Instance)
	}
	l.cancel(why)
	s.log.Info("session ended", "instance", l.Instance, "session", fmt.Sprintf("%x", id), "why", why)
}
