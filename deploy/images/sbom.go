package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// sbom lists, for each program of an image, its digest and the modules that the linker recorded in it. It holds neither a time nor a random serial number.
func sbom(i Image, bin, version string) ([]byte, error) {
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{BOMRef: "image", Type: cdx.ComponentTypeContainer, Name: "safeconduct/" + i.Name, Version: version}}
	components := map[string]cdx.Component{}
	dependencies := []cdx.Dependency{}
	top := []string{}
	for _, p := range i.Programs {
		path := filepath.Join(bin, p)
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		info, err := buildinfo.Read(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		digest := sha256.Sum256(raw)
		ref := "usr/bin/" + p
		components[ref] = cdx.Component{
			BOMRef: ref, Type: cdx.ComponentTypeApplication, Name: p, Version: version,
			Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(digest[:])}},
		}
		needs := []string{addModule(components, &debug.Module{Path: "stdlib", Version: info.GoVersion[len("go"):]})}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			needs = append(needs, addModule(components, m))
		}
		sort.Strings(needs)
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &needs})
		top = append(top, ref)
	}
	refs := make([]string, 0, len(components))
	for ref := range components {
		refs = append(refs, ref)
	}
	sort.Strings(refs)
	all := make([]cdx.Component, 0, len(refs))
	for _, ref := range refs {
		all = append(all, components[ref])
	}
	dependencies = append([]cdx.Dependency{{Ref: "image", Dependencies: &top}}, dependencies...)
	bom.Components, bom.Dependencies = &all, &dependencies
	var b bytes.Buffer
	err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	return b.Bytes(), err
}

func addModule(components map[string]cdx.Component, m *debug.Module) string {
	purl := "pkg:golang/" + m.Path + "@" + m.Version
	components[purl] = cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
	return purl
}
