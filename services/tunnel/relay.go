package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/safeconduct/safeconduct/crypto/livestream"
)

// Patience is how long a tunnel waits for what.
type Patience struct {
	// Prove bounds what happens before the first byte is passed on.
	Prove time.Duration
	// Alive is how long a direction has nothing to send before it gives a sign of life, and so how long a record that somebody took out
	// stays unnoticed.
	Alive time.Duration
	// Silence is how long a tunnel that waits for the other hears nothing before it takes it for dead: several signs of life.
	Silence time.Duration
	// Settle is how long a connection waits for the node service to tell of its session: word of it may be slower than the other host.
	Settle time.Duration
	// Drain is how long the connections of a session have to end by themselves once it is committed.
	Drain time.Duration
}

// DefaultPatience is that of the program. A VM may stand still for as long as Silence when the network goes at the moment of switch-over.
var DefaultPatience = Patience{
	Prove: 10 * time.Second, Settle: 2 * time.Second, Alive: time.Second, Silence: 10 * time.Second, Drain: 10 * time.Second,
}

// attentive reads from a connection whose other side is never silent for long.
type attentive struct {
	conn    net.Conn
	silence time.Duration
}

func (a *attentive) Read(p []byte) (int, error) {
	if err := a.conn.SetReadDeadline(time.Now().Add(a.silence)); err != nil {
		return 0, err
	}
	n, err := a.conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: nothing for %v", ErrSilent, a.silence)
	}
	return n, err
}

// closeWriter is a connection whose one direction can end before the other.
type closeWriter interface{ CloseWrite() error }

// relay passes bytes between a local connection and the tunnel until both directions have ended. When one fails, or ctx ends, both connections are closed
// at once and without an end record: what QEMU sees, and what the other tunnel sees, is a connection that broke.
func relay(ctx context.Context, p Patience, local net.Conn, remote *secured, f *flow) error {
	if u, ok := local.(*net.UnixConn); ok {
		// A whole record then fits while QEMU reads the last; the kernel bounds it, and without it all is well, only slower.
		_ = u.SetWriteBuffer(2 * livestream.MaxRecord)
	}
	whole := ctx
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close()
		_ = remote.conn.Close()
	})
	defer stop()
	group.Go(func() error {
		if err := remote.send(local, p.Alive, f); err != nil {
			remote.out.Abort()
			return fmt.Errorf("from QEMU to the tunnel: %w", err)
		}
		if err := remote.out.Close(); err != nil {
			return err
		}
		return halfClose(remote.conn)
	})
	group.Go(func() error {
		if _, err := remote.in.WriteTo(&counting{local, f}); err != nil {
			return fmt.Errorf("from the tunnel to QEMU: %w", err)
		}
		return halfClose(local)
	})
	err := errors.Join(group.Wait(), ignoreClosed(local.Close()), ignoreClosed(remote.conn.Close()))
	if whole.Err() != nil {
		return context.Cause(whole) // what follows from it says nothing
	}
	return err
}

// send encrypts what comes from the local connection until it ends.
func (s *secured) send(local net.Conn, alive time.Duration, f *flow) error {
	for {
		if err := local.SetReadDeadline(time.Now().Add(alive)); err != nil {
			return err
		}
		n, err := local.Read(s.out.Payload())
		if n > 0 {
			if err := s.out.Send(n); err != nil {
				return err
			}
			f.sent(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = s.out.Alive()
		}
		if err != nil {
			return err
		}
	}
}

// counting is a local connection with the flow that counts what is written to it.
type counting struct {
	conn net.Conn
	flow *flow
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	c.flow.received(n)
	return n, err
}

// deadline makes conn's operations end with ctx, until the function it returns is called.
func deadline(ctx context.Context, conn net.Conn) (release func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return func() { stop() }
}

func halfClose(c net.Conn) error {
	if half, ok := c.(closeWriter); ok {
		return ignoreNotConnected(half.CloseWrite())
	}
	return nil
}

func ignoreNotConnected(err error) error {
	if errors.Is(err, syscall.ENOTCONN) {
		return nil // the other side has closed already
	}
	return ignoreClosed(err)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
