package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/tee"
)

// TestConfigCheckFindsWhatStartUpWouldFind breaks a set-up in one way at a time: check and start-up say the same, and check leaves nothing behind.
func TestConfigCheckFindsWhatStartUpWouldFind(t *testing.T) {
	r := newRig(t)
	r.src.stop()
	file := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		change func(t *testing.T, c *config.Config)
		want   []string // none: accepted
	}{
		"nothing": {func(*testing.T, *config.Config) {}, nil},
		"a policy that is not there": {
			func(_ *testing.T, c *config.Config) { c.Policy.File = "/nonexistent/policy.json" }, []string{"policy: ", "/nonexistent/policy.json"},
		},
		"a policy that nobody signed": {func(t *testing.T, c *config.Config) { c.Policy.File = file(t, "{}") }, []string{"/f: "}},
		"TLS files that are not there": {
			func(_ *testing.T, c *config.Config) {
				c.Peer.TLS = &config.TLS{Certificate: "/nonexistent/a", Key: "/b", CA: "/c"}
			}, []string{"peer.tls: "},
		},
		"a caller of a method that does not exist": {
			func(_ *testing.T, c *config.Config) {
				c.Local.Callers = map[string][]uint32{"MigrationService/Amr": {0}}
			},
			[]string{`local.callers: there is no service or method "MigrationService/Amr"`},
		},
		"a CA of the PCCS that is none": {func(t *testing.T, c *config.Config) {
			c.Collateral = config.Collateral{PCCS: "https://127.0.0.1:1", PCCSCA: file(t, "x")}
		}, []string{"collateral.pccs_ca: ", "holds no certificate"}},
		"a collector of traces without a port": {
			func(_ *testing.T, c *config.Config) { c.Tracing = &config.Tracing{Endpoint: "https://otel.example"} }, []string{"tracing.endpoint: "},
		},
		"another mode": {func(_ *testing.T, c *config.Config) { c.Mode = tee.ModeIntel }, []string{"mode intel, but this enclave is simulated"}},
		"two things at once are both named": {func(_ *testing.T, c *config.Config) {
			c.Policy.File = "/nonexistent/policy.json"
			c.Tracing = &config.Tracing{Endpoint: "https://otel.example"}
		}, []string{"/nonexistent/policy.json", "tracing.endpoint: "}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := *r.src.cfg
			cfg.StateDir = filepath.Join(t.TempDir(), "state")
			tc.change(t, &cfg)
			err := Check(&cfg, func(*config.Config) (tee.Enclave, RootOfTrust, error) { return r.src.enclave, r.src.root, nil })
			if _, serr := os.Stat(cfg.StateDir); serr == nil {
				t.Error("the check has made the state directory")
			}
			if len(tc.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			started := run(t.Context(), &cfg, r.src.enclave, r.src.root, discardLog(), r.src.now)
			if err == nil || started == nil || err.Error() != started.Error() {
				t.Fatalf("check says %v, start-up %v", err, started)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q", err, w)
				}
			}
		})
	}
}

func TestTheCallersOfEveryServiceThatIsServedAreKnownToTheCheck(t *testing.T) {
	n := &node{health: newHealth(func() time.Duration { return 0 }, 0)}
	s := grpc.NewServer()
	n.registerLocal(s)
	for service, info := range s.GetServiceInfo() {
		if short, ours := strings.CutPrefix(service, "safeconduct.v1."); ours {
			for _, m := range info.Methods {
				if _, err := allowList(config.Local{Callers: map[string][]uint32{short + "/" + m.Name: {1}}}); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestTheCommandLineChecksAndPrintsConfigurations(t *testing.T) {
	command := func(args ...string) (string, error) {
		c := Command(func(*config.Config) (tee.Enclave, RootOfTrust, error) { return nil, RootOfTrust{}, tee.ErrNoHardware })
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetArgs(args)
		err := c.ExecuteContext(context.Background())
		return out.String(), err
	}
	example, err := command("config", "example")
	if err != nil || example != config.Example {
		t.Errorf("%v, %q", err, example)
	}
	file := filepath.Join(t.TempDir(), "safeconductd.yaml")
	if err := os.WriteFile(file, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command("--check", "--config", file); err != nil || out != file+": ok\n" {
		t.Errorf("--check: %q, %v", out, err)
	}
	if _, err := command("config", "check", "--config", file); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "no hardware enclave") {
		t.Errorf("config check without an enclave: %v", err)
	}
	t.Setenv("SAFECONDUCTD_HOTS", "x")
	if _, err := command("config", "check", "--config", file); err == nil || !strings.Contains(err.Error(), "did you mean SAFECONDUCTD_HOST?") {
		t.Errorf("a variable with a typing error: %v", err)
	}
}

// The durations of the example that have a default elsewhere are those.
func TestTheExampleShowsTheDefaultsOfTheCode(t *testing.T) {
	c, err := config.Parse([]byte(config.Example))
	if err != nil {
		t.Fatal(err)
	}
	limits := session.Limits{}.WithDefaults()
	for key, pair := range map[string][2]any{
		"peer.handshake_timeout":     {c.Peer.HandshakeTimeout.Or(0), defaultHandshakeTimeout},
		"peer.handshakes_per_second": {c.Peer.HandshakesPerSecond, float64(handshakeRate)},
		"sessions.arm_max_age":       {c.Sessions.ArmMaxAge.Or(0), defaultArmMaxAge},
		"sessions.max_open":          {c.Sessions.MaxOpen, limits.Open},
		"sessions.unarmed_ttl":       {c.Sessions.UnarmedTTL.Or(0), limits.UnarmedTTL},
		"sessions.armed_ttl":         {c.Sessions.ArmedTTL.Or(0), limits.ArmedTTL},
		"audit.max_file_mib":         {c.Audit.MaxFileMiB << 20, 64 << 20},
		"collateral.max_age":         {c.Collateral.MaxAge.Or(0), 24 * time.Hour},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %v in the example, %v by default", key, pair[0], pair[1])
		}
	}
	if mode := c.Local.SocketMode.Or(0); mode != 0o660 {
		t.Errorf("local.socket_mode is %o", mode)
	}
}
