package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/google/uuid"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

// Domain is a VM with a vTPM.
type Domain struct {
	Name, UUID string
	// Model is tpm-tis or tpm-crb.
	Model string
	// UEFI firmware, rather than BIOS.
	UEFI bool
	// Disk is what its disk holds; empty: it has none. The disk is a file of its host's own.
	Disk []byte
	// Encrypted: its vTPM's state at rest is encrypted under a libvirt secret.
	Encrypted bool

	rig    *Rig
	secret string
	at     int    // index of its host
	serial string // its console, to which both hosts append
}

const passphrase = "a passphrase that libvirt gives swtpm"

var domainXML = template.Must(template.New("domain").Parse(`<domain type='qemu'>
  <name>{{.Name}}</name><uuid>{{.UUID}}</uuid>
  <memory unit='MiB'>{{.MemoryMiB}}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>
{{- if .UEFI}}
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/{{.Name}}.fd</nvram>
{{- end}}
    <kernel>{{.Kernel}}</kernel><initrd>{{.Initrd}}</initrd>
    <cmdline>console=ttyS0 quiet loglevel=4 panic=-1 tsc=unstable clocksource=acpi_pm nokaslr{{.Append}}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>{{.Emulator}}</emulator>
    <controller type='usb' model='none'/>
{{- if .Disk}}
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{{.Disk}}'/><target dev='vda' bus='virtio'/></disk>
{{- end}}
    <memballoon model='none'/>
    <serial type='file'><source path='{{.Console}}' append='on'/></serial>
    <tpm model='{{.Model}}'><backend type='emulator' version='2.0'>{{if .Encrypted}}<encryption secret='{{.Secret}}'/>{{end}}</backend></tpm>
  </devices>
</domain>
`))

// Boot starts a VM on the first host and waits for its first ticks. Fields that are empty are filled in.
func (r *Rig) Boot(ctx context.Context, d *Domain) error {
	r.serial++
	d.rig, d.Name, d.UUID, d.secret = r, fmt.Sprintf("vm%d", r.serial), uuid.NewString(), uuid.NewString()
	if d.Model == "" {
		d.Model = "tpm-tis"
	}
	if d.Encrypted {
		for _, h := range r.Hosts { // as nova-compute does, with what the enclave releases to it
			if err := h.defineSecret(ctx, d.secret, d.Name); err != nil {
				return err
			}
		}
	}
	console := filepath.Join(r.Dir, d.Name+".console")
	if err := os.WriteFile(console, nil, 0o666); err != nil {
		return err
	}
	if err := os.Chmod(console, 0o666); err != nil {
		return err
	}
	d.serial = console
	memory := r.options.MemoryMiB
	if memory == 0 {
		memory = 160
	}
	if d.UEFI {
		memory = max(memory, 256)
	}
	disk := ""
	if len(d.Disk) > 0 {
		disk = d.disk()
		for i, h := range r.Hosts { // an empty one of the same size at the other host, as Nova makes it
			content := d.Disk
			if i != d.at {
				content = make([]byte, len(d.Disk))
			}
			if err := os.MkdirAll(filepath.Dir(h.path(disk)), 0o711); err != nil {
				return err
			}
			if err := os.WriteFile(h.path(disk), content, 0o666); err != nil {
				return err
			}
		}
	}
	var xml strings.Builder
	err := domainXML.Execute(&xml, map[string]any{
		"Name": d.Name, "UUID": d.UUID, "MemoryMiB": memory, "UEFI": d.UEFI, "Kernel": r.kernel, "Initrd": r.initrd, "Append": "", "Disk": disk,
		"Emulator": "/run/qemu-tcg", "Console": console, "Model": d.Model, "Encrypted": d.Encrypted, "Secret": d.secret,
	})
	if err != nil {
		return err
	}
	file := filepath.Join(r.Dir, d.Name+".xml")
	if err := os.WriteFile(file, []byte(xml.String()), 0o600); err != nil {
		return err
	}
	if _, err := d.Host().Virsh(ctx, "define", file); err != nil {
		return err
	}
	if _, err := d.Host().Virsh(ctx, "start", d.Name); err != nil {
		return err
	}
	_, err = d.WaitTick(ctx, 3)
	return err
}

func (h *Host) defineSecret(ctx context.Context, id, name string) error {
	file := filepath.Join(h.dir, name+".secret.xml")
	text := fmt.Sprintf("<secret ephemeral='yes' private='yes'><uuid>%s</uuid><usage type='vtpm'><name>%s</name></usage></secret>", id, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := h.Virsh(ctx, "secret-define", file); err != nil {
		return err
	}
	value := filepath.Join(h.dir, name+".secret")
	if err := os.WriteFile(value, []byte(passphrase), 0o600); err != nil {
		return err
	}
	_, err := h.Virsh(ctx, "secret-set-value", id, "--file", value, "--plain")
	return err
}

// Host is where the VM is now.
func (d *Domain) Host() *Host { return d.rig.Hosts[d.at] }

// Other is the host where it is not.
func (d *Domain) Other() *Host { return d.rig.Hosts[1-d.at] }

// Ticks of the guest, wherever it was.
func (d *Domain) Ticks() ([]vm.Tick, error) {
	raw, err := os.ReadFile(d.serial)
	return vm.ParseTicks(raw), err
}

// WaitTick waits until the guest has reached tick n.
func (d *Domain) WaitTick(ctx context.Context, n uint64) (last vm.Tick, err error) {
	deadline := time.Now().Add(3 * time.Minute) // firmware and a kernel under TCG, on a machine under load
	for {
		ticks, err := d.Ticks()
		if err != nil {
			return last, err
		}
		if len(ticks) > 0 {
			last = ticks[len(ticks)-1]
		}
		if last.N >= n {
			return last, nil
		}
		if state, err := d.State(ctx); err != nil || state != "running" && state != "paused" {
			return last, fmt.Errorf("waiting for tick %d of %s, which is %q: %w", n, d.Name, state, errors.Join(err, errors.New("its last tick: "+fmt.Sprint(last.N))))
		}
		if time.Now().After(deadline) {
			return last, fmt.Errorf("waiting for tick %d of %s: the last is %d", n, d.Name, last.N)
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// State is virsh's word for the VM's state where it is.
func (d *Domain) State(ctx context.Context) (string, error) {
	out, err := d.Host().Virsh(ctx, "domstate", d.Name)
	return strings.TrimSpace(out), err
}

// GoesOn waits for more ticks and checks them all: one TPM, never lost, copied, reset or rolled back.
func (d *Domain) GoesOn(ctx context.Context) error {
	ticks, err := d.Ticks()
	if err != nil || len(ticks) == 0 {
		return errors.Join(err, errors.New("the guest has not ticked"))
	}
	if _, err := d.WaitTick(ctx, ticks[len(ticks)-1].N+3); err != nil {
		return err
	}
	if ticks, err = d.Ticks(); err != nil {
		return err
	}
	return vm.CheckTicks(ticks)
}

// Arm establishes and arms a session for the VM's next migration, as nova-compute does.
func (d *Domain) Arm(ctx context.Context) (*v1.Session, error) {
	rpc, err := d.Host().Migrations().Establish(ctx, &v1.EstablishRequest{InstanceId: d.UUID, PeerHost: d.Other().Name, Role: v1.Role_ROLE_SOURCE})
	if err != nil {
		return nil, err
	}
	var s *v1.Session
	for s == nil {
		event, err := rpc.Recv()
		if err != nil {
			return nil, err
		}
		s = event.GetSession()
	}
	_, err = d.Host().Migrations().Arm(ctx, &v1.ArmRequest{
		InstanceId: d.UUID, DestinationHost: d.Other().Name, MigrationId: uuid.NewString(), ReturnPath: true,
	})
	return s, err
}

// Virsh migrates the VM; more are further arguments of virsh migrate. Where it is is not changed.
func (d *Domain) Virsh(ctx context.Context, more ...string) error {
	args := append([]string{"migrate", "--live", "--p2p", "--persistent", "--undefinesource", d.Name, "qemu+tcp://" + d.Other().IP + "/system"}, more...)
	if !strings.Contains(strings.Join(more, " "), "--migrateuri") {
		args = append(args, "--migrateuri", "tcp://"+d.Other().IP)
	}
	_, err := d.Host().Virsh(ctx, args...)
	return err
}

// Migrate moves the VM to the other host under a session, commits it, and checks that the source keeps nothing.
func (d *Domain) Migrate(ctx context.Context, more ...string) error {
	s, err := d.Arm(ctx)
	if err != nil {
		return err
	}
	if d.rig.options.Tunnel {
		uris, err := d.tunnelled(ctx)
		if err != nil {
			return err
		}
		more = append(uris, more...)
	}
	if err := d.Virsh(ctx, more...); err != nil {
		return err
	}
	from := d.Host()
	d.at = 1 - d.at
	if _, err := from.Migrations().Commit(ctx, &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		return err
	}
	return d.AbsentFrom(ctx, from)
}

// AbsentFrom checks that a host has nothing of the VM's vTPM: no state, no swtpm, no helper.
func (d *Domain) AbsentFrom(ctx context.Context, h *Host) error {
	return cluster.Until(ctx, "something of "+d.Name+" is left on "+h.Name, func() error {
		if _, err := os.Stat(h.path("/var/lib/libvirt/swtpm/" + d.UUID)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the vTPM's state directory (%w)", err)
		}
		if out, err := h.Run(ctx, "pgrep", "-fa", d.UUID); err == nil {
			return fmt.Errorf("processes: %s", out)
		}
		status, err := v1.NewAdminServiceClient(h.Conn).GetStatus(ctx, &v1.GetStatusRequest{})
		if err != nil {
			return err
		}
		for _, id := range status.GetAttachedInstances() {
			if id == d.UUID {
				return errors.New("a helper is attached")
			}
		}
		return nil
	})
}
