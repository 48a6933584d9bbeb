package openstack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `mode: intel
host: compute1
node: unix:///run/safeconduct/node.sock
openstack:
  clouds: {file: /etc/safeconduct/clouds.yaml, cloud: safeconduct}
  timeout: 20s
traits:
  every: 30s
  resource_provider: compute1.example
  vtpm: inspect
  tunnel: http://127.0.0.1:9465
preflight: {every: 10m, peers: 8, max_peers: 1000, timeout: 1m}
sessions: {every: 30s, grace: 2m}
http: {listen: "127.0.0.1:9466"}
log: {level: info, format: json}
`

func TestAGoodFileIsReadWithDefaults(t *testing.T) {
	c, err := ParseConfig([]byte(good))
	if err != nil || c.Role != RoleNode || c.Traits.ResourceProvider != "compute1.example" || c.Sessions.Grace != 2*time.Minute {
		t.Fatalf("got %+v, %v", c, err)
	}
	c, err = ParseConfig([]byte("mode: simulated\nhost: compute1\nopenstack: {clouds: {file: /c, cloud: x}}\n"))
	if err != nil || c.Traits.ResourceProvider != "compute1" || c.Preflight.Peers != 8 || c.Node == "" {
		t.Errorf("got %+v, %v", c, err)
	}
	c, err = ParseConfig([]byte("mode: intel\nrole: central\nopenstack: {application_credential: {auth_url: 'https://k:5000/v3', id: a, secret_file: /s}}\n"))
	if err != nil || c.Role != RoleCentral {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestABadFileIsRefusedWithTheReason(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"an unknown key":                      {"peers: 8", "pears: 8", `unknown field "pears"`},
		"no mode":                             {"mode: intel", "", `mode is ""`},
		"a mode that does not exist":          {"mode: intel", "mode: none", `mode is "none"`},
		"a role that does not exist":          {"mode: intel", "mode: intel\nrole: both", `role is "both"`},
		"no host":                             {"host: compute1\n", "", `host is ""`},
		"no credentials":                      {"  clouds: {file: /etc/safeconduct/clouds.yaml, cloud: safeconduct}\n", "", "one of clouds and application_credential"},
		"both kinds of credentials":           {"  timeout", "  application_credential: {auth_url: 'http://k', id: a, secret_file: /s}\n  timeout", "one of clouds and application_credential"},
		"a relative path":                     {"/etc/safeconduct/clouds.yaml", "clouds.yaml", "not an absolute path"},
		"no cloud":                            {"cloud: safeconduct", "cloud: ''", "openstack.clouds.cloud is missing"},
		"vtpm of no kind":                     {"vtpm: inspect", "vtpm: perhaps", `traits.vtpm is "perhaps"`},
		"a tunnel that is no URL":             {"http://127.0.0.1:9465", "127.0.0.1:9465", "traits.tunnel is"},
		"a URL with a password in it":         {"http://127.0.0.1:9465", "http://a:b@h", "traits.tunnel is"},
		"every so often that it is an attack": {"every: 30s\n", "every: 1ms\n", "traits.every is 1ms, not between"},
		"a duration without a unit":           {"grace: 2m", "grace: 2", "time.Duration"},
		"no peers":                            {"peers: 8", "peers: 0", "preflight.peers is 0"},
		"a listener that is no address":       {"127.0.0.1:9466", "here", `http.listen is "here"`},
		"a level that does not exist":         {"level: info", "level: loud", `log.level is "loud"`},
		"nothing to do":                       {"peers: 8,", "peers: 8, off: true,", ""},
		"a key given twice":                   {"host: compute1", "host: compute1\nhost: b", "already defined"},
		"a timeout of nothing":                {"timeout: 20s", "timeout: 0s", "openstack.timeout is 0s"},
		"a preflight that takes half a day":   {"timeout: 1m}", "timeout: 12h}", "preflight.timeout is 12h0m0s"},
		"a secret in the place of a secret's file": {"  clouds: {file: /etc/safeconduct/clouds.yaml, cloud: safeconduct}",
			"  application_credential: {auth_url: 'http://k', id: a, secret_file: s3cr3t}", "not an absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, tc.old) {
				t.Fatalf("the example has no %q", tc.old)
			}
			text := strings.Replace(good, tc.old, tc.new, 1)
			if tc.want == "" {
				text = strings.NewReplacer("every: 30s\n", "every: 30s\n  off: true\n", "grace: 2m", "grace: 2m, off: true").Replace(text)
				tc.want = "there is nothing to do"
			}
			if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestTheFileIsNamedAndBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if _, err := ReadConfig(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file: %v", err)
	}
	for text, want := range map[string]string{"mode: x\n": path, strings.Repeat("#", maxConfig+1): "more than"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestCheckReadsTheCredentialsToo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.yaml")
	text := strings.Replace(good, "/etc/safeconduct/clouds.yaml", dir+"/clouds.yaml", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		var out strings.Builder
		c := Command()
		c.SetOut(&out)
		c.SetArgs([]string{"--config", path, "--check"})
		return out.String(), c.ExecuteContext(t.Context())
	}
	if _, err := check(); err == nil || !strings.Contains(err.Error(), "clouds.yaml") {
		t.Errorf("no clouds.yaml: %v", err)
	}
	clouds := "clouds: {safeconduct: {auth: {auth_url: 'https://k:5000/v3', application_credential_id: a, application_credential_secret: b}}}"
	if err := os.WriteFile(filepath.Join(dir, "clouds.yaml"), []byte(clouds), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check(); err != nil {
		t.Error(err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("mode: intel\nrole: central\nopenstack: {clouds: {file: /c, cloud: x}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := ParseConfig(raw); err == nil && (c.Mode == "" || c.OpenStack.Clouds == nil && c.OpenStack.ApplicationCredential == nil) {
			t.Errorf("accepted an incomplete configuration: %+v", c)
		}
	})
}
