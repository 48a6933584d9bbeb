package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `mode: simulated
host: compute1
state_dir: /var/lib/safeconduct
local:
  socket: /run/safeconduct/node.sock
  callers:
    MigrationService: [0, 64060]
    CryptoService/ProtectState: [64055]
peer:
  listen: 0.0.0.0:7443
  handshake_timeout: 10s
peers:
  - host: compute2
    address: compute2.cloud.example:7443
http:
  listen: 127.0.0.1:9464
policy:
  file: /etc/safeconduct/policy.json
  keys: /etc/safeconduct/policy-keys.pem
collateral:
  dir: /var/lib/safeconduct/collateral
simulated:
  platform: /var/lib/safeconduct/platform
  root: /etc/safeconduct/simulated-root.pem
integrity:
  tpm: unix:/run/tpm.sock
  items:
    - name: kernel/image
      kind: kernel-image
    - name: vmm/qemu
      kind: file
      path: /usr/bin/qemu-system-x86_64
`

func TestAGoodFileIsReadWithDefaults(t *testing.T) {
	c, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != "simulated" || c.Peers[0].Host != "compute2" || c.Local.Callers["MigrationService"][1] != 64060 {
		t.Errorf("read %+v", c)
	}
	if c.Local.SocketMode.Or(0o660) != 0o660 || c.Peer.MaxHandshakes != 8 || len(c.Integrity.PCRs) != 8 || c.Log.Level != "info" {
		t.Errorf("defaults: %+v", c)
	}
	if got := c.Peer.HandshakeTimeout.Or(time.Second); got != 10*time.Second {
		t.Errorf("handshake timeout %v", got)
	}
}

func TestABadFileIsRefusedWithTheLineAndTheReason(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"an unknown key gets a suggestion":           {"  listen: 0.0.0.0:7443", "  lisen: 0.0.0.0:7443", `line 10: lisen: unknown key; did you mean "listen"?`},
		"an unknown top-level key":                   {"host: compute1", "host: compute1\ncolour: red", `line 3: colour: unknown key`},
		"a missing mode":                             {"mode: simulated", "", "mode: is missing"},
		"a mode that does not exist":                 {"mode: simulated", "mode: none", `line 1: mode: "none" is not one of: intel simulated`},
		"a port that is no port":                     {"0.0.0.0:7443", "nowhere", `line 10: peer.listen: "nowhere" is not HOST:PORT or unix:PATH`},
		"no keys for policies":                       {"  keys: /etc/safeconduct/policy-keys.pem\n", "", "policy.keys is missing"},
		"a relative path":                            {"/etc/safeconduct/policy.json", "policy.json", `line 18: policy.file: "policy.json" does not start with "/"`},
		"a duration without a unit":                  {"10s", "10", `line 11: peer.handshake_timeout: "10" is not a duration`},
		"a key given twice":                          {"host: compute1", "host: compute1\nhost: compute3", "line 3: "},
		"a simulated platform in intel mode":         {"mode: simulated", "mode: intel", "line 23: simulated: is not allowed in this mode"},
		"simulated mode without a platform":          {"  platform: /var/lib/safeconduct/platform\n", "", "simulated.platform: is missing"},
		"a TPM address of no kind":                   {"unix:/run/tpm.sock", "/dev/tpm0", `integrity.tpm: "/dev/tpm0" is not device:`},
		"an item kind that does not exist":           {"kind: kernel-image", "kind: magic", `kind: "magic" is not one of`},
		"a file item without a path":                 {"      path: /usr/bin/qemu-system-x86_64\n", "", "path: is missing"},
		"this node among its peers":                  {"host: compute2", "host: compute1", "host compute1 is this node itself"},
		"a peer listed twice":                        {"http:", "  - host: compute2\n    address: a:1\nhttp:", "host compute2 is listed twice"},
		"no peers at all":                            {"peers:\n  - host: compute2\n    address: compute2.cloud.example:7443\n", "", "peers: is missing"},
		"an item named twice":                        {"vmm/qemu", "kernel/image", "name kernel/image is listed twice"},
		"something that is not YAML":                 {"mode: simulated", "mode: [", "line "},
		"a negative duration":                        {"10s", "-10s", `line 11: peer.handshake_timeout: "-10s" is not a duration`},
		"a mode that is not octal":                   {"  socket: /run", "  socket_mode: \"0999\"\n  socket: /run", `local.socket_mode: "0999" is not a file mode`},
		"a string where a number is wanted":          {"[64055]", "[qemu]", "line 8: "},
		"a socket path longer than the kernel's 107": {"/run/safeconduct/node.sock", "/" + strings.Repeat("x", 107), "local.socket: "},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, tc.old) {
				t.Fatalf("the example has no %q", tc.old)
			}
			_, err := Parse([]byte(strings.Replace(good, tc.old, tc.new, 1)))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestEveryProblemIsReportedAtOnce(t *testing.T) {
	bad := strings.NewReplacer("0.0.0.0:7443", "nowhere", "/etc/safeconduct/policy.json", "policy.json").Replace(good)
	_, err := Parse([]byte(bad))
	if err == nil || !strings.Contains(err.Error(), "peer.listen") || !strings.Contains(err.Error(), "policy.file") {
		t.Errorf("got %v", err)
	}
	var p *Problem
	if !errors.As(err, &p) || p.Line == 0 {
		t.Errorf("not a Problem with a line: %#v", err)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "safeconductd.yaml")
	if _, err := Load(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("mode: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a bad file: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, nil); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an oversized file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("mode: intel\npeers: [{host: a}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := Parse(raw); err == nil && (c.Host == "" || c.Mode == "" || len(c.Peers) == 0) {
			t.Errorf("accepted an incomplete configuration: %+v", c)
		}
	})
}
