package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// binaries builds one small program under all names: what is tested is the image, not what the programs do.
func binaries(t *testing.T, cgo string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.test/program\n\ngo 1.26.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	source := "package main\n\nfunc main() {}\n"
	if cgo == "1" {
		source = "package main\n\nimport \"C\"\n\nfunc main() {}\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, i := range Images() {
		for _, p := range i.Programs {
			c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "bin", p), ".")
			c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED="+cgo, "GOFLAGS=", "GOWORK=off")
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	return filepath.Join(dir, "bin")
}

func contents(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	found := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(h.Name, "/")] = h
	}
}

func TestImagesHoldTheirProgramsAndNothingElse(t *testing.T) {
	bin := binaries(t, "0")
	for _, i := range Images() {
		t.Run(i.Name, func(t *testing.T) {
			img, bom, err := i.Build(bin, "1.2.3", []byte("licence"))
			if err != nil {
				t.Fatal(err)
			}
			expected := []string{"etc", "etc/group", "etc/passwd", "usr", "usr/bin", "usr/share", "usr/share/doc", "usr/share/doc/safeconduct",
				"usr/share/doc/safeconduct/LICENSE", "usr/share/sbom", "usr/share/sbom/" + i.Name + ".cdx.json"}
			for _, p := range i.Programs {
				expected = append(expected, "usr/bin/"+p)
			}
			slices.Sort(expected)
			var names []string
			for name, h := range contents(t, img) {
				names = append(names, name)
				if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(0, 0)) || h.Mode&0o6022 != 0 {
					t.Errorf("%s is of %d:%d, mode %o, time %v", name, h.Uid, h.Gid, h.Mode, h.ModTime)
				}
			}
			slices.Sort(names)
			if !slices.Equal(names, expected) {
				t.Errorf("found %v, expected %v", names, expected)
			}
			c, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if c.Config.User == "" || strings.HasPrefix(c.Config.User, "0") {
				t.Errorf("it runs as %q", c.Config.User)
			}
			if simulated := slices.Contains(i.Programs, "safeconductd"); simulated != (c.Config.Labels["org.safeconduct.mode"] == "simulated") {
				t.Errorf("labels %v", c.Config.Labels)
			}
			checkSBOM(t, i, bom)
		})
	}
}

func checkSBOM(t *testing.T, i Image, raw []byte) {
	t.Helper()
	var bom struct {
		BOMFormat  string `json:"bomFormat"`
		Components []struct {
			Name, Purl string
			Hashes     []struct{ Content string }
		}
	}
	if err := json.Unmarshal(raw, &bom); err != nil || bom.BOMFormat != "CycloneDX" {
		t.Fatalf("%v %q", err, bom.BOMFormat)
	}
	found := map[string]bool{}
	for _, c := range bom.Components {
		found[c.Name] = len(c.Hashes) == 1 || c.Purl != ""
	}
	for _, p := range append([]string{"stdlib"}, i.Programs...) {
		if !found[p] {
			t.Errorf("%s is not in the SBOM, or without digest and purl: %s", p, raw)
		}
	}
}

func TestTheSameBinariesGiveTheSameImage(t *testing.T) {
	bin := binaries(t, "0")
	var digests []string
	for range 2 {
		img, _, err := Images()[0].Build(bin, "1.2.3", []byte("licence"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
	program := filepath.Join(bin, "safeconduct")
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, append(raw, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	img, _, err := Images()[0].Build(bin, "1.2.3", []byte("licence"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d.String() == digests[0] {
		t.Errorf("another program, the same digest: %v %v", d, err)
	}
}

func TestADynamicProgramIsRefused(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no C compiler")
	}
	if _, _, err := Images()[0].Build(binaries(t, "1"), "1", nil); err == nil || !strings.Contains(err.Error(), "dynamically linked") {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoProgramIsRefused(t *testing.T) {
	bin := binaries(t, "0")
	if err := os.WriteFile(filepath.Join(bin, "safeconductd"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Images()[0].Build(bin, "1", nil); err == nil {
		t.Error("accepted")
	}
}

func TestTheCommandWritesWhatContainerdImports(t *testing.T) {
	bin, out := binaries(t, "0"), t.TempDir()
	licence := filepath.Join(out, "LICENSE")
	if err := os.WriteFile(licence, []byte("licence"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"--bin", bin, "--out", out, "--tag", "t", "--licence", licence}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "node.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(raw, []byte("safeconduct/node:t")) {
		t.Error("the tarball does not name the image")
	}
	if _, err := os.Stat(filepath.Join(out, "node.oci", "index.json")); err != nil {
		t.Error(err)
	}
}
