// Package openstack is safeconduct-agent: it tells Placement which hosts are attested, preflights the hosts that Nova lists, and ends the sessions whose
// migration Nova has given up. One runs on each host (role node); one may watch the whole cloud (role central).
//
// It holds OpenStack's credentials and no key of the enclave. What it says in Placement is a hint for the scheduler: the node service refuses a migration
// that must not be, whatever a trait says.
package openstack

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/tee"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// Role of an agent.
type Role string

// The roles.
const (
	// RoleNode is the agent of one host, beside its node service.
	RoleNode Role = "node"
	// RoleCentral watches the cloud and changes nothing.
	RoleCentral Role = "central"
)

// Config is the whole file.
type Config struct {
	// Mode is that of the node services, "intel" or "simulated". There is no default.
	Mode tee.Mode `yaml:"mode"`
	// Role is "node" by default.
	Role Role `yaml:"role"`
	// Host is nova-compute's host name, which is the node service's too. Role node.
	Host string `yaml:"host"`
	// Node is the gRPC target of the node service's local socket. Role node.
	Node      string    `yaml:"node"`
	OpenStack OpenStack `yaml:"openstack"`
	Traits    Traits    `yaml:"traits"`
	Preflight Preflight `yaml:"preflight"`
	Sessions  Sessions  `yaml:"sessions"`
	Fleet     Fleet     `yaml:"fleet"`
	HTTP      HTTP      `yaml:"http"`
	Log       Log       `yaml:"log"`
}

// OpenStack is where the cloud is, and who the agent is there: one of Clouds and ApplicationCredential. The files are read again whenever Keystone
// refuses what was read before.
type OpenStack struct {
	Clouds                *Clouds                `yaml:"clouds"`
	ApplicationCredential *ApplicationCredential `yaml:"application_credential"`
	// Timeout of one HTTP request.
	Timeout time.Duration `yaml:"timeout"`
}

// Clouds names an entry of a clouds.yaml; a secure.yaml beside the file is read too.
type Clouds struct {
	File  string `yaml:"file"`
	Cloud string `yaml:"cloud"`
}

// ApplicationCredential is one without a clouds.yaml.
type ApplicationCredential struct {
	AuthURL string `yaml:"auth_url"`
	ID      string `yaml:"id"`
	// SecretFile holds the secret, and nothing else but white space around it.
	SecretFile string `yaml:"secret_file"`
	Region     string `yaml:"region"`
	// Interface is "public" (default), "internal" or "admin".
	Interface string `yaml:"interface"`
	// CA of the endpoints' certificates, in PEM; the system's by default.
	CA string `yaml:"ca"`
}

// Traits are those of the node's resource provider.
type Traits struct {
	Off   bool          `yaml:"off"`
	Every time.Duration `yaml:"every"`
	// ResourceProvider is its name in Placement, which is nova-compute's hypervisor_hostname; the host by default.
	ResourceProvider string `yaml:"resource_provider"`
	// VTPM is how CUSTOM_SAFECONDUCT_VTPM comes about: "inspect" looks at this host's libvirt daemons, "stated" is the operator's word for it, "off".
	VTPM string `yaml:"vtpm"`
	// Tunnel is the URL of safeconduct-tunnel's http.listen, or "off".
	Tunnel string `yaml:"tunnel"`
	// KeepOnStop leaves the traits in Placement when the agent stops, when nobody will withdraw them.
	KeepOnStop bool `yaml:"keep_on_stop"`
}

// Preflight is the periodic handshake with the other hosts.
type Preflight struct {
	Off   bool          `yaml:"off"`
	Every time.Duration `yaml:"every"`
	// Peers is how many hosts are asked each time, one after the other; the next time the next ones are.
	Peers int `yaml:"peers"`
	// MaxPeers bounds the series of metrics.
	MaxPeers int           `yaml:"max_peers"`
	Timeout  time.Duration `yaml:"timeout"`
}

// Sessions are ended when Nova has given up their migration.
type Sessions struct {
	Off   bool          `yaml:"off"`
	Every time.Duration `yaml:"every"`
	// Grace is how long Nova must have given it up for, as this agent has seen it: nova-compute ends its sessions itself.
	Grace time.Duration `yaml:"grace"`
}

// Fleet is what a central agent looks at.
type Fleet struct {
	Every time.Duration `yaml:"every"`
}

// HTTP is the listener of metrics and probes.
type HTTP struct {
	// Listen is empty for no listener.
	Listen string `yaml:"listen"`
}

// Log is on standard error.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Values of Traits.VTPM, and what switches a trait off.
const (
	vtpmInspect = "inspect"
	vtpmStated  = "stated"
	off         = "off"
)

// DefaultConfig is what a file need not say.
func DefaultConfig() Config {
	return Config{
		Role: RoleNode, Node: "unix:///run/safeconduct/node.sock",
		OpenStack: OpenStack{Timeout: 20 * time.Second},
		Traits:    Traits{Every: 30 * time.Second, VTPM: vtpmInspect, Tunnel: "http://127.0.0.1:9465"},
		Preflight: Preflight{Every: 10 * time.Minute, Peers: 8, MaxPeers: 1000, Timeout: time.Minute},
		Sessions:  Sessions{Every: 30 * time.Second, Grace: 2 * time.Minute},
		Fleet:     Fleet{Every: time.Minute},
		Log:       Log{Level: "info", Format: "json"},
	}
}

// ReadConfig reads and checks the file at path.
func ReadConfig(path string) (Config, error) {
	raw, err := readFile(path, maxConfig)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := ParseConfig(raw)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func readFile(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), most)
	}
	return os.ReadFile(path)
}

// ParseConfig reads and checks the bytes of a configuration. An unknown key is an error, as is a value that makes no sense; all of these are told at once.
func ParseConfig(raw []byte) (Config, error) {
	c := DefaultConfig()
	if len(raw) > maxConfig {
		return c, fmt.Errorf("%d bytes, more than %d", len(raw), maxConfig)
	}
	if err := yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()); err != nil {
		return c, err
	}
	if c.Traits.ResourceProvider == "" {
		c.Traits.ResourceProvider = c.Host
	}
	return c, c.check()
}

// complaints collects what is wrong.
type complaints []error

func (w *complaints) when(bad bool, format string, args ...any) {
	if bad {
		*w = append(*w, fmt.Errorf(format, args...))
	}
}

func (c *Config) check() error {
	var wrong complaints
	wrong.when(c.mode() == v1.Mode_MODE_UNSPECIFIED, "mode is %q, expected intel or simulated: the node service's", c.Mode)
	wrong.when(c.Role != RoleNode && c.Role != RoleCentral, "role is %q, expected node or central", c.Role)
	if c.Role == RoleNode {
		wrong.when(c.Host == "" || len(c.Host) > 253, "host is %q, expected the host name that nova-compute and the node service have", c.Host)
		wrong.when(c.Node == "", "node is empty, expected a gRPC target such as unix:///run/safeconduct/node.sock")
		c.checkTasks(&wrong)
	}
	wrong.between("fleet.every", c.Fleet.Every, 5*time.Second, time.Hour)
	c.OpenStack.check(&wrong)
	wrong.when(c.HTTP.Listen != "" && !isAddress(c.HTTP.Listen), "http.listen is %q, expected HOST:PORT", c.HTTP.Listen)
	wrong.when(c.Log.Level != "debug" && c.Log.Level != "info" && c.Log.Level != "warn" && c.Log.Level != "error",
		"log.level is %q, expected debug, info, warn or error", c.Log.Level)
	wrong.when(c.Log.Format != "json" && c.Log.Format != "text", "log.format is %q, expected json or text", c.Log.Format)
	return errors.Join(wrong...)
}

func (w *complaints) between(key string, d, least, most time.Duration) {
	w.when(d < least || d > most, "%s is %v, not between %v and %v", key, d, least, most)
}

func (c *Config) checkTasks(wrong *complaints) {
	wrong.when(c.Traits.Off && c.Preflight.Off && c.Sessions.Off, "traits, preflight and sessions are all off: there is nothing to do")
	wrong.between("traits.every", c.Traits.Every, time.Second, time.Hour)
	wrong.when(len(c.Traits.ResourceProvider) > 200, "traits.resource_provider has more than 200 characters")
	wrong.when(c.Traits.VTPM != vtpmInspect && c.Traits.VTPM != vtpmStated && c.Traits.VTPM != off,
		"traits.vtpm is %q, expected inspect, stated or off", c.Traits.VTPM)
	wrong.when(c.Traits.Tunnel != off && !isURL(c.Traits.Tunnel), "traits.tunnel is %q, expected a URL such as http://127.0.0.1:9465, or off", c.Traits.Tunnel)
	wrong.between("preflight.every", c.Preflight.Every, time.Second, 24*time.Hour)
	wrong.between("preflight.timeout", c.Preflight.Timeout, time.Second, 10*time.Minute)
	wrong.when(c.Preflight.Peers < 1 || c.Preflight.Peers > 1000, "preflight.peers is %d, not 1 to 1000", c.Preflight.Peers)
	wrong.when(c.Preflight.MaxPeers < 1 || c.Preflight.MaxPeers > 10000, "preflight.max_peers is %d, not 1 to 10000", c.Preflight.MaxPeers)
	wrong.between("sessions.every", c.Sessions.Every, time.Second, time.Hour)
	wrong.between("sessions.grace", c.Sessions.Grace, time.Second, time.Hour)
}

func (o *OpenStack) check(wrong *complaints) {
	wrong.between("openstack.timeout", o.Timeout, time.Second, 10*time.Minute)
	wrong.when((o.Clouds == nil) == (o.ApplicationCredential == nil), "openstack: expected one of clouds and application_credential")
	if c := o.Clouds; c != nil {
		wrong.when(!filepath.IsAbs(c.File), "openstack.clouds.file is %q, not an absolute path", c.File)
		wrong.when(c.Cloud == "", "openstack.clouds.cloud is missing: the name of an entry of the file")
	}
	if a := o.ApplicationCredential; a != nil {
		wrong.when(!isURL(a.AuthURL), "openstack.application_credential.auth_url is %q, expected a URL", a.AuthURL)
		wrong.when(a.ID == "", "openstack.application_credential.id is missing")
		wrong.when(!filepath.IsAbs(a.SecretFile), "openstack.application_credential.secret_file is %q, not an absolute path", a.SecretFile)
		wrong.when(a.CA != "" && !filepath.IsAbs(a.CA), "openstack.application_credential.ca is %q, not an absolute path", a.CA)
		wrong.when(a.Interface != "" && a.Interface != "public" && a.Interface != "internal" && a.Interface != "admin",
			"openstack.application_credential.interface is %q, expected public, internal or admin", a.Interface)
	}
}

func (c *Config) mode() v1.Mode {
	switch c.Mode {
	case tee.ModeIntel:
		return v1.Mode_MODE_INTEL
	case tee.ModeSimulated:
		return v1.Mode_MODE_SIMULATED
	default:
		return v1.Mode_MODE_UNSPECIFIED
	}
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil
}

func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && (n > 0 || strings.HasSuffix(s, ":0"))
}
