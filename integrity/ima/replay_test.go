package ima

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// vectors is the folder of real-world lists.
func vectors() string {
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		// The project's root is two folders up, and the vectors are beside it.
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	return filepath.Join(dir, "ima")
}

func TestRealListsReplayToTheRecordedValues(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(vectors(), "expected.json"))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("skipped: no vectors at %s; set SAFECONDUCT_VECTORS", vectors())
	}
	var expected map[string]struct {
		Lines      int    `json:"lines"`
		Recomputes int    `json:"template_hash_sha1_recomputes"`
		SHA1       string `json:"replayed_pcr10_sha1"`
		SHA256     string `json:"replayed_pcr10_sha256"`
	}
	if err != nil || json.Unmarshal(raw, &expected) != nil || len(expected) == 0 {
		t.Fatal("expected.json", err)
	}
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(vectors(), name))
			if err != nil {
				t.Fatal(err)
			}
			s, err := Replay(bytes.NewReader(raw), Limits{}, crypto.SHA1, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			if s.Entries != want.Lines || s.Entries-s.Mismatched != want.Recomputes {
				t.Errorf("found %d entries and %d hashes that match, expected %d and %d", s.Entries, s.Entries-s.Mismatched, want.Lines, want.Recomputes)
			}
			for algorithm, value := range map[crypto.Hash]string{crypto.SHA1: want.SHA1, crypto.SHA256: want.SHA256} {
				if got := hex.EncodeToString(s.Registers[algorithm][PCR]); got != value {
					t.Errorf("%v: found %s, expected %s", algorithm, got, value)
				}
			}
			m, err := Prefix(bytes.NewReader(raw), Limits{}, s.Registers, nil)
			if err != nil || m.Entries != want.Lines || m.Ignored != 0 {
				t.Errorf("prefix %+v, %v", m, err)
			}
		})
	}
}

// extended256 replays the SHA-256 bank by hand.
func extended256(entries ...written) []byte {
	pcr := make([]byte, 32)
	for _, w := range entries {
		d := sha256.Sum256(w.data)
		if w.violation {
			d = [32]byte(bytes.Repeat([]byte{0xff}, 32))
		}
		sum := sha256.Sum256(append(pcr, d[:]...))
		pcr = sum[:]
	}
	return pcr
}

func TestReplayExtendsAsTheKernelDoes(t *testing.T) {
	list := []written{ng(bootAggregate, 1), legacy("/sbin/init"), violation("/var/log/wtmp"), sig("/a", "s"), buf("kexec-cmdline", "quiet"), opaque()}
	s, err := Replay(bytes.NewReader(binaryList(list...)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Registers) != 1 || !bytes.Equal(s.Registers[crypto.SHA256][10], extended256(list...)) {
		t.Errorf("registers %x", s.Registers)
	}
	if s.Entries != 6 || s.Violations != 1 || s.Opaque != 1 || s.Mismatched != 0 {
		t.Errorf("summary %+v", s)
	}
	s, err = Replay(bytes.NewReader(binaryList(violation("/x"))), Limits{}, crypto.SHA1, crypto.SHA384, crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	want := sha1.Sum(append(make([]byte, 20), bytes.Repeat([]byte{0xff}, 20)...))
	if !bytes.Equal(s.Registers[crypto.SHA1][10], want[:]) || len(s.Registers[crypto.SHA384][10]) != 48 || len(s.Registers[crypto.SHA512][10]) != 64 {
		t.Errorf("registers %x", s.Registers)
	}
	if _, err := Replay(bytes.NewReader(nil), Limits{}, crypto.MD5); !errors.Is(err, CheckBank) {
		t.Errorf("MD5: %v", err)
	}
	damaged := append(binaryList(list[:2]...), 1)
	if s, err := Replay(bytes.NewReader(damaged), Limits{}); !errors.Is(err, CheckStructure) || s.Entries != 2 {
		t.Errorf("a damaged list: %+v, %v", s, err)
	}
}

func quoted(value []byte) Registers { return Registers{crypto.SHA256: {PCR: value}} }

func TestThePrefixThatAQuoteCoversIsFound(t *testing.T) {
	list := []written{ng(bootAggregate, 1), ng("/a", 2), violation("/b"), ng("/a", 2), sig("/c", "s")}
	for n := 1; n <= len(list); n++ {
		for kind, raw := range map[string][]byte{"binary": binaryList(list...), "ASCII": asciiList(list...)} {
			var seen []string
			m, err := Prefix(bytes.NewReader(raw), Limits{}, quoted(extended256(list[:n]...)), func(e *Entry) error {
				seen = append(seen, e.Path)
				return nil
			})
			if err != nil || m != (Match{Entries: n, Ignored: len(list) - n}) || len(seen) != n {
				t.Errorf("%s, %d entries: %+v, %d visited, %v", kind, n, m, len(seen), err)
			}
		}
	}
	// What follows the prefix may be damaged.
	raw := append(binaryList(list...), 1, 2, 3)
	m, err := Prefix(bytes.NewReader(raw), Limits{}, quoted(extended256(list[:3]...)), nil)
	if err != nil || m.Entries != 3 || m.Ignored != 2 || !errors.Is(m.IgnoredErr, CheckStructure) {
		t.Errorf("%+v, %v", m, err)
	}
	// It may also extend another PCR.
	other := ng("/d", 1)
	other.pcr = 11
	if m, err := Prefix(bytes.NewReader(binaryList(append(list, other)...)), Limits{}, quoted(extended256(list...)), nil); err != nil || m.Ignored != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestAPrefixOfSeveralPCRsMatchesThemAllAtOnce(t *testing.T) {
	other := ng("/d", 9)
	other.pcr = 11
	list := []written{ng("/a", 1), other, ng("/b", 2)}
	want := Registers{crypto.SHA256: {10: extended256(list[0]), 11: extended256(other)}}
	if m, err := Prefix(bytes.NewReader(binaryList(list...)), Limits{}, want, nil); err != nil || m.Entries != 2 {
		t.Errorf("%+v, %v", m, err)
	}
	want[crypto.SHA256][11] = make([]byte, 32)
	if m, err := Prefix(bytes.NewReader(binaryList(list...)), Limits{}, want, nil); err != nil || m.Entries != 1 {
		t.Errorf("PCR 11 not yet extended: %+v, %v", m, err)
	}
}

func TestAListThatDoesNotReplayIsRefused(t *testing.T) {
	list := []written{ng(bootAggregate, 1), ng("/a", 2), ng("/b", 3)}
	good := extended256(list...)
	stop := errors.New("stop")
	other := ng("/a", 2)
	other.pcr = 11
	for name, c := range map[string]struct {
		entries []written
		quoted  Registers
		check   Check
	}{
		"an entry removed":            {[]written{list[0], list[2]}, quoted(good), CheckPrefix},
		"an entry changed":            {[]written{list[0], ng("/a", 4), list[2]}, quoted(good), CheckPrefix},
		"a path changed":              {[]written{list[0], ng("/A", 2), list[2]}, quoted(good), CheckPrefix},
		"entries swapped":             {[]written{list[1], list[0], list[2]}, quoted(good), CheckPrefix},
		"an entry added":              {[]written{list[0], list[1], list[1], list[2]}, quoted(good), CheckPrefix},
		"an entry called a violation": {[]written{list[0], violation("/a"), list[2]}, quoted(good), CheckPrefix},
		"a list cut short":            {list[:2], quoted(good), CheckPrefix},
		"an empty list":               {nil, quoted(good), CheckPrefix},
		"another PCR":                 {[]written{list[0], other, list[2]}, quoted(good), CheckPCR},
		"a PCR that nobody extended":  {list, quoted(make([]byte, 32)), CheckQuoted},
		"a value of another size":     {list, quoted(make([]byte, 20)), CheckQuoted},
		"no value":                    {list, Registers{crypto.SHA256: nil}, CheckQuoted},
		"a PCR that there is not":     {list, Registers{crypto.SHA256: {24: good}}, CheckQuoted},
		"a bank that is not replayed": {list, Registers{crypto.SHA224: {10: good[:28]}}, CheckBank},
		"two banks that disagree":     {list, Registers{crypto.SHA256: {10: good}, crypto.SHA1: {10: good[:20]}}, CheckPrefix},
		"a PCR in one bank only":      {list, Registers{crypto.SHA256: {10: good}, crypto.SHA1: {11: good[:20]}}, CheckPCR},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Prefix(bytes.NewReader(binaryList(c.entries...)), Limits{}, c.quoted, nil)
			asError(t, err, c.check)
			if m != (Match{}) {
				t.Errorf("a match beside an error: %+v", m)
			}
		})
	}
	if _, err := Prefix(bytes.NewReader(binaryList(list...)), Limits{}, quoted(good), func(*Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("found %v, expected the visitor's error", err)
	}
	if _, err := Prefix(bytes.NewReader(binaryList(list...)[:90]), Limits{}, quoted(good), nil); !errors.Is(err, CheckStructure) {
		t.Errorf("a list damaged within the prefix: %v", err)
	}
}

func TestHoldsNeedsEveryValueOfEveryBank(t *testing.T) {
	r, err := NewReplayer(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Holds(quoted(make([]byte, 32))) || r.Holds(quoted(nil)) || r.Holds(Registers{crypto.SHA1: {10: make([]byte, 20)}}) {
		t.Error("a replayer that extended nothing")
	}
}

// endless gives the same entry again and again, without holding a list.
type endless struct {
	entry []byte
	left  int
	rest  []byte
}

func (r *endless) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		r.left--
		r.rest = r.entry
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func TestMemoryDoesNotGrowWithTheList(t *testing.T) {
	const entries, step, allowed = 100_000, 25_000, 256 << 10
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for kind, entry := range map[string][]byte{"binary": sig("/a/path", digest(136, 1)).binary(), "ASCII": sig("/a/path", digest(136, 1)).ascii()} {
		first := uint64(0)
		seen := 0
		_, err := Prefix(&endless{entry: entry, left: entries}, Limits{}, quoted(bytes.Repeat([]byte{1}, 32)), func(e *Entry) error {
			if seen++; seen%step != 0 {
				return nil
			}
			switch now := live(); {
			case first == 0:
				first = now
			case now > first+allowed:
				t.Errorf("%s: %d bytes more after %d entries than after %d", kind, now-first, seen, step)
			}
			return nil
		})
		if !errors.Is(err, CheckPrefix) || seen != entries {
			t.Errorf("%s: %d entries, %v", kind, seen, err)
		}
	}
}
