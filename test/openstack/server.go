package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/test/vm"
)

// server is a guest of the cloud, with its console followed from host to host.
type server struct {
	id, name string
	cloud    *cloud
	// by owns it.
	by   *client
	vtpm bool
	// secret of the vTPM, as the key manager held it when the server had booted.
	secret  []byte
	console *console
}

// kind of server to boot.
type kind struct {
	// name of the server.
	name string
	// flavor: flavorPlain, or one with a vTPM.
	flavor string
	uefi   bool
	// host to boot on; empty: compute1.
	host string
	// by is who boots it; nil: the owner, a member of a project of its own.
	by *client
	// asked is called when the server has its id and does not run yet.
	asked func(*server) error
}

// guestCommandLine has what emulation needs (package vm), and pti=on: emulated, QEMU before 9.0 forgets to notice writes to a page that it has sent once,
// for as long as the page's entry is in the processor's translation buffer (cpu_physical_memory_sync_dirty_bitmap without a flush). With page table
// isolation the guest flushes that buffer at every entry into its kernel and every exit.
const guestCommandLine = "console=ttyS0 quiet loglevel=4 panic=-1 tsc=unstable clocksource=acpi_pm nokaslr pti=on"

const (
	flavorPlain = "plain"
	flavorUser  = "vtpm-user"
	flavorHost  = "vtpm-host"
	imageBIOS   = "guest-bios"
	imageUEFI   = "guest-uefi"
)

// view is Nova's answer about a server.
type view struct {
	Status    string `json:"status"`
	Host      string `json:"OS-EXT-SRV-ATTR:host"`
	TaskState string `json:"OS-EXT-STS:task_state"`
	Fault     struct{ Message, Details string }
}

func (s *server) view(ctx context.Context) (view, error) {
	var answer struct{ Server view }
	return answer.Server, get(ctx, s.cloud.admin.compute, "servers/"+s.id, &answer)
}

// boot starts a server and waits until its guest ticks.
func (c *cloud) boot(ctx context.Context, k kind) (*server, error) {
	if k.by == nil {
		k.by = c.owner
	}
	if k.host == "" {
		k.host = "compute1"
	}
	image := c.images[imageBIOS]
	if k.uefi {
		image = c.images[imageUEFI]
	}
	s := &server{name: k.name, cloud: c, by: k.by, vtpm: k.flavor != flavorPlain}
	var made struct{ Server struct{ ID string } }
	// An availability zone names the host as a project's member may.
	err := send(ctx, k.by.compute, "servers", object{"server": object{
		"name": k.name, "imageRef": image, "flavorRef": k.flavor, "networks": "none", "availability_zone": "nova:" + k.host,
	}}, &made)
	if err != nil {
		return nil, fmt.Errorf("booting %s: %w", k.name, err)
	}
	s.id = made.Server.ID
	c.servers = append(c.servers, s)
	if k.asked != nil {
		if err := k.asked(s); err != nil {
			return nil, err
		}
	}
	err = await(ctx, slow, 4*time.Minute, k.name+" does not become ACTIVE", func() (bool, error) {
		v, err := s.view(ctx)
		if err != nil {
			return false, err
		}
		if v.Status == "ERROR" {
			return false, fmt.Errorf("it is in ERROR: %s %s", v.Fault.Message, lastLines(v.Fault.Details, 3))
		}
		return v.Status == "ACTIVE", nil
	})
	if err != nil {
		return nil, err
	}
	s.console = follow(c, s)
	if s.vtpm {
		if s.secret, err = s.passphrase(ctx); err != nil {
			return nil, err
		}
	}
	return s, s.ticksOn(ctx, k.host)
}

// ticksOn waits until the guest has gone on for two more ticks on a host, and checks that everything so far is one vTPM's.
func (s *server) ticksOn(ctx context.Context, host string) error {
	if !s.vtpm {
		return s.console.says(ctx, host, "SC alive=")
	}
	if err := s.console.advance(ctx, host, 2); err != nil {
		return err
	}
	return s.console.continuous()
}

// migration is one attempt, as Nova tells it.
type migration struct {
	uuid, status string
	from, to     string
	// events are Nova's account of what failed: the server's instance actions, which an operator reads with `openstack server event show`.
	events string
	// took is from the request to the end of the migration.
	took time.Duration
}

// begin asks for a live migration; an empty host leaves the choice to the scheduler.
func (s *server) begin(ctx context.Context, by *client, host string) error {
	body := object{"block_migration": "auto", "host": nil}
	if host != "" {
		body["host"] = host
	}
	return send(ctx, by.compute, "servers/"+s.id+"/action", object{"os-migrateLive": body}, nil)
}

// migrate is a live migration from its request to its end, whatever that is.
func (s *server) migrate(ctx context.Context, by *client, host string) (*migration, error) {
	before, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := s.begin(ctx, by, host); err != nil {
		return nil, err
	}
	return s.ended(ctx, before.Host, began)
}

// ended waits until the server's last migration is over and returns Nova's account of it.
func (s *server) ended(ctx context.Context, from string, began time.Time) (*migration, error) {
	m := &migration{from: from}
	err := await(ctx, slow, 5*time.Minute, "the migration of "+s.name+" does not end", func() (bool, error) {
		v, err := s.view(ctx)
		if err != nil {
			return false, err
		}
		m.to = v.Host
		var listed struct {
			Migrations []struct {
				UUID, Status string
				Created      string `json:"created_at"`
			}
		}
		if err := get(ctx, s.cloud.admin.compute, "os-migrations?instance_uuid="+s.id+"&limit=1", &listed); err != nil {
			return false, err
		}
		if len(listed.Migrations) == 0 {
			return false, nil
		}
		m.uuid, m.status = listed.Migrations[0].UUID, listed.Migrations[0].Status
		created, err := time.Parse("2006-01-02T15:04:05.999999", listed.Migrations[0].Created)
		if err != nil {
			return false, err
		}
		if created.Before(began.Add(-2*time.Second)) || v.TaskState != "" { // Nova's times are whole seconds
			return false, nil
		}
		switch m.status {
		case "completed", "failed", "error", "cancelled":
			m.took = time.Since(began)
			return true, nil
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	m.events, err = s.account(ctx)
	return m, err
}

// account is the details of every event of the server's last action that did not succeed.
func (s *server) account(ctx context.Context) (string, error) {
	var actions struct {
		InstanceActions []struct {
			RequestID string `json:"request_id"`
		}
	}
	if err := get(ctx, s.cloud.admin.compute, "servers/"+s.id+"/os-instance-actions", &actions); err != nil || len(actions.InstanceActions) == 0 {
		return "", err
	}
	var action struct {
		InstanceAction struct {
			Message string
			Events  []struct{ Event, Result, Details, Host string }
		}
	}
	if err := get(ctx, s.cloud.admin.compute, "servers/"+s.id+"/os-instance-actions/"+actions.InstanceActions[0].RequestID, &action); err != nil {
		return "", err
	}
	var lines []string
	for _, e := range action.InstanceAction.Events {
		if e.Result != "Success" {
			lines = append(lines, strings.TrimSpace(e.Event+" on "+e.Host+": "+e.Result+" "+e.Details))
		}
	}
	return strings.Join(append(lines, action.InstanceAction.Message), "\n"), nil
}

// moved migrates and requires that it succeeds and the guest goes on.
func (s *server) moved(ctx context.Context, by *client, host string) (*migration, error) {
	m, err := s.migrate(ctx, by, host)
	if err != nil {
		return nil, err
	}
	if m.status != "completed" || m.to == m.from {
		return nil, fmt.Errorf("the migration of %s from %s to %s is %s: %s", s.name, m.from, host, m.status, m.events)
	}
	return m, s.ticksOn(ctx, m.to)
}

// stayed requires that the server is ACTIVE and its guest goes on at a host.
func (s *server) stayed(ctx context.Context, host string) error {
	err := await(ctx, slow, time.Minute, s.name+" is not ACTIVE on "+host+" with nothing under way", func() (bool, error) {
		v, err := s.view(ctx)
		return v.Status == "ACTIVE" && v.Host == host && v.TaskState == "", err
	})
	if err != nil {
		v, viewErr := s.view(ctx)
		return errors.Join(fmt.Errorf("%w: found %s on %s, task %q", err, v.Status, v.Host, v.TaskState), viewErr)
	}
	return s.ticksOn(ctx, host)
}

// delete removes the server, as its owner: an administrator may not delete another project's key.
func (s *server) delete(ctx context.Context) error {
	s.console.close()
	if _, err := s.by.compute.Delete(ctx, s.by.compute.Endpoint+"servers/"+s.id, nil); err != nil && !notFound(err) { //nolint:bodyclose // gophercloud closes it
		return err
	}
	return await(ctx, slow, 2*time.Minute, s.name+" is not deleted", func() (bool, error) {
		v, err := s.view(ctx)
		if notFound(err) {
			return true, nil
		}
		if err == nil && v.Status == "ERROR" {
			return false, fmt.Errorf("it is in ERROR: %s", v.Fault.Message)
		}
		return false, err
	})
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// uploadImages gives the cloud the guest, and the flavors.
func (c *cloud) uploadImages(ctx context.Context) error {
	kernels, err := filepath.Glob(filepath.Join(c.options.rootfs, "boot/vmlinuz-*-cloud-amd64"))
	if err != nil || len(kernels) == 0 {
		return fmt.Errorf("no kernel for the guests in %s/boot: %w", c.options.rootfs, err)
	}
	initrd, disk := filepath.Join(c.world.Dir, "initrd"), filepath.Join(c.world.Dir, "disk")
	if err := vm.BuildInitramfs(c.options.guest, initrd, nil); err != nil {
		return err
	}
	if err := blankDisk(disk); err != nil {
		return err
	}
	kernel, err := c.admin.upload(ctx, kernels[0], object{"name": "kernel", "disk_format": "aki", "container_format": "aki", "visibility": "public"})
	if err != nil {
		return err
	}
	ramdisk, err := c.admin.upload(ctx, initrd, object{"name": "initrd", "disk_format": "ari", "container_format": "ari", "visibility": "public"})
	if err != nil {
		return err
	}
	c.images = map[string]string{}
	for name, firmware := range map[string]string{imageBIOS: "bios", imageUEFI: "uefi"} {
		c.images[name], err = c.admin.upload(ctx, disk, object{
			"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public", "kernel_id": kernel, "ramdisk_id": ramdisk,
			"os_command_line": guestCommandLine,
			"hw_machine_type": "q35", "hw_firmware_type": firmware,
		})
		if err != nil {
			return err
		}
	}
	tpm := map[string]string{"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-tis"}
	for name, extra := range map[string]map[string]string{
		flavorPlain: nil, flavorUser: tpm, flavorHost: {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-tis", "hw:tpm_secret_security": "host"},
	} {
		if name == flavorHost && c.suite.nova < 33 {
			continue // there is no such mode before
		}
		if err := c.admin.flavor(ctx, name, 192, extra); err != nil {
			return err
		}
	}
	return nil
}
