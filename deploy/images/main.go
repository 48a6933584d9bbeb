// Command images makes the container images of this project from built binaries, without a container engine: the same binaries give the same bytes.
//
// Each image is one layer: static executables, a passwd with our users, the licence, and an SBOM made from what the Go linker recorded. There is no shell, no
// package manager and no C library in it. The enclave's image is not made here: deploy/images/enclave.Dockerfile.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	bin := f.String("bin", "build/bin", "directory of the binaries")
	out := f.String("out", "build/images", "directory for NAME.tar (docker load, ctr images import), NAME.oci and NAME.cdx.json")
	tag := f.String("tag", "0.1.0", "tag of every image")
	repository := f.String("repository", "safeconduct", "what every image's name begins with")
	licence := f.String("licence", "LICENSE", "text of the licence")
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, i := range Images() {
		if i.Optional {
			if _, err := os.Stat(filepath.Join(*bin, i.Programs[0])); errors.Is(err, os.ErrNotExist) {
				fmt.Printf("%s left out: there is no %s\n", i.Name, i.Programs[0])
				continue
			}
		}
		if err := write(i, *bin, *out, *repository, *tag, *licence); err != nil {
			return fmt.Errorf("%s: %w", i.Name, err)
		}
	}
	return nil
}

func write(i Image, bin, out, repository, tag, licence string) error {
	text, err := os.ReadFile(licence)
	if err != nil {
		return err
	}
	img, bom, err := i.Build(bin, tag, text)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	ref, err := name.NewTag(repository + "/" + i.Name + ":" + tag)
	if err != nil {
		return err
	}
	base := filepath.Join(out, i.Name)
	if err := os.RemoveAll(base + ".oci"); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := tarball.WriteToFile(base+".tar", ref, img); err != nil {
		return err
	}
	index, err := layout.Write(base+".oci", emptyIndex)
	if err != nil {
		return err
	}
	if err := index.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref.String()})); err != nil {
		return err
	}
	if err := os.WriteFile(base+".cdx.json", bom, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s %s\n", ref, digest)
	return nil
}
