package openstack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

// Presence says whether a VM has a QEMU on this host, running or waiting for a migration to come in.
type Presence int

// The presences. The zero value is the one on which nothing is done.
const (
	PresenceUnknown Presence = iota
	Present
	Absent
)

// Processes looks at the host's processes.
type Processes struct {
	// Proc is where the host's /proc is.
	Proc string
}

// Guest looks for a VM's QEMU. Absent needs proof that these are the host's processes: a daemon of libvirt among them. In a container with processes
// of its own there is none, and nothing is known.
func (p Processes) Guest(instance string) Presence {
	dirs, err := filepath.Glob(filepath.Join(p.Proc, "[0-9]*"))
	if err != nil {
		return PresenceUnknown
	}
	libvirt := false
	for _, dir := range dirs {
		if _, err := strconv.Atoi(filepath.Base(dir)); err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it has ended
		}
		name := strings.TrimSpace(string(comm))
		libvirt = libvirt || name == "libvirtd" || name == "virtqemud"
		if !strings.HasPrefix(name, "qemu") && name != "kvm" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			if _, gone := os.Stat(dir); gone != nil {
				continue
			}
			return PresenceUnknown // it may be the one
		}
		args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		if i := slices.Index(args, "-uuid"); i >= 0 && i+1 < len(args) && strings.EqualFold(args[i+1], instance) {
			return Present
		}
	}
	if !libvirt {
		return PresenceUnknown
	}
	return Absent
}

// HelperInPlace says whether every vTPM that libvirt starts on this host gets the helper.
func HelperInPlace() (bool, string) {
	status, err := install.Host{Root: "/"}.Inspect()
	switch {
	case err != nil:
		return false, err.Error()
	case status.Method == install.None:
		return false, "the helper is not installed: safeconduct helper install"
	case status.Effective():
		return true, ""
	}
	for _, d := range status.Daemons {
		if !d.Helper && d.SWTPM == "" {
			return false, fmt.Sprintf("the environment of %s (pid %d) cannot be read: the agent needs CAP_SYS_PTRACE for that, or traits.vtpm: stated", d.Name, d.PID)
		}
	}
	return false, "a daemon of libvirt would start swtpm without the helper: restart it (safeconduct helper status)"
}

// TunnelProbe asks the tunnel daemon of this host.
type TunnelProbe struct {
	// URL of its http.listen.
	URL    string
	client *http.Client
}

// NewTunnelProbe prepares a probe.
func NewTunnelProbe(url string) *TunnelProbe {
	return &TunnelProbe{URL: strings.TrimSuffix(url, "/"), client: &http.Client{
		Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Answers says whether the tunnel is ready, in this mode.
func (p *TunnelProbe) Answers(ctx context.Context, mode v1.Mode) (bool, string) {
	if _, err := p.get(ctx, "/readyz"); err != nil {
		return false, err.Error()
	}
	raw, err := p.get(ctx, "/connections")
	if err != nil {
		return false, err.Error()
	}
	var said struct {
		Mode string `json:"mode"`
	}
	if err := json.Unmarshal(raw, &said); err != nil || said.Mode != modeName(mode) {
		return false, fmt.Sprintf("%s: mode %q, expected %q", p.URL, said.Mode, modeName(mode))
	}
	return true, ""
}

func (p *TunnelProbe) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s%s: %s: %.200q", p.URL, path, resp.Status, strings.TrimSpace(string(raw)))
	}
	return raw, nil
}

// modeName is the mode as configurations have it.
func modeName(m v1.Mode) string { return strings.ToLower(strings.TrimPrefix(m.String(), "MODE_")) }
