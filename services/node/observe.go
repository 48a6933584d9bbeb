package node

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/escrow"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/tee"
)

// quoting is an enclave whose quotes are timed and counted.
type quoting struct {
	tee.Enclave
	now    func() time.Time
	record func(time.Duration, error)
}

// Quote implements tee.Enclave.
func (q quoting) Quote(ctx context.Context, data [tee.ReportDataSize]byte) ([]byte, error) {
	begun := q.now()
	raw, err := q.Enclave.Quote(ctx, data)
	q.record(q.now().Sub(begun), err)
	return raw, err
}

// countingStore is sealed storage whose errors are counted. That something is not there is none.
type countingStore struct {
	escrow.Sealed
	failed func(operation string)
}

func (c countingStore) count(operation string, err error) {
	if err != nil && !errors.Is(err, sealed.ErrNotFound) && !errors.Is(err, context.Canceled) {
		c.failed(operation)
	}
}

// Get implements escrow.Sealed.
func (c countingStore) Get(ctx context.Context, kind, name string) ([]byte, error) {
	raw, err := c.Sealed.Get(ctx, kind, name)
	c.count("get", err)
	return raw, err
}

// Put implements escrow.Sealed.
func (c countingStore) Put(ctx context.Context, kind, name string, plaintext []byte) error {
	err := c.Sealed.Put(ctx, kind, name, plaintext)
	c.count("put", err)
	return err
}

// Delete implements escrow.Sealed.
func (c countingStore) Delete(ctx context.Context, kind, name string) (bool, error) {
	found, err := c.Sealed.Delete(ctx, kind, name)
	c.count("delete", err)
	return found, err
}

// List implements escrow.Sealed.
func (c countingStore) List(kind string) ([]string, error) {
	names, err := c.Sealed.List(kind)
	c.count("list", err)
	return names, err
}

// phase runs f as one phase, whose time and outcome are recorded.
func (n *node) phase(ctx context.Context, p metrics.Phase, f func(context.Context) error) error {
	begun := n.now()
	ctx, end := n.tracing.Span(ctx, string(p))
	err := f(ctx)
	reason := ""
	if err != nil {
		reason = refusal.Name(refusal.From(err).Reason)
	}
	end(reason)
	n.metrics.Phase(p, n.now().Sub(begun), err)
	return err
}

// observe is the node as metrics see it at one moment.
func (n *node) observe() metrics.State {
	now, j := n.now(), n.judge()
	s := metrics.State{
		Sessions: map[string]int{}, Oldest: map[string]time.Duration{}, Ready: n.health.isReady(), Draining: n.draining.Load(),
		SelfCheckAge: n.health.acceptedAgo(), CollateralAge: map[string]time.Duration{}, CollateralExpires: map[string]time.Duration{},
		Certificates: map[string]time.Duration{}, PolicySVN: j.policy.SVN, Windows: map[string]time.Duration{},
	}
	for _, rec := range n.table.List(func(r session.Record) bool { return !r.State.Ended() }) { // oldest first
		state := rec.State.String()
		if s.Sessions[state]++; s.Sessions[state] == 1 {
			s.Oldest[state] = max(0, now.Sub(rec.Created))
		}
	}
	for _, st := range n.collateral.Status() {
		of := metrics.PeersCollateral
		if st.Key == n.ownKind {
			of = metrics.OwnCollateral
		}
		age, expires := now.Sub(st.Meta.Fetched), st.Meta.Validity.NotAfter.Sub(now)
		if before, ok := s.CollateralAge[of]; !ok || age > before {
			s.CollateralAge[of] = age
		}
		if before, ok := s.CollateralExpires[of]; !ok || expires < before {
			s.CollateralExpires[of] = expires
		}
	}
	for name, at := range n.certificates {
		s.Certificates[name] = at.Sub(now)
	}
	if end, ok := j.policy.NextEnd(now); ok {
		s.Windows[metrics.WindowEnclaves] = end.Sub(now)
	}
	if end, ok := j.policy.Integrity.NextEnd(now); ok {
		s.Windows[metrics.WindowReferences] = end.Sub(now)
	}
	self := n.health.lastSelf()
	if self == nil {
		return s
	}
	if at := self.attested.GetExpiresAt(); at != nil {
		s.Certificates[metrics.CertificateEvidence] = at.AsTime().Sub(now)
	}
	if self.claims != nil {
		if end, ok := appraisal.AcceptedUntil(self.claims, &j.policy.Policy, now); ok && !end.IsZero() {
			s.Windows[metrics.WindowOwn] = end.Sub(now)
		}
	}
	return s
}

// certificatesOf reads when the certificates of the peer port expire.
func certificatesOf(t *config.TLS) (map[string]time.Time, error) {
	if t == nil {
		return nil, nil
	}
	out := map[string]time.Time{}
	for name, path := range map[string]string{metrics.CertificateTLS: t.Certificate, metrics.CertificateTLSCA: t.CA} {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("peer.tls: %w", err)
		}
		for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("peer.tls: %s: %w", path, err)
			}
			if first, ok := out[name]; !ok || cert.NotAfter.Before(first) {
				out[name] = cert.NotAfter
			}
		}
	}
	return out, nil
}
