package bootlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse demands that the walker and the library agree, and that everything that can be asked of an accepted log can be answered.
func FuzzParse(f *testing.F) {
	f.Add(both(ordinary()...))
	f.Add(sha1Only(ordinary()...))
	f.Add(both(locality(3), secureBoot(1), grub("kernel_cmdline: ", "/vmlinuz")))
	f.Add(append(header(algSHA384, 48, algSHA512, 64), secureBoot(1).agile(algSHA384, algSHA512)...))
	f.Add(both(written{kind: evBoot, data: variable("Boot0001", []byte("option"))}, written{kind: evTag, data: []byte("tag.len.content")}))
	if raw, err := os.ReadFile(filepath.Join(vectors(), "glinux-alex.bin")); err == nil {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(err.Error()) > 1000 {
				t.Fatalf("error %v", err)
			}
			if e.Check == CheckParser && e.Found != "" {
				if s, bad := inspect(raw); bad == nil && s.legacy {
					t.Fatalf("the library refuses a log of TPM 1.2 that has its form: %v", err)
				}
			}
			return
		}
		for i := range l.Events {
			e := &l.Events[i]
			if len(e.Text()) > 4*maxText || e.TypeName() == "" {
				t.Fatalf("event %d: text %q", e.Number, e.Text())
			}
			for bank, d := range e.Digests {
				if len(d) != bank.Size() {
					t.Fatalf("event %d: %d bytes of %v", e.Number, len(d), bank)
				}
				e.Covered(bank)
			}
		}
		for _, bank := range l.Banks {
			l.SecureBoot(bank)
			l.CommandLines(bank)
			pcrs, err := l.Replay(bank)
			if err != nil {
				continue
			}
			if c, err := l.Compare(bank, pcrs); len(pcrs) > 0 && (err != nil || !c.OK() || len(c.Unquoted) != 0) {
				t.Fatalf("a log does not match what it replays to: %+v, %v", c, err)
			}
		}
	})
}

// BenchmarkParseAndReplay is of a log of 100 ordinary boots: some 60 KiB.
func BenchmarkParseAndReplay(b *testing.B) {
	var events []written
	for range 100 {
		events = append(events, ordinary()...)
	}
	raw := both(events...)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		l, err := Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := l.Replay(0); err != nil {
			b.Fatal(err)
		}
	}
}
