package helper

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/uuid"

	"github.com/safeconduct/safeconduct/services/vtpm"
)

// SettingsFile is where a helper that libvirt starts finds its settings. It may be missing; the swtpm user must be able to read it.
const SettingsFile = "/etc/safeconduct/helper.yaml"

// maxSettings bounds the file, in bytes.
const maxSettings = 64 << 10

// Settings of a helper that libvirt starts, which has swtpm's command line and so no options of its own.
type Settings struct {
	// Node is the gRPC target of the node service's local socket.
	Node string `yaml:"node"`
	// NodeTimeout bounds one blob's way through the node service; the VM stands still meanwhile.
	NodeTimeout time.Duration `yaml:"node_timeout"`
	// Tools is the directory of the real swtpm and swtpm_setup.
	Tools string `yaml:"tools"`
	// LogLevel is DEBUG, INFO, WARN or ERROR.
	LogLevel slog.Level `yaml:"log_level"`
	// StateKey is whose key the state at rest is under, and StateKeyOf that of single VMs, by their UUID.
	StateKey   StateKey            `yaml:"state_key"`
	StateKeyOf map[string]StateKey `yaml:"state_key_of"`
}

// StateKey is whose key a vTPM's state at rest is under.
type StateKey string

const (
	// CallersKey is that of who starts swtpm, such as libvirt's <encryption>, or none.
	CallersKey StateKey = "caller"
	// EnclaveKey is one of the node's enclave, in place of the caller's.
	EnclaveKey StateKey = "enclave"
)

// Set implements pflag.Value.
func (k *StateKey) Set(text string) error {
	switch v := StateKey(text); v {
	case CallersKey, EnclaveKey:
		*k = v
		return nil
	default:
		return fmt.Errorf("found %q, expected %s or %s", text, CallersKey, EnclaveKey)
	}
}

// String implements pflag.Value.
func (k *StateKey) String() string { return string(*k) }

// Type implements pflag.Value.
func (*StateKey) Type() string { return "caller|enclave" }

// UnmarshalText reads it from the file.
func (k *StateKey) UnmarshalText(text []byte) error {
	if err := k.Set(string(text)); err != nil {
		return fmt.Errorf("state_key: %w", err)
	}
	return nil
}

// stateKey is that of one VM; an empty instance is a state whose path names none.
func (s Settings) stateKey(instance string) StateKey {
	if k, ok := s.StateKeyOf[instance]; ok {
		return k
	}
	return s.StateKey
}

// DefaultSettings are those of a missing file.
func DefaultSettings() Settings {
	return Settings{Node: "unix:///run/safeconduct/node.sock", NodeTimeout: vtpm.DefaultTimeout, Tools: "/usr/bin", StateKey: CallersKey}
}

// ReadSettings reads the file; one that does not exist is the default. An unknown key is an error, as is a value that makes no sense.
func ReadSettings(path string) (Settings, error) {
	s := DefaultSettings()
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if len(raw) > maxSettings {
		return s, fmt.Errorf("%s has %d bytes, more than %d", path, len(raw), maxSettings)
	}
	var document any
	if err := yaml.Unmarshal(raw, &document); err == nil && document == nil {
		return s, nil // nothing but comments, which the decoder would take for a document of empty fields
	}
	if err := yaml.UnmarshalWithOptions(raw, &s, yaml.Strict()); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case s.Node == "":
		return s, fmt.Errorf("%s: node is empty", path)
	case s.NodeTimeout < 10*time.Millisecond || s.NodeTimeout > 10*time.Second:
		return s, fmt.Errorf("%s: node_timeout is %v, not 10ms to 10s: the VM stands still for as long", path, s.NodeTimeout)
	case s.misnamed() != "":
		return s, fmt.Errorf("%s: state_key_of: %q is not the UUID of a VM in lower case", path, s.misnamed())
	case !filepath.IsAbs(s.Tools):
		return s, fmt.Errorf("%s: tools is %q, not an absolute path", path, s.Tools)
	}
	return s, nil
}

// misnamed is a VM of state_key_of that could never be met.
func (s Settings) misnamed() string {
	for id := range s.StateKeyOf {
		if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
			return id
		}
	}
	return ""
}
