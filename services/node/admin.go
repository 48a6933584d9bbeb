package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/services/version"
)

// Bounds of a drain.
const (
	defaultDrain = 180 * time.Second
	maxDrain     = time.Hour
)

// adminServer implements AdminService, for the node's operator.
type adminServer struct {
	v1.UnimplementedAdminServiceServer
	*node
}

// GetStatus implements AdminService.
func (a *adminServer) GetStatus(ctx context.Context, _ *v1.GetStatusRequest) (*v1.GetStatusResponse, error) {
	j := a.judge()
	out := &v1.GetStatusResponse{
		Mode: a.mode, Host: a.host, Version: version.Version, StartedAt: timestamppb.New(a.started), PlatformId: a.base.PlatformID[:],
		PolicySvn: j.policy.SVN, PolicyDigest: j.policy.Digest[:], PolicySigners: j.policy.SignedBy, Draining: a.draining.Load(), OpenSessions: a.open(),
		AttachedInstances: a.helpers.instances(),
	}
	self := a.selfCheck(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	out.Attested, out.AcceptedByOwnPolicy, out.OwnRefusal = self.attested, self.refusal == nil, self.refusal.Proto()
	head := a.audit.log.Head()
	out.AuditSequence, out.AuditDigest = head.Sequence, head.Digest[:]
	out.CollateralExpiresAt = self.attested.GetExpiresAt()
	return out, nil
}

func (n *node) open() uint32 {
	return uint32(len(n.table.List(func(r session.Record) bool { return !r.State.Ended() })))
}

// Reload implements AdminService.
func (a *adminServer) Reload(ctx context.Context, _ *v1.ReloadRequest) (*v1.ReloadResponse, error) {
	out, err := a.reload(ctx)
	a.metrics.Reloaded(err)
	return out, err
}

func (a *adminServer) reload(ctx context.Context) (*v1.ReloadResponse, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	before, open := a.judge(), a.table.List(func(r session.Record) bool { return !r.State.Ended() })
	after, err := a.newJudge(ctx)
	if r, ok := errors.AsType[*refusal.Refusal](err); ok {
		return nil, r
	}
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_POLICY_REFUSED, "the reload is refused and the policy in force stays: %w", err)
	}
	out := &v1.ReloadResponse{
		PolicySvn: after.policy.SVN, PolicyDigest: after.policy.Digest[:],
		PolicyChanged:     before.policy.Digest != after.policy.Digest,
		CollateralChanged: a.refreshCollateral(ctx),
	}
	if !out.GetPolicyChanged() && !out.GetCollateralChanged() {
		return out, nil
	}
	a.inForce.Store(after)
	a.log.Info("reloaded", "policy_svn", after.policy.SVN, "policy_changed", out.GetPolicyChanged(), "collateral_changed", out.GetCollateralChanged())
	fallen := map[session.AttemptID]session.Record{}
	for _, rec := range a.sweep(ctx, out.GetPolicyChanged()) {
		fallen[rec.Attempt] = rec
	}
	for _, rec := range open { // the loop that follows collateral may have judged a session before sweep did
		if s := a.table.ByAttempt(rec.Attempt); s != nil && s.Record().State == session.Aborted {
			fallen[rec.Attempt] = s.Record()
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(fallen), func(a, b session.AttemptID) int { return bytes.Compare(a[:], b[:]) }) {
		out.Aborted = append(out.Aborted, a.view(fallen[id]))
	}
	a.health.soon()
	return out, nil
}

// Drain implements AdminService. A caller that goes away does not stop the drain: the node is going down.
func (a *adminServer) Drain(req *v1.DrainRequest, stream grpc.ServerStreamingServer[v1.DrainResponse]) error {
	deadline := req.GetDeadline().AsDuration()
	if req.GetDeadline() == nil {
		deadline = defaultDrain
	}
	if deadline < 0 || deadline > maxDrain {
		return invalid("deadline", "a deadline of %v is not between 0 and %v", deadline, maxDrain)
	}
	if !a.draining.CompareAndSwap(false, true) {
		return refusal.New(v1.Reason_REASON_DRAINING, "this node is draining already")
	}
	a.health.change(func() { a.health.draining = true })
	a.log.Warn("draining: no new sessions", "open_sessions", a.open(), "deadline", deadline)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stream.Context()), deadline)
	defer cancel()
	a.awaitEnd(ctx, func(open uint32) { _ = stream.Send(&v1.DrainResponse{OpenSessions: open}) })
	last := &v1.DrainResponse{Drained: true}
	why := refusal.New(v1.Reason_REASON_DRAINING, "this node drains and the session had not ended within %v", deadline)
	for _, rec := range a.table.List(func(r session.Record) bool { return !r.State.Ended() }) {
		if s := a.table.ByAttempt(rec.Attempt); s != nil {
			a.abort(context.WithoutCancel(stream.Context()), s, why)
			last.Aborted = append(last.Aborted, a.view(s.Record()))
		}
	}
	a.log.Warn("drained: the service stops", "aborted", len(last.GetAborted()))
	err := stream.Send(last)
	a.stop()
	return err
}

// awaitEnd waits until no session is open, or ctx ends, and tells of every change.
func (n *node) awaitEnd(ctx context.Context, tell func(open uint32)) {
	watcher, _ := n.table.Watch()
	defer watcher.Stop()
	for last := ^uint32(0); ; {
		open := n.open()
		if open == 0 {
			return
		}
		if open != last {
			tell(open)
			last = open
		}
		select {
		case <-ctx.Done():
			return
		case _, ok := <-watcher.C:
			if !ok { // fell behind: look again from now on
				watcher, _ = n.table.Watch()
				defer watcher.Stop()
			}
		}
	}
}

// SetLogLevel implements AdminService.
func (a *adminServer) SetLogLevel(_ context.Context, req *v1.SetLogLevelRequest) (*v1.SetLogLevelResponse, error) {
	out := &v1.SetLogLevelResponse{Previous: strings.ToLower(a.logLevel.Level().String())}
	if text := req.GetLevel(); text != "" {
		if !slices.Contains([]string{"debug", "info", "warn", "error"}, text) {
			return nil, invalid("level", "level %.20q is not debug, info, warn or error", text)
		}
		var level slog.Level
		if err := level.UnmarshalText([]byte(text)); err != nil {
			return nil, invalid("level", "level: %v", err)
		}
		a.logLevel.Set(level)
		a.log.Log(context.Background(), max(level, slog.LevelWarn), "the level of this log was changed", "level", text, "before", out.GetPrevious())
	}
	out.Level = strings.ToLower(a.logLevel.Level().String())
	return out, nil
}

// begin opens a session unless the node drains.
func (n *node) begin(who session.Identity) (*session.Session, error) {
	if n.draining.Load() {
		return nil, refusal.New(v1.Reason_REASON_DRAINING, "node %s is draining", n.host)
	}
	return n.table.Begin(who)
}
