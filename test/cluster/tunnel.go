package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// StartTunnel runs a host's tunnel, in the place of one that runs, and waits until it listens. via, if not empty, is where it reaches the tunnels of
// all other hosts instead of at their own addresses.
func (c *Cluster) StartTunnel(ctx context.Context, h *Host, via string) error {
	if h.Tunnel != nil {
		h.Tunnel.Stop()
	}
	if h.TunnelDir == "" {
		h.TunnelDir = filepath.Join(h.Dir, "tunnel")
	}
	config := fmt.Sprintf("mode: simulated\nnode: unix://%s\ndir: %s\nlisten: %s\npeers:\n", h.Socket, h.TunnelDir, h.TunnelAddress)
	for _, other := range c.Hosts {
		address := other.TunnelAddress
		if via != "" {
			address = via
		}
		if other != h && address != "" {
			config += fmt.Sprintf("  - host: %s\n    address: %q\n", other.Name, address)
		}
	}
	file := h.TunnelConfig
	if file == "" {
		file = filepath.Join(h.Dir, "tunnel.yaml")
	}
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil { // nothing in it is secret, and the tunnel may have a user of its own
		return err
	}
	args := append(slices.Clone(h.TunnelAs), filepath.Join(c.Bin, "safeconduct-tunnel"), "--config", file)
	if h.Enter != nil {
		args = h.Enter(args)
	}
	log := filepath.Join(h.Dir, "tunnel.log")
	var err error
	if h.Tunnel, err = Start(log, nil, args[0], args[1:]...); err != nil {
		return err
	}
	h.Tunnel.forks = h.Enter != nil && h.EnterForks
	c.processes = append(c.processes, h.Tunnel)
	return Until(ctx, h.Name+"'s tunnel does not follow its node", func() error {
		select {
		case <-h.Tunnel.Done():
			return fmt.Errorf("safeconduct-tunnel ended: %s", lastLine(log))
		default:
		}
		return says(log, "following the node service")
	})
}

// says looks for a text in a log.
func says(log, text string) error {
	raw, err := os.ReadFile(log)
	if err == nil && !bytes.Contains(raw, []byte(text)) {
		err = fmt.Errorf("%s does not say %q", log, text)
	}
	return err
}

// TunnelSocket is the path of a VM's migration socket on the host.
func (h *Host) TunnelSocket(instance string) string {
	return filepath.Join(h.TunnelDir, instance+".sock")
}
