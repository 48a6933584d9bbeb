package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// enclaveRig is a signed release, as build.sh and sign.sh leave it, and an engine that only writes down what it is asked for.
type enclaveRig struct {
	dir  string
	args map[string]string
}

const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func newEnclaveRig(t *testing.T) *enclaveRig {
	t.Helper()
	r := &enclaveRig{dir: t.TempDir()}
	r.write(t, "release/safeconductd", "the signed enclave", 0o755)
	r.write(t, "release/BUILD", "version v1\n", 0o644)
	r.write(t, "release/SIGNED", "mrenclave 00\ndebug false\n", 0o644)
	r.write(t, "packages/libsgx-dcap-default-qpl.deb", "a package", 0o644)
	r.write(t, "packages/SHA256SUMS", fmt.Sprintf("%x  libsgx-dcap-default-qpl.deb\n", sha256.Sum256([]byte("a package"))), 0o644)
	r.write(t, "engine", "#!/bin/sh\necho \"$@\"\nfor c; do :; done\ncd \"$c\" && find . -type f | sort | xargs ls -l\n", 0o755)
	r.args = map[string]string{
		"--base": "registry.example/ego-deploy" + digest, "--release": r.dir + "/release", "--tag": "registry.example/node:1.0", "--packages": r.dir + "/packages",
		"--cli": filepath.Join(binaries(t, "0"), "safeconduct"),
	}
	return r
}

func (r *enclaveRig) write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func (r *enclaveRig) run() (string, error) {
	c := exec.Command("./enclave.sh")
	for k, v := range r.args {
		c.Args = append(c.Args, k, v)
	}
	c.Env = append(os.Environ(), "ENGINE="+r.dir+"/engine")
	out, err := c.CombinedOutput()
	return string(out), err
}

func TestTheEnclavesImageIsBuiltFromASignedReleaseOnAPinnedBase(t *testing.T) {
	r := newEnclaveRig(t)
	out, err := r.run()
	if err != nil {
		t.Fatal(out)
	}
	for _, part := range []string{
		"--build-arg BASE=registry.example/ego-deploy" + digest, "--tag registry.example/node:1.0", "enclave.Dockerfile",
		"./packages/libsgx-dcap-default-qpl.deb", "./safeconductd", "./safeconduct\n", "./SIGNED", "./BUILD", "./LICENSE",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("the engine is not given %q: %s", part, out)
		}
	}
}

func TestWhatIsNotPinnedOrSignedIsNoEnclavesImage(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, r *enclaveRig)
		says  string
	}{
		"a base by tag":   {func(_ *testing.T, r *enclaveRig) { r.args["--base"] = "registry.example/ego-deploy:v1.9.0" }, "a tag may be another image tomorrow"},
		"latest":          {func(_ *testing.T, r *enclaveRig) { r.args["--tag"] = "registry.example/node:latest" }, "not latest"},
		"not signed":      {func(t *testing.T, r *enclaveRig) { _ = os.Remove(r.dir + "/release/SIGNED") }, "sign the release first"},
		"a DEBUG enclave": {func(t *testing.T, r *enclaveRig) { r.write(t, "release/SIGNED", "debug true\n", 0o644) }, "keeps nothing from its host"},
		"another package": {func(t *testing.T, r *enclaveRig) {
			r.write(t, "packages/libsgx-dcap-default-qpl.deb", "another", 0o644)
		}, "not what SHA256SUMS says"},
		"an unlisted package": {func(t *testing.T, r *enclaveRig) { r.write(t, "packages/more.deb", "more", 0o644) }, "more.deb is not what SHA256SUMS says"},
		"packages unsummed":   {func(t *testing.T, r *enclaveRig) { _ = os.Remove(r.dir + "/packages/SHA256SUMS") }, "SHA256SUMS is missing"},
		"no release":          {func(_ *testing.T, r *enclaveRig) { delete(r.args, "--release") }, "usage:"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newEnclaveRig(t)
			c.spoil(t, r)
			if out, err := r.run(); err == nil || !strings.Contains(out, c.says) || strings.Contains(out, "--build-arg") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

var copied = regexp.MustCompile(`(?m)^COPY (.+) (\S+)$`)

// TestTheEnclavesImageIsWhereTheChartLooks holds the Dockerfiles to what they say of themselves.
func TestTheEnclavesImageIsWhereTheChartLooks(t *testing.T) {
	raw, err := os.ReadFile("enclave.Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var to []string
	for _, m := range copied.FindAllStringSubmatch(string(raw), -1) {
		to = append(to, m[2])
	}
	daemonset, err := os.ReadFile("../../charts/safeconduct/templates/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/usr/lib/safeconduct/safeconductd", "/usr/bin/safeconduct"} {
		if !slices.Contains(to, path) || !strings.Contains(string(daemonset), path) {
			t.Errorf("%s is in the image: %v; in the chart: %v", path, slices.Contains(to, path), strings.Contains(string(daemonset), path))
		}
	}
	if !strings.Contains(string(raw), "\nUSER 64061:64061\n") {
		t.Error("the image's user is not the chart's")
	}
	for _, file := range []string{"enclave.Dockerfile", "../openstack-helm/nova.Dockerfile"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(raw), "\n") {
			if base, ok := strings.CutPrefix(line, "FROM "); ok && base != "${BASE}" {
				t.Errorf("%s has the base %s: expected one that whoever builds names, by digest", file, base)
			}
			if line == "ARG BASE" || !strings.HasPrefix(line, "ARG BASE") {
				continue
			}
			t.Errorf("%s: %s: a base by default is nobody's choice", file, line)
		}
	}
}
