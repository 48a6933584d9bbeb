package openstack

import (
	"context"
	"log/slog"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Preflighter has the node service shake hands with the compute hosts that are up, a few each time, in turn.
type Preflighter struct {
	Host string
	// Hosts lists the compute hosts that are up, sorted.
	Hosts func(context.Context) ([]string, error)
	// Preflight runs one.
	Preflight func(ctx context.Context, peer string) (*v1.PreflightResponse, error)
	// Peers is how many are asked in a pass, MaxPeers how many of those that Nova lists are asked at all, and Timeout how long one may take.
	Peers, MaxPeers int
	Timeout         time.Duration
	Record          *Recorder
	Log             *slog.Logger

	known map[string]bool // whether the last preflight was accepted
	after string          // the host that was asked last
}

// Pass asks the next few hosts. A refusal by a peer is a result; only what keeps this node from asking is an error.
func (p *Preflighter) Pass(ctx context.Context) error {
	hosts, err := p.Hosts(ctx)
	if err != nil {
		return err
	}
	hosts = slices.DeleteFunc(hosts, func(h string) bool { return h == p.Host })
	if len(hosts) > p.MaxPeers {
		p.Log.Warn("Nova lists more hosts than preflight.max_peers: the others are not asked", "hosts", len(hosts), "max_peers", p.MaxPeers)
		hosts = hosts[:p.MaxPeers]
	}
	for h := range p.known {
		if !slices.Contains(hosts, h) {
			delete(p.known, h)
			p.Record.ForgetPeer(h)
		}
	}
	for _, h := range p.next(hosts) {
		if err := p.ask(ctx, h); err != nil {
			return err
		}
		p.after = h
	}
	return nil
}

// next are the hosts after the one that was asked last, round the list.
func (p *Preflighter) next(hosts []string) []string {
	from, found := slices.BinarySearch(hosts, p.after)
	if found {
		from++
	}
	n := min(p.Peers, len(hosts))
	out := make([]string, 0, n)
	for i := range n {
		out = append(out, hosts[(from+i)%len(hosts)])
	}
	return out
}

func (p *Preflighter) ask(ctx context.Context, peer string) error {
	one, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	out, err := p.Preflight(one, peer)
	accepted, why := out.GetAccepted(), refusal.FromProto(out.GetRefusal())
	if err != nil {
		if ctx.Err() != nil || one.Err() == nil {
			return err
		}
		accepted, why = false, refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "no answer within %v", p.Timeout)
	}
	reason := v1.Reason_REASON_UNSPECIFIED
	if why != nil {
		reason = why.Reason
	}
	p.Record.Preflight(peer, accepted, reason)
	if p.known == nil {
		p.known = map[string]bool{}
	}
	before, asked := p.known[peer]
	p.known[peer] = accepted
	switch {
	case accepted && (!asked || !before):
		p.Log.Info("preflight accepted", "peer", peer)
	case !accepted && (!asked || before):
		fields := []any{"peer", peer, "reason", refusal.Name(reason)}
		if why != nil {
			fields = append(fields, "why", why.Message, "item", why.Item, "found", why.Found, "expected", why.Expected, "do", why.RemedyText())
		}
		p.Log.Warn("preflight refused: a migration to this host would be, too", fields...)
	}
	return nil
}
