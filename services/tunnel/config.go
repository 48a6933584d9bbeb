package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/tee"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// Config of a host's tunnel: one YAML file.
type Config struct {
	// Mode is that of the node service, "intel" or "simulated"; there is no default. A session of the other mode is not carried.
	Mode tee.Mode `yaml:"mode"`
	// Node is the gRPC target of the node service's local socket.
	Node string `yaml:"node"`
	// Listen is where other hosts' tunnels connect: HOST:PORT.
	Listen string `yaml:"listen"`
	// Dir is where the VMs' sockets are, the source's made by the tunnel and the destination's by QEMU: both must be able to write to it. It is the
	// same path on every host.
	Dir string `yaml:"dir"`
	// Group, a name or a number, that Dir and the sockets are given to; empty: Dir's own if it has the set-group-id bit, else the process's.
	Group string `yaml:"group"`
	// PeerAddress is the address of a host's tunnel, where {host} stands for its name in the session; Peers are those that have another.
	PeerAddress string      `yaml:"peer_address"`
	Peers       []PeerEntry `yaml:"peers"`
	// ConnectionsPerVM and Connections bound what is open at once, for a VM and in all.
	ConnectionsPerVM int  `yaml:"connections_per_vm"`
	Connections      int  `yaml:"connections"`
	HTTP             HTTP `yaml:"http"`
	// LogLevel is DEBUG, INFO, WARN or ERROR.
	LogLevel slog.Level `yaml:"log_level"`
}

// PeerEntry is the address of one host's tunnel.
type PeerEntry struct {
	Host    string `yaml:"host"`
	Address string `yaml:"address"`
}

// HTTP is the listener of metrics, probes and progress.
type HTTP struct {
	// Listen is empty for no listener.
	Listen string `yaml:"listen"`
}

// DefaultConfig is what a file need not say.
func DefaultConfig() Config {
	return Config{
		Node: "unix:///run/safeconduct/node.sock", Listen: "0.0.0.0:7444", Dir: "/run/safeconduct/tunnel", PeerAddress: "{host}:7444",
		ConnectionsPerVM: 64, Connections: 1024,
	}
}

// ReadConfig reads and checks the file at path.
func ReadConfig(path string) (Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := ParseConfig(raw)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads and checks the bytes of a configuration. An unknown key is an error, as is a value that makes no sense.
func ParseConfig(raw []byte) (Config, error) {
	c := DefaultConfig()
	if len(raw) > maxConfig {
		return c, fmt.Errorf("%d bytes, more than %d", len(raw), maxConfig)
	}
	if err := yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()); err != nil {
		return c, err
	}
	return c, c.check()
}

func (c *Config) check() error {
	var all []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	wrong(c.mode() == v1.Mode_MODE_UNSPECIFIED, "mode is %q, expected intel or simulated: the node service's", c.Mode)
	wrong(c.Node == "", "node is empty, expected a gRPC target such as unix:///run/safeconduct/node.sock")
	wrong(!isAddress(c.Listen), "listen is %q, expected HOST:PORT", c.Listen)
	wrong(c.HTTP.Listen != "" && !isAddress(c.HTTP.Listen), "http.listen is %q, expected HOST:PORT", c.HTTP.Listen)
	longest := newName(filepath.Join(c.Dir, Disks.Socket(strings.Repeat("x", instanceSize))))
	wrong(!filepath.IsAbs(c.Dir), "dir is %q, not an absolute path", c.Dir)
	wrong(len(longest) > maxSocketPath, "dir is %q: with a socket's name in it, a path has %d bytes, more than the %d of a unix socket", c.Dir, len(longest), maxSocketPath)
	wrong(!isAddress(strings.ReplaceAll(c.PeerAddress, "{host}", "host")), "peer_address is %q, expected HOST:PORT such as {host}:7444", c.PeerAddress)
	wrong(c.ConnectionsPerVM < 1 || c.ConnectionsPerVM > 1000, "connections_per_vm is %d, not 1 to 1000", c.ConnectionsPerVM)
	wrong(c.Connections < c.ConnectionsPerVM || c.Connections > 100000, "connections is %d, not connections_per_vm to 100000", c.Connections)
	seen := map[string]bool{}
	for _, p := range c.Peers {
		wrong(p.Host == "" || seen[p.Host], "peers: host %q is empty or listed twice", p.Host)
		wrong(!isAddress(p.Address), "peers: the address of %s is %q, expected HOST:PORT", p.Host, p.Address)
		seen[p.Host] = true
	}
	return errors.Join(all...)
}

func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && (n > 0 || strings.HasSuffix(s, ":0"))
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

// address of the tunnel of a host.
func (c *Config) address(host string) string {
	for _, p := range c.Peers {
		if p.Host == host {
			return p.Address
		}
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "[" + host + "]"
	}
	return strings.ReplaceAll(c.PeerAddress, "{host}", host)
}
