package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

func helperCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "helper", Short: "Put safeconduct-swtpm in swtpm's place under libvirt, and take it back",
		Long: `Put safeconduct-swtpm in swtpm's place under libvirt, and take it back. VMs that run are not touched: each gets its helper at its next start.`,
	}
	c.AddCommand(helperInstallCommand(a), helperUninstallCommand(a), helperStatusCommand(a))
	return c
}

// helperHost is the host that the helper commands are for: --root is for images and tests.
func helperHost(c *cobra.Command) *install.Host {
	h := install.Local()
	c.Flags().StringVar(&h.Root, "root", "", "another root directory, such as an image that is being made")
	return &h
}

// helperChange is the result of install and uninstall.
type helperChange struct {
	Method  string `json:"method"`
	Changed bool   `json:"changed"`
	Next    string `json:"next,omitempty"`
}

func (r *helperChange) print(s *sheet) {
	s.field("method", r.Method)
	s.field("changed", map[bool]string{true: "yes", false: "no, it was so already"}[r.Changed])
	s.field("next", r.Next)
}

const restartLibvirt = "restart libvirt's daemon (systemctl restart libvirtd, or virtqemud): VMs run on; then safeconduct helper status"

func helperInstallCommand(a *app) *cobra.Command {
	var method string
	c := &cobra.Command{
		Use: "install", Short: "Have libvirt start safeconduct-swtpm in swtpm's place", Args: cobra.NoArgs,
		Long: `Have libvirt start safeconduct-swtpm in swtpm's place.

Method "path" gives libvirt's systemd units a PATH in which ` + install.Directory + ` comes first; the real swtpm stays where it is, and nobody else
notices. Method "divert" moves Debian's swtpm aside with dpkg-divert, for hosts whose libvirt is not a systemd unit. "auto" takes the first where it can.

It is done once however often it is run, and refused where it could not be undone: a file of somebody else in the way, another package's diversion, a swtpm
that no package owns or that AppArmor confines by its path.`,
	}
	host := helperHost(c)
	c.Flags().StringVar(&method, "method", "auto", "path, divert or auto")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		m := install.Method(method)
		if method == "auto" {
			m = host.Choose()
		}
		if m != install.Path && m != install.Divert {
			return advise(fmt.Errorf("--method %q is not path, divert or auto", method), "see safeconduct helper install --help")
		}
		changed, err := host.Install(cmd.Context(), m)
		if err != nil {
			return helperFailure(err)
		}
		r := &helperChange{Method: string(m), Changed: changed, Next: restartLibvirt}
		return a.show(r, r.print)
	}
	return c
}

func helperUninstallCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "uninstall", Short: "Have libvirt start swtpm itself again", Args: cobra.NoArgs,
		Long: `Have libvirt start swtpm itself again. VMs that run keep their helper until they stop. A VM that is started afterwards cannot be migrated under a session.`,
	}
	host := helperHost(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		method, err := host.Installed()
		if err != nil {
			return helperFailure(err)
		}
		changed, err := host.Uninstall(cmd.Context())
		if err != nil {
			return helperFailure(err)
		}
		r := &helperChange{Method: string(method), Changed: changed}
		if changed {
			r.Next = restartLibvirt
		}
		return a.show(r, r.print)
	}
	return c
}

func helperFailure(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return advise(err, "run it as root")
	}
	return &failure{err: err, code: ExitRefused, do: "nothing was changed; see safeconduct helper install --help for the other method"}
}

// helperStatus is the document of helper status.
type helperStatus struct {
	Method    string         `json:"method"`
	Effective bool           `json:"effective"`
	Daemons   []helperDaemon `json:"daemons"`
	Behind    []helperVM     `json:"vms_behind_the_helper"`
	Bare      []helperVM     `json:"vms_without_it"`
}

type helperDaemon struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"`
	SWTPM  string `json:"swtpm"`
	Helper bool   `json:"helper"`
}

type helperVM struct {
	Instance string `json:"instance_id"`
	PID      int    `json:"pid"`
}

func viewHelper(s install.Status) *helperStatus {
	v := &helperStatus{Method: string(s.Method), Effective: s.Effective(), Daemons: []helperDaemon{}, Behind: []helperVM{}, Bare: []helperVM{}}
	for _, d := range s.Daemons {
		v.Daemons = append(v.Daemons, helperDaemon(d))
	}
	for _, m := range s.Behind {
		v.Behind = append(v.Behind, helperVM(m))
	}
	for _, m := range s.Bare {
		v.Bare = append(v.Bare, helperVM(m))
	}
	return v
}

func (v *helperStatus) print(s *sheet) {
	s.field("method", v.Method)
	for _, d := range v.Daemons {
		s.line("%-14s pid %d starts %s: %s", d.Name, d.PID, orElse(d.SWTPM, "no swtpm"), map[bool]string{
			true: "the helper", false: "NOT the helper; restart it once the helper is installed",
		}[d.Helper])
	}
	if len(v.Daemons) == 0 {
		s.line("%-14s none runs that starts swtpm", "libvirt")
	}
	s.line("%-14s %d behind the helper, %d without it", "vms", len(v.Behind), len(v.Bare))
	for _, m := range v.Bare {
		s.line("  %s (pid %d) cannot be migrated under a session: hard-reboot it", orElse(m.Instance, "a VM without a UUID in its state's path"), m.PID)
	}
}

func helperStatusCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Say whether the helper is installed, whether libvirt uses it, and which VMs run without it", Args: cobra.NoArgs,
		Long: `Say whether the helper is installed, whether libvirt's running daemons would start it, and which VMs run behind it and which do not.

Exit code 0: every VM has a helper, and every VM that is started from now on gets one. 1: not so.`,
	}
	host := helperHost(c)
	c.RunE = func(*cobra.Command, []string) error {
		s, err := host.Inspect()
		if err != nil {
			return helperFailure(err)
		}
		v := viewHelper(s)
		if err := a.show(v, v.print); err != nil {
			return err
		}
		if !v.Effective || len(v.Bare) > 0 {
			return ended{ExitRefused}
		}
		return nil
	}
	return c
}
