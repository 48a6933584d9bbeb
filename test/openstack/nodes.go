package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/openstack/machine"
)

// startNodes runs the two node services under one policy, each on its host.
func (c *cloud) startNodes(ctx context.Context) error {
	if c.stock() {
		return nil
	}
	uid, err := c.control.Run(ctx, "id", "-u", "tss")
	if err != nil {
		return err
	}
	c.nodes = &cluster.Cluster{Bin: c.options.bin, Dir: filepath.Join(c.world.Shared(), "sc")}
	for _, h := range c.computes {
		h.node = &cluster.Host{
			Name: h.Name, Peer: fmt.Sprintf("%s:%d", h.Address, peerPort), Socket: nodeSocket, Reach: h.Path(nodeSocket), Enter: h.Command, Root: h.Root,
			SWTPM: realSWTPM, QEMU: realQEMU, Helper: helper, TunnelAddress: fmt.Sprintf("%s:%d", h.Address, tunnelPort), TunnelDir: tunnelDir,
			// swtpm's helper runs as tss; whom the socket lets in may call no more than that.
			LocalConfig: fmt.Sprintf("  socket_mode: \"0666\"\n  callers:\n    CryptoService: [%s]\n", strings.TrimSpace(uid)),
		}
		c.nodes.Hosts = append(c.nodes.Hosts, h.node)
	}
	if err := c.nodes.Prepare(ctx); err != nil {
		return err
	}
	for _, h := range c.computes {
		if err := c.nodes.StartNode(ctx, h.node, binDir+"/safeconductd"); err != nil {
			return err
		}
	}
	say("node services up, mode SIMULATED: one policy, %d reference values", len(c.nodes.References.Files))
	return nil
}

// stock says that Nova is as Debian has it, without Safeconduct.
func (c *cloud) stock() bool { return c.options.driver == stockDriver }

// safeconductConf is the driver's section of nova-compute.conf.
func (c *cloud) safeconductConf() string {
	if c.stock() {
		return ""
	}
	return "[safeconduct]\nendpoint = unix://" + nodeSocket + "\nmode = simulated\n"
}

const (
	// packageDir is deploy/nova on every machine; overlayDir what is made of it and the installed Nova.
	packageDir = "/opt/safeconduct/nova"
	overlayDir = "/opt/e2e/overlay"
	// realSWTPM is where the helper's installation puts Debian's swtpm.
	realSWTPM = "/usr/bin/swtpm.safeconduct-real"
	helper    = "/usr/bin/safeconduct-swtpm"
	// realQEMU is behind the script of rootfs.sh.
	realQEMU = "/usr/bin/qemu-system-x86_64.real"
)

// pythonPath puts Safeconduct's driver and API change in front of the installed Nova.
func (c *cloud) pythonPath() string {
	if c.stock() {
		return "PYTHONPATH="
	}
	return "PYTHONPATH=" + overlayDir + ":" + packageDir
}

// novaService is the command of one of Nova's services.
func (c *cloud) novaService(name, module string, args ...string) []string {
	return append([]string{"env", c.pythonPath()}, launcher(name, module, args...)...)
}

// installDriver installs deploy/nova as its README tells operators who do not patch.
func (c *cloud) installDriver(ctx context.Context, m *machine.Machine) error {
	_, err := m.Run(ctx, "env", "PYTHONPATH="+packageDir, "/usr/bin/python3", "-m", "nova_safeconduct.overlay", overlayDir)
	return err
}

// installHelper has libvirt start safeconduct-swtpm in swtpm's place, as docs/helper.md tells operators.
func (h *compute) installHelper(ctx context.Context) error {
	for _, name := range []string{"safeconduct", "safeconduct-swtpm"} {
		if err := cluster.CopyExecutable(filepath.Join(h.cloud.options.bin, name), h.Path("/usr/bin/"+name), nil); err != nil {
			return err
		}
	}
	_, err := h.Run(ctx, "safeconduct", "helper", "install", "--method", "divert")
	return err
}
