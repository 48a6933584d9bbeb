package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/collateral/pinned"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/pccs"
	"github.com/safeconduct/safeconduct/services/node/config"
)

// dirSource reads collateral from a directory of the host: one set, or one for each kind of platform.
type dirSource string

// Fetch implements collateral.Source.
func (d dirSource) Fetch(_ context.Context, key collateral.Key) (*collateral.Collateral, error) {
	own := filepath.Join(string(d), key.String())
	if _, err := os.Stat(own); !errors.Is(err, fs.ErrNotExist) {
		return collateral.LoadDir(own)
	}
	return collateral.LoadDir(string(d))
}

// newCache opens the cache of collateral.
func newCache(
	cfg *config.Config, source collateral.Source, root RootOfTrust, log *slog.Logger, now func() time.Time, observer collateral.Observer,
) (*collateral.Cache[*dcap.CheckedCollateral], error) {
	check := pinned.Checker{
		Root: root.Pin,
		// A set that was put into a directory by hand may lack the chain: its PCK CRL is then judged with each quote only, where one that nobody
		// signed makes quotes fail.
		AllowUnverifiedPCKCRL: cfg.Collateral.Dir != "",
	}
	c, err := collateral.NewCache(collateral.Config[*dcap.CheckedCollateral]{
		Dir: filepath.Join(cfg.StateDir, "collateral"), Source: source, Check: check.Check, Now: now, Log: log, MaxAge: cfg.Collateral.MaxAge.Or(0),
		Observer: observer,
	})
	if err != nil {
		return nil, fmt.Errorf("collateral: %w", err)
	}
	return c, nil
}

func newSource(cfg config.Collateral) (collateral.Source, error) {
	switch {
	case cfg.Dir != "":
		return dirSource(cfg.Dir), nil
	case cfg.Bundle != "":
		return collateral.BundleFile{Path: cfg.Bundle}, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.PCCSCA != "" {
		pem, err := os.ReadFile(cfg.PCCSCA)
		if err != nil {
			return nil, fmt.Errorf("collateral.pccs_ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("collateral.pccs_ca: %s holds no certificate", cfg.PCCSCA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	client, err := pccs.New(pccs.Options{BaseURL: cfg.PCCS, HTTP: &http.Client{Transport: transport}})
	if err != nil {
		return nil, fmt.Errorf("collateral.pccs: %w", err)
	}
	return client, nil
}

// refreshCollateral fetches every kept set again and says whether any changed. A set that cannot be fetched stays, as long as it is valid.
func (n *node) refreshCollateral(ctx context.Context) bool {
	before := n.collateralAge.Load()
	for _, s := range n.collateral.Status() {
		if err := n.collateral.Refresh(ctx, s.Key); err != nil {
			n.log.Warn("collateral could not be refreshed; what is kept stays in use while it is valid", "platforms", s.Key.String(), "why", err)
		}
	}
	return n.collateralAge.Load() != before
}

// collateralChanged is told of each set that another has taken the place of: every open session is judged again, as soon as it can be.
func (n *node) collateralChanged(key collateral.Key) {
	n.collateralAge.Add(1)
	n.log.Info("collateral changed", "platforms", key.String())
	select {
	case n.rejudge <- struct{}{}:
	default: // it is about to happen
	}
}

// rejudgeLoop judges open sessions again whenever collateral has changed.
func (n *node) rejudgeLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.rejudge:
			n.sweep(ctx, false)
			n.health.soon()
		}
	}
}
