package openstack

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Verdict is what Nova says of a session's migration.
type Verdict string

// The verdicts.
const (
	// NotArmed sessions belong to no migration yet; the node service ends them after minutes.
	NotArmed Verdict = "not_armed"
	// Young sessions are not looked at: nova-compute is about to end them itself, or has hardly begun.
	Young   Verdict = "young"
	Running Verdict = "running"
	// Completed ones are nova-compute's to commit: only it knows that the server runs at its destination.
	Completed Verdict = "completed"
	Failed    Verdict = "failed"
	Cancelled Verdict = "cancelled"
	// Errored is what Nova also says of a migration that it has lost sight of, such as after a restart of nova-compute: libvirt may still be at it.
	Errored Verdict = "error"
	// Vanished: this agent has seen the migration in Nova, and Nova no longer has it, or a cell of Nova's does not answer.
	Vanished Verdict = "vanished"
	// Unknown: Nova has never had it (the session is of somebody who migrates without Nova), or calls its state what this release does not know.
	Unknown Verdict = "unknown"
)

func verdicts() []Verdict {
	return []Verdict{NotArmed, Young, Running, Completed, Failed, Cancelled, Errored, Vanished, Unknown}
}

// verdictOf reads a status of Nova's.
func verdictOf(status string) Verdict {
	switch status {
	case "accepted", "queued", "preparing", "pre-migrating", "running", "migrating", "post-migrating":
		return Running
	case "completed", "done", "finished", "confirmed":
		return Completed
	case "failed":
		return Failed
	case "cancelled":
		return Cancelled
	case "error":
		return Errored
	default:
		return Unknown
	}
}

// mayAbort says whether a session whose migration Nova has given up may be aborted, given whether the VM has a QEMU here. Abort destroys the keys on both
// nodes and the secrets at the destination: it must not hit a migration that still runs, and never one whose VM has moved.
//
//   - At the destination, a migration that runs or has succeeded has a QEMU here. Without one there is nothing to lose.
//   - At the source there is a QEMU while the VM is here, migrating or not. That is enough where Nova says failed or cancelled, which it does after libvirt's
//     job has ended or before it has begun; error and vanished leave open whether the job runs, and the destination's agent decides.
//
// PresenceUnknown aborts nothing.
func mayAbort(role v1.Role, v Verdict, guest Presence) bool {
	switch role {
	case v1.Role_ROLE_DESTINATION:
		return guest == Absent && (v == Failed || v == Cancelled || v == Errored || v == Vanished)
	case v1.Role_ROLE_SOURCE:
		return guest == Present && (v == Failed || v == Cancelled)
	default:
		return false
	}
}

// maxAsked bounds how many servers' migrations are asked for in one pass.
const maxAsked = 100

// Warden ends this node's sessions whose migration Nova has given up, once it has for a while. nova-compute ends its sessions itself; the warden is for
// those that it did not get to.
type Warden struct {
	Host  string
	Grace time.Duration
	// Sessions lists those that are open, Session returns one as it is now, Attached the VMs that have a helper, and Abort ends one: the node service's.
	Sessions func(context.Context) ([]*v1.Session, error)
	Session  func(context.Context, []byte) (*v1.Session, error)
	Attached func(context.Context) ([]string, error)
	Abort    func(ctx context.Context, id []byte, why string) error
	// Migrations are those that Nova has of a server.
	Migrations func(ctx context.Context, instance string) ([]Migration, error)
	// Guest says whether a VM has a QEMU on this host.
	Guest  func(instance string) Presence
	Record *Recorder
	Log    *slog.Logger
	Now    func() time.Time

	followed map[string]*followed // by session id
	asked    int
}

// followed is what the warden remembers of a session.
type followed struct {
	seen    bool // Nova has had its migration
	verdict Verdict
	since   time.Time // when the verdict became what it is
	told    bool      // that the session is left alone
}

// Pass looks at all sessions once.
func (w *Warden) Pass(ctx context.Context) error {
	open, err := w.Sessions(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(open, func(a, b *v1.Session) int {
		return cmp.Compare(hex.EncodeToString(a.GetSessionId()), hex.EncodeToString(b.GetSessionId()))
	})
	keep := map[string]*followed{}
	for _, s := range open {
		f := w.followed[string(s.GetSessionId())]
		if f == nil {
			f = &followed{verdict: Young, since: w.Now()}
		}
		keep[string(s.GetSessionId())] = f
	}
	w.followed = keep
	counts, candidates := map[Verdict]int{}, []*v1.Session(nil)
	for _, s := range open {
		switch {
		case !armed(s):
			counts[NotArmed]++
		case w.Now().Sub(s.GetCreatedAt().AsTime()) < w.Grace:
			counts[Young]++
		case !isUUID(s.GetMigrationId()) || !isUUID(s.GetInstanceId()):
			counts[Unknown]++
		default:
			candidates = append(candidates, s)
		}
	}
	err = w.judge(ctx, candidates)
	for _, s := range candidates {
		counts[w.followed[string(s.GetSessionId())].verdict]++
	}
	w.Record.Sessions(counts)
	return err
}

func armed(s *v1.Session) bool {
	return s.GetMigrationId() != "" && (s.GetState() == v1.SessionState_SESSION_STATE_ARMED || s.GetState() == v1.SessionState_SESSION_STATE_TRANSFERRING)
}

func isUUID(s string) bool {
	_, err := uuid.Parse(s)
	return err == nil && len(s) == 36
}

// judge asks Nova about sessions, some of them if they are too many, and acts on what it says.
func (w *Warden) judge(ctx context.Context, sessions []*v1.Session) error {
	var all []error
	n := min(len(sessions), maxAsked)
	for i := range n {
		s := sessions[(w.asked+i)%len(sessions)]
		found, err := w.Migrations(ctx, s.GetInstanceId())
		if err != nil {
			return errors.Join(append(all, err)...) // Nova is down: the others would fail too, and nothing changes
		}
		w.note(s, found)
		if err := w.act(ctx, s); err != nil {
			all = append(all, err)
		}
	}
	if len(sessions) > 0 {
		w.asked = (w.asked + n) % len(sessions)
	}
	return errors.Join(all...)
}

// note remembers what Nova says of a session's migration.
func (w *Warden) note(s *v1.Session, found []Migration) {
	f := w.followed[string(s.GetSessionId())]
	verdict := Unknown
	i := slices.IndexFunc(found, func(m Migration) bool {
		return strings.EqualFold(m.UUID, s.GetMigrationId()) && strings.EqualFold(m.Instance, s.GetInstanceId())
	})
	switch {
	case i >= 0:
		f.seen, verdict = true, verdictOf(found[i].Status)
	case f.seen:
		verdict = Vanished
	}
	if verdict != f.verdict {
		f.verdict, f.since, f.told = verdict, w.Now(), false
	}
}

// act aborts a session if it may.
func (w *Warden) act(ctx context.Context, s *v1.Session) error {
	f := w.followed[string(s.GetSessionId())]
	if f.verdict == Running || w.Now().Sub(f.since) < w.Grace {
		return nil
	}
	guest := PresenceUnknown
	if f.verdict == Failed || f.verdict == Cancelled || f.verdict == Errored || f.verdict == Vanished {
		var err error
		if guest, err = w.guest(ctx, s.GetInstanceId()); err != nil {
			return err
		}
	}
	if !mayAbort(s.GetRole(), f.verdict, guest) {
		if !f.told {
			f.told = true
			w.Log.Warn("a session is open whose migration Nova does not run, and is left alone", append(describe(s, f.verdict), "do", leftAlone(s, f.verdict, guest))...)
		}
		return nil
	}
	// What was listed may have moved on meanwhile.
	now, err := w.Session(ctx, s.GetSessionId())
	if err != nil {
		return ignoreEnded(err)
	}
	if !armed(now) || now.GetMigrationId() != s.GetMigrationId() {
		return nil
	}
	why := fmt.Sprintf("Nova says that migration %s is %s, and has for %v", s.GetMigrationId(), f.verdict, w.Now().Sub(f.since).Round(time.Second))
	if err := w.Abort(ctx, s.GetSessionId(), why); err != nil {
		return ignoreEnded(err)
	}
	w.Record.Aborted(f.verdict)
	w.Log.Warn("session aborted: Nova has given its migration up", append(describe(s, f.verdict), "why", why)...)
	return nil
}

// guest asks both witnesses: the helper's connection, and the process table.
func (w *Warden) guest(ctx context.Context, instance string) (Presence, error) {
	attached, err := w.Attached(ctx)
	if err != nil {
		return PresenceUnknown, err
	}
	if slices.ContainsFunc(attached, func(a string) bool { return strings.EqualFold(a, instance) }) {
		return Present, nil
	}
	return w.Guest(instance), nil
}

func describe(s *v1.Session, v Verdict) []any {
	role := strings.ToLower(strings.TrimPrefix(s.GetRole().String(), "ROLE_"))
	return []any{
		"session", hex.EncodeToString(s.GetSessionId()), "instance", s.GetInstanceId(), "migration", s.GetMigrationId(), "role", role,
		"source", s.GetSourceHost(), "destination", s.GetDestinationHost(), "nova", string(v),
	}
}

// leftAlone says what to do about a session that is not aborted.
func leftAlone(s *v1.Session, v Verdict, guest Presence) string {
	id := hex.EncodeToString(s.GetSessionId())
	switch {
	case v == Completed:
		return "nova-compute on " + s.GetSourceHost() + " commits it: see its log; if the server runs at its destination and the session is still open, safeconduct migrations show " + id
	case v == Unknown:
		return "somebody migrates without Nova, or the agent was started after Nova forgot the migration; the session expires by itself"
	case guest == PresenceUnknown:
		return "the agent cannot see the host's QEMU processes and libvirt's daemon, so it does not know where the server is; safeconduct migrations abort " + id + " if it runs at its source"
	case s.GetRole() == v1.Role_ROLE_SOURCE && guest == Present:
		return "libvirt may still migrate it; the agent at " + s.GetDestinationHost() + " aborts it once there is no QEMU of it there"
	case s.GetRole() == v1.Role_ROLE_SOURCE:
		return "the server is not here any more: it may have moved; see where it runs before the session is ended, for an abort destroys its secrets at " + s.GetDestinationHost()
	default:
		return "the server has a QEMU here: the migration may still run, or have succeeded"
	}
}

// ignoreEnded takes an error that says that the session is over for what it is.
func ignoreEnded(err error) error {
	for _, reason := range []v1.Reason{v1.Reason_REASON_NO_SESSION, v1.Reason_REASON_WRONG_STATE} {
		if errors.Is(err, refusal.Because(reason)) {
			return nil
		}
	}
	return err
}
