package node

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/hosttpm"
	"github.com/safeconduct/safeconduct/integrity/measure"
	"github.com/safeconduct/safeconduct/services/node/config"
)

// hostLogs measures this host; it implements handshake.LogSource.
type hostLogs struct {
	host     string
	measurer *measure.Measurer
	tpm      *hosttpm.TPM // nil on a host without one
	pcrs     []int
	// Paths as they are seen from here; empty for a host without.
	bootLog, imaList string
	boot, ima        growing
	now              func() time.Time

	mu     sync.Mutex
	latest []byte
	at     time.Time
}

func newHostLogs(cfg *config.Config, now func() time.Time) (*hostLogs, error) {
	items := make([]measure.Item, 0, len(cfg.Integrity.Items))
	for _, it := range cfg.Integrity.Items {
		items = append(items, measure.Item{Name: it.Name, Kind: measure.Kind(it.Kind), Path: it.Path})
	}
	measurer, err := measure.New(measure.Config{Root: cfg.Integrity.Root, Items: items, Now: now})
	if err != nil {
		return nil, fmt.Errorf("integrity.items: %w", err)
	}
	l := &hostLogs{
		host: cfg.Host, measurer: measurer, pcrs: cfg.Integrity.PCRs, now: now,
		bootLog: under(cfg.Integrity.Root, cfg.Integrity.BootLog), imaList: under(cfg.Integrity.Root, cfg.Integrity.IMAList),
	}
	if cfg.Integrity.TPM != "" {
		if l.tpm, err = hosttpm.Open(cfg.Integrity.TPM); err != nil {
			return nil, fmt.Errorf("integrity.tpm: %w", err)
		}
	}
	return l, nil
}

// Log measures the host now, with a TPM quote over qualifying.
func (l *hostLogs) Log(ctx context.Context, qualifying [32]byte) (*handshake.Log, error) {
	failed := func(what string, err error) error {
		return refusal.New(v1.Reason_REASON_MEASUREMENT_FAILED, "this host could not be measured: %s: %w", what, err).On(what)
	}
	entries, err := l.measurer.Measure(ctx)
	if err != nil {
		return nil, failed("files", err)
	}
	var quote *v1.TpmQuote
	if l.tpm != nil {
		if quote, err = l.tpm.Quote(ctx, qualifying, l.pcrs); err != nil {
			return nil, failed("tpm", err)
		}
	}
	// After the quote: what it covers is then a part of what is read.
	attachments, named, err := l.attachments()
	if err != nil {
		return nil, failed("logs", err)
	}
	at := l.now()
	raw, err := hostlog.Build(l.host, at, entries, quote, named...)
	if err != nil {
		return nil, failed("log", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latest, l.at = raw, at
	return &handshake.Log{Raw: raw, Attachments: attachments}, nil
}

func under(root, path string) string {
	if path == "" {
		return ""
	}
	return filepath.Join(root, path)
}

// attachments reads the logs of firmware and kernel.
func (l *hostLogs) attachments() (map[string][]byte, []*v1.Attachment, error) {
	all := map[string][]byte{}
	var named []*v1.Attachment
	for _, a := range []struct {
		name, path string
		file       *growing
	}{{hostlog.AttachmentBoot, l.bootLog, &l.boot}, {hostlog.AttachmentIMA, l.imaList, &l.ima}} {
		if a.path == "" {
			continue
		}
		raw, err := a.file.read(a.path, hostlog.MaxAttachment)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", a.path, err)
		}
		if len(raw) == 0 {
			return nil, nil, fmt.Errorf("%s is empty", a.path)
		}
		all[a.name] = raw
		named = append(named, &v1.Attachment{Name: a.name, Size: uint64(len(raw))})
	}
	return all, named, nil
}

// last returns the last log as its exact bytes, or nil.
func (l *hostLogs) last() ([]byte, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest, l.at
}

// tpmKey is the attestation key of this host's TPM, or nil without one.
func (l *hostLogs) tpmKey(ctx context.Context) ([]byte, error) {
	if l.tpm == nil {
		return nil, nil
	}
	key, err := l.tpm.AKPublic(ctx)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_MEASUREMENT_FAILED, "the host's TPM: %w", err).On("tpm")
	}
	return key, nil
}
