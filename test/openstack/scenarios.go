package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// scenario is one numbered story. Its servers are deleted at its end; the resident server of all goes from one to the next.
type scenario struct {
	number, name string
	// since and until are the releases of Nova that it is about; 0: all.
	since, until int
	// asked: only when it is asked for.
	asked bool
	run   func(ctx context.Context, c *cloud, note func(format string, args ...any)) error
}

func scenarios() []scenario {
	return []scenario{
		{number: "01", name: "a server without a vTPM migrates there and back, and Safeconduct takes no part", run: plainThereAndBack},
		{number: "02", name: "a server with a vTPM (BIOS, block storage) migrates, by its owner's request and back by an administrator's", run: thereAndBack(kind{})},
		{number: "03", name: "the same with UEFI", run: thereAndBack(kind{uefi: true})},
		{number: "04", name: "after a migration the server's owner hard-reboots it: its key and its vTPM are those that it had", run: hardReboot},
		{number: "11", name: "refused: another swtpm on the destination than the reference value", run: refuseOtherSWTPM},
		{number: "12", name: "refused: another enclave on the destination", run: refuseOtherEnclave},
		{number: "13", name: "refused: no node service on the destination", run: refuseNoService},
		{number: "14", name: "refused: the destination's node service is in another mode than its nova-compute asks for", run: refuseOtherMode},
		{number: "15", name: "refused: the policy's rule has expired", run: refuseExpiredPolicy},
		{number: "16", name: "an operator reads the reason with the openstack client", run: readableReason},
		{number: "21", name: "the destination's swtpm dies at its start", run: swtpmDiesAtItsStart},
		{number: "22", name: "the destination's swtpm dies in mid-stream", run: swtpmDiesInMidStream},
		{number: "23", name: "the destination's QEMU dies in mid-stream", run: qemuDiesInMidStream},
		{number: "24", name: "the network is cut in mid-stream", run: networkCutInMidStream},
		{number: "25", name: "a node service is killed and started again in mid-stream", run: nodeRestartsInMidStream},
		{number: "26", name: "the user aborts in mid-stream", run: userAborts},
		{number: "27", name: "nova-compute is killed in mid-stream at the destination", run: novaDiesAtTheDestination},
		{number: "28", name: "nova-compute is killed in mid-stream at the source", run: novaDiesAtTheSource},
		{number: "31", name: "two servers with a vTPM leave one host at once", run: twoAtOnce},
		{number: "41", name: "a server with a vTPM (BIOS, shared storage) migrates, by its owner's request and back by an administrator's",
			run: onSharedStorage(thereAndBack(kind{}))},
		{number: "42", name: "the same with UEFI", run: onSharedStorage(thereAndBack(kind{uefi: true}))},
		{number: "51", name: "a server of the secret mode host migrates, by its owner's request and back by an administrator's", since: 33,
			run: thereAndBack(kind{flavor: flavorHost})},
		{number: "52", name: "for comparison: the same under Nova's own driver puts the secret on the message bus", since: 33, run: upstreamLeaks},
		{number: "61", name: "a server with a vTPM migrates with memory and disk in the tunnel", run: inTheTunnel},
		{number: "91", name: "bench: protected and unprotected in turns", until: 32, asked: true, run: bench},
	}
}

// play runs scenarios one after the other, all of them whatever becomes of each.
func (c *cloud) play(ctx context.Context, chosen []scenario, r *report) error {
	var failed []error
	for _, sc := range chosen {
		if ctx.Err() != nil {
			return errors.Join(append(failed, context.Cause(ctx))...)
		}
		o := outcome{Number: sc.number, Name: sc.name, Began: time.Now()}
		note := func(format string, args ...any) {
			o.Notes = append(o.Notes, fmt.Sprintf(format, args...))
			say("   "+format, args...)
		}
		say("\n%s %s", sc.number, sc.name)
		err := sc.run(ctx, c, note)
		if err != nil && ctx.Err() == nil {
			err = errors.Join(err, c.evidence(ctx, sc.number))
		}
		if ctx.Err() == nil { // else all ends with this process
			err = errors.Join(err, c.clear(ctx, err))
		}
		o.Seconds = time.Since(o.Began).Seconds()
		if o.Held = err == nil; o.Held {
			say("   held, %.0f s", o.Seconds)
		} else {
			o.Error = err.Error()
			say("   FAILED, %.0f s: %v", o.Seconds, err)
			failed = append(failed, fmt.Errorf("%s %s", sc.number, sc.name))
		}
		r.Scenarios = append(r.Scenarios, o)
	}
	passed, err := c.bus.recorded()
	if err != nil {
		failed = append(failed, err)
	}
	say("\n%.1f MB passed the message bus; every secret of a vTPM was looked for in it.", float64(passed)/1e6)
	if len(failed) == 0 {
		say("All %d scenarios held. Mode: SIMULATED. Artefacts: %s", len(chosen), c.options.out)
	}
	return errors.Join(failed...)
}

// resident returns the server that scenarios share, which saves them a boot each: with a vTPM, BIOS, block storage.
func (c *cloud) resident(ctx context.Context) (*server, error) {
	if c.standing != nil {
		return c.standing, nil
	}
	s, err := c.boot(ctx, kind{name: "resident", flavor: flavorUser})
	if err == nil {
		c.standing = s
	}
	return s, err
}

// clear deletes every server that a scenario left, and after one that failed the resident too.
func (c *cloud) clear(ctx context.Context, failed error) error {
	if failed != nil {
		c.standing = nil
	}
	var errs []error
	var left []*server
	for _, s := range c.servers {
		if s == c.standing {
			left = append(left, s)
			continue
		}
		errs = append(errs, s.delete(ctx))
	}
	c.servers = left
	return errors.Join(errs...)
}

func plainThereAndBack(ctx context.Context, c *cloud, note func(string, ...any)) error {
	s, err := c.boot(ctx, kind{name: "plain", flavor: flavorPlain})
	if err != nil {
		return err
	}
	for _, to := range []string{"compute2", "compute1"} {
		m, err := s.moved(ctx, c.admin, to)
		if err != nil {
			return err
		}
		note("%s to %s in %.1f s", m.from, m.to, m.took.Seconds())
	}
	if c.stock() {
		return nil
	}
	for _, h := range c.computes {
		if session, err := c.session(ctx, s, h.Name); err != nil || session != nil {
			return errors.Join(err, fmt.Errorf("%s has a session of a server without a vTPM: %v", h.Name, session))
		}
	}
	return nil
}

// thereAndBack migrates a server with a vTPM to compute2 by its owner's request, and back by an administrator's.
func thereAndBack(k kind) func(context.Context, *cloud, func(string, ...any)) error {
	return func(ctx context.Context, c *cloud, note func(string, ...any)) error {
		k.name = "traveller"
		if k.flavor == "" {
			k.flavor = flavorUser
		}
		s, err := c.boot(ctx, k)
		if err != nil {
			return err
		}
		for _, leg := range []struct {
			who string
			by  *client
			to  string
		}{{"the owner", c.owner, "compute2"}, {"an administrator", c.admin, "compute1"}} {
			m, err := s.moved(ctx, leg.by, leg.to)
			if err != nil {
				return fmt.Errorf("by %s: %w", leg.who, err)
			}
			if err := c.protected(ctx, s, m); err != nil {
				return fmt.Errorf("by %s: %w", leg.who, err)
			}
			last, err := s.console.last(leg.to)
			if err != nil {
				return err
			}
			note("by %s: %s to %s in %.1f s; the vTPM goes on, %d ticks; receipt of %s verified", leg.who, m.from, m.to, m.took.Seconds(), last, m.uuid)
		}
		return c.noOpenSession(ctx, s)
	}
}

// onSharedStorage runs a scenario with both nodes' disks in one directory.
func onSharedStorage(run func(context.Context, *cloud, func(string, ...any)) error) func(context.Context, *cloud, func(string, ...any)) error {
	return func(ctx context.Context, c *cloud, note func(string, ...any)) error {
		c.standing = nil // its disk is where Nova will not look
		if err := c.clear(ctx, nil); err != nil {
			return err
		}
		if err := c.storage(ctx, sharedStorage); err != nil {
			return err
		}
		err := run(ctx, c, note)
		// Its servers must be gone before Nova looks elsewhere.
		return errors.Join(err, c.clear(context.WithoutCancel(ctx), err), c.storage(ctx, localStorage))
	}
}

func (c *cloud) storage(ctx context.Context, path string) error {
	for _, h := range c.computes {
		if err := h.reconfigure(ctx, func(s *settings) { s.Instances = path }); err != nil {
			return err
		}
	}
	return nil
}

// hardReboot has Nova start the server anew on the host that it has migrated to: for that it needs the secret from the key manager.
func hardReboot(ctx context.Context, c *cloud, note func(string, ...any)) error {
	s, err := c.boot(ctx, kind{name: "rebooted", flavor: flavorUser})
	if err != nil {
		return err
	}
	if _, err := s.moved(ctx, c.admin, "compute2"); err != nil {
		return err
	}
	before, err := s.console.counter()
	if err != nil {
		return err
	}
	s.console.close()
	if err := send(ctx, c.owner.compute, "servers/"+s.id+"/action", object{"reboot": object{"type": "HARD"}}, nil); err != nil {
		return err
	}
	err = await(ctx, slow, 3*time.Minute, "the server is not ACTIVE again", func() (bool, error) {
		v, err := s.view(ctx)
		if v.Status == "ERROR" {
			return false, fmt.Errorf("it is in ERROR: %s", v.Fault.Message)
		}
		return v.Status == "ACTIVE" && v.TaskState == "", err
	})
	if err != nil {
		return err
	}
	s.console = follow(c, s)
	if err := s.ticksOn(ctx, "compute2"); err != nil {
		return err
	}
	after, err := s.console.counter()
	if err != nil {
		return err
	}
	if after <= before {
		return fmt.Errorf("the vTPM's counter is at %d after the reboot, and was at %d before: it is another vTPM, or an older one", after, before)
	}
	note("ACTIVE again, with the secret that it had; the vTPM's counter went on from %d to %d", before, after)
	return errors.Join(c.secretKept(ctx, s), c.noSecretInLibvirt(ctx))
}
