// Package tunnel is the program safeconduct-tunnel: one a host, it carries whole migration streams (the guest's memory, its disks by NBD, the vTPM)
// from host to host under keys that the two attested enclaves export for them. It follows the sessions of its node service. For a session that is
// armed at the source it makes two unix sockets, one for QEMU's migration and one for its disks; at the destination it passes what comes on to
// the sockets of the same names, on which the incoming QEMU listens. When the session ends, so does all that it carries (docs/tunnel.md).
//
// Between the two, each connection is encrypted by crypto/livestream:
//
//	D -> S  nonce_D (16)
//	S -> D  "SCTUNNEL" || version (1) || channel (1) || instance (36) || session (16) || nonce_S (16)
//	both    a livestream each way, under DeriveKey("tunnel", nonce_S || nonce_D); the first record of each is SHA-256 over both messages above
//
// Neither side passes on a byte before the other's first record has shown that it holds the key of the session. A recorded connection cannot be
// played again: its key hangs on both nonces. Several connections at once (multifd, NBD) are several tunnels of one session. D sends its first record
// when it has reached QEMU, and S opens one connection after the other: QEMU before version 8 tells the connections of a multifd migration apart
// by the order in which they come.
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

	"github.com/safeconduct/safeconduct/crypto/livestream"
)

const (
	magic        = "SCTUNNEL"
	wireVersion  = 1
	nonceSize    = livestream.ConnectionSize / 2
	instanceSize = 36
	sessionSize  = 16
	helloSize    = len(magic) + 2 + instanceSize + sessionSize + nonceSize
)

// Errors of a tunnel.
var (
	// ErrProof: the other side does not hold the key of the session that it names.
	ErrProof = errors.New("the other end of the tunnel does not prove the session")
	// ErrHello: the other side is no tunnel, or one of another version.
	ErrHello = errors.New("not a tunnel's hello")
	// ErrSession: no session of this host is armed for the VM, in the role that the connection needs.
	ErrSession = errors.New("no armed session for the tunnel")
	// ErrSilent: nothing has come from the other tunnel for too long, not even a sign of life.
	ErrSilent = errors.New("the other end of the tunnel is silent")
	// ErrLimit: the VM, or the host, has as many connections as it may have.
	ErrLimit = errors.New("too many connections")
)

// SessionID of a session; public.
type SessionID [sessionSize]byte

// Keys derives the key of one connection from the live session of a VM. The node service does.
type Keys interface {
	TunnelKey(ctx context.Context, instance string, connection [livestream.ConnectionSize]byte) (key []byte, session SessionID, err error)
}

// Channel says which of the VM's sockets a connection belongs to.
type Channel uint8

// The channels.
const (
	// Migration is QEMU's migration stream, with every connection of multifd.
	Migration Channel = 0
	// Disks is the VM's storage, which QEMU mirrors by NBD.
	Disks Channel = 1
)

// channels are all of them, with their names.
var channels = [...]string{Migration: "migration", Disks: "disks"}

// String returns the channel's name.
func (c Channel) String() string { return channels[c] }

// Socket is the name of the VM's socket for the channel: the same on both hosts, as libvirt wants it.
func (c Channel) Socket(instance string) string {
	if c == Disks {
		return instance + "-disks.sock"
	}
	return instance + ".sock"
}

// hello is the source's first message.
type hello struct {
	channel  Channel
	instance string
	session  SessionID
	nonce    [nonceSize]byte
}

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloSize), magic...)
	b = append(append(b, wireVersion, byte(h.channel)), h.instance...)
	return append(append(b, h.session[:]...), h.nonce[:]...)
}

func parseHello(b []byte) (hello, error) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if len(b) != helloSize || !ok {
		return hello{}, fmt.Errorf("%w: it begins with %x", ErrHello, b[:min(len(b), 9)])
	}
	if rest[0] != wireVersion || int(rest[1]) >= len(channels) {
		return hello{}, fmt.Errorf("%w: version %d, channel %d; expected version %d, a channel below %d", ErrHello, rest[0], rest[1], wireVersion, len(channels))
	}
	channel, rest := Channel(rest[1]), rest[2:]
	return hello{
		channel: channel, instance: string(rest[:instanceSize]), session: SessionID(rest[instanceSize : instanceSize+sessionSize]),
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

// secured is a connection to the other tunnel.
type secured struct {
	conn net.Conn
	in   *livestream.Reader
	out  *livestream.Writer
}

// secure makes the two streams of a connection. Nothing is proven yet.
func secure(conn net.Conn, p Patience, key []byte, id [livestream.ConnectionSize]byte, initiator bool) (*secured, error) {
	mine, theirs := livestream.ToInitiator, livestream.FromInitiator
	if initiator {
		mine, theirs = theirs, mine
	}
	out, err := livestream.NewWriter(conn, key, id, mine)
	if err != nil {
		return nil, err
	}
	in, err := livestream.NewReader(&attentive{conn: conn, silence: p.Silence}, key, id, theirs)
	if err != nil {
		return nil, err
	}
	return &secured{conn: conn, in: in, out: out}, nil
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

func newNonce() (n [nonceSize]byte) {
	_, _ = rand.Read(n[:]) // never fails: it would end the process
	return n
}
