package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

// host is one compute node of the demo.
type host struct {
	*cluster.Host
	// netns is the host's network namespace and ip its address there; both empty without root.
	netns, ip string
	// metrics is the address of its metrics, as its network namespace knows it.
	metrics string
}

func (d *demo) start(logFile string, env []string, name string, args ...string) (*cluster.Process, error) {
	p, err := cluster.Start(logFile, env, name, args...)
	if err != nil {
		return nil, err
	}
	d.started = append(d.started, p.Stop)
	return p, nil
}

func (d *demo) setUp(ctx context.Context) error {
	title("Setting up two nodes, mode SIMULATED (no SGX hardware; the simulated TEE says so everywhere)")
	var err error
	if d.dir, err = os.MkdirTemp("", "sc-demo-"); err != nil {
		return err
	}
	if d.kernel, err = vm.FindKernel(); err != nil {
		return err
	}
	d.initrd = filepath.Join(d.dir, "initrd")
	d.marker = make([]byte, markerSize)
	_, _ = rand.Read(d.marker) // never fails
	if err := vm.BuildInitramfs(filepath.Join(d.demoBin, "guest"), d.initrd, d.marker); err != nil {
		return err
	}
	separate := os.Getuid() == 0
	if separate {
		if err := d.network(ctx); err != nil {
			say("no network namespaces here, so two port sets instead: %v", err)
			separate = false
		}
	}
	d.cluster = &cluster.Cluster{Bin: d.bin, Dir: d.dir}
	d.started = append(d.started, d.cluster.Close)
	d.nodes = map[string]*host{}
	for i, name := range []string{"compute1", "compute2"} {
		h := &host{Host: &cluster.Host{Name: name}}
		if separate {
			h.netns, h.ip = netnsName(i), fmt.Sprintf("10.203.77.%d", i+1)
			h.Peer, h.TunnelAddress = h.ip+":7443", h.ip+":7444"
			h.Enter = func(args []string) []string { return append([]string{"ip", "netns", "exec", h.netns}, args...) }
		} else if err := freePorts(&h.Peer, &h.TunnelAddress, &d.via); err != nil {
			return err
		}
		if err := d.monitored(h); err != nil {
			return err
		}
		d.nodes[name] = h
		d.cluster.Hosts = append(d.cluster.Hosts, h.Host)
	}
	if err := d.cluster.Prepare(ctx); err != nil {
		return err
	}
	m, refs := d.cluster.Measurement, d.cluster.References
	d.report.Mode, d.report.Measurement = "simulated", map[string]string{"accepted": fmt.Sprintf("%x", m)}
	say("policy: one enclave (mrenclave %x...), two platforms, %d file and %d PCR reference values", m[:6], len(refs.Files), len(refs.PCRs))
	for _, h := range d.nodes {
		if err := d.cluster.StartNode(ctx, h.Host, ""); err != nil {
			return err
		}
		where := "no network namespace of its own (not root)"
		if h.netns != "" {
			where = "network namespace " + h.netns
		}
		if err := d.cluster.StartTunnel(ctx, h.Host, d.via); err != nil {
			return err
		}
		say("%s: %s, peer port %s, tunnel %s, host TPM: a swtpm of its own", h.Name, where, h.Peer, h.TunnelAddress)
	}
	return nil
}

func freePorts(addresses ...*string) error {
	for _, a := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*a = l.Addr().String()
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func netnsName(i int) string { return fmt.Sprintf("sc-demo-%d-%d", os.Getpid(), i+1) }

// network gives the two hosts network namespaces of their own, joined by a wire (veth). They are removed at the end.
func (d *demo) network(ctx context.Context) error {
	a, b := netnsName(0), netnsName(1)
	for _, ns := range []string{a, b} {
		if err := ip(ctx, "netns", "add", ns); err != nil {
			return err
		}
		d.started = append(d.started, func() { _ = ip(context.WithoutCancel(ctx), "netns", "del", ns) })
	}
	if err := ip(ctx, "-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b); err != nil {
		return err
	}
	for i, ns := range []string{a, b} {
		for _, args := range [][]string{
			{"addr", "add", fmt.Sprintf("10.203.77.%d/24", i+1), "dev", "wire"}, {"link", "set", "wire", "up"}, {"link", "set", "lo", "up"},
		} {
			if err := ip(ctx, append([]string{"-n", ns}, args...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}
