package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/openstack/machine"
)

// compute is a compute node: a machine with libvirtd, nova-compute and a node service.
type compute struct {
	*machine.Machine
	cloud    *cloud
	node     *cluster.Host
	uuid     string
	settings settings
	libvirtd *cluster.Process
	nova     *cluster.Process
}

func (c *cloud) addCompute(ctx context.Context, i int) (*compute, error) {
	m, err := c.add(ctx, fmt.Sprintf("compute%d", i+1), 11+i)
	if err != nil {
		return nil, err
	}
	h := &compute{Machine: m, cloud: c, uuid: uuid.NewString()}
	const make = `mkdir -p /run/lock /run/libvirt /run/safeconduct /var/lib/nova/instances /var/lib/nova/shared /var/lib/swtpm-localca /var/log/swtpm/libvirt/qemu
chown tss /var/lib/swtpm-localca /var/log/swtpm/libvirt/qemu; mkdir -p "$0/instances"
bindfs -o subtype=glusterfs "$0/instances" /var/lib/nova/shared`
	// libvirt tells shared storage by the kind of its file system: to it, this one is Gluster.
	if _, err := m.Run(ctx, "sh", "-ec", make, c.world.Shared()); err != nil {
		return nil, err
	}
	// libvirt would take the first UEFI firmware that does not ask for Secure Boot: in newer suites one for AMD SEV, which boots no kernel that it is
	// given without it. An empty description hides the one of the same name.
	for _, name := range []string{"amdsev", "inteltdx"} {
		name = "60-edk2-x86_64-" + name + ".json"
		if _, err := os.Stat(m.Path("/usr/share/qemu/firmware/" + name)); err != nil {
			continue
		}
		if err := m.WriteFile("/etc/qemu/firmware/"+name, nil, 0o644); err != nil {
			return nil, err
		}
	}
	if !c.stock() {
		if err := h.installHelper(ctx); err != nil {
			return nil, err
		}
		if err := c.installDriver(ctx, m); err != nil {
			return nil, err
		}
	}
	h.settings = settings{
		Name: h.Name, Address: h.Address, UUID: h.uuid, Compute: true, Driver: c.options.driver, Instances: localStorage, Safeconduct: c.safeconductConf(),
	}
	return h, h.configure()
}

// configure writes the node's files by its settings.
func (h *compute) configure() error {
	return configure(h.Machine, h.settings, map[string]string{
		"nova.conf": "/etc/nova/nova.conf", "nova-compute.conf": "/etc/nova/nova-compute.conf", "policy.yaml": "/etc/nova/policy.yaml",
		"libvirtd.conf": "/etc/libvirt/libvirtd.conf", "qemu.conf": "/etc/libvirt/qemu.conf",
	})
}

// reconfigure changes settings and restarts nova-compute with them.
func (h *compute) reconfigure(ctx context.Context, change func(*settings)) error {
	change(&h.settings)
	if err := h.configure(); err != nil {
		return err
	}
	h.nova.Kill()
	return h.restartNova(ctx)
}

// restartNova starts nova-compute again after its end, and waits until it takes requests.
func (h *compute) restartNova(ctx context.Context) error {
	before, err := h.novaStarts()
	if err != nil {
		return err
	}
	if err := h.startNova(); err != nil {
		return err
	}
	return await(ctx, slow, 2*time.Minute, "nova-compute of "+h.Name+" does not start again", func() (bool, error) {
		now, err := h.novaStarts()
		return now > before, err
	})
}

// listens is what nova-compute says then: Nova 26, and 34.
var listens = regexp.MustCompile(`Creating RPC server for service(: nova-compute on topic:)? compute`)

// novaStarts is how often nova-compute has said that it takes requests.
func (h *compute) novaStarts() (int, error) {
	raw, err := os.ReadFile(filepath.Join(h.cloud.options.out, h.Name, "nova-compute.log"))
	return len(listens.FindAll(raw, -1)), err
}

// start runs libvirtd, then nova-compute.
func (h *compute) start(ctx context.Context) error {
	// What libvirt finds out about QEMU takes it a minute, and is kept beside the tree; it knows by itself when that has grown old.
	kept := h.cloud.options.rootfs + ".libvirt"
	if err := os.CopyFS(h.Path("/var/cache/libvirt"), os.DirFS(kept)); err != nil && !os.IsNotExist(err) {
		return err
	}
	var err error
	if h.libvirtd, err = h.cloud.launch(h.Machine, "libvirtd", "/usr/sbin/libvirtd", "--listen"); err != nil {
		return err
	}
	if err := listening(ctx, "libvirtd", h.Address+":16509", h.libvirtd); err != nil {
		return err
	}
	return h.startNova()
}

func (h *compute) startNova() (err error) {
	h.nova, err = h.cloud.launch(h.Machine, "nova-compute",
		h.cloud.novaService("nova-compute", "nova.cmd.compute", "--config-file", "/etc/nova/nova.conf", "--config-file", "/etc/nova/nova-compute.conf")...)
	return err
}

// virsh runs a virsh command and returns its output's words, line by line.
func (h *compute) virsh(ctx context.Context, args ...string) ([][]string, error) {
	out, err := h.Run(ctx, append([]string{"virsh", "--quiet"}, args...)...)
	if err != nil {
		return nil, err
	}
	var lines [][]string
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) > 0 {
			lines = append(lines, words)
		}
	}
	return lines, nil
}

// leftovers says what a server that is not on this node has left on it: a domain, a libvirt secret, a process, a TPM's state, a disk.
func (h *compute) leftovers(ctx context.Context, s *server) ([]string, error) {
	var left []string
	domains, err := h.virsh(ctx, "list", "--all", "--uuid")
	if err != nil {
		return nil, err
	}
	for _, d := range domains {
		if d[0] == s.id {
			left = append(left, "its domain")
		}
	}
	secrets, err := h.virsh(ctx, "secret-list")
	if err != nil {
		return nil, err
	}
	if len(secrets) > 0 {
		left = append(left, fmt.Sprintf("libvirt secrets: %v", secrets))
	}
	for _, path := range []string{"/var/lib/libvirt/swtpm/" + s.id, localStorage + "/" + s.id} {
		found, err := filepath.Glob(h.Path(path))
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	processes, err := h.Processes(s.id)
	for _, p := range processes {
		left = append(left, fmt.Sprintf("process %d: %.80s", p.PID, p.Command))
	}
	return left, err
}

// keepProbes keeps what libvirt has found out about QEMU for the next cloud.
func (h *compute) keepProbes() error {
	kept := h.cloud.options.rootfs + ".libvirt"
	if _, err := os.Stat(kept); err == nil {
		return nil
	}
	return os.CopyFS(kept, os.DirFS(h.Path("/var/cache/libvirt")))
}

// waitComputes waits until Nova counts both nodes as up.
func (c *cloud) waitComputes(ctx context.Context) error {
	return await(ctx, slow, 3*time.Minute, "nova-compute is not up on both nodes", func() (bool, error) {
		for _, h := range c.computes {
			select {
			case <-h.nova.Done():
				return false, fmt.Errorf("nova-compute of %s has ended: see its .out", h.Name)
			default:
			}
		}
		var listed struct {
			Services []struct{ Host, State string }
		}
		if err := get(ctx, c.admin.compute, "os-services?binary=nova-compute", &listed); err != nil {
			return false, err
		}
		up := 0
		for _, s := range listed.Services {
			if s.State == "up" {
				up++
			}
		}
		return up == len(c.computes), nil
	})
}
