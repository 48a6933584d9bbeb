package main

import (
	"context"
	"errors"
	"fmt"
)

// upstreamLeaks runs the same migration as scenario 51 with Nova's own driver and swtpm's own binary, as Debian has them: it shows what Safeconduct is
// for, and that the search of the bus finds such a secret when it is there.
func upstreamLeaks(ctx context.Context, c *cloud, note func(string, ...any)) error {
	c.standing = nil
	if err := c.clear(ctx, nil); err != nil {
		return err
	}
	err := c.eachCompute(ctx, func(h *compute) error {
		if _, err := h.Run(ctx, "safeconduct", "helper", "uninstall"); err != nil {
			return err
		}
		return h.reconfigure(ctx, func(s *settings) { s.Driver, s.Safeconduct = stockDriver, "" })
	})
	if err != nil {
		return err
	}
	found := c.upstreamMigration(ctx, note)
	found = errors.Join(found, c.clear(context.WithoutCancel(ctx), found))
	return errors.Join(found, c.eachCompute(context.WithoutCancel(ctx), func(h *compute) error {
		if err := h.installHelper(ctx); err != nil {
			return err
		}
		return h.reconfigure(ctx, func(s *settings) { s.Driver, s.Safeconduct = c.options.driver, c.safeconductConf() })
	}))
}

func (c *cloud) upstreamMigration(ctx context.Context, note func(string, ...any)) error {
	s, err := c.boot(ctx, kind{name: "upstream", flavor: flavorHost})
	if err != nil {
		return err
	}
	m, err := s.moved(ctx, c.admin, "compute2")
	if err != nil {
		return err
	}
	where, err := c.bus.find(s.secret)
	if err != nil {
		return err
	}
	if where == "" {
		return errors.New("the secret is not on the bus: this Nova does without, or the search is at fault")
	}
	note("Nova's own driver, %s to %s: the secret of the vTPM was on the message bus (%s)", m.from, m.to, where)
	for _, h := range c.computes {
		secrets, err := h.virsh(ctx, "secret-list")
		if err != nil {
			return err
		}
		note("Nova's own driver: virsh secret-list on %s afterwards: %d", h.Name, len(secrets))
	}
	return nil
}

func (c *cloud) eachCompute(ctx context.Context, do func(*compute) error) error {
	for _, h := range c.computes {
		if err := do(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return ctx.Err()
}
