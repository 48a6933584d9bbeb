package node

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
)

const (
	maxMigrationID = 128
	maxAbortReason = 256
)

// migrationServer implements MigrationService, for nova-compute and the command line.
type migrationServer struct {
	v1.UnimplementedMigrationServiceServer
	*node
}

func invalid(field, format string, args ...any) error {
	return refusal.New(v1.Reason_REASON_INVALID_REQUEST, format, args...).On(field)
}

func checkInstance(id string) error {
	if !handshake.IsInstanceID(id) {
		return invalid("instance_id", "instance_id %q is not a UUID in canonical lower case", id)
	}
	if id == preflightInstance {
		return invalid("instance_id", "instance_id %s stands for no VM: call Preflight", id)
	}
	return nil
}

func (m *migrationServer) identity(req *v1.EstablishRequest) (session.Identity, error) {
	who := session.Identity{Instance: req.GetInstanceId(), Role: req.GetRole(), Source: m.host, Destination: req.GetPeerHost()}
	if err := checkInstance(who.Instance); err != nil {
		return who, err
	}
	switch req.GetRole() {
	case v1.Role_ROLE_SOURCE:
	case v1.Role_ROLE_DESTINATION:
		who.Source, who.Destination = req.GetPeerHost(), m.host
	default:
		return who, invalid("role", "role must be source or destination: it is this node's in the migration")
	}
	if who.Source == who.Destination {
		return who, refusal.New(v1.Reason_REASON_SAME_NODE, "source and destination are both %s", m.host)
	}
	switch id := req.GetAttemptId(); len(id) {
	case 0:
		who.Attempt = newAttempt()
	case len(who.Attempt):
		who.Attempt = session.AttemptID(id)
	default:
		return who, invalid("attempt_id", "attempt_id has %d bytes, not %d", len(id), len(who.Attempt))
	}
	if who.Attempt == (session.AttemptID{}) {
		return who, invalid("attempt_id", "attempt_id is all zeros")
	}
	return who, nil
}

// Establish implements MigrationService.
func (m *migrationServer) Establish(req *v1.EstablishRequest, stream grpc.ServerStreamingServer[v1.EstablishResponse]) error {
	who, err := m.identity(req)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	if known := m.table.ByAttempt(who.Attempt); known != nil {
		return m.repeat(ctx, known, who, stream)
	}
	s, err := m.establish(ctx, who, func(step *v1.StepReport) {
		// A caller that has gone away notices by itself; the handshake goes on to its end.
		_ = stream.Send(&v1.EstablishResponse{Event: &v1.EstablishResponse_Step{Step: step}})
	})
	if err != nil {
		return err
	}
	noteOf(ctx).made(s.Record().ID)
	return stream.Send(&v1.EstablishResponse{Event: &v1.EstablishResponse_Session{Session: m.view(s.Record())}})
}

// repeat answers a second call for an attempt with what the first one made.
func (m *migrationServer) repeat(ctx context.Context, s *session.Session, who session.Identity, stream grpc.ServerStreamingServer[v1.EstablishResponse]) error {
	if s.Record().Identity != who {
		return refusal.New(v1.Reason_REASON_ALREADY_USED, "attempt %s was used before, for another migration", who.Attempt)
	}
	select {
	case <-s.Settled():
	case <-ctx.Done():
		return ctx.Err()
	}
	rec := s.Record()
	for _, step := range rec.Steps {
		if err := stream.Send(&v1.EstablishResponse{Event: &v1.EstablishResponse_Step{Step: step}}); err != nil {
			return err
		}
	}
	if rec.State == session.Aborted && rec.Refusal != nil {
		return rec.Refusal
	}
	return stream.Send(&v1.EstablishResponse{Event: &v1.EstablishResponse_Session{Session: m.view(rec)}})
}

// Arm implements MigrationService.
func (m *migrationServer) Arm(ctx context.Context, req *v1.ArmRequest) (*v1.ArmResponse, error) {
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	if err := checkMigrationID(req.GetMigrationId()); err != nil {
		return nil, err
	}
	if !req.GetReturnPath() {
		return nil, refusal.New(v1.Reason_REASON_UNSAFE_MIGRATION,
			"the migration would run without return-path: a destination that cannot restore the vTPM would lose the VM").
			Want("return_path false", "return_path true")
	}
	s, err := m.table.Appraised(req.GetInstanceId(), req.GetDestinationHost())
	if err != nil {
		return nil, err
	}
	if !req.GetWithoutVtpm() {
		if err := m.helpers.await(ctx, req.GetInstanceId()); err != nil {
			return nil, err
		}
	}
	if s.Record().State == session.Appraised {
		err := m.phase(ctx, metrics.PhaseArm, func(ctx context.Context) error { return m.arm(ctx, s, req.GetMigrationId()) })
		if err != nil {
			m.abort(ctx, s, refusal.From(err))
			return nil, err
		}
	} else if err := s.Arm(req.GetMigrationId()); err != nil { // live already: the same id again, or refused
		return nil, err
	}
	return &v1.ArmResponse{Session: m.view(s.Record())}, nil
}

func checkMigrationID(id string) error {
	if id == "" || len(id) > maxMigrationID {
		return invalid("migration_id", "migration_id has %d characters, not 1 to %d", len(id), maxMigrationID)
	}
	for _, c := range []byte(id) {
		if c < '!' || c > '~' {
			return invalid("migration_id", "migration_id %q has characters that are not printable ASCII", id)
		}
	}
	return nil
}

// arm renews the integrity exchange if the last one has grown old, then binds both nodes to the migration id: the peer first, so that
// this node, which QEMU asks first, is never armed alone.
func (m *migrationServer) arm(ctx context.Context, s *session.Session, migrationID string) error {
	ctx, cancel := context.WithTimeout(ctx, armTimeout)
	defer cancel()
	hs, err := m.standing(ctx, s)
	if err != nil {
		return err
	}
	client, err := m.peers.client(hs.PeerHost())
	if err != nil {
		return err
	}
	send := armSender(client, hs.ID[:])
	if age := m.now().Sub(hs.AppraisedAt()); age < 0 || age > m.armMaxAge {
		m.log.Info("the integrity appraisal has grown old and is made again", "session", s.Record().ID.String(), "age", age)
		if err := hs.Renew(ctx, send); err != nil {
			return err
		}
		if err := s.Reappraised(hs.PeerAppraised()); err != nil {
			return err
		}
	}
	answer, err := hs.Request(ctx, send, &v1.ChannelPayload{Body: &v1.ChannelPayload_Arm{Arm: &v1.ArmPayload{MigrationId: migrationID}}})
	if err != nil {
		return err
	}
	if answer.GetArmed().GetMigrationId() != migrationID {
		return refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the peer armed another migration").
			Want(answer.GetArmed().GetMigrationId(), migrationID)
	}
	return s.Arm(migrationID)
}

// Commit implements MigrationService.
func (m *migrationServer) Commit(ctx context.Context, req *v1.CommitRequest) (*v1.CommitResponse, error) {
	s, err := m.byID(req.GetSessionId())
	if err != nil {
		return nil, err
	}
	rec := s.Record()
	if rec.State == session.Committed {
		return &v1.CommitResponse{Session: m.view(rec)}, nil
	}
	if _, err := session.Next(rec.State, session.Commit); err != nil {
		return nil, s.Commit() // refused, with the reason
	}
	hs, err := secrets(s)
	if err != nil {
		return nil, err
	}
	if err := s.BeginCommit(); err != nil {
		return nil, err
	}
	hs.DestroyTransferKeys()
	if rec.Role == v1.Role_ROLE_SOURCE {
		err := m.phase(ctx, metrics.PhaseCommit, func(ctx context.Context) error { return m.commit(ctx, s, hs) })
		if err != nil {
			return nil, err
		}
	}
	return &v1.CommitResponse{Session: m.view(s.Record())}, nil
}

// commit has the source's session end well at both ends.
func (m *migrationServer) commit(ctx context.Context, s *session.Session, hs *live) error {
	ctx, cancel := context.WithTimeout(ctx, concludeTimeout)
	defer cancel()
	record := m.commitRecord(hs, s.Record())
	if err := m.conclude(ctx, hs, &v1.ConcludePayload{Committed: true}, record); err != nil {
		return err
	}
	t := hs.Transcript()
	hs.concluded.Store(true)
	if err := s.Commit(); err != nil {
		return err
	}
	if record != nil {
		m.keep(hs, t, record)
	}
	m.forgetMoved(context.WithoutCancel(ctx), s.Record().Instance)
	return nil
}

// commitRecord is the record of a commit: a commit that is tried again is told in the same bytes, which the peer answers once. A record that cannot be made
// stops no commit: the VM has moved.
func (m *migrationServer) commitRecord(hs *live, rec session.Record) *signed {
	if hs.commit.Load() == nil {
		made, err := m.record(hs, rec, receipt.Outcome{Result: receipt.Committed})
		if err != nil {
			m.metrics.NoReceipt()
			m.log.Error("the migration is committed without a receipt", "session", rec.ID.String(), "why", err)
			made = new(signed)
		}
		hs.commit.CompareAndSwap(nil, made)
	}
	made := hs.commit.Load()
	if made.record == nil {
		return nil
	}
	return &signed{record: made.record, source: made.source}
}

// Abort implements MigrationService.
func (m *migrationServer) Abort(ctx context.Context, req *v1.AbortRequest) (*v1.AbortResponse, error) {
	s, err := m.byID(req.GetSessionId())
	if err != nil {
		return nil, err
	}
	rec := s.Record()
	if rec.State == session.Committed {
		return nil, s.Abort(nil) // refused, with the reason
	}
	if !rec.State.Ended() {
		reason := req.GetReason()
		if len(reason) > maxAbortReason {
			reason = reason[:maxAbortReason]
		}
		m.abort(ctx, s, refusal.New(v1.Reason_REASON_ABORTED, "aborted by the caller: %s", reason))
	}
	return &v1.AbortResponse{Session: m.view(s.Record())}, nil
}

func (m *migrationServer) byID(raw []byte) (*session.Session, error) {
	if len(raw) != len(session.ID{}) {
		return nil, invalid("session_id", "session_id has %d bytes, not %d", len(raw), len(session.ID{}))
	}
	return m.table.ByID(session.ID(raw))
}

// Reconcile implements MigrationService.
func (m *migrationServer) Reconcile(ctx context.Context, req *v1.ReconcileRequest) (*v1.ReconcileResponse, error) {
	keep := func(rec session.Record) bool {
		return slices.ContainsFunc(req.GetKeepSessionIds(), func(id []byte) bool { return string(id) == string(rec.ID[:]) })
	}
	open := m.table.List(func(rec session.Record) bool { return !rec.State.Ended() && !keep(rec) })
	out := &v1.ReconcileResponse{}
	for _, rec := range open {
		if s := m.table.ByAttempt(rec.Attempt); s != nil {
			m.abort(ctx, s, refusal.New(v1.Reason_REASON_ABORTED, "nova-compute started and knows no migration of this session"))
			out.Aborted = append(out.Aborted, m.view(s.Record()))
		}
	}
	return out, nil
}

// Get implements MigrationService.
func (m *migrationServer) Get(_ context.Context, req *v1.GetRequest) (*v1.GetResponse, error) {
	s, err := m.byID(req.GetSessionId())
	if err != nil {
		return nil, err
	}
	return &v1.GetResponse{Session: m.view(s.Record())}, nil
}

// List implements MigrationService.
func (m *migrationServer) List(_ context.Context, req *v1.ListRequest) (*v1.ListResponse, error) {
	out := &v1.ListResponse{}
	for _, rec := range m.table.List(func(rec session.Record) bool {
		return wanted(rec, req.GetInstanceId()) && (req.GetIncludeEnded() || !rec.State.Ended())
	}) {
		out.Sessions = append(out.Sessions, m.view(rec))
	}
	return out, nil
}

func wanted(rec session.Record, instance string) bool {
	return instance == "" || rec.Instance == instance
}

// Watch implements MigrationService.
func (m *migrationServer) Watch(req *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse]) error {
	watcher, now := m.table.Watch()
	defer watcher.Stop()
	// With the header the caller knows that every later change will come: what it has from List after that is missed by nobody.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	send := func(rec session.Record, previous session.State, at time.Time) error {
		if !wanted(rec, req.GetInstanceId()) {
			return nil
		}
		return stream.Send(&v1.WatchResponse{
			Session: m.view(rec), PreviousState: v1.SessionState(previous), At: timestamppb.New(at),
		})
	}
	for _, rec := range now {
		if err := send(rec, 0, m.now()); err != nil {
			return err
		}
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case change, ok := <-watcher.C:
			if !ok {
				return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "this watcher fell too far behind, or the node stops; call Watch again")
			}
			if err := send(change.Session, change.Previous, change.At); err != nil {
				return err
			}
		}
	}
}

// view is a session as callers on the node see it.
func (n *node) view(rec session.Record) *v1.Session {
	out := &v1.Session{
		SessionId: rec.ID[:], InstanceId: rec.Instance, Role: rec.Role,
		SourceHost: rec.Source, DestinationHost: rec.Destination,
		State: v1.SessionState(rec.State), Refusal: rec.Refusal.Proto(), Mode: n.mode, MigrationId: rec.MigrationID,
		CreatedAt: timestamppb.New(rec.Created), ExpiresAt: timestamppb.New(rec.Expires),
		PeerAttested: rec.Attested, PeerAppraised: rec.Appraisal, Steps: rec.Steps, Blobs: rec.Blobs,
	}
	if !rec.AppraisedAt.IsZero() {
		out.AppraisedAt = timestamppb.New(rec.AppraisedAt)
	}
	for _, b := range rec.Blobs {
		out.BytesProtected += b.GetPlaintextBytes()
	}
	out.BytesProtected += rec.ImageBytes
	return out
}
