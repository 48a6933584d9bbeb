package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// refused migrates a server whose destination is not what it should be: Nova must say why, by the reason's name and every other word wanted, and the
// server must be where it was, unharmed.
func (c *cloud) refused(ctx context.Context, note func(string, ...any), words ...string) error {
	s, err := c.resident(ctx)
	if err != nil {
		return err
	}
	before, err := s.view(ctx)
	if err != nil {
		return err
	}
	m, err := s.migrate(ctx, c.admin, c.other(before.Host).Name)
	if err != nil {
		return err
	}
	if m.status == "completed" || m.to != before.Host {
		return fmt.Errorf("the migration is %s and the server on %s: it was not refused", m.status, m.to)
	}
	for _, word := range words {
		if !strings.Contains(m.events, word) {
			return fmt.Errorf("nova does not say %q, but: %s", word, m.events)
		}
	}
	note("%s after %.0f s: %s", m.status, m.took.Seconds(), gist(m.events, words[0]))
	return errors.Join(c.unharmed(ctx, s, before.Host), c.noOpenSession(ctx, s))
}

// gist is the line of an account that has a word, shortened.
func gist(account, word string) string {
	for line := range strings.Lines(account) {
		if at := strings.Index(line, word); at >= 0 {
			line = strings.TrimSpace(line)
			return line[:min(len(line), 400)]
		}
	}
	return account
}

// destination of a migration of the resident server.
func (c *cloud) destination(ctx context.Context) (*compute, error) {
	s, err := c.resident(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	return c.other(v.Host), err
}

func refuseOtherSWTPM(ctx context.Context, c *cloud, note func(string, ...any)) error {
	h, err := c.destination(ctx)
	if err != nil {
		return err
	}
	// The same program with bytes behind its end runs as well, and is not what the policy names.
	if err := cluster.CopyExecutable(h.Path(realSWTPM), h.Path(realSWTPM), []byte("changed")); err != nil {
		return err
	}
	err = c.refused(ctx, note, "INTEGRITY_MISMATCH", "vmm/swtpm; found", "expected", h.Name)
	return errors.Join(err, cluster.CopyExecutable(c.control.Path("/usr/bin/swtpm"), h.Path(realSWTPM), nil))
}

func refuseOtherEnclave(ctx context.Context, c *cloud, note func(string, ...any)) error {
	h, err := c.destination(ctx)
	if err != nil {
		return err
	}
	if err := cluster.CopyExecutable(h.Path(binDir+"/safeconductd"), h.Path("/usr/bin/safeconductd-changed"), []byte("changed")); err != nil {
		return err
	}
	if err := c.nodes.StartNode(ctx, h.node, "/usr/bin/safeconductd-changed"); err != nil {
		return err
	}
	err = c.refused(ctx, note, "MEASUREMENT_NOT_ALLOWED", "found mrenclave", h.Name)
	return errors.Join(err, c.nodes.StartNode(ctx, h.node, binDir+"/safeconductd"))
}

func refuseNoService(ctx context.Context, c *cloud, note func(string, ...any)) error {
	h, err := c.destination(ctx)
	if err != nil {
		return err
	}
	h.node.Daemon.Kill()
	// Not c.refused as a whole: the sessions of a service that is not there cannot be listed.
	s, source := c.standing, c.other(h.Name).Name
	m, err := s.migrate(ctx, c.admin, h.Name)
	startErr := c.nodes.StartNode(ctx, h.node, binDir+"/safeconductd")
	if err = errors.Join(err, startErr); err != nil {
		return err
	}
	if m.status == "completed" || !strings.Contains(m.events, "NODE_UNAVAILABLE") {
		return fmt.Errorf("the migration is %s, and nova says: %s", m.status, m.events)
	}
	note("%s: %s", m.status, gist(m.events, "Safeconduct"))
	return errors.Join(c.unharmed(ctx, s, source), c.noOpenSession(ctx, s))
}

func refuseOtherMode(ctx context.Context, c *cloud, note func(string, ...any)) error {
	h, err := c.destination(ctx)
	if err != nil {
		return err
	}
	was := h.settings.Safeconduct
	err = h.reconfigure(ctx, func(s *settings) { s.Safeconduct = strings.Replace(was, "simulated", "intel", 1) })
	if err != nil {
		return err
	}
	err = c.refused(ctx, note, "MODE_MISMATCH", "intel")
	return errors.Join(err, h.reconfigure(ctx, func(s *settings) { s.Safeconduct = was }))
}

func refuseExpiredPolicy(ctx context.Context, c *cloud, note func(string, ...any)) error {
	if _, err := c.resident(ctx); err != nil {
		return err
	}
	err := c.nodes.Amend(func(p *policy.Policy) { p.Enclaves[0].NotAfter = time.Now().Add(-time.Minute) })
	if err != nil {
		return err
	}
	if err := c.reload(ctx); err != nil {
		return err
	}
	err = c.refused(ctx, note, "MEASUREMENT_NOT_ALLOWED")
	return errors.Join(err, c.nodes.Amend(nil), c.reload(ctx))
}

// reload has both nodes read the policy again, as an operator does.
func (c *cloud) reload(ctx context.Context) error {
	for _, h := range c.computes {
		if _, err := h.Run(ctx, "safeconduct", "reload"); err != nil {
			return err
		}
	}
	return nil
}

// readableReason shows that an operator reads the reason with the stock client.
func readableReason(ctx context.Context, c *cloud, note func(string, ...any)) error {
	s, err := c.resident(ctx)
	if err != nil {
		return err
	}
	v, err := s.view(ctx)
	if err != nil {
		return err
	}
	h := c.other(v.Host)
	h.node.Daemon.Kill()
	_, err = s.migrate(ctx, c.admin, h.Name)
	if err = errors.Join(err, c.nodes.StartNode(ctx, h.node, binDir+"/safeconductd")); err != nil {
		return err
	}
	client := []string{"env", "OS_AUTH_URL=" + url("keystone"), "OS_USERNAME=admin", "OS_PASSWORD=" + password, "OS_PROJECT_NAME=admin",
		"OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default", "OS_COMPUTE_API_VERSION=" + novaVersion, "openstack", "server", "event"}
	list, err := c.control.Run(ctx, append(client, "list", s.id, "-f", "json")...)
	if err != nil {
		return err
	}
	var events []struct {
		Request string `json:"Request ID"`
		Start   string `json:"Start Time"`
	}
	if err := json.Unmarshal([]byte(list), &events); err != nil || len(events) == 0 {
		return fmt.Errorf("openstack server event list: %q: %w", list, err)
	}
	last := events[0]
	for _, e := range events {
		if e.Start > last.Start {
			last = e
		}
	}
	shown, err := c.control.Run(ctx, append(client, "show", s.id, last.Request)...)
	if err != nil {
		return err
	}
	if !strings.Contains(shown, "Safeconduct on "+h.Name) {
		return fmt.Errorf("openstack server event show does not tell the reason: %s", shown)
	}
	note("openstack server event show: %s", gist(shown, "Safeconduct on"))
	return s.stayed(ctx, v.Host)
}
