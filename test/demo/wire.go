package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

const (
	// markerSize is a page of the guest's memory, which is in the migration stream as one piece.
	markerSize = 4096
	windowSize = 32
)

// capture is what takes down all that crosses between the hosts: on the wire between their namespaces, or, without root, in a relay on the way of the
// migration stream.
type capture struct {
	wire  *vm.Wire
	relay *vm.Relay
}

// startCapture begins one for the migration label.
func (d *demo) startCapture(ctx context.Context, label string, protected bool) (c capture, err error) {
	to := d.nodes["compute2"]
	if ns := d.nodes["compute1"].netns; ns != "" {
		c.wire, err = vm.TapWire(ctx, ns, "wire", filepath.Join(d.dir, label+".pcap"))
		return c, err
	}
	c.relay = &vm.Relay{
		Listen: "unix:" + filepath.Join(d.dir, label+".mig"), Forward: "unix:" + filepath.Join(to.Dir, label+".in"), Capture: filepath.Join(d.dir, label+".capture"),
	}
	if protected {
		c.relay.Listen, c.relay.Forward = "tcp:"+d.via, "tcp:"+to.TunnelAddress
	}
	return c, c.relay.Start(ctx)
}

// end returns what every connection carried.
func (c capture) end(ctx context.Context) ([]vm.Flow, error) {
	if c.wire != nil {
		return c.wire.Stop(ctx)
	}
	_ = c.relay.Close() // QEMU has closed its connection, in whichever way
	raw, err := os.ReadFile(c.relay.Capture)
	return []vm.Flow{{From: c.relay.Listen, To: c.relay.Forward, Data: raw}}, err
}

// move migrates a guest to compute2, while the capture runs: through the tunnel if it is protected, else by plain TCP.
func (d *demo) move(ctx context.Context, src *vm.VM, label string, protected bool, c capture) (*migration, error) {
	from, to := d.nodes["compute1"], d.nodes["compute2"]
	var in, out string
	switch {
	case protected:
		in, out = "unix:"+to.TunnelSocket(instance), "unix:"+from.TunnelSocket(instance)
		if err := cluster.Until(ctx, "the VM's socket", func() error { _, err := os.Stat(from.TunnelSocket(instance)); return err }); err != nil {
			return nil, err
		}
	case c.relay != nil:
		in, out = c.relay.Forward, c.relay.Listen
	default:
		d.ports++
		in = fmt.Sprintf("tcp:%s:%d", to.ip, 49152+d.ports)
		out = in
	}
	m := new(migration)
	var err error
	if m.dst, m.helper, err = d.guestOn(ctx, to, label, in, protected); err != nil {
		return nil, err
	}
	if err := src.Migrate(ctx, out); err != nil {
		return nil, err
	}
	if m.result, err = src.WaitMigration(ctx); err != nil {
		return nil, err
	}
	if m.result.Status != "completed" {
		return nil, fmt.Errorf("the migration %s: %s", m.result.Status, m.result.ErrorDesc)
	}
	return m, nil
}

// tunnelled waits until the tunnel says how the VM's connection ended, and reports it.
func (d *demo) tunnelled(ctx context.Context) error {
	var line struct {
		Msg      string `json:"msg"`
		Sent     int64  `json:"sent_bytes"`
		Received int64  `json:"received_bytes"`
		Elapsed  int64  `json:"elapsed"`
		Why      string `json:"why"`
	}
	err := cluster.Until(ctx, "the end of the tunnel's connection", func() error {
		raw, err := os.ReadFile(filepath.Join(d.nodes["compute1"].Dir, "tunnel.log"))
		if err != nil {
			return err
		}
		for text := range bytes.Lines(raw) {
			if bytes.Contains(text, []byte("a connection of the tunnel")) {
				return json.Unmarshal(text, &line)
			}
		}
		return errors.New("its log does not tell of one")
	})
	if err == nil && line.Why != "" {
		err = fmt.Errorf("%s: %s", line.Msg, line.Why)
	}
	if err != nil {
		return err
	}
	say("tunnel:    %d bytes to compute2 and %d back, ended whole after %d ms", line.Sent, line.Received, time.Duration(line.Elapsed).Milliseconds())
	return nil
}

// tapped returns the plaintext of the last blob of a kind that the tap on a host saw saved.
func tapped(dir, kind string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "tap", "*-save-"+kind+".bin"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("the tap in %s saw no %s blob", dir, kind)
	}
	return os.ReadFile(slices.Max(files))
}

// search looks in what the last move sent over the wire for the vTPM's state (that the tap in dir saw), the marker in the guest's memory, and the VM's
// secret.
func (d *demo) search(dir string) ([]search, error) {
	plaintexts := map[string][]byte{"marker": d.marker, "secret": []byte(secretOfVM)}
	names := []string{"permanent", "volatile", "marker", "secret"}
	s, err := vm.NewSearch(windowSize)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if plaintexts[name] == nil {
			if plaintexts[name], err = tapped(dir, name); err != nil {
				return nil, err
			}
		}
		if err := s.Add(plaintexts[name]); err != nil {
			return nil, err
		}
	}
	total := 0
	for _, flow := range d.wire {
		s.Scan(flow.Data)
		total += len(flow.Data)
	}
	var out []search
	for _, name := range names {
		f := s.Found(plaintexts[name])
		out = append(out, search{name, f.Total, f.Found, f.HighEntropy, f.HighEntropyFound})
		say("%-9s %4d windows of %d bytes with high entropy: %4d on the wire", name, f.HighEntropy, windowSize, f.HighEntropyFound)
	}
	say("(%d bytes of TCP connections)", total)
	d.report.WireBytes = total
	return out, nil
}

func (d *demo) searchProtected(context.Context) error {
	title("All that crossed the wire, searched for the vTPM's state, a marker in the guest's memory, and the VM's secret")
	var err error
	if d.report.Protected, err = d.search(filepath.Join(d.nodes["compute1"].Dir, "guest")); err != nil {
		return err
	}
	for _, s := range d.report.Protected {
		if s.HighFound != 0 || s.HighEntropy == 0 {
			return fmt.Errorf("%d of %d windows of high entropy of the %s are on the wire", s.HighFound, s.HighEntropy, s.What)
		}
	}
	// The search looked at the migration, and not past it.
	if uint64(d.report.WireBytes) < d.report.RAMBytes {
		return fmt.Errorf("%d bytes were captured, and the migration alone has %d", d.report.WireBytes, d.report.RAMBytes)
	}
	return nil
}

func (d *demo) searchUnprotected(ctx context.Context) error {
	title("The same search with helper and tunnel off, on another guest: it must find the state and the marker")
	guest, _, err := d.guestOn(ctx, d.nodes["compute1"], "bare", "", false)
	if err != nil {
		return err
	}
	if _, err := guest.WaitTick(ctx, 3); err != nil {
		return err
	}
	c, err := d.startCapture(ctx, "bare-moved", false)
	if err != nil {
		return err
	}
	if _, err := d.move(ctx, guest, "bare-moved", false, c); err != nil {
		return err
	}
	if d.wire, err = c.end(ctx); err != nil {
		return err
	}
	if d.report.Unprotected, err = d.search(filepath.Join(d.nodes["compute1"].Dir, "bare")); err != nil {
		return err
	}
	for _, s := range d.report.Unprotected {
		if s.What != "secret" && s.HighFound < s.HighEntropy*9/10 { // the secret is no part of this migration
			return fmt.Errorf("the search found only %d of %d windows of the %s", s.HighFound, s.HighEntropy, s.What)
		}
	}
	if !slices.ContainsFunc(d.wire, func(f vm.Flow) bool { return bytes.HasPrefix(f.Data, []byte("QEVM")) }) {
		return errors.New("no connection on the wire is a migration stream in clear")
	}
	return nil
}
