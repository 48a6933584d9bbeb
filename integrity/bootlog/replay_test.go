package bootlog

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// vectors is the folder of real-world logs.
func vectors() string {
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		// The project's root is two folders up, and the vectors are beside it.
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	return filepath.Join(dir, "eventlog")
}

// vector reads a log and the values that its machine's PCRs had, if they were recorded.
func vector(t testing.TB, name string) (*Log, map[crypto.Hash]map[int][]byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(vectors(), name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("skipped: no vectors at %s; set SAFECONDUCT_VECTORS", vectors())
	}
	if err != nil {
		t.Fatal(err)
	}
	values := map[crypto.Hash]map[int][]byte{}
	recorded, err := os.ReadFile(filepath.Join(vectors(), name+".pcrs.json"))
	if errors.Is(err, os.ErrNotExist) {
		return parsed(t, raw), values
	}
	var p struct{ Banks map[string]map[int]string }
	if err != nil || json.Unmarshal(recorded, &p) != nil {
		t.Fatal(name, err)
	}
	for bank, pcrs := range p.Banks {
		h := map[string]crypto.Hash{"SHA1": crypto.SHA1, "SHA256": crypto.SHA256, "SHA384": crypto.SHA384}[bank]
		values[h] = map[int][]byte{}
		for i, v := range pcrs {
			if values[h][i], err = hex.DecodeString(v); err != nil {
				t.Fatal(err)
			}
		}
	}
	return parsed(t, raw), values
}

func TestRealLogsReplayToTheRecordedValuesOnEveryBank(t *testing.T) {
	for name, want := range map[string]struct {
		banks      []crypto.Hash
		events     int
		locality   byte
		secureBoot SecureBoot
		lines      int
	}{
		"cos-93-amd-sev.bin":     {[]crypto.Hash{crypto.SHA1, crypto.SHA256}, 45, 0, SecureBootEnabled, 1},
		"debian-10.bin":          {[]crypto.Hash{crypto.SHA1}, 25, 0, SecureBootEnabled, 0},
		"glinux-alex.bin":        {[]crypto.Hash{crypto.SHA1, crypto.SHA256}, 28, 3, SecureBootDisabled, 0},
		"rhel8-uefi.bin":         {[]crypto.Hash{crypto.SHA1, crypto.SHA256}, 82, 0, SecureBootEnabled, 1},
		"ubuntu-2104-no-dbx.bin": {[]crypto.Hash{crypto.SHA1, crypto.SHA256}, 111, 0, SecureBootDisabled, 1},
		// No PCR values were recorded with this one.
		"keylime_binary_bios_measurements": {nil, 120, 3, SecureBootDisabled, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l, recorded := vector(t, name)
			if len(recorded) != len(want.banks) || len(l.Events) != want.events || l.Locality != want.locality {
				t.Errorf("%d banks, %d events, locality %d", len(recorded), len(l.Events), l.Locality)
			}
			for _, bank := range want.banks {
				c, err := l.Compare(bank, recorded[bank])
				if err != nil || !c.OK() || len(c.Matched) != len(recorded[bank]) || len(c.Uncovered)+len(c.Unquoted) != 0 {
					t.Errorf("%v: %+v, %v", bank, c, err)
				}
			}
			bank := l.Banks[len(l.Banks)-1]
			if got := l.SecureBoot(bank); got != want.secureBoot {
				t.Errorf("secure boot %q, expected %q", got, want.secureBoot)
			}
			if got := l.CommandLines(bank); len(got) != want.lines {
				t.Errorf("command lines %q, expected %d", got, want.lines)
			}
		})
	}
}

func TestARealLogWithSHA1OnlyIsRefusedWhereSHA256IsAsked(t *testing.T) {
	l, recorded := vector(t, "debian-10.bin")
	for name, call := range map[string]func() error{
		"replay, by default":  func() error { _, err := l.Replay(0); return err },
		"replay":              func() error { _, err := l.Replay(crypto.SHA256); return err },
		"compare, by default": func() error { _, err := l.Compare(0, recorded[crypto.SHA1]); return err },
	} {
		t.Run(name, func(t *testing.T) { asError(t, call(), CheckBank) })
	}
}

func TestOneChangedByteOfARealLogIsSeen(t *testing.T) {
	l, recorded := vector(t, "ubuntu-2104-no-dbx.bin")
	for i := range l.Events {
		e := &l.Events[i]
		e.Digests[crypto.SHA256][5] ^= 1
		c, err := l.Compare(0, recorded[crypto.SHA256])
		if err != nil || len(c.Mismatches) != 1 || c.Mismatches[0].PCR != e.PCR {
			t.Errorf("event %d: %+v, %v", e.Number, c, err)
		}
		e.Digests[crypto.SHA256][5] ^= 1
	}
}

func TestReplayExtendsEachBankInOrder(t *testing.T) {
	events := append([]written{locality(3)}, ordinary()...)
	l := parsed(t, both(events...))
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		pcrs, err := l.Replay(h)
		if err != nil || len(pcrs) != 9 {
			t.Fatalf("%v: %d PCRs, %v", h, len(pcrs), err)
		}
		for pcr, value := range pcrs {
			if want := replayed(h, 3, uint32(pcr), events...); !bytes.Equal(value, want) {
				t.Errorf("%v: PCR %d: found %x, expected %x", h, pcr, value, want)
			}
		}
	}
	if pcrs, err := l.Replay(0); err != nil || len(pcrs[1]) != 32 {
		t.Errorf("the default bank: %v, %v", pcrs, err)
	}
	if _, err := l.Replay(crypto.SHA384); !errors.Is(err, CheckBank) {
		t.Errorf("a bank that the log does not have: %v", err)
	}
	missing := append(both(events...), secureBoot(1).agile(algSHA1)...)
	_, err := parsed(t, missing).Replay(0)
	if e := asError(t, err, CheckBank); e.Event != len(events)+1 {
		t.Errorf("found event %d", e.Event)
	}
	if _, err := parsed(t, missing).Replay(crypto.SHA1); err != nil {
		t.Errorf("the other bank: %v", err)
	}
}

func TestAllThePCRsThatDifferAreListed(t *testing.T) {
	events := ordinary()
	l := parsed(t, both(events...))
	all := quotedOf(crypto.SHA256, 0, events, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	// 9 was not extended, 10 and 14 are not the log's.
	all[9] = make([]byte, 32)
	all[10], all[14] = bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	c, err := l.Compare(0, all)
	if want := (&Comparison{Matched: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, Uncovered: []int{10, 14}}); err != nil || !reflect.DeepEqual(c, want) || !c.OK() {
		t.Fatalf("found %+v, %v", c, err)
	}
	all[9] = bytes.Repeat([]byte{9}, 32)
	all[4], all[7] = all[7], all[4]
	delete(all, 8)
	delete(all, 1)
	if c, err = l.Compare(0, all); err != nil || c.OK() {
		t.Fatalf("found %+v, %v", c, err)
	}
	var differ []int
	for _, m := range c.Mismatches {
		differ = append(differ, m.PCR)
		if !bytes.Equal(m.Quoted, all[m.PCR]) || bytes.Equal(m.Quoted, m.Replayed) || len(m.Replayed) != 32 {
			t.Errorf("mismatch %+v", m)
		}
	}
	if !slices.Equal(differ, []int{4, 7, 9}) || !slices.Equal(c.Unquoted, []int{1, 8}) || !slices.Equal(c.Matched, []int{0, 2, 3, 5, 6}) {
		t.Errorf("found %v differ, %v unquoted, %v matched", differ, c.Unquoted, c.Matched)
	}
	if n := c.Mismatches[0].Events; n != 2 {
		t.Errorf("PCR 4: found %d events, expected 2", n)
	}
}

func TestAComparisonThatProvesNothingIsNotOK(t *testing.T) {
	l := parsed(t, both(ordinary()...))
	if c, err := l.Compare(0, map[int][]byte{10: make([]byte, 32)}); err != nil || c.OK() {
		t.Errorf("only PCRs that are not the log's: %+v, %v", c, err)
	}
	if (*Comparison)(nil).OK() || new(Comparison).OK() {
		t.Error("the zero Comparison is OK")
	}
	for name, quoted := range map[string]map[int][]byte{
		"no value": nil, "a short value": {0: make([]byte, 20)}, "PCR 24": {24: make([]byte, 32)}, "PCR -1": {-1: make([]byte, 32)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.Compare(0, quoted)
			asError(t, err, CheckQuoted)
		})
	}
}

func TestAnotherStartupLocalityIsAnotherPCR0(t *testing.T) {
	quoted := quotedOf(crypto.SHA256, 3, ordinary(), 0)
	for _, n := range []byte{0, 3, 4} {
		c, err := parsed(t, both(append([]written{locality(n)}, ordinary()...)...)).Compare(0, quoted)
		if err != nil || c.OK() != (n == 3) {
			t.Errorf("locality %d: %+v, %v", n, c, err)
		}
	}
	// PCR 0 with no event but the locality.
	l := parsed(t, both(locality(4)))
	value := make([]byte, 32)
	value[31] = 4
	if c, err := l.Compare(0, map[int][]byte{0: value}); err != nil || !c.OK() {
		t.Errorf("%+v, %v", c, err)
	}
}
