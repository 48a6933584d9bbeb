package openstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/tee"
)

// stopTimeout is how long the agent tries to withdraw its traits when it stops.
const stopTimeout = 5 * time.Second

// Run is the agent: it works until ctx ends, and stops in order.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	log = log.With("mode", string(cfg.Mode), "role", string(cfg.Role))
	if cfg.Mode == tee.ModeSimulated {
		log.Warn("SIMULATED: traits say that nodes are attested which no hardware protects; CUSTOM_SAFECONDUCT_SIMULATED goes with them")
	}
	a := &agent{
		cfg: cfg, log: log, cloud: NewCloud(cfg.OpenStack), record: NewRecorder(string(cfg.Mode), version.Version, time.Now),
		guests: Processes{Proc: "/proc"}, helper: HelperInPlace, wait: Wait, spread: tenth,
	}
	defer a.cloud.Close()
	return a.run(ctx)
}

// agent is what Run composes; what tests replace is a field.
type agent struct {
	cfg    Config
	log    *slog.Logger
	cloud  *Cloud
	node   *Node // nil in a central agent
	record *Recorder
	guests Processes
	helper func() (bool, string)
	wait   Waiter
	spread func(time.Duration) time.Duration
	// listening, if set, is told the address of the HTTP listener.
	listening func(net.Addr)
}

func (a *agent) run(ctx context.Context) (err error) {
	if err := a.cloud.Check(); err != nil {
		return err // a mistake in a file is the operator's to see at once; a service that is down is waited for
	}
	var keeper *TraitKeeper
	var tasks []task
	if a.cfg.Role == RoleCentral {
		tasks = a.central()
	} else {
		if a.node, err = NewNode(a.cfg.Node); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.node.Close()) }()
		tasks, keeper = a.local()
	}
	web := net.Listener(nil)
	if a.cfg.HTTP.Listen != "" {
		if web, err = new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.HTTP.Listen); err != nil {
			return fmt.Errorf("http.listen: %w", err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	r := &runner{record: a.record, log: a.log, wait: a.wait, spread: a.spread}
	for _, t := range tasks {
		a.record.Begin(t.name, t.every, t.timeout)
	}
	for _, t := range tasks {
		group.Go(func() error { r.follow(ctx, t); return nil })
	}
	if web != nil {
		a.serve(ctx, group, web)
	}
	a.log.Info("running", "host", a.cfg.Host, "tasks", len(tasks), "http", a.cfg.HTTP.Listen, "version", version.Version)
	err = group.Wait()
	if keeper != nil && !a.cfg.Traits.KeepOnStop {
		err = errors.Join(err, a.withdraw(context.WithoutCancel(ctx), keeper))
	}
	return err
}

// withdraw takes the traits back when the agent stops: nobody would withdraw them later.
func (a *agent) withdraw(ctx context.Context, keeper *TraitKeeper) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := keeper.Withdraw(ctx); err != nil && !isNoProvider(err) {
		return fmt.Errorf("the traits stay in Placement until the agent runs again: %w", err)
	}
	return nil
}

func (a *agent) serve(ctx context.Context, group *errgroup.Group, l net.Listener) {
	server := &http.Server{
		Handler: handler(a.record, string(a.cfg.Mode)), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	ended := func(err error) error {
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
	group.Go(func() error { return ended(server.Serve(l)) })
	group.Go(func() error { <-ctx.Done(); return ended(server.Close()) })
	if a.listening != nil {
		a.listening(l.Addr())
	}
}

// local are the tasks of the agent of one host.
func (a *agent) local() ([]task, *TraitKeeper) {
	var tasks []task
	var keeper *TraitKeeper
	if t := a.cfg.Traits; !t.Off {
		keeper = &TraitKeeper{
			Mode: a.cfg.mode(), Host: a.cfg.Host, Provider: t.ResourceProvider, Standing: a.node.Standing, Record: a.record, Log: a.log,
			Set: func(ctx context.Context, provider string, wanted []Trait) (TraitChange, error) {
				return a.cloud.SetTraits(ctx, provider, wanted, a.wait)
			},
		}
		switch t.VTPM {
		case vtpmInspect:
			keeper.Helper = a.helper
		case vtpmStated:
			a.log.Warn("traits.vtpm is stated: that every vTPM here has the helper is the operator's word")
			keeper.Helper = func() (bool, string) { return true, "" }
		}
		if t.Tunnel != off {
			keeper.Tunnel = NewTunnelProbe(t.Tunnel).Answers
		}
		// Half of the time is for the node service to make a quote, half for Placement: a node that hangs must not keep its traits.
		patience := 2 * a.cfg.OpenStack.Timeout
		keeper.Standing = func(ctx context.Context) (Standing, error) {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			return a.node.Standing(ctx)
		}
		tasks = append(tasks, task{"traits", t.Every, 2 * patience, keeper.Pass})
	}
	if p := a.cfg.Preflight; !p.Off {
		pre := &Preflighter{
			Host: a.cfg.Host, Hosts: a.cloud.ComputesUp, Preflight: a.node.Preflight, Peers: p.Peers, MaxPeers: p.MaxPeers, Timeout: p.Timeout,
			Record: a.record, Log: a.log,
		}
		tasks = append(tasks, task{"preflight", p.Every, time.Duration(p.Peers)*p.Timeout + 2*a.cfg.OpenStack.Timeout, pre.Pass})
	}
	if s := a.cfg.Sessions; !s.Off {
		w := &Warden{
			Host: a.cfg.Host, Grace: s.Grace, Sessions: a.node.Sessions, Session: a.node.Session, Attached: a.node.Attached, Abort: a.node.Abort,
			Migrations: a.cloud.LiveMigrationsOf, Guest: a.guests.Guest, Record: a.record, Log: a.log, Now: time.Now,
		}
		tasks = append(tasks, task{"sessions", s.Every, 5 * time.Minute, w.Pass})
	}
	return tasks, keeper
}

// central are the tasks of the one agent that watches the cloud.
func (a *agent) central() []task {
	f := &Watcher{
		Simulated: a.cfg.mode() != v1.Mode_MODE_INTEL, Hosts: a.cloud.ComputesUp, Hypervisors: a.cloud.Hypervisors, With: a.cloud.ProvidersWith,
		Migrations: a.cloud.LiveMigrations, Record: a.record, Log: a.log,
	}
	return []task{{"fleet", a.cfg.Fleet.Every, 5 * time.Minute, f.Pass}}
}
