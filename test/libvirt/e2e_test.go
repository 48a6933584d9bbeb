package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// build builds what the rig runs, once for the process.
func build(t *testing.T) (bin, guest string) {
	t.Helper()
	if os.Getenv("SAFECONDUCT_E2E") != "1" {
		t.Skip("needs root, libvirt, QEMU, swtpm and a Debian cloud kernel: make e2e-libvirt")
	}
	dir := t.TempDir()
	bin = filepath.Join(dir, "bin")
	for out, what := range map[string][]string{bin: {"safeconductd", "safeconduct", "safeconduct-swtpm", "safeconduct-tunnel"}, dir: {"guest"}} {
		args := []string{"build", "-trimpath", "-buildvcs=false", "-o", out + "/"}
		for _, name := range what {
			if name == "guest" {
				args = append(args, "../vm/guest")
			} else {
				args = append(args, "../../cmd/"+name)
			}
		}
		if err := os.MkdirAll(out, 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("go", args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return bin, filepath.Join(dir, "guest")
}

// start brings a rig up for a test.
func start(t *testing.T, o Options) (*Rig, context.Context) {
	t.Helper()
	bin, guest := build(t)
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	t.Cleanup(cancel)
	r, err := Start(ctx, bin, guest, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			r.show(t)
		}
		r.Close()
	})
	return r, ctx
}

// show prints the ends of the logs of a rig whose test failed.
func (r *Rig) show(t *testing.T) {
	for _, h := range r.Hosts {
		for _, pattern := range []string{
			filepath.Join(h.dir, "libvirtd.*"), filepath.Join(h.dir, "root/var/log/swtpm/libvirt/qemu/*.log"),
			filepath.Join(h.dir, "root/var/log/libvirt/qemu/*.log"), filepath.Join(r.Cluster.Dir, h.Name, "node-*.log"), filepath.Join(r.Dir, "*.console"),
		} {
			files, _ := filepath.Glob(pattern)
			for _, f := range files {
				if raw, err := os.ReadFile(f); err == nil && len(raw) > 0 {
					t.Logf("%s:\n%s", f, raw[max(0, len(raw)-3000):])
				}
			}
		}
	}
}

func TestAVTPMGoesThereAndBackThreeTimes(t *testing.T) {
	r, ctx := start(t, Options{})
	for name, d := range map[string]*Domain{
		"tpm-tis, BIOS":            {Model: "tpm-tis"},
		"tpm-tis, BIOS, encrypted": {Model: "tpm-tis", Encrypted: true},
		"tpm-crb, BIOS":            {Model: "tpm-crb"},
		"tpm-crb, BIOS, encrypted": {Model: "tpm-crb", Encrypted: true},
		"tpm-tis, UEFI":            {Model: "tpm-tis", UEFI: true},
		"tpm-tis, UEFI, encrypted": {Model: "tpm-tis", UEFI: true, Encrypted: true},
		"tpm-crb, UEFI":            {Model: "tpm-crb", UEFI: true},
		"tpm-crb, UEFI, encrypted": {Model: "tpm-crb", UEFI: true, Encrypted: true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := r.Boot(ctx, d); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = d.Host().Virsh(ctx, "destroy", d.Name) })
			for leg := range 6 {
				if err := d.Migrate(ctx); err != nil {
					t.Fatalf("leg %d: %v", leg+1, err)
				}
				if err := d.GoesOn(ctx); err != nil {
					t.Fatalf("after leg %d: %v", leg+1, err)
				}
			}
			ticks, err := d.Ticks()
			if err != nil {
				t.Fatal(err)
			}
			last := ticks[len(ticks)-1]
			t.Logf("6 migrations, %d ticks, NV counter %d..%d", len(ticks), ticks[0].NV, last.NV)
		})
	}
}
