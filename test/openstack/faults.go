package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// underWay is a migration of the resident server whose stream flows: the secret is released, the destination's QEMU and swtpm run.
type underWay struct {
	server              *server
	source, destination *compute
	began               time.Time
}

// calm is the speed, in MiB/s, of a migration that something is to happen to: it takes some seconds.
const calm = "8"

// begin starts a migration of the resident server.
func (c *cloud) begin(ctx context.Context) (*underWay, error) {
	s, err := c.resident(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	w := &underWay{server: s, source: c.host(v.Host), destination: c.other(v.Host), began: time.Now()}
	if _, err := w.source.virsh(ctx, "migrate-setspeed", s.id, calm); err != nil {
		return nil, err
	}
	return w, s.begin(ctx, c.admin, w.destination.Name)
}

// midStream starts one and waits until its memory is crossing.
func (c *cloud) midStream(ctx context.Context) (*underWay, error) {
	w, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	return w, await(ctx, fast, 3*time.Minute, "the migration does not begin to stream", func() (bool, error) {
		if v, err := w.server.view(ctx); err != nil || v.TaskState == "" {
			account, accountErr := w.server.account(ctx)
			return false, errors.Join(err, accountErr, fmt.Errorf("it has ended: %s", account))
		}
		job, err := w.source.virsh(ctx, "domjobinfo", w.server.id)
		if err != nil {
			return false, err
		}
		for _, words := range job {
			if len(words) > 2 && words[0] == "Memory" && words[1] == "processed:" {
				return words[2] != "0.000", nil
			}
		}
		return false, nil
	})
}

// failed waits for the end of a migration that must fail, and checks that nothing has come of it.
func (c *cloud) failed(ctx context.Context, w *underWay, note func(string, ...any)) error {
	m, err := w.server.ended(ctx, w.source.Name, w.began)
	if err != nil {
		return err
	}
	if m.status == "completed" {
		return errors.New("the migration is completed: what was broken did not matter")
	}
	if err := errors.Join(c.unharmed(ctx, w.server, w.source.Name), c.noOpenSession(ctx, w.server)); err != nil {
		return err
	}
	note("%s after %.0f s; %s is ACTIVE on %s and its vTPM goes on", m.status, m.took.Seconds(), w.server.name, w.source.Name)
	return nil
}

// kill ends the processes of a host whose command line has all texts, as soon as there is one, and for as long as another might take its place.
func (h *compute) kill(ctx context.Context, texts ...string) error {
	what := fmt.Sprintf("%s has no process with %q", h.Name, texts)
	var first time.Time
	return await(ctx, 10*time.Millisecond, 3*time.Minute, what, func() (bool, error) {
		found, err := h.Processes(texts...)
		for _, p := range found {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, err
			}
		}
		if len(found) > 0 && first.IsZero() {
			first = time.Now()
		}
		return !first.IsZero() && time.Since(first) > time.Second, err
	})
}

func swtpmDiesAtItsStart(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.begin(ctx)
	if err != nil {
		return err
	}
	// It is started with the secret, so the secret is released by then.
	if err := w.destination.kill(ctx, realSWTPM, w.server.id); err != nil {
		return err
	}
	return c.failed(ctx, w, note)
}

func swtpmDiesInMidStream(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	if err := w.destination.kill(ctx, realSWTPM, w.server.id); err != nil {
		return err
	}
	return c.failed(ctx, w, note)
}

func qemuDiesInMidStream(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	if err := w.destination.kill(ctx, "qemu-system-x86_64", w.server.id); err != nil {
		return err
	}
	return c.failed(ctx, w, note)
}

func networkCutInMidStream(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	log := filepath.Join(c.options.out, w.source.Name, "nova-compute.log")
	const busy = "libvirt is busy with the migration"
	said := func() (int, error) {
		raw, err := os.ReadFile(log)
		return strings.Count(string(raw), busy), err
	}
	before, err := said()
	if err != nil {
		return err
	}
	if err := w.destination.Unplug(ctx); err != nil {
		return err
	}
	// libvirt notices by its own keep-alive, after half a minute. With disks to copy it then waits for QEMU, which waits for their connection: until Nova's
	// monitor has been kept waiting for longer than it would bear by itself.
	err = await(ctx, slow, 4*time.Minute, "the source's libvirt does not notice", func() (bool, error) {
		if now, err := said(); err != nil || now > before {
			return true, err
		}
		job, err := w.source.virsh(ctx, "domjobinfo", w.server.id)
		return err == nil && (len(job) == 0 || strings.Join(job[0], " ") == "Job type: None"), nil
	})
	if err = errors.Join(err, w.destination.Plug(ctx)); err != nil {
		return err
	}
	return errors.Join(c.failed(ctx, w, note), c.waitComputes(ctx)) // Nova has not heard of the node for a while
}

func nodeRestartsInMidStream(ctx context.Context, c *cloud, note func(string, ...any)) error {
	for _, side := range []string{"destination", "source"} {
		w, err := c.midStream(ctx)
		if err != nil {
			return err
		}
		h := w.destination
		if side == "source" {
			h = w.source
		}
		h.node.Daemon.Kill()
		if err := c.nodes.StartNode(ctx, h.node, binDir+"/safeconductd"); err != nil {
			return err
		}
		note("killed and started at the %s:", side)
		if err := c.failed(ctx, w, note); err != nil {
			return fmt.Errorf("%s: %w", side, err)
		}
	}
	return nil
}

func userAborts(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	var running struct{ Migrations []struct{ ID int } }
	path := "servers/" + w.server.id + "/migrations"
	if err := get(ctx, c.admin.compute, path, &running); err != nil {
		return err
	}
	if len(running.Migrations) != 1 {
		return fmt.Errorf("%d migrations are running, expected 1", len(running.Migrations))
	}
	abort := fmt.Sprintf("%s%s/%d", c.admin.compute.Endpoint, path, running.Migrations[0].ID)
	if _, err := c.admin.compute.Delete(ctx, abort, nil); err != nil { //nolint:bodyclose // gophercloud closes it
		return err
	}
	return c.failed(ctx, w, note)
}

// novaDiesAtTheDestination and comes back: libvirt and the session do not mind, and Nova's last step waits for it.
func novaDiesAtTheDestination(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	w.destination.nova.Kill()
	if err := w.destination.restartNova(ctx); err != nil {
		return err
	}
	m, err := w.server.ended(ctx, w.source.Name, w.began)
	if err != nil {
		return err
	}
	note("%s after %.0f s; %s is on %s", m.status, m.took.Seconds(), w.server.name, m.to)
	if m.status != "completed" {
		return errors.Join(fmt.Errorf("the migration is %s: %s", m.status, m.events), c.unharmed(ctx, w.server, w.source.Name))
	}
	return errors.Join(w.server.ticksOn(ctx, m.to), c.protected(ctx, w.server, m), c.noOpenSession(ctx, w.server))
}

// novaDiesAtTheSource and comes back. Nova gives such a migration up, whatever becomes of the server; libvirt's job goes on without it. What must hold is
// that the server lives on one host, with its vTPM, and that no secret and no session stay behind.
func novaDiesAtTheSource(ctx context.Context, c *cloud, note func(string, ...any)) error {
	w, err := c.midStream(ctx)
	if err != nil {
		return err
	}
	w.source.nova.Kill()
	if err := w.source.restartNova(ctx); err != nil {
		return err
	}
	var at []string
	err = await(ctx, slow, 3*time.Minute, "the server does not run on one host", func() (bool, error) {
		at = nil
		for _, h := range c.computes {
			found, err := h.Processes("qemu-system-x86_64", w.server.id)
			if err != nil {
				return false, err
			}
			if len(found) > 0 {
				at = append(at, h.Name)
			}
		}
		return len(at) == 1, nil
	})
	if err != nil {
		return fmt.Errorf("%w: on %v", err, at)
	}
	note("nova-compute was killed at %s; the server runs on %s", w.source.Name, at[0])
	c.standing = nil // Nova may be wrong about where it is: the next scenario has a server of its own
	err = errors.Join(w.server.ticksOn(ctx, at[0]), c.noOpenSession(ctx, w.server), c.noSecretInLibvirt(ctx), c.secretKept(ctx, w.server),
		c.escrowedOnlyAt(ctx, w.server, at[0]))
	if at[0] != w.source.Name {
		// Nova would delete the server where it is not.
		_, destroyErr := c.host(at[0]).virsh(ctx, "destroy", w.server.id)
		err = errors.Join(err, destroyErr)
	}
	return err
}

// twoAtOnce migrates two servers of one host at the same time.
func twoAtOnce(ctx context.Context, c *cloud, note func(string, ...any)) error {
	first, err := c.resident(ctx)
	if err != nil {
		return err
	}
	v, err := first.view(ctx)
	if err != nil {
		return err
	}
	second, err := c.boot(ctx, kind{name: "second", flavor: flavorUser, host: v.Host})
	if err != nil {
		return err
	}
	began := time.Now()
	for _, s := range []*server{first, second} {
		if err := s.begin(ctx, c.admin, c.other(v.Host).Name); err != nil {
			return err
		}
	}
	for _, s := range []*server{first, second} {
		m, err := s.ended(ctx, v.Host, began)
		if err != nil {
			return err
		}
		if m.status != "completed" {
			return fmt.Errorf("the migration of %s is %s: %s", s.name, m.status, m.events)
		}
		note("%s: %s in %.0f s", s.name, m.status, m.took.Seconds())
		if err := errors.Join(s.ticksOn(ctx, m.to), c.receipt(ctx, s, m)); err != nil {
			return err
		}
	}
	return errors.Join(c.noSecretInLibvirt(ctx), c.secretKept(ctx, first), c.secretKept(ctx, second))
}
