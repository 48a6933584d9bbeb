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
}

// DefaultSettings are those of a missing file.
func DefaultSettings() Settings {
	return Settings{Node: "unix:///run/safeconduct/node.sock", NodeTimeout: vtpm.DefaultTimeout, Tools: "/usr/bin"}
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
	case !filepath.IsAbs(s.Tools):
		return s, fmt.Errorf("%s: tools is %q, not an absolute path", path, s.Tools)
	}
	return s, nil
}
