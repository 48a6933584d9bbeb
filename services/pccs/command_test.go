package pccs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/collateral/pinned"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	client "github.com/safeconduct/safeconduct/attestation/pccs"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// run runs the command and returns what it prints.
func run(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	c := Command()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetOut(&out)
	c.SetErr(io.Discard)
	c.SetArgs(args)
	err := c.ExecuteContext(ctx)
	return out.String(), err
}

// serving runs "serve" with the flags and returns its address. It ends with the test.
func serving(t *testing.T, f serveFlags) string {
	t.Helper()
	f.listen = "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- f.serve(ctx, slog.New(slog.DiscardHandler), func(a net.Addr) { ready <- a }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case a := <-ready:
		return a.String()
	case err := <-done:
		done <- nil
		t.Fatal(err)
		return ""
	}
}

// tlsFiles makes a certificate for 127.0.0.1 and its key.
func tlsFiles(t *testing.T) (certificate, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(t.TempDir(), "tls.pem"), filepath.Join(t.TempDir(), "tls.key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// TestTheAirGappedProcedure goes through docs/collateral.md: fetch into a bundle, carry it, serve it, and import it.
func TestTheAirGappedProcedure(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, key.String()), r.issue(t, simulated.CollateralOptions{}))
	certificate, tlsKey := tlsFiles(t)
	connected := "https://" + serving(t, serveFlags{dir: dir, certificate: certificate, key: tlsKey})
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	args := []string{"fetch", "--url", connected, "--tls-ca", certificate, "--root", filepath.Join(r.dir, simulated.RootFile), "--out", bundle, key.String()}
	if out, err := run(t.Context(), args...); err != nil || !strings.HasPrefix(out, key.String()+": valid until 20") {
		t.Fatalf("printed %q, %v", out, err)
	}

	apart := serving(t, serveFlags{bundle: bundle})
	source, err := client.New(client.Options{BaseURL: "http://" + apart})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	fetched, err := source.Fetch(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]collateral.Source{"served": source, "as a file": collateral.BundleFile{Path: bundle}} {
		c, err := collateral.NewCache(collateral.Config[*dcap.CheckedCollateral]{Source: s, Check: pinned.Checker{Root: r.pin}.Check})
		if err != nil {
			t.Fatal(err)
		}
		if _, meta, err := c.Get(t.Context(), key); err != nil || meta.Digest != fetched.Digest() {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	f, err := os.Open(bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := collateral.NewCache(collateral.Config[*dcap.CheckedCollateral]{Check: pinned.Checker{Root: r.pin}.Check})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if done, err := c.Import(f); err != nil || len(done.Changed) != 1 {
		t.Errorf("imported %+v, %v", done, err)
	}
}

func TestABundleIsNotWrittenUnlessEverySetIsGood(t *testing.T) {
	r := newRig(t)
	dir, out := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, key.String()), r.issue(t, simulated.CollateralOptions{}))
	expired := collateral.Key{FMSPC: [6]byte{7}, CA: collateral.PlatformCA}
	write(t, filepath.Join(dir, expired.String()), r.issue(t, simulated.CollateralOptions{
		FMSPC: expired.FMSPC, At: time.Now().Add(-2 * time.Hour), Validity: time.Hour,
	}))
	url := "http://" + serving(t, serveFlags{dir: dir})
	bundle, root := filepath.Join(out, "bundle.json"), filepath.Join(r.dir, simulated.RootFile)
	if err := os.WriteFile(bundle, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		err  error
	}{
		"under Intel's root":       {[]string{key.String()}, dcap.CheckRoot},
		"an expired set":           {[]string{"--root", root, key.String(), expired.String()}, collateral.ErrExpired},
		"no such set":              {[]string{"--root", root, key.String(), "010203040506-platform"}, client.ErrStatus},
		"no key":                   {[]string{"--root", root, "x"}, collateral.ErrKey},
		"no root file":             {[]string{"--root", bundle, key.String()}, dcap.ErrRootFile},
		"no CA file":               {[]string{"--tls-ca", bundle, key.String()}, errNoCA},
		"an unknown update":        {[]string{"--update", "late", key.String()}, client.ErrOptions},
		"a root that is not there": {[]string{"--root", bundle + "x", key.String()}, os.ErrNotExist},
	} {
		if _, err := run(t.Context(), append([]string{"fetch", "--url", url, "--out", bundle}, tc.args...)...); !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v, want %v", name, err, tc.err)
		}
	}
	if files, err := os.ReadDir(out); err != nil || len(files) != 1 || string(read(t, bundle)) != "before" {
		t.Errorf("found %v, %v", files, err)
	}
}

func TestTheCommandsFlagsAreChecked(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing to serve":          {"serve"},
		"two things to serve":       {"serve", "--dir", "a", "--bundle", "b"},
		"a certificate without key": {"serve", "--dir", "a", "--tls-certificate", "c"},
		"an argument":               {"serve", "--dir", "a", "b"},
		"nothing to fetch":          {"fetch", "--out", "x"},
		"nowhere to put it":         {"fetch", key.String()},
	} {
		if _, err := run(t.Context(), args...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := run(t.Context(), "serve", "--dir", t.TempDir()); !errors.Is(err, ErrEmpty) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := run(t.Context(), "serve", "--dir", newRig(t).dir, "--listen", "256.0.0.1:x"); err == nil {
		t.Error("listens nowhere")
	}
}

func TestServeSaysWhereItListensAndEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	c := Command()
	c.SetOut(write)
	c.SetErr(io.Discard)
	c.SetArgs([]string{"serve", "--dir", r.dir, "--listen", "127.0.0.1:0"})
	done := make(chan error, 1)
	go func() { done <- c.ExecuteContext(ctx) }()
	line := make([]byte, 100)
	n, err := read.Read(line)
	address, ok := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "listening on ")
	if err != nil || !ok {
		t.Fatalf("printed %q, %v", line[:n], err)
	}
	res, err := http.Get("http://" + address + apiPath + "/rootcacrl")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("got %v, %v", res, err)
	}
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
