package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// host returns a compute node by name, and other the one that it is not.
func (c *cloud) host(name string) *compute {
	for _, h := range c.computes {
		if h.Name == name {
			return h
		}
	}
	panic("there is no compute node " + name)
}

func (c *cloud) other(name string) *compute {
	if c.computes[0].Name == name {
		return c.computes[1]
	}
	return c.computes[0]
}

// protected checks all that a migration of a server with a vTPM under Safeconduct is to leave, and not to leave.
func (c *cloud) protected(ctx context.Context, s *server, m *migration) error {
	if err := c.noSecretInLibvirt(ctx); err != nil {
		return err
	}
	if err := c.secretKept(ctx, s); err != nil {
		return err
	}
	if left, err := c.host(m.from).leftovers(ctx, s); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("left on the source: %s", strings.Join(left, "; ")))
	}
	if err := c.escrowedOnlyAt(ctx, s, m.to); err != nil {
		return err
	}
	return c.receipt(ctx, s, m)
}

// unharmed checks that a migration that did not take place has left the server where it was, its secret too, and nothing on the destination.
func (c *cloud) unharmed(ctx context.Context, s *server, source string) error {
	if err := s.stayed(ctx, source); err != nil {
		return err
	}
	destination := c.other(source)
	var left []string
	// Nova and libvirt clean up after they have answered.
	err := await(ctx, slow, 2*time.Minute, "the destination is not clean", func() (clean bool, err error) {
		left, err = destination.leftovers(ctx, s)
		return len(left) == 0, err
	})
	if err != nil {
		return fmt.Errorf("%w: left on %s: %s", err, destination.Name, strings.Join(left, "; "))
	}
	if err := c.noSecretInLibvirt(ctx); err != nil {
		return err
	}
	return c.secretKept(ctx, s)
}

// noSecretInLibvirt checks that neither libvirt knows a secret: not of this server, not of another.
func (c *cloud) noSecretInLibvirt(ctx context.Context) error {
	for _, h := range c.computes {
		secrets, err := h.virsh(ctx, "secret-list")
		if err != nil {
			return err
		}
		if len(secrets) > 0 {
			return fmt.Errorf("virsh secret-list on %s: %v", h.Name, secrets)
		}
	}
	return nil
}

// passphrase is what the key manager holds for the server's vTPM, as only its owner may read it.
func (s *server) passphrase(ctx context.Context) ([]byte, error) {
	known, err := s.by.secrets(ctx)
	if err != nil {
		return nil, err
	}
	for id, name := range known {
		if strings.Contains(name, s.id) {
			return s.by.secret(ctx, id)
		}
	}
	return nil, fmt.Errorf("the key manager has no secret of %s", s.name)
}

// secretKept checks that the server's secret is still with the key manager, is the one that it was, and was not on the bus.
func (c *cloud) secretKept(ctx context.Context, s *server) error {
	now, err := s.passphrase(ctx)
	if err != nil {
		return err
	}
	if string(now) != string(s.secret) {
		return fmt.Errorf("the key manager has another secret of %s than at its boot", s.name)
	}
	return c.notOnBus(s.secret, s.id)
}

// notOnBus searches everything that has ever passed RabbitMQ for a secret, and for something that did pass, for a search that cannot find proves nothing.
func (c *cloud) notOnBus(secret []byte, passed string) error {
	where, err := c.bus.find(secret)
	if err != nil {
		return err
	}
	if where != "" {
		return fmt.Errorf("the secret of the vTPM was on the message bus: %s", where)
	}
	where, err = c.bus.find([]byte(passed))
	if err == nil && where == "" {
		err = fmt.Errorf("the search of the bus does not find %s, which was on it", passed)
	}
	return err
}

// escrowedOnlyAt checks which enclaves hold the server's secret.
func (c *cloud) escrowedOnlyAt(ctx context.Context, s *server, host string) error {
	for _, h := range c.computes {
		got, err := v1.NewSecretServiceClient(h.node.Conn).ListSecrets(ctx, &v1.ListSecretsRequest{InstanceId: s.id})
		if err != nil {
			return err
		}
		want := 0
		if h.Name == host {
			want = 1
		}
		if n := len(got.GetSecrets()); n != want {
			return fmt.Errorf("the enclave of %s holds %d secrets of %s, expected %d", h.Name, n, s.name, want)
		}
	}
	return nil
}

// receipt takes the destination's receipt of a migration and has the command line verify it, as an auditor would: with the policy and the root, and no
// node. It is an artefact.
func (c *cloud) receipt(ctx context.Context, s *server, m *migration) error {
	client := v1.NewReceiptServiceClient(c.host(m.to).node.Conn)
	var id []byte
	err := await(ctx, fast, 20*time.Second, m.to+" has no receipt of migration "+m.uuid, func() (bool, error) {
		all, err := client.ListReceipts(ctx, &v1.ListReceiptsRequest{InstanceId: s.id})
		for _, r := range all.GetReceipts() {
			if r.GetMigrationId() == m.uuid && r.GetBothSigned() && r.GetOutcome() == "committed" {
				id = r.GetReceiptId()
			}
		}
		return id != nil, err
	})
	if err != nil {
		return err
	}
	export, err := client.ExportReceipt(ctx, &v1.ExportReceiptRequest{ReceiptId: id})
	if err != nil {
		return err
	}
	dir := filepath.Join(c.options.out, "receipts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, m.uuid+".json"), export.GetReceipt(), 0o644); err != nil {
		return err
	}
	path := filepath.Join(c.world.Shared(), "receipt.json")
	if err := os.WriteFile(path, export.GetReceipt(), 0o644); err != nil {
		return err
	}
	// On the controller, which has no node service.
	_, err = c.control.Run(ctx, binDir+"/safeconduct", "receipt", "verify", "--policy", c.nodes.PolicyFile(), "--policy-keys", c.nodes.PolicyKeys(),
		"--simulated-root", c.nodes.Root(), path)
	return err
}

// session returns the last session of a server on a host.
func (c *cloud) session(ctx context.Context, s *server, host string) (*v1.Session, error) {
	got, err := c.host(host).node.Migrations().List(ctx, &v1.ListRequest{InstanceId: s.id, IncludeEnded: true})
	if err != nil {
		return nil, err
	}
	var last *v1.Session
	for _, session := range got.GetSessions() {
		if last == nil || session.GetCreatedAt().AsTime().After(last.GetCreatedAt().AsTime()) {
			last = session
		}
	}
	return last, nil
}

// noOpenSession checks that no session of a server is left open on either node.
func (c *cloud) noOpenSession(ctx context.Context, s *server) error {
	var open []string
	err := await(ctx, slow, 90*time.Second, "a session is left open", func() (bool, error) {
		open = nil
		for _, h := range c.computes {
			got, err := h.node.Migrations().List(ctx, &v1.ListRequest{InstanceId: s.id})
			if err != nil {
				return false, err
			}
			for _, session := range got.GetSessions() {
				open = append(open, fmt.Sprintf("%s on %s is %s", hex.EncodeToString(session.GetSessionId()), h.Name, session.GetState()))
			}
		}
		return len(open) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(open, "; "))
	}
	return nil
}
