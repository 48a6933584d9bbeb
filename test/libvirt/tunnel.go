package libvirt

import (
	"context"
	"os"

	"github.com/safeconduct/safeconduct/test/cluster"
)

// tunnelUID is the user that the tunnels run as. It has no name here, as nobody asks for one.
const tunnelUID = "64990"

// tunnelCallers lets the tunnel call what it needs.
const tunnelCallers = "    CryptoService/DeriveKey: [" + tunnelUID + "]\n    MigrationService/Watch: [" + tunnelUID + "]\n    MigrationService/List: [" + tunnelUID + "]\n"

// startTunnel starts a host's tunnel in a directory of its own, as docs/tunnel.md has systemd make it.
func (r *Rig) startTunnel(ctx context.Context, h *Host) error {
	for _, args := range [][]string{
		{"mkdir", "-p", h.TunnelDir}, {"chown", tunnelUID + ":libvirt-qemu", h.TunnelDir}, {"chmod", "2775", h.TunnelDir},
	} {
		if _, err := h.Run(ctx, args...); err != nil {
			return err
		}
	}
	return r.Cluster.StartTunnel(ctx, h.Host, "")
}

// tunnelled waits until the VM's sockets are there and returns the arguments of virsh migrate that lead into them.
func (d *Domain) tunnelled(ctx context.Context) ([]string, error) {
	socket := d.Host().TunnelSocket(d.UUID)
	err := cluster.Until(ctx, "the VM's socket", func() error { _, err := os.Stat(d.Host().path(socket)); return err })
	uris := []string{"--migrateuri", "unix://" + socket}
	if len(d.Disk) > 0 {
		uris = append(uris, "--copy-storage-all", "--disks-uri", "unix://"+d.Host().TunnelDir+"/"+d.UUID+"-disks.sock")
	}
	return uris, err
}

// disk is the path of the VM's disk, on either host.
func (d *Domain) disk() string { return "/var/lib/libvirt/images/" + d.Name + ".img" }
