package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

func TestTheExampleIsAConfiguration(t *testing.T) {
	c, err := Parse([]byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != "simulated" || c.Log.Level != "info" || len(c.Integrity.PCRs) != 8 {
		t.Errorf("got %+v", c)
	}
}

// uncommented is the example with the keys that it has commented out put in.
func uncommented() string {
	return regexp.MustCompile(`(?m)^( *)# ([ ]*[a-z_]+:)`).ReplaceAllString(Example, "$1$2")
}

// paths are the dotted keys of a document that was decoded without a type.
func paths(v any, at string, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			into[at+key] = true
			paths(inner, at+key+".", into)
		}
	case []any:
		for _, inner := range v {
			paths(inner, at, into)
		}
	}
}

// keysOf are the dotted keys of a type.
func keysOf(t reflect.Type, at string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			keys = append(append(keys, at+key), keysOf(f.Type, at+key+".")...)
		}
	}
	return keys
}

func TestTheExampleHasEveryKeyAndNoOther(t *testing.T) {
	var strict Config
	if err := yaml.NewDecoder(strings.NewReader(uncommented()), yaml.DisallowUnknownField()).Decode(&strict); err != nil {
		t.Fatalf("what is commented out does not fit: %v", explainDecode(err))
	}
	var loose map[string]any
	if err := yaml.Unmarshal([]byte(uncommented()), &loose); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	paths(loose, "", found)
	for _, key := range keysOf(reflect.TypeFor[Config](), "") {
		if !found[key] {
			t.Errorf("the example does not have %s", key)
		}
	}
}

// The values of the example that have a default are the defaults: without them the configuration is the same.
func TestTheExampleShowsTheDefaultsOfTheFile(t *testing.T) {
	without := Example
	for _, line := range []string{
		"  max_handshakes: 8              # under way at once\n", "  root: /                        # where", "  pcrs: [0, 1, 2, 3, 4, 5, 6, 7]\n",
		"  level: info                    # debug, info, warn, error\n", "  format: json                   # or text\n",
	} {
		i := strings.Index(without, line)
		if i < 0 {
			t.Fatalf("the example has no %q", line)
		}
		end := i + strings.Index(without[i:], "\n") + 1
		without = without[:i] + without[end:]
	}
	a, err := Parse([]byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(strings.Replace(without, "log:                             #", "# ", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("the defaults are %+v, the example says %+v", b, a)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "safeconductd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheEnvironmentReplacesTheListedKeysAndNoOther(t *testing.T) {
	path := write(t, good)
	c, err := Load(path, []string{
		"PATH=/bin", "SAFECONDUCTD_HOST=compute7", "SAFECONDUCTD_PEER_LISTEN=10.0.0.7:7443", "SAFECONDUCTD_HTTP_LISTEN=10.0.0.7:9464",
		"SAFECONDUCTD_LOG_LEVEL=debug", "SAFECONDUCTD_LOG_FORMAT=text",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Host != "compute7" || c.Peer.Listen != "10.0.0.7:7443" || c.HTTP.Listen != "10.0.0.7:9464" || c.Log != (Log{"debug", "text"}) {
		t.Errorf("got %+v", c)
	}
	for name, tc := range map[string]struct{ variable, want string }{
		"a value that the key does not take":  {"SAFECONDUCTD_LOG_LEVEL=loud", `SAFECONDUCTD_LOG_LEVEL, for log.level: "loud" is not one of: debug info warn error`},
		"an address that is none":             {"SAFECONDUCTD_PEER_LISTEN=x", `SAFECONDUCTD_PEER_LISTEN, for peer.listen: "x" is not HOST:PORT`},
		"a host that is a peer":               {"SAFECONDUCTD_HOST=compute2", "peers: host compute2 is this node itself"},
		"a variable with a typing error":      {"SAFECONDUCTD_LOG_LEVELS=debug", "SAFECONDUCTD_LOG_LEVELS: is no variable that replaces a key; did you mean SAFECONDUCTD_LOG_LEVEL?"},
		"a key that decides whom to trust":    {"SAFECONDUCTD_POLICY_FILE=/tmp/x", "SAFECONDUCTD_POLICY_FILE: is no variable that replaces a key"},
		"the mode, which nobody changes so":   {"SAFECONDUCTD_MODE=intel", "SAFECONDUCTD_MODE: is no variable that replaces a key"},
		"an empty value, which is not absent": {"SAFECONDUCTD_HOST=", "SAFECONDUCTD_HOST, for host: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(path, []string{tc.variable})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDocsConfigurationIsTheExample(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Configuration

safeconductd reads one YAML file, ` + "`--config`" + `, by default /etc/safeconduct/safeconductd.yaml. This page is generated from
services/node/config; a test checks it.

    safeconductd config example > safeconductd.yaml    # what is below
    safeconductd config check --config FILE            # the file, and every file that it names, exactly as start-up does
    safeconductd --check --config FILE                 # the file alone, on any machine

An unknown key, a key given twice and a value that does not fit end start-up, with the line and the reason:

    safeconductd: configuration safeconductd.yaml: line 10: lisen: unknown key; did you mean "listen"?

Secrets are never in the file: it has their paths. Policy and collateral are read again by ` + "`safeconduct reload`" + `, and the log's level is changed by
` + "`safeconduct loglevel`" + `; everything else is read at the start.

## Environment

These variables replace a key; any other that begins with ` + EnvPrefix + ` is an error. An enclave takes none of them: its environment is measured into it.

| variable | key | for |
|---|---|---|
`)
	for _, o := range Overrides() {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", o.Variable, o.Key, o.Use)
	}
	b.WriteString("\n## Every key\n\n")
	for line := range strings.Lines(Example) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("    ")
		}
		b.WriteString(line)
	}
	path := filepath.Join("..", "..", "..", "docs", "configuration.md")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != b.String() {
		t.Error("docs/configuration.md is not current: go test ./services/node/config -update")
	}
}
