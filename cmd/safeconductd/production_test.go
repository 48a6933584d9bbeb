package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const digestFlag = "-X github.com/safeconduct/safeconduct/tee/sgx.policyKeysDigest="

// production builds the production executable as deploy/enclave/build.sh does, with plain Go instead of EGo's: it starts outside an enclave only.
func production(t *testing.T, digest string) string {
	t.Helper()
	if cc, err := exec.LookPath("gcc"); err != nil || cc == "" {
		t.Skip("no gcc: EGo's packages need cgo")
	}
	exe := filepath.Join(t.TempDir(), "safeconductd")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "sgx", "-trimpath", "-buildvcs=false", "-ldflags", "-buildid= "+digestFlag+digest, "-o", exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return exe
}

func configuration(t *testing.T, mode, more string) (file, stateDir string) {
	t.Helper()
	dir := t.TempDir()
	file, stateDir = filepath.Join(dir, "safeconductd.yaml"), filepath.Join(dir, "state")
	text := `mode: ` + mode + `
host: compute1
state_dir: ` + stateDir + `
local: {socket: ` + dir + `/node.sock}
peer: {listen: "127.0.0.1:0"}
peers: [{host: compute2, address: "127.0.0.1:1"}]
policy: {file: ` + dir + `/policy.json` + more + `
integrity:
  items: [{name: kernel/image, kind: kernel-image}]
collateral: {dir: ` + dir + `/collateral}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, stateDir
}

func TestTheProductionBuildExitsOutsideHardware(t *testing.T) {
	digest := strings.Repeat("5afe", 16)
	exe := production(t, digest)
	for name, tc := range map[string]struct {
		mode, more string
		env        []string
		says       []string
	}{
		"as an ordinary process": {
			mode: "intel", more: "}", says: []string{"no hardware enclave", "an ordinary process", "OE_UNSUPPORTED", "ego run", "/dev/sgx_enclave"},
		},
		"as in EGo's simulation": {
			mode: "intel", more: "}", env: []string{"OE_IS_ENCLAVE=1", "OE_SIMULATION=1"},
			says: []string{"no hardware enclave", "an enclave in simulation", "without OE_SIMULATION"},
		},
		"with a configuration for a simulation": {
			mode: "simulated", more: ", keys: /k}\nsimulated: {platform: /p, root: /r}", says: []string{`mode: found "simulated", expected "intel"`},
		},
		"with policy keys of the host": {
			mode: "intel", more: ", keys: /k}", says: []string{"the keys of a real enclave are measured into it"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			file, stateDir := configuration(t, tc.mode, tc.more)
			var stderr bytes.Buffer
			c := exec.CommandContext(t.Context(), exe, "--config", file)
			c.Env, c.Stderr = tc.env, &stderr
			var exit *exec.ExitError
			if err := c.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("got %v, want exit code 1; it said %s", err, &stderr)
			}
			for _, want := range tc.says {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("it said %q, want %q in it", stderr.String(), want)
				}
			}
			if _, err := os.Stat(stateDir); err == nil {
				t.Error("it made its state directory")
			}
		})
	}
	// Nothing of a simulation can be made with it.
	out, err := exec.CommandContext(t.Context(), exe, "simulate", "authority", t.TempDir()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `unknown command "simulate"`) {
		t.Errorf("simulate: %v, %s", err, out)
	}
	// The linker ignores -X for a name that does not exist: see that the digest is in.
	if raw, err := os.ReadFile(exe); err != nil || !bytes.Contains(raw, []byte(digest)) {
		t.Errorf("the digest of the policy keys is not in the executable: %v", err)
	}
}
