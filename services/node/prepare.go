package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/local"
	"github.com/safeconduct/safeconduct/services/node/tracing"
	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/tee"
)

// prepared is what a configuration names, read and found good. Making it changes nothing, on disk or elsewhere.
type prepared struct {
	source                   collateral.Source
	logs                     *hostLogs
	serverCreds, clientCreds credentials.TransportCredentials
	certificates             map[string]time.Time
	callers                  *local.AllowList
}

// prepare is the first thing that start-up does, and all that `config check` does. Its error names everything that is wrong, not the first alone.
func prepare(cfg *config.Config, enclave tee.Enclave, root RootOfTrust, log *slog.Logger, now func() time.Time) (*prepared, error) {
	if enclave.Mode() != cfg.Mode {
		return nil, fmt.Errorf("the configuration says mode %s, but this enclave is %s", cfg.Mode, enclave.Mode())
	}
	p := new(prepared)
	var problems [6]error
	_, problems[0] = openPolicy(cfg, root)
	p.source, problems[1] = newSource(cfg.Collateral)
	p.logs, problems[2] = newHostLogs(cfg, now)
	if p.serverCreds, p.clientCreds, problems[3] = peerCredentials(cfg.Peer.TLS); problems[3] == nil {
		p.certificates, problems[3] = certificatesOf(cfg.Peer.TLS)
	}
	p.callers, problems[4] = allowList(cfg.Local)
	if o := tracingOptions(cfg, log); o != nil {
		problems[5] = tracing.Check(*o)
	}
	return p, errors.Join(problems[:]...)
}

// Check runs what start-up runs before it changes anything: the files that the configuration names are read and judged, the enclave is opened. Nothing is
// written, nothing listens, no peer and no collateral is looked for.
func Check(cfg *config.Config, open OpenEnclave) error {
	enclave, root, err := open(cfg)
	if err != nil {
		return err
	}
	_, err = prepare(cfg, enclave, root, slog.New(slog.DiscardHandler), time.Now)
	return err
}

// registerLocal registers the services of the local socket.
func (n *node) registerLocal(s *grpc.Server) {
	v1.RegisterMigrationServiceServer(s, &migrationServer{node: n})
	v1.RegisterCryptoServiceServer(s, &cryptoServer{node: n})
	v1.RegisterAttestationServiceServer(s, &attestationServer{node: n})
	v1.RegisterIntegrityServiceServer(s, &integrityServer{node: n})
	v1.RegisterSecretServiceServer(s, &secretServer{node: n})
	v1.RegisterReceiptServiceServer(s, &receiptServer{node: n})
	v1.RegisterAdminServiceServer(s, &adminServer{node: n})
	healthpb.RegisterHealthServer(s, n.health.grpc)
	reflection.Register(s)
}

// allowList says who may call what on the local socket.
func allowList(cfg config.Local) (*local.AllowList, error) {
	names := grpc.NewServer() // never serves: it knows the names of the methods
	(&node{health: newHealth(func() time.Duration { return 0 }, 0)}).registerLocal(names)
	return local.NewAllowList(names.GetServiceInfo(), cfg.Callers, slices.Compact([]uint32{0, uint32(os.Getuid())})...)
}

// tracingOptions are those that the configuration names, or nil.
func tracingOptions(cfg *config.Config, log *slog.Logger) *tracing.Options {
	t := cfg.Tracing
	if t == nil {
		return nil
	}
	ratio := 1.0
	if t.SampleRatio != nil {
		ratio = *t.SampleRatio
	}
	return &tracing.Options{
		Endpoint: t.Endpoint, CA: t.CA, TokenFile: t.TokenFile, Ratio: ratio, Host: cfg.Host, Mode: string(cfg.Mode), Version: version.Version,
		Log: log, Environ: os.Environ(),
	}
}

func startTracing(ctx context.Context, cfg *config.Config, log *slog.Logger) (*tracing.Tracing, error) {
	o := tracingOptions(cfg, log)
	if o == nil {
		return nil, nil
	}
	return tracing.Start(ctx, *o)
}
