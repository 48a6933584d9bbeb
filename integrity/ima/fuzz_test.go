package ima

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// small keeps a fuzzer's inputs from being slow for nothing.
var small = Limits{Entries: 1000, EntryBytes: 64 << 10, Bytes: 1 << 20}

func seeds() []written {
	return []written{ng(bootAggregate, 1), legacy("/sbin/init"), violation("/x"), sig("/a b", "s"), sig("/a", ""), buf("kexec-cmdline", "quiet")}
}

// rewritten is an entry that was read, to be written again by the tests' own writer.
func rewritten(e *Entry) written {
	w := written{pcr: e.PCR, template: e.Template, data: e.Data}
	if e.Template == legacyTemplate {
		w.legacyName = e.Path
	}
	return w
}

// FuzzBinary demands that whatever is accepted is exactly what the kernel would write for it.
func FuzzBinary(f *testing.F) {
	f.Add(binaryList(append(seeds(), opaque())...))
	for _, w := range seeds() {
		f.Add(w.binary())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 || raw[0] > maxPCR {
			return
		}
		offset := 0
		for e, err := range Entries(bytes.NewReader(raw), small) {
			if err != nil {
				asAnyError(t, err)
				return
			}
			again := rewritten(&e).binary()
			copy(again[4:], e.Recorded[:])
			if !bytes.HasPrefix(raw[offset:], again) {
				t.Fatalf("entry %d: read %x, which is written %x", e.Number, raw[offset:], again)
			}
			offset += len(again)
		}
		if offset != len(raw) {
			t.Fatalf("%d bytes left unread without an error", len(raw)-offset)
		}
	})
}

// FuzzASCII demands that whatever is accepted from the ASCII list has a binary form that reads as the same entry.
func FuzzASCII(f *testing.F) {
	f.Add(asciiList(seeds()...))
	for _, w := range seeds() {
		f.Add(w.ascii())
	}
	if raw, err := os.ReadFile(filepath.Join(vectors(), "keylime_ima_sig_combined.ascii")); err == nil {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 || raw[0] <= maxPCR {
			return
		}
		for e, err := range Entries(bytes.NewReader(raw), small) {
			if err != nil {
				asAnyError(t, err)
				return
			}
			again := rewritten(&e).binary()
			copy(again[4:], e.Recorded[:])
			all, err := readAll(t, again, Limits{})
			if err != nil || len(all) != 1 {
				t.Fatalf("entry %d: its binary form %x: %v", e.Number, again, err)
			}
			all[0].Number = e.Number
			if found, expected := fmt.Sprintf("%+v", all[0]), fmt.Sprintf("%+v", e.Clone()); found != expected {
				t.Fatalf("binary %s\nASCII  %s", found, expected)
			}
		}
	})
}

func asAnyError(t *testing.T, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Entry < 1 || len(e.Error()) > 2000 {
		t.Fatalf("error %v", err)
	}
}
