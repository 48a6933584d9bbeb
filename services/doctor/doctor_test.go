package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// healthy is a host on which all is well, in a directory.
type healthy struct {
	Host
	v1.UnimplementedAdminServiceServer
	t      *testing.T
	status *v1.GetStatusResponse
	silent map[string]bool // addresses that do not answer
	server *grpc.Server
}

const goodConfig = `mode: intel
host: compute1
state_dir: /var/lib/safeconduct
local:
  socket: /run/node.sock
  callers:
    CryptoService: [103, 990]
    MigrationService: [64060, 990]
    SecretService: [64060]
peer: {listen: "0.0.0.0:7443"}
policy: {file: /etc/safeconduct/policy.json}
collateral: {pccs: "https://pccs.example:8081"}
integrity:
  tpm: device:/dev/tpmrm0
  boot_log: /sys/kernel/security/tpm0/binary_bios_measurements
  ima_list: /sys/kernel/security/ima/binary_runtime_measurements
  items: [{name: cpu, kind: cpu}]
peers:
  - {host: compute2, address: "compute2:7443"}
  - {host: compute3, address: "compute3:7443"}
`

func newHealthy(t *testing.T) *healthy {
	t.Helper()
	root, err := os.MkdirTemp("", "sc-doctor-") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	h := &healthy{t: t, silent: map[string]bool{}, status: &v1.GetStatusResponse{Host: "compute1", Version: "1.0", PolicySvn: 3, AcceptedByOwnPolicy: true}}
	h.Host = Host{
		Root: root, Config: "/etc/safeconduct/safeconductd.yaml", Timeout: 5 * time.Second,
		Synchronised: func() (bool, error) { return true, nil },
		Writable:     func(path string) error { _, err := os.Stat(path); return err },
	}
	h.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "unix" {
			return new(net.Dialer).DialContext(ctx, network, h.path(address))
		}
		if h.silent[address] {
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		return ours, nil
	}
	for path, text := range map[string]string{
		"/etc/safeconduct/safeconductd.yaml": goodConfig, "/etc/safeconduct/policy.json": "{}",
		"/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu aes sgx sgx_lc\n", "/dev/sgx_enclave": "", "/dev/sgx_provision": "", "/dev/tpmrm0": "",
		"/sys/kernel/security/tpm0/binary_bios_measurements": "x", "/sys/kernel/security/ima/binary_runtime_measurements": "x",
		"/sys/kernel/security/ima/runtime_measurements_count": "1234\n",
		"/etc/passwd":                  "root:x:0:0::/:/bin/sh\ntss:x:103:111::/:/bin/false\nnova:x:64060:64060::/:/bin/false\nsafeconduct-tunnel:x:990:990::/:/bin/false\n",
		"/etc/nova/nova.conf":          "[DEFAULT]\nhost = compute1\n#compute_driver = libvirt.LibvirtDriver\ncompute_driver = safeconduct.SafeconductDriver\n[safeconduct]\nmode = intel\n",
		"/etc/safeconduct/tunnel.yaml": "mode: intel\nlisten: 0.0.0.0:7444\ndir: /run/tunnel\n",
		install.Helper:                 "helper", "/usr/bin/swtpm": "real", "/usr/bin/swtpm_setup": "real", "/lib/systemd/system/libvirtd.service": "",
		"/proc/77/comm": "libvirtd\n", "/proc/77/cmdline": "/usr/sbin/libvirtd\x00", "/proc/77/environ": "PATH=" + install.Directory + ":/usr/bin\x00",
	} {
		h.write(path, text)
	}
	for _, dir := range []string{"/run/tunnel", "/var/lib/safeconduct"} {
		if err := os.MkdirAll(h.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (install.Host{Root: root}).Install(t.Context(), install.Path); err != nil {
		t.Fatal(err)
	}
	h.serve()
	return h
}

func (h *healthy) write(path, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(path), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// edit replaces a text in a file.
func (h *healthy) edit(path, from, to string) {
	h.t.Helper()
	raw, err := os.ReadFile(h.path(path))
	if err != nil || !strings.Contains(string(raw), from) {
		h.t.Fatalf("%s: %v, or it has no %q", path, err, from)
	}
	h.write(path, strings.Replace(string(raw), from, to, 1))
}

func (h *healthy) remove(path string) {
	h.t.Helper()
	if err := os.Remove(h.path(path)); err != nil {
		h.t.Fatal(err)
	}
}

// serve runs a node service that says what the test has it say.
func (h *healthy) serve() {
	h.t.Helper()
	l, err := net.Listen("unix", h.path("/run/node.sock"))
	if err != nil {
		h.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(h.path("/run/node.sock"), 0o660); err != nil {
		h.t.Fatal(err)
	}
	h.server = grpc.NewServer()
	v1.RegisterAdminServiceServer(h.server, h)
	done := make(chan struct{})
	go func() { _ = h.server.Serve(l); close(done) }()
	h.t.Cleanup(func() { h.server.Stop(); <-done })
}

func (h *healthy) GetStatus(context.Context, *v1.GetStatusRequest) (*v1.GetStatusResponse, error) {
	return h.status, nil
}

func (h *healthy) examine() map[string]Finding {
	out := map[string]Finding{}
	for _, f := range h.Examine(h.t.Context()) {
		out[f.Check] = f
	}
	return out
}

const conf = "/etc/safeconduct/safeconductd.yaml"

func TestAHealthyHostHasNoFindings(t *testing.T) {
	h := newHealthy(t)
	for name, f := range h.examine() {
		if f.Verdict != OK || f.Do != "" || f.Found == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// Each set-up is broken in one way; the doctor names the check, says what it found, and what to do. Every other check stays as it was, but for those that
// cannot be made then.
func TestTheDoctorTellsTheTruthOfABrokenHost(t *testing.T) {
	for name, tc := range map[string]struct {
		breakIt     func(*healthy)
		check       string
		verdict     Verdict
		found       string
		alsoTouched []string
	}{
		"no configuration": {func(h *healthy) { h.remove(conf) }, "configuration", Problem, "does not exist",
			[]string{"files", "sgx processor", "sgx devices", "collateral", "tpm", "ima", "boot log", "socket", "node service", "callers", "peers"}},
		"a misspelt key": {func(h *healthy) { h.edit(conf, "state_dir", "statedir") }, "configuration", Problem, "statedir",
			[]string{"files", "sgx processor", "sgx devices", "collateral", "tpm", "ima", "boot log", "socket", "node service", "callers", "peers"}},
		"a state that others may read": {func(h *healthy) { _ = os.Chmod(h.path("/var/lib/safeconduct"), 0o755) }, "files", Problem, "mode 0755", nil},
		"no policy":                    {func(h *healthy) { h.remove("/etc/safeconduct/policy.json") }, "files", Problem, "policy.json", nil},
		"a clock that runs free":       {func(h *healthy) { h.Synchronised = func() (bool, error) { return false, nil } }, "clock", Problem, "not synchronised", nil},
		"SGX switched off":             {func(h *healthy) { h.edit("/proc/cpuinfo", " sgx sgx_lc", "") }, "sgx processor", Problem, "does not report sgx", nil},
		"SGX without launch control":   {func(h *healthy) { h.edit("/proc/cpuinfo", " sgx_lc", "") }, "sgx processor", Problem, "sgx_lc", nil},
		"no SGX driver":                {func(h *healthy) { h.remove("/dev/sgx_provision") }, "sgx devices", Problem, "/dev/sgx_provision", nil},
		"an SGX device of somebody else's": {func(h *healthy) {
			h.Writable = func(path string) error {
				if strings.HasSuffix(path, "sgx_enclave") {
					return fs.ErrPermission
				}
				return nil
			}
		}, "sgx devices", Problem, "permission", nil},
		"a PCCS that is down":         {func(h *healthy) { h.silent["pccs.example:8081"] = true }, "collateral", Problem, "pccs.example:8081", nil},
		"no TPM":                      {func(h *healthy) { h.remove("/dev/tpmrm0") }, "tpm", Problem, "tpmrm0", nil},
		"IMA without a policy":        {func(h *healthy) { h.write("/sys/kernel/security/ima/runtime_measurements_count", "1\n") }, "ima", Problem, "no policy", nil},
		"a kernel without IMA":        {func(h *healthy) { h.remove("/sys/kernel/security/ima/runtime_measurements_count") }, "ima", Problem, "does not measure", nil},
		"a boot by BIOS":              {func(h *healthy) { h.remove("/sys/kernel/security/tpm0/binary_bios_measurements") }, "boot log", Problem, "binary_bios_measurements", nil},
		"a node service that is down": {func(h *healthy) { h.server.Stop() }, "socket", Problem, "nobody listens", []string{"node service"}},
		"a node service that was never started": {func(h *healthy) {
			h.server.Stop()
			h.remove("/run/node.sock")
		}, "socket", Problem, "does not exist", []string{"node service"}},
		"a socket that is open to all": {func(h *healthy) { _ = os.Chmod(h.path("/run/node.sock"), 0o666) }, "socket", Warning, "0666", nil},
		"a node that its own policy refuses": {func(h *healthy) {
			h.status.OwnRefusal = &v1.Refusal{Reason: v1.Reason_REASON_TCB_NOT_ACCEPTED, Message: "OutOfDate", Remedy: "update the firmware"}
		}, "node service", Problem, "TCB_NOT_ACCEPTED", nil},
		"a node with an older configuration": {func(h *healthy) { h.status.Host = "compute9" }, "node service", Problem, "compute9", nil},
		"a node that drains":                 {func(h *healthy) { h.status.Draining = true }, "node service", Warning, "drains", nil},
		"a helper that may not call":         {func(h *healthy) { h.edit(conf, "[103, 990]", "[990]") }, "callers", Problem, "tss (uid 103)", nil},
		"a nova that may not call":           {func(h *healthy) { h.edit(conf, "SecretService: [64060]", "SecretService: [1]") }, "callers", Problem, "SecretService/Release", nil},
		"a helper that is not installed": {func(h *healthy) {
			_, _ = install.Host{Root: h.Root}.Uninstall(context.Background())
		}, "helper", Problem, "not in swtpm's place", nil},
		"a libvirtd that was not restarted": {func(h *healthy) { h.write("/proc/77/environ", "PATH=/usr/bin\x00") }, "helper", Problem, "would still start swtpm itself", nil},
		"a VM from before the helper": {func(h *healthy) {
			h.write("/proc/90/comm", "swtpm\n")
			h.write("/proc/90/environ", "")
			h.write("/proc/90/cmdline", "/usr/bin/swtpm\x00socket\x00--ctrl\x00type=unixio,path=/s\x00--tpmstate\x00dir=/v/0c6f1d3e-5b1f-4d62-9b0a-000000000001/tpm2\x00--tpm2\x00")
		}, "helper", Warning, "1 of 1 VMs", nil},
		"no libvirtd":              {func(h *healthy) { h.remove("/proc/77/comm") }, "libvirt", Problem, "no daemon of libvirt", nil},
		"no swtpm_setup":           {func(h *healthy) { h.remove("/usr/bin/swtpm_setup") }, "libvirt", Problem, "swtpm_setup", nil},
		"a tunnel that is down":    {func(h *healthy) { h.silent["127.0.0.1:7444"] = true }, "tunnel", Problem, "7444", nil},
		"a tunnel's bad setting":   {func(h *healthy) { h.edit("/etc/safeconduct/tunnel.yaml", "listen", "lisen") }, "tunnel", Problem, "lisen", nil},
		"nova with its own driver": {func(h *healthy) { h.edit("/etc/nova/nova.conf", "compute_driver = safeconduct.SafeconductDriver", "") }, "nova", Problem, "driver is", nil},
		"nova under another name":  {func(h *healthy) { h.edit("/etc/nova/nova.conf", "host = compute1", "host = c1.example") }, "nova", Problem, "c1.example", nil},
		"nova in another mode":     {func(h *healthy) { h.edit("/etc/nova/nova.conf", "mode = intel", "mode = simulated") }, "nova", Problem, "simulated", nil},
		"a peer that is down":      {func(h *healthy) { h.silent["compute3:7443"] = true }, "peers", Warning, "compute3", nil},
		"a network that is down":   {func(h *healthy) { h.silent["compute2:7443"], h.silent["compute3:7443"] = true, true }, "peers", Problem, "none of 2", nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHealthy(t)
			before := h.examine()
			tc.breakIt(h)
			after := h.examine()
			got := after[tc.check]
			if got.Verdict != tc.verdict || !strings.Contains(got.Found, tc.found) || got.Do == "" {
				t.Errorf("%s: %+v, expected %s about %q, with what to do", tc.check, got, tc.verdict, tc.found)
			}
			touched := append([]string{tc.check}, tc.alsoTouched...)
			for check, f := range after {
				changed := f.Verdict != before[check].Verdict
				if changed && !strings.Contains(fmt.Sprint(touched), check) {
					t.Errorf("%s is now %+v", check, f)
				}
			}
		})
	}
}

func TestWhatAHostDoesNotHaveIsSaidAndNotFailed(t *testing.T) {
	h := newHealthy(t)
	h.edit(conf, "  boot_log: /sys/kernel/security/tpm0/binary_bios_measurements\n  ima_list: /sys/kernel/security/ima/binary_runtime_measurements\n", "")
	h.remove("/etc/safeconduct/tunnel.yaml")
	h.remove("/etc/nova/nova.conf")
	got := h.examine()
	for _, check := range []string{"ima", "boot log", "tunnel", "nova"} {
		if got[check].Verdict != NotMade || got[check].Found == "" {
			t.Errorf("%s: %+v", check, got[check])
		}
	}
}

func TestThisMachinesClockIsRead(t *testing.T) {
	if _, err := synchronised(); err != nil {
		t.Error(err)
	}
	if err := writable(t.TempDir()); err == nil {
		t.Error("a directory can be written to")
	}
}
