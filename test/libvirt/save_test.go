package libvirt

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/test/vm"
)

func TestASaveIsRefusedAndTheVMRunsOn(t *testing.T) {
	r, ctx := start(t, Options{})
	d := &Domain{}
	if err := r.Boot(ctx, d); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.Dir, "saved")
	for _, command := range [][]string{{"save", d.Name, file}, {"managedsave", d.Name}, {"dump", "--live", d.Name, file}} {
		_, err := d.Host().Virsh(ctx, command...)
		if err == nil {
			t.Fatalf("virsh %v succeeds", command)
		}
		t.Logf("%v", err)
		if state, err := d.State(ctx); err != nil || state != "running" {
			t.Fatalf("after virsh %v the VM is %q (%v)", command, state, err)
		}
		if err := d.GoesOn(ctx); err != nil {
			t.Fatalf("after virsh %v: %v", command, err)
		}
	}
	if err := d.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.GoesOn(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestASealedSaveRestoresOnItsNodeAndNowhereElse(t *testing.T) {
	r, ctx := start(t, Options{EditPolicy: func(p *policy.Policy) { p.LocalSave = "seal" }})
	d := &Domain{}
	if err := r.Boot(ctx, d); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.Dir, "saved")
	src, dst := r.Hosts[0], r.Hosts[1]
	if _, err := src.Virsh(ctx, "save", d.Name, file); err != nil {
		t.Fatal(err)
	}
	// The vTPM's section of the file holds two sealed blobs.
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin := bytes.Index(raw, []byte("QEVM"))
	if begin < 0 {
		t.Fatal("the file has no migration stream")
	}
	section, err := vm.FindVTPMSection(raw[begin:])
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(section.Data, []byte("SCSEALED")); n != 2 {
		t.Errorf("%d sealed blobs, expected 2", n)
	}
	elsewhere := file + ".elsewhere"
	if err := os.WriteFile(elsewhere, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.Virsh(ctx, "restore", elsewhere); err == nil {
		t.Error("the file restores on another node")
	} else if log := d.helpersLog(dst); !strings.Contains(log, "SEALED_DATA_INVALID") {
		t.Errorf("%v; the helper's log does not say why:\n%s", err, log)
	}
	if err := d.AbsentFrom(ctx, dst); err != nil {
		t.Error(err)
	}
	if _, err := src.Virsh(ctx, "restore", file); err != nil {
		t.Fatal(err)
	}
	if err := d.GoesOn(ctx); err != nil {
		t.Fatal(err)
	}
	// Without a session the destination gets nothing that it could use, and the VM stays.
	if err := d.staysWhereItIs(ctx, d.Virsh(ctx)); err != nil {
		t.Error(err)
	}
}
