package replay

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var update = flag.Bool("update", false, "write the golden files")

// vector opens a file of the folder of real-world vectors, or returns nil if it is not among them.
func vector(t testing.TB, folder, name string) []byte {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		// The project's root is two folders up, and the vectors are beside it.
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		t.Skipf("skipped: no vectors at %s; set SAFECONDUCT_VECTORS", dir)
	}
	raw, err := os.ReadFile(filepath.Join(dir, folder, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// golden compares with testdata/NAME.json, or writes it.
func golden(t *testing.T, name string, r *Result) {
	t.Helper()
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what was found (run with -update if that is meant):\n%s", file, got)
	}
}

func pcrsOf(t testing.TB, raw []byte) PCRs {
	t.Helper()
	if raw == nil {
		return nil
	}
	pcrs, err := ParsePCRs(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return pcrs
}

func kinds(r *Result) []ProblemKind {
	var all []ProblemKind
	for _, p := range r.Problems {
		all = append(all, p.Kind)
	}
	return all
}

func TestRealBootEventLogs(t *testing.T) {
	for name, ok := range map[string]bool{
		"cos-93-amd-sev.bin": true, "glinux-alex.bin": true, "rhel8-uefi.bin": true, "ubuntu-2104-no-dbx.bin": true,
		"keylime_binary_bios_measurements": true, "debian-10.bin": false,
	} {
		t.Run(name, func(t *testing.T) {
			raw, pcrs := vector(t, "eventlog", name), pcrsOf(t, vector(t, "eventlog", name+".pcrs.json"))
			r := EventLog(bytes.NewReader(raw), pcrs, Options{})
			if r.OK != ok {
				t.Errorf("found %t: %+v", r.OK, r.Problems)
			}
			if r = EventLog(bytes.NewReader(raw), pcrs, Options{AllowSHA1: true}); !r.OK || len(r.Compared) != len(pcrs) {
				t.Errorf("with SHA-1 allowed: %+v", r.Problems)
			}
			for h, values := range pcrs {
				for i, v := range values {
					v[0] ^= 1
					r := EventLog(bytes.NewReader(raw), pcrs, Options{AllowSHA1: true})
					if len(r.Problems) != 1 || r.Problems[0].Kind != ProblemPCRMismatch || *r.Problems[0].PCR != i || r.Problems[0].Bank != bankName(h) {
						t.Errorf("PCR %d of %v changed: %+v", i, h, r.Problems)
					}
					v[0] ^= 1
				}
			}
		})
	}
}

func TestRealIMALists(t *testing.T) {
	var expected map[string]struct {
		Lines      int    `json:"lines"`
		Recomputes int    `json:"template_hash_sha1_recomputes"`
		SHA1       string `json:"replayed_pcr10_sha1"`
		SHA256     string `json:"replayed_pcr10_sha256"`
	}
	if err := json.Unmarshal(vector(t, "ima", "expected.json"), &expected); err != nil || len(expected) == 0 {
		t.Fatal(err)
	}
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			raw := vector(t, "ima", name)
			r := IMA(bytes.NewReader(raw), nil, Options{})
			if r.Entries != want.Lines || r.Entries-len(r.Problems) != want.Recomputes || r.OK != (want.Lines == want.Recomputes) {
				t.Errorf("%d entries, %+v", r.Entries, r.Problems)
			}
			if r.Banks["sha1"][10] != want.SHA1 || r.Banks["sha256"][10] != want.SHA256 {
				t.Errorf("banks %v", r.Banks)
			}
			pcrs := pcrsOf(t, []byte(`{"banks": {"SHA1": {"10": "`+want.SHA1+`"}, "SHA256": {"10": "`+want.SHA256+`"}}}`))
			if r = IMA(bytes.NewReader(raw), pcrs, Options{}); r.Prefix == nil || *r.Prefix != (Prefix{Entries: want.Lines}) {
				t.Errorf("prefix %+v", r.Prefix)
			}
		})
	}
}

func TestABootEventLog(t *testing.T) {
	agile, legacy := boot(true), boot(false)
	whole := EventLog(bytes.NewReader(agile), nil, Options{Events: true})
	if !whole.OK || whole.Entries != 12 || len(whole.Events) != 12 || whole.SecureBoot != "enabled" || len(whole.CommandLines) != 1 {
		t.Errorf("found %+v", whole)
	}
	golden(t, "boot", whole)
	values := PCRs{crypto.SHA256: {}, crypto.SHA1: {}}
	for h := range values {
		for i, v := range whole.Banks[bankName(h)] {
			values[h][i] = unhex(t, v)
		}
	}
	only := func(h crypto.Hash, pcrs map[int][]byte) PCRs { return PCRs{h: pcrs} }
	wrong := func() map[int][]byte {
		return map[int][]byte{0: make([]byte, 32), 1: values[crypto.SHA256][1], 7: bytes.Repeat([]byte{7}, 32)}
	}
	for name, c := range map[string]struct {
		raw      []byte
		pcrs     PCRs
		options  Options
		problems []ProblemKind
	}{
		"that matches":                                   {agile, values, Options{}, nil},
		"with values of SHA-256 only":                    {agile, only(crypto.SHA256, values[crypto.SHA256]), Options{}, nil},
		"with values of SHA-1 only":                      {agile, only(crypto.SHA1, values[crypto.SHA1]), Options{}, []ProblemKind{ProblemBankMissing}},
		"with values of SHA-1 only, which is allowed":    {agile, only(crypto.SHA1, values[crypto.SHA1]), Options{AllowSHA1: true}, nil},
		"with SHA-1 only":                                {legacy, nil, Options{}, []ProblemKind{ProblemBankMissing}},
		"with SHA-1 only, which is allowed":              {legacy, nil, Options{AllowSHA1: true}, nil},
		"with SHA-1 only, against values of SHA-256 too": {legacy, values, Options{AllowSHA1: true}, []ProblemKind{ProblemBankMissing}},
		"that differs in two PCRs":                       {agile, only(crypto.SHA256, wrong()), Options{}, []ProblemKind{ProblemPCRMismatch, ProblemPCRMismatch}},
		"with values of none of its PCRs":                {agile, only(crypto.SHA256, map[int][]byte{10: make([]byte, 32)}), Options{}, []ProblemKind{ProblemNotCompared}},
		"that is damaged":                                {agile[:len(agile)-1], values, Options{}, []ProblemKind{ProblemMalformed}},
		"that is empty":                                  {nil, values, Options{}, []ProblemKind{ProblemLimit}},
		"that is too large":                              {make([]byte, 2<<20), values, Options{}, []ProblemKind{ProblemLimit}},
	} {
		t.Run(name, func(t *testing.T) {
			r := EventLog(bytes.NewReader(c.raw), c.pcrs, c.options)
			if !slices.Equal(kinds(r), c.problems) || r.OK != (len(c.problems) == 0) {
				t.Errorf("found %+v", r.Problems)
			}
			for _, p := range r.Problems {
				if p.Found == "" || p.Expected == "" || p.Message == "" {
					t.Errorf("a problem without its parts: %+v", p)
				}
			}
		})
	}
	golden(t, "boot-mismatch", EventLog(bytes.NewReader(agile), only(crypto.SHA256, wrong()), Options{}))
	golden(t, "boot-sha1", EventLog(bytes.NewReader(legacy), nil, Options{}))
	if r := EventLog(iotest.ErrReader(errors.New("gone")), nil, Options{}); !slices.Equal(kinds(r), []ProblemKind{ProblemRead}) {
		t.Errorf("a reader that fails: %+v", r.Problems)
	}
	for name, c := range map[string]struct {
		pcrs       PCRs
		secureBoot string
		lines      int
	}{
		"SHA-256 matches":                   {values, "enabled", 1},
		"SHA-1 was compared":                {only(crypto.SHA1, values[crypto.SHA1]), "enabled", 1},
		"PCR 7 differs, PCR 8 is not known": {only(crypto.SHA256, wrong()), "", 0},
		"only PCR 8 is known":               {only(crypto.SHA256, map[int][]byte{8: values[crypto.SHA256][8]}), "", 1},
	} {
		if r := EventLog(bytes.NewReader(agile), c.pcrs, Options{}); r.SecureBoot != c.secureBoot || len(r.CommandLines) != c.lines {
			t.Errorf("%s: secure boot %q, command lines %q", name, r.SecureBoot, r.CommandLines)
		}
	}
	// Cut the SHA-256 digest out of the last event: that bank does not replay, the other does.
	last := event{7, 4, "\x00\x00\x00\x00"}.agile()
	cut := slices.Concat(agile[:len(agile)-len(last)], last[:8], []byte{1, 0, 0, 0}, last[12:34], last[68:])
	r := EventLog(bytes.NewReader(cut), values, Options{})
	if !slices.Equal(kinds(r), []ProblemKind{ProblemBankMissing}) || r.Problems[0].Entry != 12 || r.Banks["sha1"] == nil || r.Banks["sha256"] != nil {
		t.Errorf("a digest missing: %+v", r)
	}
}

func TestAnIMAList(t *testing.T) {
	paths := []string{"boot_aggregate", "/a", "/b"}
	list := line(10, paths[0]) + line(10, paths[1]) + line(10, paths[2])
	values := func(n int) PCRs {
		return PCRs{
			crypto.SHA1: {10: pcr10(crypto.SHA1, paths[:n]...)}, crypto.SHA256: {10: pcr10(crypto.SHA256, paths[:n]...), 0: make([]byte, 32)},
		}
	}
	sha1Only := PCRs{crypto.SHA1: values(3)[crypto.SHA1]}
	other := PCRs{crypto.SHA256: {10: bytes.Repeat([]byte{1}, 32)}}
	violation := strings.Replace(line(10, "/v"), line(10, "/v")[3:43], strings.Repeat("0", 40), 1)
	forged := strings.Replace(line(10, "/v"), line(10, "/v")[3:43], strings.Repeat("1", 40), 1)
	for name, c := range map[string]struct {
		list     string
		pcrs     PCRs
		options  Options
		problems []ProblemKind
		prefix   *Prefix
	}{
		"without values":                              {list, nil, Options{}, nil, nil},
		"that is empty, without values":               {"", nil, Options{}, nil, nil},
		"that matches":                                {list, values(3), Options{}, nil, &Prefix{Entries: 3}},
		"whose quote lags":                            {list, values(2), Options{}, nil, &Prefix{Entries: 2, Ignored: 1}},
		"that is damaged after the prefix":            {list + "x", values(3), Options{}, nil, &Prefix{Entries: 3, IgnoredError: "ima list: entry 4: structure: found the end of the list, expected a whole entry"}},
		"that is forged after the prefix":             {list + forged + line(11, "/x"), values(3), Options{}, nil, &Prefix{Entries: 3, Ignored: 2}},
		"with values of SHA-1 only":                   {list, sha1Only, Options{}, []ProblemKind{ProblemBankMissing}, &Prefix{Entries: 3}},
		"with values of SHA-1 only, which is allowed": {list, sha1Only, Options{AllowSHA1: true}, nil, &Prefix{Entries: 3}},
		"with values of SHA-512 too":                  {list, PCRs{crypto.SHA256: values(3)[crypto.SHA256], crypto.SHA512: {10: pcr10(crypto.SHA512, paths...)}}, Options{}, nil, &Prefix{Entries: 3}},
		"that comes to another value":                 {list, other, Options{}, []ProblemKind{ProblemPrefix}, nil},
		"that is cut short":                           {list[:len(list)-len(line(10, "/b"))], values(3), Options{}, []ProblemKind{ProblemPrefix, ProblemPrefix}, nil},
		"without a value of PCR 10":                   {list, PCRs{crypto.SHA256: {0: make([]byte, 32)}}, Options{}, []ProblemKind{ProblemNotCompared}, nil},
		"of a kernel that measured nothing":           {"", PCRs{crypto.SHA256: {10: make([]byte, 32)}}, Options{}, []ProblemKind{ProblemNotCompared}, nil},
		"with another PCR in the prefix":              {line(10, paths[0]) + line(11, "/x") + line(10, paths[1]), PCRs{crypto.SHA256: values(2)[crypto.SHA256]}, Options{}, []ProblemKind{ProblemPCR}, &Prefix{Entries: 3}},
		"with a violation":                            {violation, nil, Options{}, nil, nil},
		"with a forged template hash":                 {forged, nil, Options{}, []ProblemKind{ProblemTemplateHash}, nil},
		"with an unknown template":                    {unknown(), nil, Options{}, []ProblemKind{ProblemTemplate}, nil},
		"with an unknown template, in ASCII":          {strings.Replace(list, "ima-ng", "new", 1), nil, Options{}, []ProblemKind{ProblemTemplate}, nil},
		"that is damaged":                             {"10 x", nil, Options{}, []ProblemKind{ProblemMalformed}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := IMA(strings.NewReader(c.list), c.pcrs, c.options)
			if !slices.Equal(kinds(r), c.problems) || r.OK != (len(c.problems) == 0) {
				t.Errorf("found %+v", r.Problems)
			}
			if (r.Prefix == nil) != (c.prefix == nil) || r.Prefix != nil && *r.Prefix != *c.prefix {
				t.Errorf("prefix %+v", r.Prefix)
			}
			for h, want := range c.pcrs {
				if v := want[10]; r.Prefix != nil && v != nil && !bytes.Equal(unhex(t, r.Banks[bankName(h)][10]), v) {
					t.Errorf("%v: found %s, expected the value of the prefix", h, r.Banks[bankName(h)][10])
				}
			}
			if strings.Contains(name, "violation") != (r.Violations == 1) {
				t.Errorf("%d violations", r.Violations)
			}
		})
	}
	golden(t, "ima-prefix", IMA(strings.NewReader(list), values(2), Options{}))
	golden(t, "ima-mismatch", IMA(strings.NewReader(forged+list), other, Options{}))
	if r := IMA(iotest.ErrReader(errors.New("gone")), nil, Options{}); !slices.Equal(kinds(r), []ProblemKind{ProblemRead}) {
		t.Errorf("a reader that fails: %+v", r.Problems)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	forged := strings.Replace(line(10, "/v"), line(10, "/v")[3:43], strings.Repeat("1", 40), 1)
	r := IMA(strings.NewReader(strings.Repeat(forged, maxProblems+7)), nil, Options{})
	if len(r.Problems) != maxProblems || r.ProblemsOmitted != 7 || r.OK {
		t.Errorf("%d problems and %d omitted", len(r.Problems), r.ProblemsOmitted)
	}
}
