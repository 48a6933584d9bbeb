// Package tunnel is the program safeconduct-tunnel: it carries a whole migration stream (the guest's memory, its disks by NBD, the vTPM) from host to
// host under a key that the two attested enclaves export for it. QEMU or libvirt migrates to a unix socket at the source (Source) and is reached
// by one at the destination (Destination); between the two, each connection is encrypted by crypto/livestream.
//
//	D -> S  nonce_D (16)
//	S -> D  "SCTUNNEL" || version (1) || instance (36) || session (16) || nonce_S (16)
//	both    a livestream each way, under DeriveKey("tunnel", nonce_S || nonce_D); the first record of each is SHA-256 over both messages above
//
// Neither side passes on a byte before the other's first record has shown that it holds the key of the session. A recorded connection cannot be
// played again: its key hangs on both nonces. Several connections at once (multifd, NBD) are several tunnels of one session.
//
// The tunnel holds a key of the stream, so it is trusted with what the stream carries, as QEMU on the same host is; it cannot read the vTPM's state,
// which crosses within the stream under keys that stay in the enclaves.
package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/safeconduct/safeconduct/crypto/livestream"
)

const (
	magic        = "SCTUNNEL"
	wireVersion  = 1
	nonceSize    = livestream.ConnectionSize / 2
	instanceSize = 36
	sessionSize  = 16
	helloSize    = len(magic) + 1 + instanceSize + sessionSize + nonceSize

	// proveTimeout bounds what happens before the first byte is passed on.
	proveTimeout = 10 * time.Second
)

// Errors of a tunnel.
var (
	// ErrProof: the other side does not hold the key of the session that it names.
	ErrProof = errors.New("the other end of the tunnel does not prove the session")
	// ErrHello: the other side is no tunnel, or one of another version.
	ErrHello = errors.New("not a tunnel's hello")
)

// Keys derives the key of one connection from the live session of a VM. The node service does.
type Keys interface {
	TunnelKey(ctx context.Context, instance string, connection [livestream.ConnectionSize]byte) (key []byte, session [sessionSize]byte, err error)
}

// Report is what one connection carried, in bytes of plaintext.
type Report struct {
	Instance       string
	Sent, Received int64
	Elapsed        time.Duration
}

// hello is the source's first message.
type hello struct {
	instance string
	session  [sessionSize]byte
	nonce    [nonceSize]byte
}

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloSize), magic...)
	b = append(append(b, wireVersion), h.instance...)
	return append(append(b, h.session[:]...), h.nonce[:]...)
}

func parseHello(b []byte) (hello, error) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if len(b) != helloSize || !ok {
		return hello{}, fmt.Errorf("%w: it begins with %x", ErrHello, b[:min(len(b), 9)])
	}
	if rest[0] != wireVersion {
		return hello{}, fmt.Errorf("%w: version %d, expected %d", ErrHello, rest[0], wireVersion)
	}
	rest = rest[1:]
	return hello{
		instance: string(rest[:instanceSize]), session: [sessionSize]byte(rest[instanceSize : instanceSize+sessionSize]),
		nonce: [nonceSize]byte(rest[instanceSize+sessionSize:]),
	}, nil
}

func connectionID(nonceS, nonceD [nonceSize]byte) [livestream.ConnectionSize]byte {
	return [livestream.ConnectionSize]byte(append(nonceS[:], nonceD[:]...))
}

// proof is the first record of each direction: it shows that the sender has the key, and that both saw the same greeting.
func proof(nonceD [nonceSize]byte, greeting []byte) []byte {
	sum := sha256.Sum256(append(nonceD[:], greeting...))
	return sum[:]
}

// secured is a connection to the other tunnel, proven.
type secured struct {
	conn net.Conn
	in   *livestream.Reader
	out  *livestream.Writer
}

// secure makes the two streams and exchanges the proofs.
func secure(conn net.Conn, key []byte, id [livestream.ConnectionSize]byte, initiator bool, shown []byte) (*secured, error) {
	mine, theirs := livestream.ToInitiator, livestream.FromInitiator
	if initiator {
		mine, theirs = theirs, mine
	}
	out, err := livestream.NewWriter(conn, key, id, mine)
	if err != nil {
		return nil, err
	}
	in, err := livestream.NewReader(conn, key, id, theirs)
	if err != nil {
		return nil, err
	}
	s := &secured{conn: conn, in: in, out: out}
	if initiator { // who is asked to prove first is whoever came
		if err := s.prove(shown); err != nil {
			return nil, err
		}
		return s, s.check(shown)
	}
	if err := s.check(shown); err != nil {
		return nil, err
	}
	return s, s.prove(shown)
}

func (s *secured) prove(shown []byte) error {
	_, err := s.out.Write(shown)
	return err
}

func (s *secured) check(shown []byte) error {
	got := make([]byte, len(shown))
	if _, err := io.ReadFull(s.in, got); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	if !bytes.Equal(got, shown) {
		return fmt.Errorf("%w: it saw another greeting", ErrProof)
	}
	return nil
}

// closeWriter is a connection whose one direction can end before the other.
type closeWriter interface{ CloseWrite() error }

// relay passes bytes between a local connection and the tunnel until both directions have ended. When one fails, both connections are closed at
// once and without an end record: what QEMU sees, and what the other tunnel sees, is a connection that broke.
func relay(ctx context.Context, local net.Conn, remote *secured) (sent, received int64, err error) {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close()
		_ = remote.conn.Close()
	})
	defer stop()
	group.Go(func() (err error) {
		if sent, err = remote.out.ReadFrom(local); err != nil {
			remote.out.Abort()
			return fmt.Errorf("from QEMU to the tunnel: %w", err)
		}
		if err := remote.out.Close(); err != nil {
			return err
		}
		return halfClose(remote.conn)
	})
	group.Go(func() (err error) {
		if received, err = remote.in.WriteTo(local); err != nil {
			return fmt.Errorf("from the tunnel to QEMU: %w", err)
		}
		return halfClose(local)
	})
	err = group.Wait()
	return sent, received, errors.Join(err, ignoreClosed(local.Close()), ignoreClosed(remote.conn.Close()))
}

func halfClose(c net.Conn) error {
	if half, ok := c.(closeWriter); ok {
		return ignoreNotConnected(half.CloseWrite())
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func newNonce() (n [nonceSize]byte) {
	_, _ = rand.Read(n[:]) // never fails: it would end the process
	return n
}
