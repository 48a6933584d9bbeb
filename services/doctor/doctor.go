// Package doctor looks a compute host over, for an operator who has a node service that does not do what it should: devices, measurements, clock, files and
// their modes, the helper, libvirt, Nova's driver, the peers, and what the node service says of itself.
//
// Every check says what was found and, where something is wrong, what to do. It changes nothing, and takes nobody's word for what it can see itself. A
// check whose subject this host does not have by configuration is not made, and says so: nothing is passed over in silence.
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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/vtpm/install"
	"github.com/safeconduct/safeconduct/tee"
)

// Verdict of a check.
type Verdict string

// The verdicts.
const (
	OK Verdict = "ok"
	// Warning: it works, and is not as it should be.
	Warning Verdict = "warning"
	// Problem: something does not work.
	Problem Verdict = "problem"
	// NotMade: there is nothing to check on this host.
	NotMade Verdict = "not made"
)

// Finding is the outcome of one check.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	// Found is what was seen, Do what to do about it; Do is empty if all is well.
	Found string `json:"found"`
	Do    string `json:"do,omitempty"`
}

// Host is what is looked at. Local is this one.
type Host struct {
	// Root is put in front of every path; "" on a real host.
	Root string
	// Config is the node service's configuration file.
	Config string
	// Timeout bounds each question to another process or host.
	Timeout time.Duration
	// Dial connects to other processes and hosts; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Synchronised says whether the clock is, as the kernel knows it.
	Synchronised func() (bool, error)
	// Writable says whether the user may open a device for reading and writing.
	Writable func(path string) error
}

// Local is this host.
func Local() Host {
	return Host{Config: "/etc/safeconduct/safeconductd.yaml", Timeout: 5 * time.Second, Synchronised: synchronised, Writable: writable}
}

func (h *Host) path(p string) string { return filepath.Join("/", h.Root, p) }

func (h *Host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	if h.Dial != nil {
		return h.Dial(ctx, network, address)
	}
	if network == "unix" {
		address = h.path(address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// examination is one run: what the checks share.
type examination struct {
	*Host
	cfg    *config.Config // nil if it cannot be read
	status *v1.GetStatusResponse
}

// Examine makes every check, in an order in which the first problem is usually the cause of the others.
func (h Host) Examine(ctx context.Context) []Finding {
	e := &examination{Host: &h}
	var all []Finding
	for _, check := range []struct {
		name string
		make func(*examination, context.Context) Finding
	}{
		{"configuration", (*examination).configuration},
		{"files", (*examination).files},
		{"clock", (*examination).clock},
		{"sgx processor", (*examination).processor},
		{"sgx devices", (*examination).devices},
		{"collateral", (*examination).collateral},
		{"tpm", (*examination).tpm},
		{"ima", (*examination).ima},
		{"boot log", (*examination).bootLog},
		{"socket", (*examination).socket},
		{"node service", (*examination).node},
		{"callers", (*examination).callers},
		{"helper", (*examination).helper},
		{"libvirt", (*examination).libvirt},
		{"tunnel", (*examination).tunnel},
		{"nova", (*examination).nova},
		{"peers", (*examination).peers},
	} {
		f := check.make(e, ctx)
		f.Check = check.name
		all = append(all, f)
	}
	return all
}

func ok(format string, args ...any) Finding {
	return Finding{Verdict: OK, Found: fmt.Sprintf(format, args...)}
}

func notMade(why string) Finding { return Finding{Verdict: NotMade, Found: why} }

func problem(do, format string, args ...any) Finding {
	return Finding{Verdict: Problem, Found: fmt.Sprintf(format, args...), Do: do}
}

func warning(do, format string, args ...any) Finding {
	return Finding{Verdict: Warning, Found: fmt.Sprintf(format, args...), Do: do}
}

const noConfiguration = "the configuration cannot be read"

func (e *examination) configuration(context.Context) Finding {
	cfg, err := config.Load(e.path(e.Config), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return problem("write it: docs/operate.md has an example; or say where it is with --config", "%s does not exist", e.Config)
	}
	if err != nil {
		return problem("mend the line that it names; safeconductd --check reads it as start-up does", "%v", err)
	}
	e.cfg = cfg
	if cfg.Mode == tee.ModeSimulated {
		return warning("install the production node service on a host with SGX (docs/enclave.md)", "mode simulated: this node protects nothing")
	}
	return ok("%s, host %s, mode %s, %d peers", e.Config, cfg.Host, cfg.Mode, len(cfg.Peers))
}

// files looks for what others could change or read.
func (e *examination) files(context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	for _, f := range []struct {
		path string
		most fs.FileMode
		why  string
	}{
		{e.Config, 0o755, "others may write to it, and it says whom this node talks to"},
		{e.cfg.Policy.File, 0o755, "others may write to it: its signature is checked, yet they could take it away"},
		{e.cfg.StateDir, 0o700, "others may look into it"},
	} {
		info, err := os.Stat(e.path(f.path))
		switch {
		case errors.Is(err, fs.ErrNotExist) && f.path == e.cfg.StateDir:
			continue // it is made at the first start
		case err != nil:
			return problem("make it, or correct its path in "+e.Config, "%v", err)
		case info.Mode().Perm()&^f.most != 0:
			return problem(fmt.Sprintf("chmod %04o %s", info.Mode().Perm()&f.most, f.path), "%s has mode %04o: %s", f.path, info.Mode().Perm(), f.why)
		}
	}
	return ok("configuration, policy and state have safe modes")
}

func (e *examination) clock(context.Context) Finding {
	synced, err := e.Synchronised()
	switch {
	case err != nil:
		return warning("", "the kernel does not say whether the clock is synchronised: %v", err)
	case !synced:
		return problem("run an NTP client (chrony, systemd-timesyncd): nodes whose clocks differ refuse each other's logs, and collateral expires by the clock",
			"the clock is not synchronised")
	}
	return ok("synchronised")
}

// node asks the node service what it thinks of itself.
func (e *examination) node(ctx context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	conn, err := grpc.NewClient("passthrough:///node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return e.dial(ctx, "unix", e.cfg.Local.Socket) }))
	if err != nil {
		return problem("", "%v", err)
	}
	defer conn.Close() //nolint:errcheck // nothing was buffered
	ctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	s, err := v1.NewAdminServiceClient(conn).GetStatus(ctx, &v1.GetStatusRequest{})
	if err != nil {
		return problem("systemctl status safeconductd, and its log (journalctl -u safeconductd)", "it does not answer: %v", err)
	}
	e.status = s
	switch r := s.GetOwnRefusal(); {
	case r != nil:
		return problem(r.GetRemedy(), "its own policy refuses it: %s: %s", strings.TrimPrefix(r.GetReason().String(), "REASON_"), r.GetMessage())
	case s.GetDraining():
		return warning("it stops soon; start it again when the maintenance is over", "it drains: no new sessions, %d open", s.GetOpenSessions())
	case s.GetHost() != e.cfg.Host:
		return problem("restart safeconductd: it runs with an older configuration", "it runs as host %s, and the configuration says %s", s.GetHost(), e.cfg.Host)
	}
	return ok("version %s, policy svn %d, accepted by its own policy, %d VMs with a helper", s.GetVersion(), s.GetPolicySvn(), len(s.GetAttachedInstances()))
}

// socket tells a service that is down from a socket that is left over and from one that may not be opened.
func (e *examination) socket(ctx context.Context) Finding {
	if e.cfg == nil {
		return notMade(noConfiguration)
	}
	path := e.cfg.Local.Socket
	info, err := os.Stat(e.path(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problem("systemctl start safeconductd", "%s does not exist: the node service does not run", path)
	case err != nil:
		return problem("run this as root", "%v", err)
	case info.Mode().Type() != fs.ModeSocket:
		return problem("remove it and start safeconductd", "%s is no socket", path)
	case info.Mode().Perm()&0o002 != 0:
		return warning("set local.socket_mode to 0660, and give its group to those who call", "everybody on this host may connect to %s (mode %04o)",
			path, info.Mode().Perm())
	}
	conn, err := e.dial(ctx, "unix", path)
	if err != nil {
		return problem("systemctl restart safeconductd", "nobody listens on %s: %v", path, err)
	}
	_ = conn.Close() // it was to see that somebody listens
	return ok("%s, mode %04o", path, info.Mode().Perm())
}

func (e *examination) helper(context.Context) Finding {
	s, err := install.Host{Root: e.Root}.Inspect()
	switch {
	case err != nil:
		return problem("run this as root", "%v", err)
	case s.Method == install.None:
		return problem("safeconduct helper install, then restart libvirt's daemon", "safeconduct-swtpm is not in swtpm's place: VMs start without it, and cannot be migrated")
	case !s.Effective():
		return problem("restart libvirt's daemon: VMs run on", "a daemon of libvirt that runs would still start swtpm itself")
	case len(s.Bare) > 0:
		return warning("hard-reboot them: safeconduct helper status names them", "%d of %d VMs with a vTPM run without the helper", len(s.Bare), len(s.Bare)+len(s.Behind))
	}
	return ok("installed (%s), %d VMs with a vTPM behind it", s.Method, len(s.Behind))
}

func (e *examination) libvirt(context.Context) Finding {
	s, err := install.Host{Root: e.Root}.Inspect()
	if err != nil {
		return problem("run this as root", "%v", err)
	}
	for _, program := range []string{"/usr/bin/swtpm", "/usr/bin/swtpm_setup"} {
		if _, err := os.Stat(e.path(program)); err != nil {
			return problem("apt install swtpm swtpm-tools, then restart libvirt's daemon: it looks for it once", "%s is missing: no VM with a vTPM starts", program)
		}
	}
	if len(s.Daemons) == 0 {
		return problem("systemctl start libvirtd, or virtqemud", "no daemon of libvirt runs that starts VMs (libvirtd or virtqemud)")
	}
	var names []string
	for _, d := range s.Daemons {
		names = append(names, fmt.Sprintf("%s (pid %d)", d.Name, d.PID))
	}
	return ok("%s", strings.Join(names, ", "))
}
