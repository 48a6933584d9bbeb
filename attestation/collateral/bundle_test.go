package collateral

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func twoEntries() []Entry {
	withChain := complete()
	withChain.PCKCRLIssuerChain = []byte("6")
	return []Entry{
		{Key: keyB, Fetched: day.Add(time.Hour + time.Millisecond), Collateral: withChain},
		{Key: keyA, Fetched: day, Collateral: complete()},
	}
}

func encoded(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := WriteBundle(&out, entries); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestABundleReadsBackInTheOrderOfItsKeys(t *testing.T) {
	raw := encoded(t, twoEntries())
	got, err := ReadBundle(iotest.OneByteReader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Key != keyA || got[1].Key != keyB || !got[1].Fetched.Equal(day.Add(time.Hour)) {
		t.Errorf("got %+v", got)
	}
	if got[0].Collateral.Digest() != complete().Digest() || string(got[1].Collateral.PCKCRLIssuerChain) != "6" {
		t.Errorf("got %+v", got)
	}
	if again := encoded(t, got); !bytes.Equal(again, raw) {
		t.Error("written again, it is another")
	}
}

func TestWhatIsNoBundleIsRefused(t *testing.T) {
	good := string(encoded(t, twoEntries()))
	replaced := func(old, by string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the bundle", old)
		}
		return strings.Replace(good, old, by, 1)
	}
	for name, s := range map[string]string{
		"nothing":                   "",
		"an empty object":           "{}",
		"another format":            replaced("bundle/v1", "bundle/v2"),
		"something after it":        good + "{}",
		"white space after it":      good + "\n",
		"other white space":         replaced(" \"format\"", "\t\"format\""),
		"no end of line":            strings.TrimSpace(good),
		"another case of a key":     replaced(`"format"`, `"Format"`),
		"an unknown key":            replaced(`"format"`, `"x":1,"format"`),
		"a key twice":               replaced(`"fmspc": "0a`, `"fmspc": "0b0000000000", "fmspc": "0a`),
		"a missing artefact":        replaced(`"pck_crl": "NA=="`, `"pck_crl": ""`),
		"an artefact not in base64": replaced(`"NA=="`, `"4"`),
		"loose base64":              replaced(`"NA=="`, `"NB=="`),
		"base64 with a line end":    replaced(`"NA=="`, `"NA\n=="`),
		"an FMSPC in upper case":    replaced(`"0a0000000000"`, `"0A0000000000"`),
		"an unknown CA":             replaced(`"platform"`, `"root"`),
		"the keys out of order":     replaced(`"0a0000000000"`, `"0c0000000000"`),
		"an entry twice":            strings.Replace(replaced(`"0a0000000000"`, `"0b0000000000"`), "platform", "processor", 1),
		"a time in another zone":    replaced("2026-11-23T00:00:00Z", "2026-11-23T01:00:00+01:00"),
		"a fraction of a second":    replaced("2026-11-23T00:00:00Z", "2026-11-23T00:00:00.5Z"),
		"entries that are null":     "{\n \"format\": \"" + BundleFormat + "\",\n \"entries\": null\n}\n",
		"a cut end":                 good[:len(good)-20],
		"more bytes than it may be": good + strings.Repeat(" ", MaxBundle),
	} {
		if got, err := ReadBundle(strings.NewReader(s)); !errors.Is(err, ErrBundle) {
			t.Errorf("%s: got %d entries, %v", name, len(got), err)
		}
	}
}

func TestABundleThatCannotBeReadIsNoMalformedOne(t *testing.T) {
	if _, err := ReadBundle(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, ErrBundle) {
		t.Errorf("got %v", err)
	}
}

func TestNoBundleIsWrittenThatCouldNotBeRead(t *testing.T) {
	incomplete := complete()
	incomplete.QEIdentity = nil
	big := complete()
	big.PCKCRL = make([]byte, MaxPCKCRL)
	var large, many []Entry
	for i := range MaxKeys + 1 {
		e := Entry{Key: Key{[6]byte{byte(i >> 8), byte(i)}, PlatformCA}, Collateral: complete()}
		many = append(many, e)
		if e.Collateral = big; i < MaxBundle/MaxPCKCRL {
			large = append(large, e)
		}
	}
	for name, entries := range map[string][]Entry{
		"a key twice":           {twoEntries()[0], twoEntries()[0]},
		"an unknown CA":         {{Key: Key{CA: "root"}, Collateral: complete()}},
		"a missing artefact":    {{Key: keyA, Collateral: incomplete}},
		"no collateral":         {{Key: keyA}},
		"too many entries":      many,
		"more than a bundle is": large,
	} {
		var out bytes.Buffer
		if err := WriteBundle(&out, entries); !errors.Is(err, ErrBundle) || out.Len() > 0 {
			t.Errorf("%s: wrote %d bytes, %v", name, out.Len(), err)
		}
	}
	if got, err := ReadBundle(bytes.NewReader(encoded(t, many[1:]))); err != nil || len(got) != MaxKeys {
		t.Errorf("got %d entries, %v", len(got), err)
	}
}

func TestABundleFileIsASource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle.json")
	source := BundleFile{path}
	if _, err := source.Fetch(t.Context(), keyA); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, encoded(t, twoEntries()[1:]), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := source.Fetch(t.Context(), keyA); err != nil || c.Digest() != complete().Digest() {
		t.Errorf("got %v, %v", c, err)
	}
	if _, err := source.Fetch(t.Context(), keyB); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Fetch(t.Context(), keyA); !errors.Is(err, ErrBundle) {
		t.Errorf("got %v", err)
	}
}

// FuzzImport checks that no input harms an import, and that what is read has one encoding.
func FuzzImport(f *testing.F) {
	f.Add(encoded(f, twoEntries()))
	f.Add(encoded(f, nil))
	f.Add(encoded(f, []Entry{{Key: keyA, Fetched: day, Collateral: toySet("a", 1, day, time.Hour)}}))
	f.Add([]byte(`{"format":"` + BundleFormat + `","entries":[{"fmspc":"0a0000000000"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		entries, err := ReadBundle(bytes.NewReader(raw))
		c := open(t, Config[string]{Now: func() time.Time { return day }})
		done, importErr := c.Import(bytes.NewReader(raw))
		if err != nil {
			if importErr == nil || !errors.Is(err, ErrBundle) {
				t.Fatalf("read: %v, imported: %v", err, importErr)
			}
			return
		}
		if !bytes.Equal(encoded(t, entries), raw) {
			t.Fatal("a second encoding was read")
		}
		for _, key := range done.Changed {
			if _, _, err := c.Get(t.Context(), key); err != nil {
				t.Fatalf("%v was imported: %v", key, err)
			}
		}
	})
}
