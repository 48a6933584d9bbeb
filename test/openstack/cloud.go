package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/openstack/machine"
)

// cloud is an OpenStack of one controller and two compute nodes, each a machine of a world that ends with this process.
type cloud struct {
	suite   suite
	options options
	world   *machine.World
	control *machine.Machine
	// computes by number: 0 is compute1.
	computes []*compute
	bus      *busTap
	neutron  *neutron
	admin    *client
	owner    *client
	nodes    *cluster.Cluster
	// running processes, in the order in which they were started, and how often each log was begun; several are started at once.
	starting sync.Mutex
	running  []*cluster.Process
	logs     map[string]int
	kek      string
	// images by name, and every server that was asked for.
	images  map[string]string
	servers []*server
	// standing is the resident server; nil if there is none.
	standing *server
}

// bringUp makes the cloud. Whatever it has made is ended by tearDown, also when it fails.
func (c *cloud) bringUp(ctx context.Context) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	c.kek, c.logs = base64.URLEncoding.EncodeToString(key), map[string]int{}
	var err error
	if c.world, err = machine.New(ctx, c.options.rootfs, network); err != nil {
		return err
	}
	if c.control, err = c.add(ctx, "controller", 10); err != nil {
		return err
	}
	if c.bus, err = tapBus(ctx, filepath.Join(c.options.out, "bus"), world, controller); err != nil {
		return err
	}
	if c.neutron, err = serveNeutron(); err != nil {
		return err
	}
	if err := c.controlPlane(ctx); err != nil {
		return err
	}
	say("control plane up: keystone, placement, glance, barbican, nova %d, rabbitmq, mariadb", c.suite.nova)
	for i := range 2 {
		h, err := c.addCompute(ctx, i)
		if err != nil {
			return err
		}
		c.computes = append(c.computes, h)
	}
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	group, each := errgroup.WithContext(ctx)
	for _, h := range c.computes {
		group.Go(func() error { return h.start(each) })
	}
	group.Go(func() error { return c.uploadImages(each) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := c.waitComputes(ctx); err != nil {
		return err
	}
	if _, err := c.control.Run(ctx, c.manage("cell_v2", "discover_hosts")...); err != nil {
		return err
	}
	if err := c.computes[0].keepProbes(); err != nil {
		return err
	}
	say("compute1 and compute2 up: libvirtd and nova-compute on each, driver %s", c.options.driver)
	return nil
}

// tearDown ends everything, the last first.
func (c *cloud) tearDown() error {
	if c.nodes != nil {
		c.nodes.Close()
	}
	for i := len(c.running) - 1; i >= 0; i-- {
		c.running[i].Kill() // nothing here is worth a graceful end: all its files are in memory
	}
	var errs []error
	if c.world != nil {
		errs = append(errs, c.keepLogs())
	}
	if c.bus != nil {
		errs = append(errs, c.bus.close())
	}
	if c.neutron != nil {
		errs = append(errs, c.neutron.close())
	}
	if c.world != nil {
		errs = append(errs, c.world.Close())
	}
	return errors.Join(errs...)
}

// keepLogs copies the logs that programs write elsewhere than among the artefacts.
func (c *cloud) keepLogs() error {
	var errs []error
	keep := func(to, pattern string) {
		found, err := filepath.Glob(pattern)
		errs = append(errs, err, os.MkdirAll(to, 0o755))
		for _, path := range found {
			raw, err := os.ReadFile(path)
			errs = append(errs, err)
			if err == nil {
				errs = append(errs, os.WriteFile(filepath.Join(to, filepath.Base(path)), raw, 0o644))
			}
		}
	}
	for _, h := range c.computes {
		to := filepath.Join(c.options.out, h.Name)
		keep(filepath.Join(to, "qemu"), h.Path("/var/log/libvirt/qemu/*.log"))
		keep(filepath.Join(to, "swtpm"), h.Path("/var/log/swtpm/libvirt/qemu/*.log"))
		if h.node != nil {
			keep(filepath.Join(to, "node"), filepath.Join(h.node.Dir, "*.log"))
		}
	}
	return errors.Join(errs...)
}

// add makes a machine whose logs are artefacts.
func (c *cloud) add(ctx context.Context, name string, number int) (*machine.Machine, error) {
	logs := filepath.Join(c.options.out, name)
	if err := os.MkdirAll(logs, 0o777); err != nil {
		return nil, err
	}
	if err := os.Chmod(logs, 0o777); err != nil { // services of several users write there
		return nil, err
	}
	m, err := c.world.Add(ctx, name, number, machine.Bind{From: logs, To: logDir}, machine.Bind{From: c.options.bin, To: binDir, ReadOnly: true},
		machine.Bind{From: c.options.bin, To: c.options.bin, ReadOnly: true}, machine.Bind{From: c.options.nova, To: packageDir, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s controller\n%s.11 compute1\n%s.12 compute2\n", controller, network, network)
	if err := m.WriteFile("/etc/hosts", []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	return m, copyEmbedded(m, "wsgi", "/opt/e2e")
}

func copyEmbedded(m *machine.Machine, from, to string) error {
	entries, err := files.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		raw, err := files.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := m.WriteFile(filepath.Join(to, e.Name()), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// configure writes files of etc to where the machine's services look for them.
func configure(m *machine.Machine, s settings, paths map[string]string) error {
	for name, path := range paths {
		raw, err := render(name, s)
		if err != nil {
			return err
		}
		if err := m.WriteFile(path, raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// launch starts a program on a machine; its output is an artefact.
func (c *cloud) launch(m *machine.Machine, name string, args ...string) (*cluster.Process, error) {
	c.starting.Lock()
	defer c.starting.Unlock()
	log := filepath.Join(c.options.out, m.Name, name+".out")
	c.logs[log]++
	if n := c.logs[log]; n > 1 {
		log = fmt.Sprintf("%s.%d", log, n)
	}
	in := m.Command(args)
	p, err := cluster.Start(log, nil, in[0], in[1:]...)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", name, m.Name, err)
	}
	c.running = append(c.running, p)
	return p, nil
}

// listening waits until somebody listens at an address, and fails at once when the process that should has ended.
func listening(ctx context.Context, what, address string, p *cluster.Process) error {
	return await(ctx, fast, 2*time.Minute, what+" does not listen at "+address, func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%s has ended: see its .out", what)
		default:
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
}

// How often a condition is looked at: fast for what costs nothing, slow for what OpenStack has to be asked, on the same two processors.
const (
	fast = 100 * time.Millisecond
	slow = time.Second
)

// await polls for a condition of other processes until it holds, the limit is over or the condition can no longer come.
func await(ctx context.Context, every, limit time.Duration, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s, after %v", what, limit))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := holds(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		} else if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
