package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// reconnectPatience is how long a lost connection to a peer is waited for.
const reconnectPatience = time.Second

// A peer that a broken network has taken away is noticed after both together, with or without a call: else the first handshake after the network is
// back would fail for the connection of before.
const (
	keepaliveTime    = 15 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// maxPeerMessage bounds one gRPC message on the peer port: an integrity log of 8 MiB and its envelope.
const maxPeerMessage = 9 << 20

// Rate of handshakes that one peer may begin, unless configured: a burst for an evacuation, then one a second.
const (
	handshakeBurst = 32
	handshakeRate  = rate.Limit(1)
)

// peers are the nodes that this one migrates with: where they are and how often they may ask.
type peers struct {
	creds credentials.TransportCredentials
	more  []grpc.DialOption

	mu    sync.Mutex
	byKey map[string]*peer
}

type peer struct {
	address string
	limiter *rate.Limiter
	conn    *grpc.ClientConn
}

func newPeers(entries []config.PeerEntry, perSecond float64, creds credentials.TransportCredentials, more ...grpc.DialOption) *peers {
	limit := rate.Limit(perSecond)
	if limit == 0 {
		limit = handshakeRate
	}
	p := &peers{creds: creds, more: more, byKey: make(map[string]*peer, len(entries))}
	for _, e := range entries {
		p.byKey[e.Host] = &peer{address: e.Address, limiter: rate.NewLimiter(limit, handshakeBurst)}
	}
	return p
}

// client returns a client of the peer service on host. The connection is made when first used and kept.
func (p *peers) client(host string) (v1.PeerServiceClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	entry, ok := p.byKey[host]
	if !ok {
		return nil, unknownPeer(host)
	}
	if entry.conn == nil {
		target := entry.address
		if !strings.HasPrefix(target, "unix:") {
			target = "passthrough:///" + target
		}
		conn, err := grpc.NewClient(target, append([]grpc.DialOption{
			grpc.WithTransportCredentials(p.creds),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage), grpc.MaxCallSendMsgSize(maxPeerMessage)),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		}, p.more...)...)
		if err != nil {
			return nil, refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "peer %s at %s: %w", host, entry.address, err)
		}
		entry.conn = conn
	}
	return v1.NewPeerServiceClient(entry.conn), nil
}

// reconnect gives a connection that was lost a moment to come back: a peer that has just been restarted must not be refused for the last error of
// before. A peer that stays away is refused by the call that follows.
func (p *peers) reconnect(ctx context.Context, host string) {
	p.mu.Lock()
	var conn *grpc.ClientConn
	if entry := p.byKey[host]; entry != nil {
		conn = entry.conn
	}
	p.mu.Unlock()
	if conn == nil || conn.GetState() != connectivity.TransientFailure {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reconnectPatience)
	defer cancel()
	conn.ResetConnectBackoff()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// admit says whether host may begin a handshake now.
func (p *peers) admit(host string, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	entry, ok := p.byKey[host]
	if !ok {
		return unknownPeer(host)
	}
	if !entry.limiter.AllowN(now, 1) {
		return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "peer %s began handshakes faster than it may", host)
	}
	return nil
}

func unknownPeer(host string) error {
	return refusal.New(v1.Reason_REASON_UNKNOWN_PEER, "host %q is not among this node's peers", host).On(host)
}

func (p *peers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, entry := range p.byKey {
		if entry.conn != nil {
			errs = append(errs, entry.conn.Close())
		}
	}
	return errors.Join(errs...)
}

// peerCredentials reads the TLS files of the peer port. Without TLS the port is plain: the handshake does not rest on it.
func peerCredentials(t *config.TLS) (server, client credentials.TransportCredentials, err error) {
	if t == nil {
		return insecure.NewCredentials(), insecure.NewCredentials(), nil
	}
	cert, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("peer.tls: %w", err)
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("peer.tls: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("peer.tls: %s holds no certificate", t.CA)
	}
	base := tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	s := base.Clone()
	s.ClientCAs, s.ClientAuth = pool, tls.RequireAndVerifyClientCert
	c := base.Clone()
	c.RootCAs = pool
	return credentials.NewTLS(s), credentials.NewTLS(c), nil
}

// sender adapts a unary peer call to handshake.Sender. It tries a call that did not get through once more: the message is the same
// bytes, which the peer answers once.
func sender[Resp any](call func(context.Context, *v1.SealedMessage) (Resp, error), open func(Resp) *v1.SealedMessage) func(context.Context, *v1.SealedMessage) (*v1.SealedMessage, error) {
	return func(ctx context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
		resp, err := call(ctx, m)
		if err != nil && rpcerror.Refusal(err).Reason == v1.Reason_REASON_PEER_UNAVAILABLE && ctx.Err() == nil {
			resp, err = call(ctx, m)
		}
		if err != nil {
			return nil, rpcerror.Refusal(err)
		}
		return open(resp), nil
	}
}

func armSender(c v1.PeerServiceClient, id []byte) func(context.Context, *v1.SealedMessage) (*v1.SealedMessage, error) {
	return sender(func(ctx context.Context, m *v1.SealedMessage) (*v1.PeerServiceArmResponse, error) {
		return c.Arm(ctx, &v1.PeerServiceArmRequest{SessionId: id, Message: m})
	}, (*v1.PeerServiceArmResponse).GetMessage)
}

func transferSender(c v1.PeerServiceClient, id []byte) func(context.Context, *v1.SealedMessage) (*v1.SealedMessage, error) {
	return sender(func(ctx context.Context, m *v1.SealedMessage) (*v1.TransferResponse, error) {
		return c.Transfer(ctx, &v1.TransferRequest{SessionId: id, Message: m})
	}, (*v1.TransferResponse).GetMessage)
}

func concludeSender(c v1.PeerServiceClient, id []byte) func(context.Context, *v1.SealedMessage) (*v1.SealedMessage, error) {
	return sender(func(ctx context.Context, m *v1.SealedMessage) (*v1.ConcludeResponse, error) {
		return c.Conclude(ctx, &v1.ConcludeRequest{SessionId: id, Message: m})
	}, (*v1.ConcludeResponse).GetMessage)
}
