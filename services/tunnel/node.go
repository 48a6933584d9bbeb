package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/livestream"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// Node is the node service of this host, over its unix socket. It implements Keys.
type Node struct {
	conn       *grpc.ClientConn
	crypto     v1.CryptoServiceClient
	migrations v1.MigrationServiceClient
	following  atomic.Bool
}

// NewNode prepares the connection to a gRPC target such as unix:///run/safeconduct/node.sock; nothing is dialled before the first call.
func NewNode(target string) (*Node, error) {
	conn, err := grpc.NewClient(target,
		// The socket's permissions and the caller's uid, which the node reads from the kernel, decide who may call; there is no network.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("node service at %s: %w", target, err)
	}
	return &Node{conn: conn, crypto: v1.NewCryptoServiceClient(conn), migrations: v1.NewMigrationServiceClient(conn)}, nil
}

// TunnelKey implements Keys. A refusal of the node service is a *refusal.Refusal.
func (n *Node) TunnelKey(ctx context.Context, instance string, connection [livestream.ConnectionSize]byte) (key []byte, session SessionID, err error) {
	resp, err := n.crypto.DeriveKey(ctx, &v1.DeriveKeyRequest{InstanceId: instance, Purpose: policy.ExportTunnel, Context: connection[:]})
	if err != nil {
		return nil, session, rpcerror.Refusal(err)
	}
	if len(resp.GetSessionId()) != sessionSize {
		return nil, session, fmt.Errorf("node service at %s: a session id of %d bytes", n.conn.Target(), len(resp.GetSessionId()))
	}
	return resp.GetKey(), SessionID(resp.GetSessionId()), nil
}

// Close closes the connection.
func (n *Node) Close() error { return n.conn.Close() }

// Following says whether the node service tells of its sessions at this moment.
func (n *Node) Following() bool { return n.following.Load() }

const (
	// firstPause and lastPause are between two attempts to follow.
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
	// maxUnfollowed is how long the connections of a session live on while the node service does not answer.
	maxUnfollowed = 5 * time.Second
)

// Follow keeps the sessions as the node service has them until ctx ends. A node service that restarts has aborted its sessions, and so they end
// here; one that does not answer is waited for, and after 5 s every session ends.
func (n *Node) Follow(ctx context.Context, sessions *Sessions, log *slog.Logger) {
	pause, last := firstPause, ""
	lost := time.AfterFunc(maxUnfollowed, func() { sessions.EndAll(errLost) })
	defer lost.Stop()
	for ctx.Err() == nil {
		err := n.follow(ctx, sessions, func() {
			lost.Stop()
			n.following.Store(true)
			log.Info("following the node service", "node", n.conn.Target())
			pause, last = firstPause, ""
		})
		if n.following.Swap(false) {
			lost.Reset(maxUnfollowed)
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != last { // once for each reason: a node that is down stays down for a while
			last = text
			log.Warn("the node service does not tell of its sessions: nothing is carried", refusal.Attributes(err)...)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, lastPause)
	}
}

func (n *Node) follow(ctx context.Context, sessions *Sessions, following func()) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.migrations.Watch(watching, &v1.WatchRequest{})
	if err != nil {
		return rpcerror.Refusal(err)
	}
	// The header comes when every later change will: what List says then is missed by nobody.
	header, err := stream.Header()
	if err == nil && header == nil {
		_, err = stream.Recv() // the call has ended; this is why
	}
	if err != nil {
		return rpcerror.Refusal(err)
	}
	all, err := n.migrations.List(ctx, &v1.ListRequest{})
	if err != nil {
		return rpcerror.Refusal(err)
	}
	sessions.Only(all.GetSessions())
	for _, s := range all.GetSessions() {
		sessions.Update(ctx, s)
	}
	following()
	for {
		change, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the node service has stopped telling")
		}
		if err != nil {
			return rpcerror.Refusal(err)
		}
		sessions.Update(ctx, change.GetSession())
	}
}
