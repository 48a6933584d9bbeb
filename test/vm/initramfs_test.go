package vm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func TestTheInitramfsHasTheBinaryAsInit(t *testing.T) {
	dir := t.TempDir()
	binary, out := filepath.Join(dir, "guest"), filepath.Join(dir, "initrd")
	want := bytes.Repeat([]byte("\x7fELF and so on "), 1000)
	if err := os.WriteFile(binary, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := BuildInitramfs(binary, out, []byte("a marker")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]cpio.FileMode{}
	for r := cpio.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h.Mode
		if h.Name == "init" {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("init has %d bytes (%v), expected the binary's %d", len(got), err, len(want))
			}
		}
	}
	if found["init"].Perm() != 0o755 || !found["dev"].IsDir() || !found["proc"].IsDir() || !found["sys"].IsDir() || found[MarkerFile].Perm() != 0o600 {
		t.Errorf("found %v, expected init (0755), marker (0600), dev, proc, sys", found)
	}
	if err := BuildInitramfs(filepath.Join(dir, "absent"), out, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, expected %v", err, os.ErrNotExist)
	}
}
