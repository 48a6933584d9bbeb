package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// live is what a session holds once its handshake has ended well: its keys, and the verdict that they hang on.
type live struct {
	*handshake.Session
	incoming
	node        *node
	established time.Time
	// concluded is set once the session has a record, or needs none. commit is what the source has told its peer of the commit: told again, it must
	// be the same.
	concluded atomic.Bool
	commit    atomic.Pointer[signed]

	// mu is held while the peer is judged again; judged is the last verdict, which accepted it.
	mu     sync.Mutex
	judged atomic.Pointer[judged]
}

// judged is a verdict that accepted a peer: on what basis, when, and by which collateral both quotes were judged.
type judged struct {
	basis
	at   time.Time
	sets sets
}

// basis of a verdict: the policy in force, and the age of the collateral.
type basis struct {
	judge *judge
	age   uint64
}

// basis is the one of a verdict that is made from now on. Collateral that changes meanwhile makes it old at once.
func (n *node) basis() basis { return basis{judge: n.judge(), age: n.collateralAge.Load()} }

// hold makes what a session holds once it is appraised.
func (n *node) hold(hs *handshake.Session, under basis) *live {
	l := &live{Session: hs, node: n, established: n.now()}
	l.judged.Store(&judged{basis: under, at: l.established, sets: n.setsOf(hs)})
	return l
}

// party is this node in a handshake that begins now: it is judged, from beginning to end, by the policy whose digest it announces.
func (n *node) party() (*handshake.Node, basis) {
	b := n.basis()
	p := n.base
	p.PolicyDigest, p.Evidence, p.Reference = b.judge.policy.Digest, b.judge, n
	return &p, b
}

// judge is the one in force.
func (n *node) judge() *judge { return n.inForce.Load() }

// AppraiseLog implements handshake.LogAppraiser by the policy in force at that moment: a session's integrity exchange may be made again long
// after its handshake.
func (n *node) AppraiseLog(ctx context.Context, claim *handshake.LogClaim) (*v1.Appraised, error) {
	return n.judge().AppraiseLog(ctx, claim)
}

// standing returns the session's keys if the verdict they hang on still holds: under the policy in force, with the collateral in force, now.
// Every key is released through it. If the verdict does not hold, the session is aborted.
func (n *node) standing(ctx context.Context, s *session.Session) (*live, error) {
	l, err := secrets(s)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now, expires := n.basis(), l.PeerAttested().GetExpiresAt()
	before := l.judged.Load()
	if before.basis == now && (expires == nil || !n.now().After(expires.AsTime())) {
		return l, nil
	}
	var logs handshake.LogAppraiser
	if before.judge.policy.Digest != now.judge.policy.Digest {
		logs = now.judge
	}
	if err := l.Rejudge(ctx, now.judge, logs); err != nil {
		r := *refusal.From(err)
		r.Message = "the peer was accepted and no longer is: " + r.Message
		n.abort(ctx, s, &r)
		return nil, &r
	}
	l.judged.Store(&judged{basis: now, at: n.now(), sets: n.setsOf(l.Session)})
	n.log.Info("the peer was judged again and stands", "session", s.Record().ID.String(), "peer", l.PeerHost(), "policy_svn", now.judge.policy.SVN)
	return l, nil
}

// sweep judges every open session again and returns those that fell. A session whose handshake is still under way began under a policy that
// is no longer in force, so it falls too.
func (n *node) sweep(ctx context.Context, policyChanged bool) []session.Record {
	var fallen []session.Record
	for _, rec := range n.table.List(func(r session.Record) bool { return !r.State.Ended() }) {
		s := n.table.ByAttempt(rec.Attempt)
		if s == nil {
			continue
		}
		if rec.State == session.Offered || rec.State == session.Attested {
			if policyChanged {
				_ = s.Abort(refusal.New(v1.Reason_REASON_POLICY_REFUSED, "the policy changed during the handshake").Do("establish the session again"))
			}
		} else {
			_, _ = n.standing(ctx, s) // what falls is aborted with its reason
		}
		if now := s.Record(); now.State == session.Aborted {
			fallen = append(fallen, now)
		}
	}
	return fallen
}
