package simulate

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func run(args ...string) (stdout, stderr string, err error) {
	var out, diag bytes.Buffer
	c := Command()
	c.SetOut(&out)
	c.SetErr(&diag)
	c.SetArgs(args)
	err = c.Execute()
	return out.String(), diag.String(), err
}

func TestAPlatformStandsForItsHostAndHasAnIdentityOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	authority := filepath.Join(dir, "authority")
	if _, _, err := run("authority", authority); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, host := range []string{"compute1", "compute2"} {
		out, diag, err := run("platform", filepath.Join(dir, host), "--authority", authority, "--host", host)
		if err != nil || !strings.Contains(diag, "SIMULATED") {
			t.Fatal(err, diag)
		}
		var p policy.Platform
		if err := json.Unmarshal([]byte(out), &p); err != nil || p.Host != host || len(p.PlatformID) != 32 {
			t.Fatalf("found %s, %v", out, err)
		}
		if _, err := simulated.Open(filepath.Join(dir, host), simulated.Measurement{}); err != nil {
			t.Error(err)
		}
		ids = append(ids, string(p.PlatformID))
	}
	if ids[0] == ids[1] {
		t.Error("two processors have one identity")
	}
}

func TestCollateralIsIssuedAnewWithAHigherNumber(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "authority")
	if _, _, err := run("authority", dir); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, simulated.PCKCRLFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := run("collateral", dir, "--authority", dir); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, simulated.PCKCRLFile)); err != nil || bytes.Equal(before, after) {
		t.Errorf("the list is the same: %v", err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	dir := t.TempDir()
	authority := filepath.Join(dir, "authority")
	if _, _, err := run("authority", authority); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"an authority twice":            {[]string{"authority", authority}, "nothing is overwritten"},
		"no authority":                  {[]string{"platform", dir + "/p", "--authority", dir + "/none", "--host", "a"}, "simulate authority makes one"},
		"collateral of no authority":    {[]string{"collateral", dir + "/c", "--authority", dir + "/none"}, "simulate authority makes one"},
		"a host that is none":           {[]string{"platform", dir + "/p", "--authority", authority, "--host", `a", "b`}, "expected the node's name"},
		"no host":                       {[]string{"platform", dir + "/p", "--authority", authority}, "host"},
		"the measurement of no program": {[]string{"measurement", dir + "/none"}, "no such file"},
	} {
		if _, _, err := run(c.args...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(dir + "/p"); err == nil {
		t.Error("a platform was made all the same")
	}
}
