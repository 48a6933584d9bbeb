package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/tee"
)

const (
	// dirMode: QEMU's user writes to it as one of its group; others may see which sockets there are. socketMode: the group may connect.
	dirMode    = fs.ModeSetgid | 0o775
	socketMode = 0o660

	// progressEvery is how often the log says what is carried.
	progressEvery = 10 * time.Second
)

// Run is the tunnel of a host: it serves until ctx ends, and stops in order.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	log = log.With("mode", string(cfg.Mode))
	if cfg.Mode == tee.ModeSimulated {
		log.Warn("SIMULATED: the keys of this tunnel come from a node without a hardware enclave")
	}
	node, err := NewNode(cfg.Node)
	if err != nil {
		return err
	}
	d := &daemon{cfg: cfg, log: log, node: node, patience: DefaultPatience}
	d.flows = NewFlows(Limits{PerVM: cfg.ConnectionsPerVM, All: cfg.Connections}, string(cfg.Mode), version.Version)
	return errors.Join(d.run(ctx), node.Close())
}

// daemon is what Run composes.
type daemon struct {
	cfg      Config
	log      *slog.Logger
	node     *Node
	flows    *Flows
	patience Patience
	gid      int // that sockets are given to; -1: whatever they get
	sources  sync.WaitGroup
}

func (d *daemon) run(ctx context.Context) error {
	if err := d.makeDir(); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	web := net.Listener(nil)
	if d.cfg.HTTP.Listen != "" {
		if web, err = new(net.ListenConfig).Listen(ctx, "tcp", d.cfg.HTTP.Listen); err != nil {
			return errors.Join(fmt.Errorf("http.listen: %w", err), l.Close())
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	group, ctx := errgroup.WithContext(ctx)
	sessions := NewSessions(d.cfg.mode(), d.patience.Drain, d.log, d.source)
	destination := &Destination{Sessions: sessions, Reach: d.reach, Keys: d.node, Flows: d.flows, Patience: d.patience, Log: d.log}
	group.Go(func() error { return destination.Serve(ctx, l) })
	group.Go(func() error { d.node.Follow(ctx, sessions, d.log); return nil })
	group.Go(func() error {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		d.flows.watch(ctx, d.log, tick.C)
		return nil
	})
	if web != nil {
		server := &http.Server{
			Handler: d.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
			IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		}
		group.Go(func() error { return ignoreClosed(ignoreServerClosed(server.Serve(web))) })
		group.Go(func() error { <-ctx.Done(); return ignoreServerClosed(server.Close()) })
	}
	d.log.Info("listening", "address", l.Addr().String(), "dir", d.cfg.Dir, "node", d.cfg.Node, "http", d.cfg.HTTP.Listen, "version", version.Version)
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil { // without systemd it does nothing
		d.log.Warn("systemd could not be told that this service is ready", "why", err)
	}
	err = group.Wait()
	sessions.EndAll(errStopped)
	d.sources.Wait()
	return err
}

func ignoreServerClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// findGroup is the number of a group: by its name, or as it is, since a container may have no name for the host's groups. Without a group it is -1.
func findGroup(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		return strconv.Atoi(g.Gid)
	}
	gid, err := strconv.ParseUint(group, 10, 31)
	if err != nil {
		return -1, fmt.Errorf("group: there is no group %q", group)
	}
	return int(gid), nil
}

// makeDir makes the directory of the sockets, if it is not there, and finds the group.
func (d *daemon) makeDir() error {
	var err error
	if d.gid, err = findGroup(d.cfg.Group); err != nil {
		return err
	}
	err = os.Mkdir(d.cfg.Dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		err = removeLeftovers(d.cfg.Dir)
		if err != nil {
			err = fmt.Errorf("dir: what an earlier tunnel left: %w", err)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	if err := errors.Join(os.Chown(d.cfg.Dir, -1, d.gid), os.Chmod(d.cfg.Dir, dirMode)); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	return nil
}

// reach connects to the QEMU that waits for a VM. The instance is that of a session, so it is a UUID.
func (d *daemon) reach(ctx context.Context, instance string, c Channel) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.cfg.Dir, c.Socket(instance)))
}

// source makes the sockets of a VM that is about to leave, for as long as its session.
func (d *daemon) source(ctx context.Context, a Armed) {
	if !a.Source {
		return
	}
	address := d.cfg.address(a.Peer)
	for c := range channels {
		s := &Source{
			Instance: a.Instance, Channel: Channel(c), Session: a.ID, Keys: d.node, Flows: d.flows, Patience: d.patience, Log: d.log,
			Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) },
		}
		path := filepath.Join(d.cfg.Dir, s.Channel.Socket(a.Instance))
		l, err := listenUnix(ctx, path, socketMode, d.gid)
		if err != nil {
			d.log.Error("the VM has no socket to migrate to: its migration will fail, and it runs on", "instance", a.Instance, "channel", s.Channel.String(), "why", err)
			continue
		}
		d.log.Info("socket made", "instance", a.Instance, "channel", s.Channel.String(), "path", path, "peer", address)
		d.sources.Go(func() {
			if err := s.Serve(ctx, l); err != nil {
				d.log.Error("the VM's socket failed", "instance", a.Instance, "channel", s.Channel.String(), "why", err)
			}
		})
	}
}

// handler serves metrics, probes and what is carried at this moment.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.flows.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !d.node.Following() {
			http.Error(w, "the node service does not tell of its sessions", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"mode": d.cfg.Mode, "connections": d.flows.Progress()}) // whoever asked has gone
	})
	return mux
}
