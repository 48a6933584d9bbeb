// Package config reads safeconductd's configuration: one YAML file, typed, validated, with unknown keys and bad values refused
// with their line and the reason. It decides nothing: what it returns is what was written, with defaults filled in.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/safeconduct/safeconduct/tee"
)

// MaxSize bounds the configuration file, in bytes.
const MaxSize = 1 << 20

// Config is the whole file.
type Config struct {
	// Mode is "intel" or "simulated". There is no default: nobody runs a simulation by leaving a line out.
	Mode tee.Mode `yaml:"mode" validate:"required,oneof=intel simulated"`
	// Host is this node's name, as peers and the policy know it. nova-compute's host name is the one to use.
	Host string `yaml:"host" validate:"required,hostname_rfc1123,max=253"`
	// StateDir holds what is sealed and the record of migration ids. Created 0700.
	StateDir string `yaml:"state_dir" validate:"required,startswith=/"`

	Local      Local       `yaml:"local"`
	Peer       Peer        `yaml:"peer"`
	HTTP       HTTP        `yaml:"http"`
	Policy     Policy      `yaml:"policy"`
	Collateral Collateral  `yaml:"collateral"`
	Simulated  *Simulated  `yaml:"simulated" validate:"required_if=Mode simulated,excluded_if=Mode intel"`
	Integrity  Integrity   `yaml:"integrity"`
	Sessions   Sessions    `yaml:"sessions"`
	Log        Log         `yaml:"log"`
	Audit      Audit       `yaml:"audit"`
	Tracing    *Tracing    `yaml:"tracing"`
	Peers      []PeerEntry `yaml:"peers" validate:"required,min=1,max=10000,dive"`
}

// Local is the unix socket for callers on this host.
type Local struct {
	Socket string `yaml:"socket" validate:"required,startswith=/,max=107"`
	// SocketMode is the socket's file mode, octal; 0660 by default. Under EGo chmod has no effect: the directory's mode counts.
	SocketMode FileMode `yaml:"socket_mode" validate:"omitempty,filemode"`
	// Callers maps a service ("MigrationService") or one of its methods ("CryptoService/ProtectState") to the uids that may call
	// it. A method's entry replaces its service's. Without an entry only root and this process's own uid may call.
	Callers map[string][]uint32 `yaml:"callers" validate:"max=64,dive,max=64"`
}

// Peer is the TCP port for other node services.
type Peer struct {
	// Listen is HOST:PORT, or unix:PATH where something else carries the connection between the nodes.
	Listen string `yaml:"listen" validate:"required,hostname_port|tcp_addr|startswith=unix:/"`
	// TLS is defence in depth; the handshake does not rest on it.
	TLS *TLS `yaml:"tls"`
	// HandshakeTimeout bounds one handshake, both phases. Default 20s.
	HandshakeTimeout Duration `yaml:"handshake_timeout" validate:"omitempty,duration"`
	// MaxHandshakes bounds handshakes under way at once. Default 8.
	MaxHandshakes int `yaml:"max_handshakes" validate:"gte=0,lte=1000"`
	// HandshakesPerSecond that one peer may begin, after a burst of 32. Default 1.
	HandshakesPerSecond float64 `yaml:"handshakes_per_second" validate:"gte=0,lte=1000000"`
}

// TLS is mutual TLS between nodes, with files in PEM.
type TLS struct {
	Certificate string `yaml:"certificate" validate:"required,startswith=/"`
	Key         string `yaml:"key" validate:"required,startswith=/"`
	CA          string `yaml:"ca" validate:"required,startswith=/"`
}

// PeerEntry is a node that this one migrates with.
type PeerEntry struct {
	Host    string `yaml:"host" validate:"required,hostname_rfc1123,max=253"`
	Address string `yaml:"address" validate:"required,hostname_port|tcp_addr|startswith=unix:/"`
}

// HTTP is the listener of metrics and probes.
type HTTP struct {
	// Listen is empty for no listener.
	Listen string `yaml:"listen" validate:"omitempty,hostname_port|tcp_addr"`
}

// Policy is the signed word of the operator on what is accepted.
type Policy struct {
	// File is the signed envelope, as "safeconduct policy sign" makes it.
	File string `yaml:"file" validate:"required,startswith=/"`
	// Keys are the public keys whose signature counts, in PEM. Simulation only: in an enclave they are part of what is measured, for whoever
	// writes this file must not decide whose policy counts.
	Keys string `yaml:"keys" validate:"omitempty,startswith=/"`
}

// Collateral is where that which quotes are verified against comes from: one of Dir, Bundle and PCCS. What came is kept under state_dir.
type Collateral struct {
	// Dir holds tcb_info.json, qe_identity.json, pck_crl.der, root_ca_crl.der and tcb_signing_chain.pem, or a directory of these for each kind of
	// platform, named FMSPC-CA. It is read again on reload.
	Dir string `yaml:"dir" validate:"omitempty,startswith=/"`
	// Bundle is a file that "safeconduct pccs fetch" made, for a site without a network. It is read again on reload.
	Bundle string `yaml:"bundle" validate:"omitempty,startswith=/"`
	// PCCS is the URL of the data centre's PCCS, such as https://pccs.example:8081, or of Intel's service.
	PCCS string `yaml:"pccs" validate:"omitempty,url"`
	// PCCSCA is the CA of the PCCS's own certificate, in PEM; the system's CAs by default.
	PCCSCA string `yaml:"pccs_ca" validate:"omitempty,startswith=/"`
	// MaxAge is when a set is fetched again, however long it is valid. Default 24h.
	MaxAge Duration `yaml:"max_age" validate:"omitempty,duration"`
}

// Simulated is the simulated TEE. It protects nothing.
type Simulated struct {
	// Platform is the directory of this node's simulated processor.
	Platform string `yaml:"platform" validate:"required,startswith=/"`
	// Root is the test root's certificate, in PEM.
	Root string `yaml:"root" validate:"required,startswith=/"`
}

// Integrity is what is measured on this host.
type Integrity struct {
	// TPM is "device:/dev/tpmrm0", "unix:PATH" or "tcp:HOST:PORT"; empty for a host without one, which peers may refuse.
	TPM string `yaml:"tpm" validate:"omitempty,startswith=device:/|startswith=unix:/|startswith=tcp:"`
	// PCRs that the TPM quote covers. Default 0 to 7.
	PCRs []int `yaml:"pcrs" validate:"max=24,unique,dive,gte=0,lte=23"`
	// BootLog is the firmware's event log, such as /sys/kernel/security/tpm0/binary_bios_measurements, and IMAList the kernel's binary measurement
	// list, such as /sys/kernel/security/ima/binary_runtime_measurements; empty for a host without. Both need a TPM, IMAList also PCR 10.
	BootLog string `yaml:"boot_log" validate:"omitempty,startswith=/"`
	IMAList string `yaml:"ima_list" validate:"omitempty,startswith=/"`
	// Root is where the host's file system is seen from here; "/" by default, EGo's host mount in an enclave.
	Root  string `yaml:"root" validate:"omitempty,startswith=/"`
	Items []Item `yaml:"items" validate:"required,min=1,max=1000,dive"`
}

// Item is one thing to measure.
type Item struct {
	Name string `yaml:"name" validate:"required,max=128"`
	// Kind is one of those of package integrity/measure: "file", "program" (with its shared libraries), "tree" (a directory), "kernel-image",
	// "kernel-modules", "kernel-command-line" or "cpu".
	Kind string `yaml:"kind" validate:"required,oneof=file program tree kernel-image kernel-modules kernel-command-line cpu"`
	// Path of a file, program or tree.
	Path string `yaml:"path" validate:"required_if=Kind file,required_if=Kind program,required_if=Kind tree,omitempty,startswith=/"`
}

// Sessions bounds sessions; see session.Limits for the defaults.
type Sessions struct {
	MaxOpen    int      `yaml:"max_open" validate:"gte=0,lte=100000"`
	UnarmedTTL Duration `yaml:"unarmed_ttl" validate:"omitempty,duration"`
	ArmedTTL   Duration `yaml:"armed_ttl" validate:"omitempty,duration"`
	// ArmMaxAge is the age at which an integrity appraisal is made again before a session is armed. Default 30s; policy can only
	// lower it.
	ArmMaxAge Duration `yaml:"arm_max_age" validate:"omitempty,duration"`
}

// Log is the diagnostic log, on standard error.
type Log struct {
	Level string `yaml:"level" validate:"omitempty,oneof=debug info warn error"`
	// Format is "json" or "text".
	Format string `yaml:"format" validate:"omitempty,oneof=json text"`
}

// Audit is the log of every request that matters.
type Audit struct {
	// Dir of its files; "audit" under state_dir by default.
	Dir string `yaml:"dir" validate:"omitempty,startswith=/"`
	// MaxFileMiB is the size at which a file is rotated. Default 64.
	MaxFileMiB int `yaml:"max_file_mib" validate:"gte=0,lte=4096"`
	// MaxFiles is how many are kept. By default, and with 0, all: somebody else removes or archives them.
	MaxFiles int `yaml:"max_files" validate:"gte=0,lte=100000"`
}

// Tracing sends OpenTelemetry traces. Without the section none are made.
type Tracing struct {
	// Endpoint is an OTLP/gRPC collector: https://HOST:PORT, or http://HOST:PORT for one on this host.
	Endpoint string `yaml:"endpoint" validate:"required,url"`
	// CA of the collector's certificate, in PEM; the system's CAs by default.
	CA string `yaml:"ca" validate:"omitempty,startswith=/"`
	// TokenFile holds a bearer token for the collector.
	TokenFile string `yaml:"token_file" validate:"omitempty,startswith=/"`
	// SampleRatio of the requests is traced, where their caller has not decided. Default 1.
	SampleRatio *float64 `yaml:"sample_ratio" validate:"omitempty,gte=0,lte=1"`
}

// Duration is a time.Duration written as "30s" or "5m": positive, empty for the default.
type Duration string

// Or returns d, or def if d is empty.
func (d Duration) Or(def time.Duration) time.Duration {
	if v, ok := parseDuration(string(d)); ok {
		return v
	}
	return def
}

func parseDuration(s string) (time.Duration, bool) {
	v, err := time.ParseDuration(s)
	return v, err == nil && v > 0
}

// FileMode is a file mode written in octal: "0660"; empty for the default.
type FileMode string

// Or returns m, or def if m is empty.
func (m FileMode) Or(def fs.FileMode) fs.FileMode {
	if v, ok := parseFileMode(string(m)); ok {
		return v
	}
	return def
}

func parseFileMode(s string) (fs.FileMode, bool) {
	v, err := strconv.ParseUint(s, 8, 32)
	return fs.FileMode(v), err == nil && v <= 0o777
}

// Load reads the file at path, puts in what the environment replaces (see Overrides), and validates the whole. environ is as os.Environ gives it.
func Load(path string, environ []string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > MaxSize {
		return nil, fmt.Errorf("configuration: %s has %d bytes, more than %d", path, info.Size(), MaxSize)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := parse(raw, environ)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads and validates the bytes of a configuration. An error names the line and the reason.
func Parse(raw []byte) (*Config, error) { return parse(raw, nil) }

func parse(raw []byte, environ []string) (*Config, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(raw), MaxSize)
	}
	var c Config
	dec := yaml.NewDecoder(strings.NewReader(string(raw)), yaml.DisallowUnknownField())
	if err := dec.Decode(&c); err != nil {
		return nil, explainDecode(err)
	}
	from, err := c.override(environ)
	if err != nil {
		return nil, err
	}
	if err := validate(&c, raw, from); err != nil {
		return nil, err
	}
	if err := c.crossCheck(); err != nil {
		return nil, err
	}
	c.defaults()
	return &c, nil
}

func (c *Config) defaults() {
	if c.Peer.MaxHandshakes == 0 {
		c.Peer.MaxHandshakes = 8
	}
	if c.Integrity.Root == "" {
		c.Integrity.Root = "/"
	}
	if len(c.Integrity.PCRs) == 0 {
		c.Integrity.PCRs = []int{0, 1, 2, 3, 4, 5, 6, 7}
		if c.Integrity.IMAList != "" {
			c.Integrity.PCRs = append(c.Integrity.PCRs, 10)
		}
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	if c.Log.Format == "" {
		c.Log.Format = "json"
	}
}

// crossCheck is for rules that no single field can state.
func (c *Config) crossCheck() error {
	sources := 0
	for _, s := range []string{c.Collateral.Dir, c.Collateral.Bundle, c.Collateral.PCCS} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		return fmt.Errorf("collateral: %d of dir, bundle and pccs are given, expected one", sources)
	}
	switch {
	case c.Mode == tee.ModeSimulated && c.Policy.Keys == "":
		return errors.New("policy.keys is missing: it names the public keys whose signature makes a policy count")
	case c.Mode == tee.ModeIntel && c.Policy.Keys != "":
		return errors.New("policy.keys is for simulations: the keys of a real enclave are measured into it")
	}
	seen := map[string]bool{}
	for _, p := range c.Peers {
		if seen[p.Host] {
			return fmt.Errorf("peers: host %s is listed twice", p.Host)
		}
		seen[p.Host] = true
		if p.Host == c.Host {
			return fmt.Errorf("peers: host %s is this node itself", p.Host)
		}
	}
	if c.Integrity.TPM == "" && (c.Integrity.BootLog != "" || c.Integrity.IMAList != "") {
		return errors.New("integrity: boot_log and ima_list need a TPM that covers them: set integrity.tpm")
	}
	if c.Integrity.IMAList != "" && len(c.Integrity.PCRs) > 0 && !slices.Contains(c.Integrity.PCRs, 10) {
		return errors.New("integrity.pcrs: ima_list needs PCR 10 among them")
	}
	names := map[string]bool{}
	for _, it := range c.Integrity.Items {
		if names[it.Name] {
			return fmt.Errorf("integrity.items: name %s is listed twice", it.Name)
		}
		names[it.Name] = true
	}
	return nil
}
