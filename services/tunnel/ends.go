package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Bounds of connections that have not proven anything yet: in all, and from one address.
const (
	maxUnproven     = 64
	maxUnprovenEach = 16
)

// acceptPause is how long a shortage of descriptors is waited out.
const acceptPause = 50 * time.Millisecond

// Source is the end where QEMU's outgoing connections of one VM and one channel come in, under one session.
type Source struct {
	Instance string
	Channel  Channel
	Session  SessionID
	// Dial reaches the destination's tunnel.
	Dial     func(context.Context) (net.Conn, error)
	Keys     Keys
	Flows    *Flows
	Patience Patience
	Log      *slog.Logger
}

// Serve takes connections of QEMU from l until ctx ends, and returns when all have ended.
func (s *Source) Serve(ctx context.Context, l net.Listener) error {
	return serve(ctx, l, func(ctx context.Context, local net.Conn) func() {
		f, err := s.Flows.begin(s.Instance, s.Session, s.Channel, outgoing)
		if err != nil {
			s.Log.Warn("QEMU's connection is refused", "instance", s.Instance, "channel", s.Channel.String(), "why", err)
			_ = local.Close()
			return nil
		}
		// One after the other, so that they reach the other QEMU in the order in which this one opened them.
		remote, err := s.open(ctx)
		if err != nil {
			f.end(s.Log, errors.Join(err, ignoreClosed(local.Close())))
			return nil
		}
		f.carries(remote.conn.RemoteAddr())
		return func() { f.end(s.Log, relay(ctx, s.Patience, local, remote, f)) }
	})
}

func (s *Source) open(ctx context.Context) (*secured, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Patience.Prove)
	defer cancel()
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("the destination's tunnel: %w", err)
	}
	defer deadline(ctx, conn)()
	remote, err := s.greet(ctx, conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the destination's tunnel at %v: %w", conn.RemoteAddr(), err), ignoreClosed(conn.Close()))
	}
	return remote, nil
}

func (s *Source) greet(ctx context.Context, conn net.Conn) (*secured, error) {
	var nonceD [nonceSize]byte
	if _, err := io.ReadFull(conn, nonceD[:]); err != nil {
		return nil, err
	}
	h := hello{channel: s.Channel, instance: s.Instance, session: s.Session, nonce: newNonce()}
	id := connectionID(h.nonce, nonceD)
	key, session, err := s.Keys.TunnelKey(ctx, s.Instance, id)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if session != s.Session {
		return nil, fmt.Errorf("%w: the node's key is of session %x, the socket was made for %x", ErrSession, session, s.Session)
	}
	greeting := h.encode()
	if _, err := conn.Write(greeting); err != nil {
		return nil, err
	}
	remote, err := secure(conn, s.Patience, key, id, true)
	if err != nil {
		return nil, err
	}
	shown := proof(nonceD, greeting)
	if err := remote.prove(shown); err != nil { // who is asked to prove first is whoever came
		return nil, err
	}
	return remote, remote.check(shown)
}

// Incoming knows the sessions under which VMs come to this host.
type Incoming interface {
	// Incoming returns the armed session and a context that ends with it. Until ctx ends it waits for one; then the error is ErrSession.
	Incoming(ctx context.Context, instance string) (SessionID, context.Context, error)
}

// Destination is the end that reaches the incoming QEMUs, for any VM that has a session.
type Destination struct {
	Sessions Incoming
	// Reach connects to the QEMU that waits for the VM.
	Reach    func(ctx context.Context, instance string, c Channel) (net.Conn, error)
	Keys     Keys
	Flows    *Flows
	Patience Patience
	Log      *slog.Logger
}

// Serve takes connections of other tunnels from l until ctx ends, and returns when all have ended.
func (d *Destination) Serve(ctx context.Context, l net.Listener) error {
	var door doorway
	return serve(ctx, l, func(ctx context.Context, conn net.Conn) func() {
		leave, err := door.enter(conn.RemoteAddr())
		if err != nil {
			d.Flows.refused(err)
			d.Log.Warn("a connection is refused", "peer", conn.RemoteAddr().String(), "why", err)
			_ = conn.Close()
			return nil
		}
		return func() {
			a, err := d.admit(ctx, conn)
			leave()
			if err != nil {
				d.Flows.refused(err)
				d.Log.Warn("a connection is refused", "peer", conn.RemoteAddr().String(), "why", err)
				_ = conn.Close()
				return
			}
			defer a.cancel()
			a.flow.end(d.Log, relay(a.life, d.Patience, a.local, a.remote, a.flow))
		}
	})
}

// admitted is a connection that has proven its session and has its QEMU.
type admitted struct {
	remote *secured
	local  net.Conn
	flow   *flow
	life   context.Context
	cancel context.CancelFunc
}

// admit has the other side prove the session before QEMU hears of it.
func (d *Destination) admit(ctx context.Context, conn net.Conn) (_ *admitted, err error) {
	proving, cancel := context.WithTimeout(ctx, d.Patience.Prove)
	defer cancel()
	defer deadline(proving, conn)()
	nonceD := newNonce()
	if _, err := conn.Write(nonceD[:]); err != nil {
		return nil, err
	}
	greeting := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHello, err)
	}
	h, err := parseHello(greeting)
	if err != nil {
		return nil, err
	}
	settling, settled := context.WithTimeout(proving, d.Patience.Settle)
	session, life, err := d.Sessions.Incoming(settling, h.instance)
	settled()
	if err != nil {
		return nil, err
	}
	if session != h.session {
		return nil, fmt.Errorf("%w: it names session %x, the VM's is %x", ErrSession, h.session, session)
	}
	id := connectionID(h.nonce, nonceD)
	key, derived, err := d.Keys.TunnelKey(proving, h.instance, id)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if derived != session {
		return nil, fmt.Errorf("%w: the node's key is of session %x, not %x", ErrSession, derived, session)
	}
	remote, err := secure(conn, d.Patience, key, id, false)
	if err != nil {
		return nil, err
	}
	shown := proof(nonceD, greeting)
	if err := remote.check(shown); err != nil {
		return nil, err
	}
	a := &admitted{remote: remote}
	if a.flow, err = d.Flows.begin(h.instance, h.session, h.channel, incoming); err != nil {
		return nil, err
	}
	if a.local, err = d.Reach(proving, h.instance, h.channel); err != nil {
		err = fmt.Errorf("the QEMU that waits for instance %s: %w", h.instance, err)
	} else if err = remote.prove(shown); err != nil {
		_ = a.local.Close()
	}
	if err != nil {
		a.flow.end(d.Log, err)
		return nil, err
	}
	a.flow.carries(conn.RemoteAddr())
	// It lives as long as its session, and no longer than this end.
	whole, end := context.WithCancelCause(life)
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	a.life, a.cancel = whole, func() { stop(); end(nil) }
	return a, nil
}

// doorway bounds connections that have not proven anything yet, so that one address cannot keep the others out.
type doorway struct {
	mu   sync.Mutex
	all  int
	from map[string]int
}

func (d *doorway) enter(addr net.Addr) (leave func(), err error) {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		host = addr.String() // a unix socket: all of them are one
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= maxUnproven || d.from[host] >= maxUnprovenEach {
		return nil, fmt.Errorf("%w that have proven nothing: %d, of them %d from %s", ErrLimit, d.all, d.from[host], host)
	}
	if d.from == nil {
		d.from = map[string]int{}
	}
	d.all++
	d.from[host]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all--
		if d.from[host]--; d.from[host] == 0 {
			delete(d.from, host)
		}
	}, nil
}

// serve runs handle for each connection, one after the other, and what it returns (if anything) beside the rest, until ctx ends.
func serve(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn) func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
			select { // of one connection, or of a moment
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			cancel(err)
			return err
		}
		if rest := handle(ctx, conn); rest != nil {
			all.Go(rest)
		}
	}
}
