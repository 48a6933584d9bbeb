package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/test/vm"
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// page is what a marker needs to be in the stream as one piece.
const page = 4096

// permanent is the vTPM's permanent state as swtpm keeps it where the VM is now.
func (d *Domain) permanent(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(d.Host().path("/var/lib/libvirt/swtpm/" + d.UUID + "/tpm2/tpm2-00.permall"))
	if err != nil || len(raw) < 1000 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	return raw
}

// searched migrates the VM with the wire captured, and returns what was searched for, and how much had crossed.
func (r *Rig) searched(ctx context.Context, t *testing.T, migrate func() error, plaintexts ...[]byte) (s *vm.Search, total int) {
	t.Helper()
	wire, err := vm.TapWire(ctx, r.netns(0), "wire", filepath.Join(r.Dir, "wire.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	if err := migrate(); err != nil {
		t.Error(err)
	}
	flows, err := wire.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err = vm.NewSearch(32)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plaintexts {
		if err := s.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range flows {
		s.Scan(f.Data)
		total += len(f.Data)
	}
	return s, total
}

func TestThroughTheTunnelNothingCrossesInClear(t *testing.T) {
	marker := random(page)
	r, ctx := start(t, Options{Tunnel: true, Marker: marker})
	disk := random(8 << 20)
	for _, tc := range []struct {
		name string
		d    *Domain
		more []string
	}{
		{"one connection", &Domain{}, nil},
		{"tpm-crb, encrypted at rest", &Domain{Model: "tpm-crb", Encrypted: true}, nil},
		{"four connections", &Domain{}, []string{"--parallel", "--parallel-connections", "4"}},
		{"with a disk that is not shared", &Domain{Disk: disk}, nil},
		{"with a disk and two connections", &Domain{Disk: disk}, []string{"--parallel", "--parallel-connections", "2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := tc.d
			if err := r.Boot(ctx, d); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = d.Host().Virsh(ctx, "destroy", d.Name) })
			plaintexts := [][]byte{marker, d.permanent(t)}
			if len(d.Disk) > 0 {
				plaintexts = append(plaintexts, d.Disk[:1<<16])
			}
			if d.Encrypted {
				plaintexts = append(plaintexts, []byte(passphrase))
			}
			s, total := r.searched(ctx, t, func() error { return d.Migrate(ctx, tc.more...) }, plaintexts...)
			for i, p := range plaintexts {
				f := s.Found(p)
				t.Logf("plaintext %d: %+v", i, f)
				// The VM's UUID is in the certificate of its vTPM's endorsement key, and public: both nodes and both libvirtd name the VM by it.
				leaked := slices.DeleteFunc(s.Leaked(p), func(window string) bool { return strings.Contains(d.UUID, window) })
				if len(leaked) > 0 || f.HighEntropy == 0 {
					t.Errorf("plaintext %d: on the wire is %q, expected nothing", i, leaked)
				}
			}
			if total < 60<<20+len(d.Disk) {
				t.Errorf("%d bytes crossed the wire, fewer than the guest has", total)
			}
			t.Logf("%d bytes crossed the wire", total)
			for leg := 1; ; leg++ { // it came from the first host: back, there, back
				if err := d.GoesOn(ctx); err != nil {
					t.Fatalf("after leg %d: %v", leg, err)
				}
				if leg == 6 {
					break
				}
				if err := d.Migrate(ctx, tc.more...); err != nil {
					t.Fatalf("leg %d: %v", leg+1, err)
				}
			}
			if len(d.Disk) > 0 {
				arrived, err := os.ReadFile(d.Host().path(d.disk()))
				if err != nil || !bytes.Equal(arrived, d.Disk) {
					t.Errorf("the disk has %d bytes and another content (%v)", len(arrived), err)
				}
			}
		})
	}
	for _, h := range r.Hosts {
		raw, err := os.ReadFile(filepath.Join(h.Dir, "tunnel.log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, "broke") {
				t.Errorf("%s: a connection of a migration that succeeded: %s", h.Name, line)
			}
		}
	}
}

func TestWithoutTheTunnelTheSearchFindsIt(t *testing.T) {
	marker := random(page)
	r, ctx := start(t, Options{Unprotected: true, Marker: marker})
	d := &Domain{}
	if err := r.Boot(ctx, d); err != nil {
		t.Fatal(err)
	}
	permanent := d.permanent(t)
	s, total := r.searched(ctx, t, func() error { return d.Virsh(ctx) }, marker, permanent)
	t.Logf("%d bytes crossed the wire: marker %+v, permanent state %+v", total, s.Found(marker), s.Found(permanent))
	if f := s.Found(marker); f.Found != f.Total {
		t.Errorf("of the marker, %+v is found; expected all", f)
	}
	if f := s.Found(permanent); f.HighEntropyFound*10 < f.HighEntropy*9 {
		t.Errorf("of the vTPM's state, %+v is found; expected nearly all", f)
	}
}

func TestTheVMStaysOnTheSourceWhenATunnelDies(t *testing.T) {
	r, ctx := start(t, Options{Tunnel: true})
	withDisk, without := &Domain{Disk: random(4 << 20)}, &Domain{}
	for _, d := range []*Domain{withDisk, without} {
		if err := r.Boot(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		d    *Domain
		h    *Host
	}{
		{"the source's, while the disk crosses", withDisk, r.Hosts[0]},
		{"the destination's, while the disk crosses", withDisk, r.Hosts[1]},
		{"the source's, while memory crosses", without, r.Hosts[0]},
		{"the destination's, while memory crosses", without, r.Hosts[1]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, h := tc.d, tc.h
			s, err := d.Arm(ctx)
			if err != nil {
				t.Fatal(err)
			}
			uris, err := d.tunnelled(ctx)
			if err != nil {
				t.Fatal(err)
			}
			err = d.inMidMigration(ctx, func() error { h.Tunnel.Kill(); return nil }, uris...)
			t.Log(err)
			failed := err
			if err := d.abort(ctx, s); err != nil {
				t.Fatal(err)
			}
			if err := d.staysWhereItIs(ctx, failed); err != nil {
				t.Fatal(err)
			}
			if err := r.startTunnel(ctx, h); err != nil {
				t.Fatal(err)
			}
		})
	}
	for _, d := range []*Domain{withDisk, without} {
		if err := d.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.GoesOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
