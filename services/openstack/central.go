package openstack

import (
	"context"
	"log/slog"
	"slices"
	"strings"
)

// HostState is what a compute host's resource provider says.
type HostState string

// The states.
const (
	HostAttested    HostState = "attested"
	HostNotAttested HostState = "not_attested"
	// HostOtherMode is attested in the other mode: simulated, in a cloud that is not, or the reverse.
	HostOtherMode HostState = "other_mode"
	// HostNoProvider has no hypervisor in Nova, or none of Placement's providers is it.
	HostNoProvider HostState = "no_provider"
)

func hostStates() []HostState {
	return []HostState{HostAttested, HostNotAttested, HostOtherMode, HostNoProvider}
}

// maxNamed bounds how many hosts one line of the log names.
const maxNamed = 50

// inProgress are the statuses of a live migration that has not ended.
func inProgress() []string {
	return []string{"accepted", "queued", "preparing", "running", "post-migrating"}
}

// Watcher is the work of a central agent: it sees which hosts that are up have the trait, and whether live migrations run between such hosts. It has no node
// service's socket, and changes nothing.
type Watcher struct {
	Simulated   bool
	Hosts       func(context.Context) ([]string, error)
	Hypervisors func(context.Context) ([]Hypervisor, error)
	With        func(context.Context, Trait) (map[string]bool, error)
	Migrations  func(ctx context.Context, status string) ([]Migration, error)
	Record      *Recorder
	Log         *slog.Logger

	last   string
	warned map[string]bool // migrations that were told of
}

// Pass looks once.
func (f *Watcher) Pass(ctx context.Context) error {
	states, err := f.states(ctx)
	if err != nil {
		return err
	}
	counts, bad := map[HostState]int{}, []string(nil)
	for host, s := range states {
		counts[s]++
		if s != HostAttested {
			bad = append(bad, host+" ("+string(s)+")")
		}
	}
	slices.Sort(bad)
	if text := strings.Join(bad, ", "); text != f.last {
		f.last = text
		if len(bad) == 0 {
			f.Log.Info("every compute host that is up is attested", "hosts", len(states))
		} else {
			f.Log.Warn("compute hosts that are up and not attested: no server that requires the trait is sent there", "hosts", bad[:min(len(bad), maxNamed)],
				"how_many", len(bad), "do", "safeconduct status on the host, and the log of its safeconduct-agent")
		}
	}
	attested, not, err := f.migrations(ctx, states)
	if err != nil {
		return err
	}
	f.Record.Fleet(counts, attested, not)
	return nil
}

func (f *Watcher) states(ctx context.Context) (map[string]HostState, error) {
	hosts, err := f.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	all, err := f.Hypervisors(ctx)
	if err != nil {
		return nil, err
	}
	attested, err := f.With(ctx, TraitAttested)
	if err != nil {
		return nil, err
	}
	simulated, err := f.With(ctx, TraitSimulated)
	if err != nil {
		return nil, err
	}
	states := map[string]HostState{}
	for _, h := range hosts {
		states[h] = HostNoProvider
	}
	for _, h := range all {
		if _, up := states[h.Host]; !up {
			continue
		}
		switch {
		case !attested[h.Name]:
			states[h.Host] = HostNotAttested
		case simulated[h.Name] != f.Simulated:
			states[h.Host] = HostOtherMode
		default:
			states[h.Host] = HostAttested
		}
	}
	return states, nil
}

// migrations counts live migrations in progress by whether both of their hosts are attested, and tells of each that is not once.
func (f *Watcher) migrations(ctx context.Context, states map[string]HostState) (attested, not int, err error) {
	warned := map[string]bool{}
	for _, status := range inProgress() {
		some, err := f.Migrations(ctx, status)
		if err != nil {
			return 0, 0, err
		}
		for _, m := range some {
			// The scheduler has not chosen yet.
			if m.Destination == "" || warned[m.UUID] {
				continue
			}
			if states[m.Source] == HostAttested && states[m.Destination] == HostAttested {
				attested++
				continue
			}
			not++
			if !f.warned[m.UUID] {
				f.Log.Warn("a live migration runs between hosts that are not both attested: if the server has a vTPM it is refused or stays unprotected",
					"migration", m.UUID, "instance", m.Instance, "source", m.Source, "destination", m.Destination)
			}
			warned[m.UUID] = true
		}
	}
	f.warned = warned
	return attested, not, nil
}
