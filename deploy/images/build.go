package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

var emptyIndex = empty.Index

// Image is one image.
type Image struct {
	Name string
	// Programs of it, in /usr/bin; the first is what it is for.
	Programs []string
	// User that it runs as where nobody says another: UID:GID.
	User   string
	Labels map[string]string
	// Optional: left out where its first program was not built.
	Optional bool
}

// The users that the chart runs as.
const passwd = `root:x:0:0:root:/:/nonexistent
nobody:x:65534:65534:nobody:/:/nonexistent
safeconduct:x:64061:64061:node service:/:/nonexistent
safeconduct-tunnel:x:64062:64061:tunnel:/:/nonexistent
`

const group = `root:x:0:
nobody:x:65534:
safeconduct:x:64061:
`

// Images are all of them.
func Images() []Image {
	return []Image{
		{
			Name: "node", Programs: []string{"safeconductd", "safeconduct"}, User: "64061:64061",
			Labels: map[string]string{"org.safeconduct.mode": "simulated", "org.safeconduct.warning": "SIMULATED: protects nothing"},
		},
		{Name: "host", Programs: []string{"safeconduct-place", "safeconduct-tunnel", "safeconduct-swtpm"}, User: "65534:65534"},
		{Name: "agent", Programs: []string{"safeconduct-agent"}, User: "64061:64061", Optional: true},
	}
}

// epoch is the time of everything in an image: it must not depend on when it was made.
var epoch = time.Unix(0, 0).UTC()

type file struct {
	path    string
	mode    int64
	content []byte
}

// Build makes the image, and its SBOM in CycloneDX.
func (i Image) Build(bin, version string, licence []byte) (v1.Image, []byte, error) {
	bom, err := sbom(i, bin, version)
	if err != nil {
		return nil, nil, err
	}
	files := []file{
		{"etc/passwd", 0o644, []byte(passwd)}, {"etc/group", 0o644, []byte(group)},
		{"usr/share/doc/safeconduct/LICENSE", 0o644, licence}, {"usr/share/sbom/" + i.Name + ".cdx.json", 0o644, bom},
	}
	for _, p := range i.Programs {
		raw, err := os.ReadFile(filepath.Join(bin, p))
		if err != nil {
			return nil, nil, err
		}
		if err := static(raw); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		}
		files = append(files, file{"usr/bin/" + p, 0o755, raw})
	}
	layer, err := pack(files)
	if err != nil {
		return nil, nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "deploy/images"}}); err != nil {
		return nil, nil, err
	}
	labels := map[string]string{"org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.version": version}
	for k, v := range i.Labels {
		labels[k] = v
	}
	img, err = mutate.ConfigFile(img, withConfig(img, i, labels))
	return img, bom, err
}

func withConfig(img v1.Image, i Image, labels map[string]string) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil { // of an image in memory
		panic(err)
	}
	c = c.DeepCopy()
	c.Architecture, c.OS, c.Created = "amd64", "linux", v1.Time{Time: epoch}
	c.Config = v1.Config{User: i.User, Entrypoint: []string{"/usr/bin/" + i.Programs[0]}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/", Labels: labels}
	return c
}

// static refuses what would need more than itself in the image.
func static(raw []byte) error {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("is dynamically linked: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// pack makes the layer: parents before their children, everything root's, at one time.
func pack(files []file) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	for _, f := range files {
		var parents []string
		for d := filepath.Dir(f.path); !made[d]; d = filepath.Dir(d) {
			parents = append([]string{d}, parents...)
			made[d] = true
		}
		for _, d := range parents {
			if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: f.path, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.content)), ModTime: epoch, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	raw := b.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, tarball.WithMediaType(types.OCILayer))
}
