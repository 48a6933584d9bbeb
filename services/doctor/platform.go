package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/services/tunnel"
	"github.com/safeconduct/safeconduct/tee"
)

const simulated = "mode simulated needs no SGX"

// processor looks for what the kernel reports of SGX with flexible launch control, which EGo's in-kernel driver needs.
func (e *examination) processor(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	if e.cfg.Mode == tee.ModeSimulated {
		return notMade(simulated)
	}
	raw, err := os.ReadFile(e.path("/proc/cpuinfo"))
	if err != nil {
		return problem("", "%v", err)
	}
	var flags []string
	for line := range strings.Lines(string(raw)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			flags = strings.Fields(value)
			break
		}
	}
	for _, f := range []struct{ flag, do string }{
		{"sgx", "switch SGX on in the firmware; the processor may not have it (Xeon Scalable of the third generation and later do), or a hypervisor hides it"},
		{"sgx_lc", "switch flexible launch control on in the firmware: without it the kernel's driver does not work"},
	} {
		if !slices.Contains(flags, f.flag) {
			return problem(f.do, "the processor does not report %s", f.flag)
		}
	}
	return ok("SGX with flexible launch control")
}

func (e *examination) devices(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	if e.cfg.Mode == tee.ModeSimulated {
		return notMade(simulated)
	}
	for _, dev := range []string{"/dev/sgx_enclave", "/dev/sgx_provision"} {
		if _, err := os.Stat(e.path(dev)); err != nil {
			return problem("use a kernel of 5.11 or later with CONFIG_X86_SGX, and switch SGX on in the firmware", "%s does not exist", dev)
		}
		if err := e.Writable(e.path(dev)); err != nil {
			return problem("give the service's user the groups of the SGX devices (docs/install.md)", "%v", err)
		}
	}
	return ok("/dev/sgx_enclave and /dev/sgx_provision")
}

// collateral sees whether its source is there. What it holds is judged by the node service.
func (e *examination) collateral(ctx context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	c := e.cfg.Collateral
	if path := c.Dir + c.Bundle; path != "" {
		if _, err := os.Stat(e.path(path)); err != nil {
			return problem("fetch it: safeconduct pccs fetch", "%v", err)
		}
		return ok("%s", path)
	}
	u, err := url.Parse(c.PCCS)
	if err != nil {
		return problem("correct collateral.pccs", "%v", err)
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	conn, err := e.dial(ctx, "tcp", address)
	if err != nil {
		return problem("see that the PCCS runs and that this host may reach it; kept collateral serves until it expires", "the PCCS at %s does not answer: %v", address, err)
	}
	_ = conn.Close() // it was to see that somebody listens
	return ok("the PCCS at %s answers", address)
}

func (e *examination) tpm(ctx context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	kind, where, _ := strings.Cut(e.cfg.Integrity.TPM, ":")
	switch kind {
	case "":
		return warning("set integrity.tpm, for example to device:/dev/tpmrm0", "the configuration names no TPM: peers whose policy wants one refuse this host")
	case "device":
		if err := e.Writable(e.path(where)); err != nil {
			return problem("switch the TPM on in the firmware; give the service's user the group tss", "%v", err)
		}
	default:
		network := map[string]string{"unix": "unix", "tcp": "tcp"}[kind]
		conn, err := e.dial(ctx, network, where)
		if err != nil {
			return problem("start what serves the TPM there", "the TPM at %s does not answer: %v", e.cfg.Integrity.TPM, err)
		}
		_ = conn.Close() // it was to see that somebody listens
	}
	return ok("%s", e.cfg.Integrity.TPM)
}

// ima tells a kernel without IMA from one without a policy, whose list has the boot aggregate only.
func (e *examination) ima(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	if e.cfg.Integrity.IMAList == "" {
		return notMade("the configuration names no IMA list (integrity.ima_list)")
	}
	const count = "/sys/kernel/security/ima/runtime_measurements_count"
	raw, err := os.ReadFile(e.path(count))
	if err != nil {
		return problem("boot a kernel with CONFIG_IMA, and mount securityfs; or remove integrity.ima_list", "the kernel does not measure: %v", err)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(raw)))
	if err != nil || n < 2 {
		return problem("boot with ima_policy=tcb or load a policy of your own", "IMA has no policy: its list has %s entries", bytes.TrimSpace(raw))
	}
	if _, err := os.Stat(e.path(e.cfg.Integrity.IMAList)); err != nil {
		return problem("correct integrity.ima_list", "%v", err)
	}
	return ok("%d entries", n)
}

func (e *examination) bootLog(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	if e.cfg.Integrity.BootLog == "" {
		return notMade("the configuration names no boot log (integrity.boot_log)")
	}
	info, err := os.Stat(e.path(e.cfg.Integrity.BootLog))
	if err != nil {
		return problem("boot by UEFI with the TPM switched on, and mount securityfs; or remove integrity.boot_log", "%v", err)
	}
	return ok("%s", info.Name())
}

// callers sees whether those who have to call the node service may.
func (e *examination) callers(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	may := func(uid uint32, method string) bool {
		service, _, _ := strings.Cut(method, "/")
		uids, own := e.cfg.Local.Callers[method]
		if !own {
			uids = e.cfg.Local.Callers[service]
		}
		return slices.Contains(uids, uid)
	}
	seen := 0
	for _, c := range []struct {
		user    string
		methods []string
		why     string
	}{
		{"tss", []string{"CryptoService/Attach", "CryptoService/ProtectState", "CryptoService/UnprotectState"}, "swtpm's helper runs as it"},
		{"nova", []string{"MigrationService/Establish", "MigrationService/Arm", "SecretService/Release"}, "nova-compute runs as it"},
		{"safeconduct-tunnel", []string{"CryptoService/DeriveKey", "MigrationService/Watch"}, "the tunnel runs as it"},
	} {
		uid, found := e.uid(c.user)
		if !found || c.user == "safeconduct-tunnel" && !e.hasTunnel() {
			continue
		}
		seen++
		for _, m := range c.methods {
			if !may(uid, m) {
				return problem(fmt.Sprintf("add %d to local.callers, and restart safeconductd", uid), "the user %s (uid %d) may not call %s: %s", c.user, uid, m, c.why)
			}
		}
	}
	if seen == 0 {
		return notMade("neither tss nor nova is a user of this host")
	}
	return ok("the users of swtpm, nova-compute and the tunnel that this host has may make their calls")
}

// uid looks a user up in the host's own file.
func (e *examination) uid(name string) (uint32, bool) {
	if e.Root == "" {
		u, err := user.Lookup(name)
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseUint(u.Uid, 10, 32)
		return uint32(n), err == nil
	}
	raw, err := os.ReadFile(e.path("/etc/passwd"))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

const tunnelConfig = "/etc/safeconduct/tunnel.yaml"

func (e *examination) hasTunnel() bool {
	_, err := os.Stat(e.path(tunnelConfig))
	return err == nil
}

func (e *examination) tunnel(ctx context.Context) Finding {
	if !e.hasTunnel() {
		return notMade("there is no " + tunnelConfig + ": migrations cross without the tunnel, guest memory in clear")
	}
	cfg, err := tunnel.ReadConfig(e.path(tunnelConfig))
	if err != nil {
		return problem("mend it; safeconduct-tunnel --check reads it as start-up does", "%v", err)
	}
	if _, err := os.Stat(e.path(cfg.Dir)); err != nil {
		return problem("systemctl start safeconduct-tunnel", "the directory of its sockets: %v", err)
	}
	_, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return problem("correct listen in "+tunnelConfig, "%v", err)
	}
	host, _, _ := net.SplitHostPort(cfg.Listen)
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() || host == "" {
		host = "127.0.0.1"
	}
	conn, err := e.dial(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return problem("systemctl start safeconduct-tunnel, and its log", "nobody listens on %s: %v", cfg.Listen, err)
	}
	_ = conn.Close() // it was to see that somebody listens
	return ok("listens on %s", cfg.Listen)
}

// nova reads nova.conf for the driver. It is an ini file, of which two lines are of interest.
func (e *examination) nova(context.Context) Finding {
	values := map[string]string{}
	found := false
	for _, file := range []string{"/etc/nova/nova.conf", "/etc/nova/nova-compute.conf"} {
		raw, err := os.ReadFile(e.path(file))
		if err != nil {
			continue
		}
		found = true
		section := ""
		for line := range strings.Lines(string(raw)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = strings.Trim(line, "[]")
				continue
			}
			if name, value, is := strings.Cut(line, "="); is && !strings.HasPrefix(line, "#") {
				values[section+"."+strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
		}
	}
	if !found {
		return notMade("this host has no nova.conf")
	}
	const driver = "safeconduct.SafeconductDriver"
	if got := values["DEFAULT.compute_driver"]; got != driver {
		return problem("set [DEFAULT] compute_driver = "+driver+" and restart nova-compute (docs/nova.md)", "nova-compute's driver is %q", got)
	}
	if e.cfg != nil {
		if host := values["DEFAULT.host"]; host != "" && host != e.cfg.Host {
			return problem("make them the same", "nova's host is %s, and the node service's %s", host, e.cfg.Host)
		}
		if mode := values["safeconduct.mode"]; mode != "" && mode != string(e.cfg.Mode) {
			return problem("make them the same", "[safeconduct] mode is %s, and the node service's %s", mode, e.cfg.Mode)
		}
	}
	return ok("nova-compute uses %s", driver)
}

// peers sees whether the peers' ports answer. Whether they accept this node is what preflight asks.
func (e *examination) peers(ctx context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	var silent []string
	deadline := time.Now().Add(4 * e.Timeout) // a large cloud with a broken network is not waited for one by one
	asked := 0
	for _, p := range e.cfg.Peers {
		if time.Now().After(deadline) {
			break
		}
		asked++
		network, address := "tcp", p.Address
		if path, is := strings.CutPrefix(address, "unix:"); is {
			network, address = "unix", path
		}
		conn, err := e.dial(ctx, network, address)
		if err != nil {
			silent = append(silent, fmt.Sprintf("%s (%v)", p.Host, err))
			continue
		}
		_ = conn.Close() // it was to see that somebody listens
	}
	switch {
	case len(silent) == asked:
		return problem("look at the network and the firewall: the peer port is peer.listen of the other host", "none of %d peers answers: %s", asked, silent[0])
	case len(silent) > 0:
		return warning("look at those hosts, then safeconduct preflight HOST", "%d of %d peers do not answer: %s", len(silent), asked, strings.Join(silent[:min(3, len(silent))], "; "))
	}
	return ok("%d of %d answer; safeconduct preflight HOST says whether they accept this node", asked, len(e.cfg.Peers))
}

// synchronised asks the kernel (adjtimex(2)).
func synchronised() (bool, error) {
	state, err := unix.Adjtimex(&unix.Timex{})
	return state != unix.TIME_ERROR, err
}

func writable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
