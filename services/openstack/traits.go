package openstack

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// TraitKeeper keeps the traits of this node's resource provider what the node service, the helper and the tunnel say. What cannot be asked does not hold.
type TraitKeeper struct {
	Mode     v1.Mode
	Host     string
	Provider string
	// Standing asks the node service.
	Standing func(context.Context) (Standing, error)
	// Helper says whether the helper is in place, and why not; nil: the trait is off.
	Helper func() (bool, string)
	// Tunnel says whether the tunnel answers, and why not; nil: the trait is off.
	Tunnel func(context.Context, v1.Mode) (bool, string)
	// Set sets them in Placement.
	Set    func(ctx context.Context, provider string, wanted []Trait) (TraitChange, error)
	Record *Recorder
	Log    *slog.Logger

	last string
}

// Pass looks and sets once.
func (k *TraitKeeper) Pass(ctx context.Context) error {
	wanted, missing := k.wanted(ctx)
	if text := strings.Join(missing, "; "); text != k.last {
		k.last = text
		if text != "" {
			k.Log.Warn("traits are not to be published", "missing", text)
		} else {
			k.Log.Info("every trait is to be published")
		}
	}
	return k.set(ctx, wanted)
}

// Withdraw takes every trait back.
func (k *TraitKeeper) Withdraw(ctx context.Context) error { return k.set(ctx, nil) }

func (k *TraitKeeper) set(ctx context.Context, wanted []Trait) error {
	change, err := k.Set(ctx, k.Provider, wanted)
	k.Record.Traits(wanted, change, err)
	if err == nil && len(change.Published)+len(change.Withdrawn) > 0 {
		k.Log.Info("traits changed in Placement", "resource_provider", k.Provider, "published", change.Published, "withdrawn", change.Withdrawn)
	}
	return err
}

// wanted returns the traits that hold, and what keeps the others from it.
func (k *TraitKeeper) wanted(ctx context.Context) ([]Trait, []string) {
	none := func(why string) ([]Trait, []string) { return nil, []string{string(TraitAttested) + ": " + why} }
	s, err := k.Standing(ctx)
	switch {
	case err != nil:
		return none(err.Error())
	case !s.Ready:
		return none("the node service is not ready: ask its /readyz, or safeconduct status")
	case s.Mode != k.Mode:
		return none("the node service is in mode " + modeName(s.Mode) + ", and the agent in mode " + modeName(k.Mode) + ": they never mix")
	case s.Host != k.Host:
		return none("the node service calls this host " + s.Host + ", and the agent " + k.Host + ": give both nova-compute's name")
	case !s.Accepted:
		return none("the node's own policy refuses it (" + refusal.Name(s.Why.Reason) + "): " + s.Why.Message)
	case s.Draining:
		return none("the node drains")
	}
	wanted, missing := []Trait{TraitAttested}, []string(nil)
	add := func(t Trait, holds bool, why string) {
		if holds {
			wanted = append(wanted, t)
			return
		}
		missing = append(missing, string(t)+": "+why)
	}
	if k.Helper != nil {
		holds, why := k.Helper()
		add(TraitVTPM, holds, why)
	}
	switch {
	case k.Tunnel == nil:
	case s.NoTunnel != "":
		add(TraitTunnel, false, s.NoTunnel)
	default:
		holds, why := k.Tunnel(ctx, s.Mode)
		add(TraitTunnel, holds, why)
	}
	if s.Mode != v1.Mode_MODE_INTEL {
		wanted = append(wanted, TraitSimulated)
	}
	return slices.Clip(wanted), missing
}
