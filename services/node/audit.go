package node

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/metadata"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/audit"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/local"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/node/tracing"
)

// Strangers on the peer port whose calls are refused fill the audit log no faster than this; what is left out is counted.
const (
	strangersPerSecond = rate.Limit(1)
	strangersBurst     = 60
)

// recordedMethods are the requests that matter: they change something, release something, or have this node judged. What only reads is recorded when its
// caller was not allowed to call it, and so is RecordState, which comes with every write of a vTPM.
func recordedMethods() []string {
	return []string{
		"MigrationService/Establish", "MigrationService/Arm", "MigrationService/Commit", "MigrationService/Abort", "MigrationService/Reconcile",
		"SecretService/Escrow", "SecretService/Release", "SecretService/Forget",
		"CryptoService/Attach", "CryptoService/ProtectState", "CryptoService/UnprotectState", "CryptoService/ProtectImage", "CryptoService/UnprotectImage",
		"CryptoService/DeriveKey", "CryptoService/OpenState", "AdminService/AcceptState",
		"AttestationService/Preflight", "IntegrityService/Endorse", "AdminService/Reload", "AdminService/Drain", "AdminService/SetLogLevel",
		"PeerService/Handshake", "PeerService/Arm", "PeerService/Transfer", "PeerService/Conclude",
	}
}

// auditor writes the audit log.
type auditor struct {
	log      *audit.Log
	recorded []string
	now      func() time.Time

	mu         sync.Mutex
	strangers  *rate.Limiter
	suppressed uint64
}

// openAudit opens the audit log that the configuration names.
func (n *node) openAudit(ctx context.Context, cfg *config.Config, marks audit.Marks) error {
	dir := cfg.Audit.Dir
	if dir == "" {
		dir = filepath.Join(cfg.StateDir, "audit")
	}
	log, err := audit.Open(ctx, marks, audit.Options{
		Dir: dir, Host: cfg.Host, Mode: string(cfg.Mode), MaxFile: int64(cfg.Audit.MaxFileMiB) << 20, MaxFiles: cfg.Audit.MaxFiles, Now: n.now,
		Observe: n.auditing,
	})
	if err != nil {
		return err
	}
	n.audit = &auditor{log: log, recorded: recordedMethods(), now: n.now, strangers: rate.NewLimiter(strangersPerSecond, strangersBurst)}
	return nil
}

// auditing follows what becomes of the audit log: a node that cannot write it is not ready.
func (n *node) auditing(written bool, err error) {
	if written || err != nil {
		n.metrics.Audited(err)
	}
	before := n.health.setAuditing(written, err)
	switch {
	case err != nil && before == nil:
		n.log.Error("the audit log cannot be written; this node is not ready meanwhile", "why", err, "do", "make room on the disk of audit.dir")
	case err == nil && !written && before != nil:
		n.log.Warn("the audit log is written again; a record of it says how many are missing")
	}
}

// append writes a record. What goes wrong is told by auditing.
func (a *auditor) append(r audit.Record) { _ = a.log.Append(r) }

// recordCall puts a call that matters into the audit log.
func (n *node) recordCall(side metrics.Side, call *served) {
	a := n.audit
	refused := refusal.From(call.err)
	notAllowed := refused != nil && refused.Reason == v1.Reason_REASON_CALLER_NOT_ALLOWED
	if !slices.Contains(a.recorded, call.method) && !notAllowed {
		return
	}
	r := audit.Record{Event: audit.EventCall, Method: call.method, Verdict: audit.Allowed}
	if caller, ok := local.From(call.ctx); ok && side == metrics.Local {
		r.Caller = &audit.Caller{UID: caller.UID, GID: caller.GID, PID: caller.PID, Process: caller.Process}
	}
	about(&r, call.request)
	n.identify(&r, call)
	switch {
	case canceled(call.err):
		r.Verdict = audit.Canceled
	case refused != nil:
		r.Verdict, r.Reason, r.Message = audit.Refused, refusal.Name(refused.Reason), refused.Message
		r.Item, r.Found, r.Expected = refused.Item, refused.Found, refused.Expected
	}
	if md, ok := metadata.FromIncomingContext(call.ctx); ok && side == metrics.Local {
		if ids := md.Get(tracing.RequestID); len(ids) > 0 {
			r.Request = ids[0]
		}
	}
	r.Trace = tracing.ID(call.ctx)
	if side == metrics.Peer && r.Verdict != audit.Allowed && r.Instance == "" && !a.admit() {
		return
	}
	r.Suppressed = a.takeSuppressed()
	tracing.About(call.ctx, "instance", r.Instance, "migration", r.Migration, "session", r.Session, "peer", r.Peer, "reason", r.Reason, "request_id", r.Request)
	a.append(r)
}

// admit says whether the refused call of a stranger is recorded.
func (a *auditor) admit() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.strangers.AllowN(a.now(), 1) {
		return true
	}
	a.suppressed++
	return false
}

func (a *auditor) takeSuppressed() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.suppressed
	a.suppressed = 0
	return n
}

// about takes from a request what it is about. Nothing of a secret or a state is looked at.
func about(r *audit.Record, request any) {
	switch m := request.(type) {
	case *v1.HandshakeRequest:
		// A stranger's word: what becomes of it is the verdict.
		o := m.GetFrame().GetOpen()
		r.Peer, r.Subject = o.GetSourceHost()+" to "+o.GetDestinationHost(), "for instance "+o.GetInstanceId()
		return
	case *v1.ProtectStateRequest:
		request, r.Subject = m.GetHeader(), session.BlobName(m.GetHeader().GetType())
	case *v1.UnprotectStateRequest:
		request, r.Subject = m.GetHeader(), session.BlobName(m.GetHeader().GetType())
	case *v1.ProtectImageRequest:
		request, r.Subject = m.GetHeader(), m.GetHeader().GetName()
	case *v1.UnprotectImageRequest:
		request, r.Subject = m.GetHeader(), m.GetHeader().GetName()
	case *v1.OpenStateRequest:
		r.Subject = hex.EncodeToString(m.GetDigest())
	case *v1.AcceptStateRequest:
		r.Subject = hex.EncodeToString(m.GetDigest())
	case *v1.SetLogLevelRequest:
		r.Subject = m.GetLevel()
	}
	if m, ok := request.(interface{ GetInstanceId() string }); ok {
		r.Instance = m.GetInstanceId()
	}
	if m, ok := request.(interface{ GetMigrationId() string }); ok {
		r.Migration = m.GetMigrationId()
	}
	if m, ok := request.(interface{ GetPeerHost() string }); ok {
		r.Peer = m.GetPeerHost()
	}
	if m, ok := request.(interface{ GetDestinationHost() string }); ok {
		r.Peer = m.GetDestinationHost()
	}
	if m, ok := request.(interface{ GetSecretId() string }); ok {
		r.Subject = m.GetSecretId()
	}
	if m, ok := request.(interface{ GetPurpose() string }); ok {
		r.Subject = m.GetPurpose()
	}
}

// identify finds the session of a call, and with it the migration.
func (n *node) identify(r *audit.Record, call *served) {
	id := call.session
	if m, ok := call.request.(interface{ GetSessionId() []byte }); ok && len(m.GetSessionId()) == len(id) {
		id = [16]byte(m.GetSessionId())
	}
	if id == [16]byte{} {
		return
	}
	r.Session = hex.EncodeToString(id[:])
	if s, err := n.table.ByID(id); err == nil {
		of(r, s.Record())
	}
}

// of says whose session it is.
func of(r *audit.Record, rec session.Record) {
	r.Session, r.Instance, r.Peer = rec.ID.String(), rec.Instance, rec.Peer()
	if rec.MigrationID != "" {
		r.Migration = rec.MigrationID
	}
}

// recordEnd puts the end of a session into the audit log. It is called under the table's lock.
func (n *node) recordEnd(rec session.Record) {
	r := audit.Record{Event: audit.EventSession, State: rec.State.String()}
	of(&r, rec)
	if why := rec.Refusal; why != nil {
		r.Reason, r.Message, r.Item, r.Found, r.Expected = refusal.Name(why.Reason), why.Message, why.Item, why.Found, why.Expected
	}
	n.audit.append(r)
}

// recordReceipt puts a receipt that was stored into the audit log.
func (n *node) recordReceipt(l *live, s *signed) {
	r := audit.Record{Event: audit.EventReceipt, Signed: "both", Instance: l.Intent.Instance, Peer: l.PeerHost(), Session: session.ID(l.ID).String()}
	if made, err := receipt.ParseRecord(s.record); err == nil {
		r.Migration, r.State, r.Reason = made.MigrationID, made.Outcome.Result, made.Outcome.Reason
	}
	if s.source == nil || s.destination == nil {
		r.Signed = "one"
	}
	id := receipt.ID(s.record)
	r.Receipt = hex.EncodeToString(id[:])
	n.audit.append(r)
}
