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

// maxUnproven bounds connections that have not proven anything yet.
const maxUnproven = 64

// acceptPause is how long a shortage of descriptors is waited out.
const acceptPause = 50 * time.Millisecond

// Source is the end where QEMU's outgoing migration connects, for one VM.
type Source struct {
	Instance string
	// Dial reaches the destination's tunnel.
	Dial func(context.Context) (net.Conn, error)
	Keys Keys
	Log  *slog.Logger
	// Done, if not nil, is told of each connection that ended well.
	Done func(Report)
}

// Serve takes connections of QEMU from l until ctx ends, and returns when all have ended.
func (s *Source) Serve(ctx context.Context, l net.Listener) error {
	return serve(ctx, l, nil, func(ctx context.Context, local net.Conn) {
		begun := time.Now()
		report, err := s.carry(ctx, local)
		report.Instance, report.Elapsed = s.Instance, time.Since(begun)
		finish(s.Log, s.Done, report, err)
	})
}

func (s *Source) carry(ctx context.Context, local net.Conn) (Report, error) {
	remote, err := s.open(ctx)
	if err != nil {
		return Report{}, errors.Join(err, ignoreClosed(local.Close()))
	}
	sent, received, err := relay(ctx, local, remote)
	return Report{Sent: sent, Received: received}, err
}

func (s *Source) open(ctx context.Context) (*secured, error) {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("the destination's tunnel: %w", err)
	}
	remote, err := s.greet(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return remote, nil
}

func (s *Source) greet(ctx context.Context, conn net.Conn) (*secured, error) {
	defer deadline(ctx, conn)()
	var nonceD [nonceSize]byte
	if _, err := io.ReadFull(conn, nonceD[:]); err != nil {
		return nil, fmt.Errorf("the destination's tunnel: %w", err)
	}
	h := hello{instance: s.Instance, nonce: newNonce()}
	id := connectionID(h.nonce, nonceD)
	key, session, err := s.Keys.TunnelKey(ctx, s.Instance, id)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	h.session = session
	greeting := h.encode()
	if _, err := conn.Write(greeting); err != nil {
		return nil, err
	}
	return secure(conn, key, id, true, proof(nonceD, greeting))
}

// Destination is the end that reaches QEMU's incoming migration, for any VM.
type Destination struct {
	// Reach connects to the QEMU that waits for the VM.
	Reach func(ctx context.Context, instance string) (net.Conn, error)
	Keys  Keys
	Log   *slog.Logger
	// Done, if not nil, is told of each connection that ended well.
	Done func(Report)
}

// Serve takes connections of other tunnels from l until ctx ends, and returns when all have ended.
func (d *Destination) Serve(ctx context.Context, l net.Listener) error {
	unproven := make(chan struct{}, maxUnproven)
	return serve(ctx, l, unproven, func(ctx context.Context, conn net.Conn) {
		begun := time.Now()
		h, remote, err := d.admit(ctx, conn)
		<-unproven
		var report Report
		if err == nil {
			report, err = d.carry(ctx, h, remote)
		} else {
			err = errors.Join(err, ignoreClosed(conn.Close()))
		}
		report.Instance, report.Elapsed = h.instance, time.Since(begun)
		finish(d.Log, d.Done, report, err)
	})
}

// admit has the other side prove the session before QEMU hears of it.
func (d *Destination) admit(ctx context.Context, conn net.Conn) (h hello, _ *secured, err error) {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	defer deadline(ctx, conn)()
	nonceD := newNonce()
	if _, err := conn.Write(nonceD[:]); err != nil {
		return h, nil, err
	}
	greeting := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return h, nil, fmt.Errorf("%w: %w", ErrHello, err)
	}
	if h, err = parseHello(greeting); err != nil {
		return hello{}, nil, err
	}
	id := connectionID(h.nonce, nonceD)
	key, session, err := d.Keys.TunnelKey(ctx, h.instance, id)
	if err != nil {
		return h, nil, err
	}
	defer clear(key)
	if session != h.session {
		return h, nil, fmt.Errorf("%w: it names session %x, the VM's is %x", ErrProof, h.session, session)
	}
	remote, err := secure(conn, key, id, false, proof(nonceD, greeting))
	return h, remote, err
}

func (d *Destination) carry(ctx context.Context, h hello, remote *secured) (Report, error) {
	local, err := d.Reach(ctx, h.instance)
	if err != nil {
		return Report{}, errors.Join(fmt.Errorf("QEMU of instance %s: %w", h.instance, err), remote.conn.Close())
	}
	sent, received, err := relay(ctx, local, remote)
	return Report{Sent: sent, Received: received}, err
}

// serve runs handle for each connection until ctx ends. slots, if not nil, gets a token before each, which handle takes out: connections beyond its
// room wait in the kernel's queue.
func serve(ctx context.Context, l net.Listener, slots chan struct{}, handle func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		if slots != nil {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
		}
		conn, err := l.Accept()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
			if slots != nil {
				<-slots
			}
			select { // of one connection, or of a moment
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			cancel()
			return err
		}
		all.Go(func() { handle(ctx, conn) })
	}
}

// deadline makes conn's operations end with ctx, until the function it returns is called.
func deadline(ctx context.Context, conn net.Conn) (release func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = conn.SetDeadline(time.Time{})
		}
	}
}

func finish(log *slog.Logger, done func(Report), r Report, err error) {
	attrs := []any{"instance", r.Instance, "sent_bytes", r.Sent, "received_bytes", r.Received, "elapsed", r.Elapsed}
	if err != nil {
		log.Warn("the tunnel broke; the VM stays where it runs", append(attrs, "why", err)...)
		return
	}
	log.Info("the tunnel ended", attrs...)
	if done != nil {
		done(r)
	}
}

func ignoreNotConnected(err error) error {
	if errors.Is(err, syscall.ENOTCONN) {
		return nil // the other side has closed already
	}
	return ignoreClosed(err)
}
