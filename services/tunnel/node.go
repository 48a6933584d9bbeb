package tunnel

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/crypto/livestream"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// NodeKeys are Keys of the node service, over CryptoService on its unix socket.
type NodeKeys struct {
	conn   *grpc.ClientConn
	client v1.CryptoServiceClient
}

// NewNodeKeys prepares the connection to a gRPC target such as unix:///run/safeconduct/node.sock; nothing is dialled before the first key.
func NewNodeKeys(target string) (*NodeKeys, error) {
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
	return &NodeKeys{conn: conn, client: v1.NewCryptoServiceClient(conn)}, nil
}

// TunnelKey implements Keys. A refusal of the node service is a *refusal.Refusal.
func (k *NodeKeys) TunnelKey(ctx context.Context, instance string, connection [livestream.ConnectionSize]byte) (key []byte, session [sessionSize]byte, err error) {
	resp, err := k.client.DeriveKey(ctx, &v1.DeriveKeyRequest{InstanceId: instance, Purpose: policy.ExportTunnel, Context: connection[:]})
	if err != nil {
		return nil, session, rpcerror.Refusal(err)
	}
	if len(resp.GetSessionId()) != sessionSize {
		return nil, session, fmt.Errorf("node service at %s: a session id of %d bytes", k.conn.Target(), len(resp.GetSessionId()))
	}
	return resp.GetKey(), [sessionSize]byte(resp.GetSessionId()), nil
}

// Close closes the connection.
func (k *NodeKeys) Close() error { return k.conn.Close() }
