package libvirt

import (
	"os"
	"strings"
	"testing"
)

// Two versions of swtpm: this system's (0.7.1 on Debian 12) and that of a newer suite in a root directory, which make e2e-libvirt makes.
func TestANewerSWTPM(t *testing.T) {
	root := os.Getenv("SAFECONDUCT_SWTPM_ROOT")
	if root == "" {
		t.Skip("SAFECONDUCT_SWTPM_ROOT names no root directory of a newer suite: make e2e-libvirt")
	}
	for name, tc := range map[string]struct {
		roots [2]string
		legs  int
	}{
		"on both hosts":                          {[2]string{root, root}, 6},
		"on the destination: an upgrade":         {[2]string{"", root}, 1},
		"on the source: the way back, if at all": {[2]string{root, ""}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r, ctx := start(t, Options{SWTPMRoot: tc.roots})
			d := &Domain{Encrypted: true}
			if err := r.Boot(ctx, d); err != nil {
				t.Fatal(err)
			}
			if tc.roots[0] != "" {
				if _, err := r.Hosts[0].Run(ctx, "pgrep", "-f", root+"/usr/bin/swtpm socket"); err != nil {
					t.Fatalf("the newer swtpm does not run: %v", err)
				}
			}
			for leg := range tc.legs {
				err := d.Migrate(ctx)
				if err != nil && strings.Contains(name, "if at all") {
					t.Logf("a vTPM does not move from the newer swtpm to the older one: %v", err)
					if err := d.staysWhereItIs(ctx, err); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("leg %d: %v", leg+1, err)
				}
				if err := d.GoesOn(ctx); err != nil {
					t.Fatalf("after leg %d: %v", leg+1, err)
				}
			}
		})
	}
}
