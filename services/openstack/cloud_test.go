package openstack

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestATokenThatExpiresIsReplaced(t *testing.T) {
	f := newFakeCloud(t)
	c := f.cloud(t)
	for i := range 3 {
		if _, err := c.ComputesUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.change(func() { f.valid = "" }) // it has expired
		if f.tokens != i+1 {
			t.Errorf("%d tokens after %d expiries", f.tokens, i)
		}
	}
}

func TestManyCallsAtOnceShareOneToken(t *testing.T) {
	f := newFakeCloud(t)
	c := f.cloud(t)
	if _, err := c.ComputesUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.valid = "" })
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := c.ComputesUp(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCredentialsThatWereChangedAreReadAgain(t *testing.T) {
	f := newFakeCloud(t)
	cfg := f.config(t)
	file := cfg.ApplicationCredential.SecretFile
	if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := NewCloud(cfg)
	defer c.Close()
	_, err := c.ComputesUp(t.Context())
	e, ok := errors.AsType[*CloudError](err)
	if !ok || e.Service != Identity || e.Kind() != kindDenied {
		t.Fatalf("got %v", err)
	}
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ComputesUp(t.Context()); err != nil {
		t.Error(err)
	}
	// And in the middle of its life: the token and the old secret no longer count.
	if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.valid, f.down[Identity] = "", http.StatusUnauthorized })
	if _, err = c.ComputesUp(t.Context()); err == nil {
		t.Fatal("accepted")
	}
	f.change(func() { f.down[Identity] = 0 })
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ComputesUp(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAServiceThatIsDownIsNamed(t *testing.T) {
	for service, code := range map[Service]int{Identity: 503, Compute: 500, Placement: 502} {
		f := newFakeCloud(t)
		c := f.cloud(t)
		f.change(func() { f.down[service] = code })
		_, err := c.ComputesUp(t.Context())
		if service == Placement {
			_, err = c.ProvidersWith(t.Context(), TraitAttested)
		}
		e, ok := errors.AsType[*CloudError](err)
		if !ok || e.Service != service || e.Kind() != kindUnavailable || e.Remedy() == "" {
			t.Errorf("%s: got %v", service, err)
		}
		f.change(func() { f.down[service] = 0 })
		if _, err := c.ComputesUp(t.Context()); err != nil {
			t.Errorf("%s is up again: %v", service, err)
		}
	}
	f := newFakeCloud(t)
	c := f.cloud(t)
	f.server.Close()
	if _, err := c.ComputesUp(t.Context()); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestARedirectDoesNotTakeTheTokenAway(t *testing.T) {
	f := newFakeCloud(t)
	c := f.cloud(t)
	f.change(func() { f.down[Compute] = http.StatusFound })
	if _, err := c.ComputesUp(t.Context()); err == nil {
		t.Error("followed")
	}
}

func TestAReplyWithoutEndIsCutOff(t *testing.T) {
	b := &boundedBody{ReadCloser: endless{}, left: 100}
	buffer, total := make([]byte, 64), 0
	for {
		n, err := b.Read(buffer)
		if total += n; err != nil {
			break
		}
	}
	if total != 100 {
		t.Errorf("%d bytes read", total)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
func (endless) Close() error               { return nil }

func TestCredentialsOfACloudsFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "clouds.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFakeCloud(t)
	good := fmt.Sprintf("clouds:\n  sc:\n    auth_type: v3applicationcredential\n    region_name: R\n    auth:\n      auth_url: %s/identity/v3\n      application_credential_id: abc\n", f.server.URL)
	for name, tc := range map[string]struct{ clouds, secure, cloud, want string }{
		"the secret in secure.yaml":       {good, "clouds:\n  sc:\n    auth:\n      application_credential_secret: " + secret + "\n", "sc", ""},
		"the secret beside the rest":      {good + "      application_credential_secret: " + secret + "\n", "", "sc", ""},
		"a cloud that is not in the file": {good, "", "other", `cloud "other"`},
		"no file":                         {"", "", "sc", "no such file"},
		"no auth_url":                     {"clouds:\n  sc:\n    auth: {username: x}\n", "", "sc", "auth_url"},
		"not YAML":                        {"clouds: [", "", "sc", "yaml"},
		"certificates not to be verified": {good + "    verify: false\n", "", "sc", "verify is false"},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(file)
			if tc.clouds != "" {
				write("clouds.yaml", tc.clouds)
			}
			write("secure.yaml", tc.secure)
			if tc.secure == "" {
				_ = os.Remove(filepath.Join(dir, "secure.yaml"))
			}
			c := NewCloud(OpenStack{Timeout: 5 * time.Second, Clouds: &Clouds{File: file, Cloud: tc.cloud}})
			defer c.Close()
			err := c.Check()
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), secret) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ComputesUp(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMigrationsAreListedToTheLastPage(t *testing.T) {
	f := newFakeCloud(t)
	for i := range 5 {
		f.migrations = append(f.migrations, Migration{UUID: fmt.Sprint("m", i), Instance: "i", Status: "running"})
	}
	got, err := f.cloud(t).LiveMigrationsOf(t.Context(), "i")
	if err != nil || len(got) != 5 || got[4].UUID != "m4" {
		t.Errorf("got %v, %v", got, err)
	}
}
