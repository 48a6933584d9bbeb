package enclave

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a script of this directory with bin in front of PATH.
func run(t *testing.T, bin, script string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "./"+script, args...)
	c.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := c.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// fakeEGo is an "ego" that notes how it was called, and signs only if it finds the key under the name that enclave.json says.
func fakeEGo(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	write(t, filepath.Join(bin, "ego"), `#!/bin/sh
case $1 in
sign) [ "$2" = enclave.json ] && [ -s signing-key.pem ] && echo signed >>safeconductd ;;
uniqueid) echo aaaa ;;
signerid) echo bbbb ;;
esac
`, 0o755)
	return bin
}

// built is a directory as build.sh leaves it.
func built(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"safeconductd": "executable\n", "enclave.json": string(read(t, "enclave.json")), "policy-keys.pem": "keys\n"}
	list := "version test\n"
	for name, text := range files {
		write(t, filepath.Join(dir, name), text, 0o600)
		list += fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(text)), name)
	}
	write(t, filepath.Join(dir, "BUILD"), list+strings.Repeat("0", 64)+"  /opt/ego/share/ego-enclave\n", 0o600)
	return dir
}

func rsaKey(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl")
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	if out, err := exec.CommandContext(t.Context(), "openssl", append([]string{"genrsa", "-out", key}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return key
}

func TestSignSignsWhatWasBuiltAndSaysWhatAPolicyNames(t *testing.T) {
	dir, bin := built(t), fakeEGo(t)
	out, err := run(t, bin, "sign.sh", dir, rsaKey(t, "-3", "3072"))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"mrenclave aaaa\n", "mrsigner bbbb\n", "debug false\n", "productID 1\n", "securityVersion 1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("it said %q, want %q in it", out, want)
		}
	}
	if string(read(t, filepath.Join(dir, "safeconductd"))) != "executable\nsigned\n" || string(read(t, filepath.Join(dir, "SIGNED"))) != out {
		t.Error("it did not sign, or did not note it")
	}
	if _, err := os.Lstat(filepath.Join(dir, "signing-key.pem")); err == nil {
		t.Error("it left the key behind")
	}
}

func TestSignRefuses(t *testing.T) {
	good, bin := rsaKey(t, "-3", "3072"), fakeEGo(t)
	for name, tc := range map[string]struct {
		key    string
		change func(dir string)
		says   string
	}{
		"a key that does not exist, which ego would make": {key: "/nonexistent.pem", says: "no such key"},
		"a key of another exponent":                       {key: rsaKey(t, "3072"), says: "exponent 3"},
		"a key of another size":                           {key: rsaKey(t, "-3", "2048"), says: "exponent 3"},
		"a file that is no key":                           {key: write(t, filepath.Join(t.TempDir(), "k"), "x", 0o600), says: "expected an RSA private key"},
		"another executable than was built": {
			key: good, change: func(dir string) { write(t, filepath.Join(dir, "safeconductd"), "other", 0o600) }, says: "safeconductd: FAILED",
		},
		"another enclave.json than was laid out": {
			key: good, change: func(dir string) { write(t, filepath.Join(dir, "enclave.json"), "{}", 0o600) }, says: "enclave.json: FAILED",
		},
		"a key in the directory already": {
			key: good, change: func(dir string) { write(t, filepath.Join(dir, "signing-key.pem"), "x", 0o600) }, says: "in the way",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := built(t)
			if tc.change != nil {
				tc.change(dir)
			}
			out, err := run(t, bin, "sign.sh", dir, tc.key)
			if err == nil || !strings.Contains(out, tc.says) {
				t.Errorf("got %v: %s; want it to say %q", err, out, tc.says)
			}
			if _, err := os.Stat(filepath.Join(dir, "SIGNED")); err == nil {
				t.Error("it signed")
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys := write(t, filepath.Join(dir, "keys.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), 0o600)
	secret := write(t, filepath.Join(dir, "secret.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), 0o600)
	out := filepath.Join(dir, "out")
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"no policy keys":                    {[]string{"--out", out}, "usage"},
		"no directory":                      {[]string{"--policy-keys", keys}, "usage"},
		"an unknown option":                 {[]string{"--policy-keys", keys, "--out", out, "--debug"}, "usage"},
		"a directory that is there":         {[]string{"--policy-keys", keys, "--out", dir}, "exists"},
		"a private key for policy keys":     {[]string{"--policy-keys", secret, "--out", out}, "expected public keys"},
		"a version that is a linker's flag": {[]string{"--policy-keys", keys, "--out", out, "--version", "1 -X main.x=y"}, "expected letters"},
		"a compiler that is not there":      {[]string{"--policy-keys", keys, "--out", out, "--go", "no-such-go"}, "install EGo"},
	} {
		t.Run(name, func(t *testing.T) {
			said, err := run(t, dir, "build.sh", tc.args...)
			if err == nil || !strings.Contains(said, tc.says) {
				t.Errorf("got %v: %s; want it to say %q", err, said, tc.says)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("it laid out a result")
			}
		})
	}
}
