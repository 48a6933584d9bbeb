package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/audit"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/services/node/local"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/tee"
)

// maxLocalMessage bounds one gRPC message on the local socket: a chunk of a blob, or a log with its envelope.
const maxLocalMessage = 9 << 20

// stopGrace is how long callers have to take their last answer when the service stops.
const stopGrace = 300 * time.Millisecond

// selfCheckPeriod is how often the node attests itself to itself: quote daemons die silently.
const selfCheckPeriod = time.Minute

// selfCheckStale is how long the last check that ended well counts: three turns, and the time that the last may take.
const selfCheckStale = 3*selfCheckPeriod + 30*time.Second

// Run is the node service: it composes everything from a validated configuration, serves until ctx ends, and stops in order. The enclave
// decides the mode; a configuration for another is refused.
func Run(ctx context.Context, cfg *config.Config, enclave tee.Enclave, root RootOfTrust, log *Log) error {
	return run(ctx, cfg, enclave, root, log, time.Now)
}

func run(ctx context.Context, cfg *config.Config, enclave tee.Enclave, root RootOfTrust, diagnostic *Log, now func() time.Time) error {
	log := diagnostic.With("mode", string(cfg.Mode), "host", cfg.Host)
	p, err := prepare(cfg, enclave, root, log, now)
	if err != nil {
		return err
	}
	if cfg.Mode == tee.ModeSimulated {
		log.Warn("SIMULATED: this node has no hardware enclave; its keys and its proofs protect nothing")
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	ledger, err := session.OpenLedger(filepath.Join(cfg.StateDir, "used-migrations"))
	if err != nil {
		return err
	}
	n, err := compose(ctx, cfg, p, enclave, root, ledger, log, now)
	if err != nil {
		return errors.Join(err, ledger.Close())
	}
	n.logLevel = diagnostic.Level
	err = n.serve(ctx, cfg, p.callers)
	n.background.Wait()
	n.audit.append(audit.Record{Event: audit.EventStop})
	err = errors.Join(err, n.audit.log.Close(context.WithoutCancel(ctx)))
	n.tracing.Close(context.WithoutCancel(ctx))
	n.collateral.Close()
	return errors.Join(err, n.peers.close(), ledger.Close())
}

// compose builds the node and proves that it can do its work: read its policy, measure its host, attest itself.
func compose(
	ctx context.Context, cfg *config.Config, p *prepared, enclave tee.Enclave, root RootOfTrust, ledger session.Ledger, log *slog.Logger, now func() time.Time,
) (*node, error) {
	n := &node{
		host: cfg.Host, log: log, now: now, started: now(), mode: modeOf(cfg.Mode),
		handshakeTimeout: cfg.Peer.HandshakeTimeout.Or(defaultHandshakeTimeout),
		armMaxAge:        cfg.Sessions.ArmMaxAge.Or(defaultArmMaxAge),
		handshakes:       semaphore.NewWeighted(int64(cfg.Peer.MaxHandshakes)),
		blobs:            semaphore.NewWeighted(maxBlobsAtOnce),
		rejudge:          make(chan struct{}, 1),
		metrics:          metrics.New(string(cfg.Mode), version.Version),
	}
	born := time.Now()
	n.health = newHealth(func() time.Duration { return time.Since(born) }, selfCheckStale)
	n.enclave = quoting{Enclave: enclave, now: now, record: n.metrics.Quote}
	inner, err := sealed.NewStore(filepath.Join(cfg.StateDir, "sealed"), tee.SealKeys{Enclave: enclave})
	if err != nil {
		return nil, err
	}
	store := countingStore{Sealed: inner, failed: n.metrics.SealedFailed}
	n.escrow = escrow.Open(store, n.now)
	if n.receipts, err = receipt.OpenChain(ctx, filepath.Join(cfg.StateDir, "receipts"), store, receipt.Options{Host: cfg.Host, Now: n.now}); err != nil {
		return nil, err
	}
	if n.collateral, err = newCache(cfg, p.source, root, log, n.now, n.metrics); err != nil {
		return nil, err
	}
	n.collateral.OnChange(n.collateralChanged)
	quotes := &quoteVerifier{
		mode: root.Mode, cache: n.collateral, clock: n.now,
		record: func(took time.Duration, err error) { n.metrics.Phase(metrics.PhaseVerify, took, err) },
	}
	n.newJudge = func(ctx context.Context) (*judge, error) { return readJudge(ctx, cfg, root, store, quotes, n.now) }
	j, err := n.newJudge(ctx)
	if err != nil {
		return nil, err
	}
	n.inForce.Store(j)
	n.logs = p.logs
	platform, err := n.ownPlatform(ctx)
	if err != nil {
		return nil, err
	}
	n.peerCreds, n.certificates = p.serverCreds, p.certificates
	n.peers = newPeers(cfg.Peers, cfg.Peer.HandshakesPerSecond, p.clientCreds)
	n.table = session.NewTable(session.Limits{
		Open: cfg.Sessions.MaxOpen, UnarmedTTL: cfg.Sessions.UnarmedTTL.Or(0), ArmedTTL: cfg.Sessions.ArmedTTL.Or(0),
	}, ledger, n.now, n.changed)
	n.base = handshake.Node{
		Host: n.host, Mode: n.mode, PlatformID: platform, Attester: n.enclave, Logs: n.logs, Now: n.now, Rand: rand.Reader,
	}
	n.metrics.Watch(n.observe)
	// Last: what is opened from here on is closed by run.
	if n.tracing, err = startTracing(ctx, cfg, log); err != nil {
		return nil, err
	}
	n.peers.more = n.tracing.Dial()
	if err := n.openAudit(ctx, cfg, store); err != nil {
		n.tracing.Close(ctx)
		return nil, err
	}
	n.audit.append(audit.Record{Event: audit.EventStart, Subject: version.Version})
	return n, nil
}

func modeOf(m tee.Mode) v1.Mode {
	switch m {
	case tee.ModeIntel:
		return v1.Mode_MODE_INTEL
	case tee.ModeSimulated:
		return v1.Mode_MODE_SIMULATED
	default:
		return v1.Mode_MODE_UNSPECIFIED
	}
}

// serve runs every listener until ctx ends or one fails.
func (n *node) serve(ctx context.Context, cfg *config.Config, callers *local.AllowList) error {
	localServer := n.localServer(callers, cfg.Integrity.Root)
	peerServer := n.peerServer()
	localListener, err := listenUnix(ctx, "local.socket", cfg.Local.Socket, cfg.Local.SocketMode.Or(0o660))
	if err != nil {
		return err
	}
	peerListener, err := listenPeer(ctx, cfg.Peer)
	if err != nil {
		return errors.Join(err, localListener.Close())
	}
	ctx, n.stop = context.WithCancel(ctx)
	defer n.stop()
	group, ctx := errgroup.WithContext(ctx)
	n.stopping = ctx.Done()
	group.Go(func() error { return ignoreClosed(localServer.Serve(localListener)) })
	group.Go(func() error { return ignoreClosed(peerServer.Serve(peerListener)) })
	if cfg.HTTP.Listen != "" {
		httpListener, err := listenTCP(ctx, "http.listen", cfg.HTTP.Listen)
		if err != nil {
			localServer.Stop()
			peerServer.Stop()
			return errors.Join(err, group.Wait())
		}
		httpServer := &http.Server{
			Handler: n.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		}
		group.Go(func() error { return ignoreClosed(httpServer.Serve(httpListener)) })
		group.Go(func() error { <-ctx.Done(); return ignoreClosed(httpServer.Close()) })
	}
	group.Go(func() error { n.expireLoop(ctx); return nil })
	group.Go(func() error { return ignoreEnd(ctx, n.collateral.Run(ctx)) })
	group.Go(func() error { n.rejudgeLoop(ctx); return nil })
	group.Go(func() error { n.audit.log.Run(ctx); return nil })
	group.Go(func() error { n.health.watch(ctx, selfCheckPeriod, n.selfCheck); return nil })
	group.Go(func() error {
		<-ctx.Done()
		n.health.change(func() { n.health.stopping = true })
		// Keys first: whatever still runs then fails, and the VM is safe on the source.
		n.table.AbortAll(session.Restart, refusal.New(v1.Reason_REASON_RESTARTED, "the node service stops"), func(session.Record) bool { return false })
		stopSoon(peerServer)
		stopSoon(localServer)
		return nil
	})
	n.log.Info("listening", "local", cfg.Local.Socket, "peer", peerListener.Addr().String(), "http", cfg.HTTP.Listen, "version", version.Version,
		"platform_id", fmt.Sprintf("%x", n.base.PlatformID), "policy_svn", n.judge().policy.SVN)
	n.health.change(func() { n.health.started = true })
	return group.Wait()
}

// stopSoon lets answers under way reach their callers (a peer that waits for its commit, an operator for a drain's last word), and then stops
// whatever still streams.
func stopSoon(s *grpc.Server) {
	timer := time.AfterFunc(stopGrace, s.Stop)
	defer timer.Stop()
	s.GracefulStop()
}

// ignoreEnd drops what a loop says when its context has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func ignoreClosed(err error) error {
	// grpc.ErrServerStopped is what Serve says when the service stops before it has begun to.
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

func listenPeer(ctx context.Context, cfg config.Peer) (net.Listener, error) {
	if path, ok := strings.CutPrefix(cfg.Listen, "unix:"); ok {
		return listenUnix(ctx, "peer.listen", path, 0o600)
	}
	return listenTCP(ctx, "peer.listen", cfg.Listen)
}

// listenUnix makes a unix socket. A socket that nobody listens on is a leftover of a crash and is removed; any other file is not ours.
func listenUnix(ctx context.Context, key, path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s: %s exists and is no socket", key, path)
		}
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("%s: another service listens on %s", key, path), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", key, err), l.Close())
	}
	return l, nil
}

func listenTCP(ctx context.Context, key, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// serverLimits are the bounds that both gRPC servers share.
func serverLimits(maxMessage int, streams uint32) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxConcurrentStreams(streams),
		grpc.ConnectionTimeout(5 * time.Second), grpc.MaxHeaderListSize(16 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second}),
	}
}

func (n *node) localServer(callers *local.AllowList, root string) *grpc.Server {
	options := append(serverLimits(maxLocalMessage, 256), grpc.Creds(local.Credentials{Proc: filepath.Join(root, "proc")}))
	options = append(options, n.tracing.Local()...)
	s := grpc.NewServer(append(options, n.interceptors(metrics.Local, rpcerror.Status, callers.Check)...)...)
	n.registerLocal(s)
	return s
}

func (n *node) peerServer() *grpc.Server {
	anyone := func(context.Context, string) error { return nil } // the handshake decides
	options := append(serverLimits(maxPeerMessage, 64), grpc.Creds(n.peerCreds),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime * 2 / 3, PermitWithoutStream: true}))
	options = append(options, n.tracing.Peer()...)
	s := grpc.NewServer(append(options, n.interceptors(metrics.Peer, n.toPeer, anyone)...)...)
	v1.RegisterPeerServiceServer(s, &peerServer{node: n})
	v1.RegisterAttestationServiceServer(s, &publicAttestation{inner: &attestationServer{node: n}})
	healthpb.RegisterHealthServer(s, n.health.grpc)
	return s
}

// toPeer logs what a peer was refused and tells it no more than it may know.
func (n *node) toPeer(err error) error {
	if err != nil && !errors.Is(err, context.Canceled) {
		r := refusal.From(err)
		n.log.Warn("peer call refused", "reason", refusal.Name(r.Reason), "why", r.Message, "found", r.Found, "expected", r.Expected)
	}
	return rpcerror.ForPeer(err)
}
