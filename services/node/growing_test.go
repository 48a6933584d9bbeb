package node

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestAGrowingFileIsHeldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var g growing
	read := func(want []byte) []byte {
		t.Helper()
		got, err := g.read(path, 10<<20)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes of %d, %v", len(got), len(want), err)
		}
		return got
	}
	first := random(3<<20 + 11)
	write(first)
	a := read(first)
	b := read(first)
	if &a[0] != &b[0] {
		t.Error("the same file is held twice")
	}
	grown := append(bytes.Clone(first), random(1000)...)
	write(grown)
	read(grown)
	if !bytes.Equal(a, first) {
		t.Error("what was handed out has changed")
	}
	other := random(2 << 20)
	copy(other, first[:1<<20])
	write(other)
	read(other)
	write(other[:100])
	read(other[:100])
	write(first)
	read(first)
	if !bytes.Equal(a, first) || !bytes.Equal(b, first) {
		t.Error("what was handed out has changed")
	}
	if _, err := g.read(path, 1000); err == nil {
		t.Error("a file beyond the bound is read")
	}
	if _, err := g.read(path+"x", 1000); err == nil {
		t.Error("a file that is not there is read")
	}
}
