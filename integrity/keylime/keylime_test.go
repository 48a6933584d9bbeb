package keylime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/integrity/ima"
)

const (
	dA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	dB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	s1 = "cccccccccccccccccccccccccccccccccccccccc"
)

const good = `{
  "meta": {"version": 5, "generator": 3}, "release": 0,
  "digests": {"boot_aggregate": ["` + dA + `"], "/usr/bin/qemu": ["` + dA + `", "` + dB + `"], "/usr/bin/old": ["` + s1 + `"], "/usr/bin/none": []},
  "excludes": ["/tmp/.*", "/var/log", "(/opt/)?x[0-9]+$", ""],
  "keyrings": {".ima": ["` + dA + `"]},
  "ima": {"ignored_keyrings": [".trusted"], "log_hash_alg": "sha1", "dm_policy": null},
  "ima-buf": {"kexec-cmdline": ["` + dB + `"]},
  "verification-keys": ""
}`

func entry(path, fill string, size int, buffer bool) *ima.Entry {
	e := &ima.Entry{Number: 7, Template: "ima-ng", DigestAlgorithm: "sha256", Path: path, Digest: bytes.Repeat([]byte{fill[0] - 'a' + 0xa}, 1)}
	e.Digest = bytes.Repeat([]byte{(fill[0]-'a'+0xa)<<4 | (fill[0] - 'a' + 0xa)}, size)
	if buffer {
		e.Template, e.Buffer = "ima-buf", []byte("buffer")
	}
	return e
}

func parse(t testing.TB, raw string) *Policy {
	t.Helper()
	p, err := Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEntriesAreJudgedAsKeylimeDoes(t *testing.T) {
	p := parse(t, good)
	for name, tc := range map[string]struct {
		e        *ima.Entry
		accepted bool
	}{
		"a listed file":                          {entry("/usr/bin/qemu", "a", 32, false), true},
		"its other version":                      {entry("/usr/bin/qemu", "b", 32, false), true},
		"another content":                        {entry("/usr/bin/qemu", "d", 32, false), false},
		"boot_aggregate":                         {entry("boot_aggregate", "a", 32, false), true},
		"another boot_aggregate":                 {entry("boot_aggregate", "b", 32, false), false},
		"a file that nothing names":              {entry("/usr/bin/evil", "a", 32, false), false},
		"a file that is listed without a digest": {entry("/usr/bin/none", "a", 32, false), false},
		"an excluded directory":                  {entry("/tmp/x", "d", 32, false), true},
		"a pattern need not reach the end":       {entry("/var/logs/anything", "d", 32, false), true},
		"a pattern matches from the beginning":   {entry("/x/tmp/x", "d", 32, false), false},
		"a pattern with an end":                  {entry("/opt/x12", "d", 32, false), true},
		"a pattern with an end that goes on":     {entry("/opt/x12y", "d", 32, false), false},
		"a SHA-1 digest, though it is listed":    {entry("/usr/bin/old", "c", 20, false), false},
		"a key on a listed keyring":              {entry(".ima", "a", 32, true), true},
		"another key on it":                      {entry(".ima", "b", 32, true), false},
		"a keyring that is ignored":              {entry(".trusted", "d", 32, true), true},
		"a keyring that nothing names":           {entry(".other", "a", 32, true), false},
		"a listed buffer":                        {entry("kexec-cmdline", "b", 32, true), true},
		"another buffer":                         {entry("kexec-cmdline", "a", 32, true), false},
		"a buffer that has the name of a file":   {entry("/usr/bin/qemu", "a", 32, true), false},
		"a buffer that has an excluded name":     {entry("/tmp/x", "a", 32, true), false},
		"an entry whose template is not known":   {&ima.Entry{Number: 1, Template: "x", Opaque: true, Path: "/tmp/x"}, false},
	} {
		o := p.Judge(tc.e)
		if (o == nil) != tc.accepted {
			t.Errorf("%s: %+v", name, o)
		}
		if o != nil && (o.Found == "" || o.Expected == "") {
			t.Errorf("%s: an objection without words", name)
		}
	}
	if p.Paths() != 4 || p.Excludes() != 3 {
		t.Errorf("%d paths, %d excludes", p.Paths(), p.Excludes())
	}
	all := parse(t, `{"ima": {"ignored_keyrings": ["*"]}}`)
	if o := all.Judge(entry(".any", "a", 32, true)); o != nil {
		t.Errorf("every keyring is ignored, yet: %v", o)
	}
	if o := parse(t, `{}`).Judge(entry("/x", "a", 32, false)); o == nil {
		t.Error("the empty policy accepts a file")
	}
}

func TestWhatCannotBeHonouredIsRefusedByName(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"a look-ahead":             {`"/var/log"`, `"/var/(?!log)"`, `excludes[1]: RE2 cannot express the pattern "/var/(?!log)"`},
		"a back-reference":         {`"/var/log"`, `"(a)\\1"`, `excludes[1]`},
		"a digest with a prefix":   {`["` + dA + `", "`, `["sha256:` + dA + `", "`, `"/usr/bin/qemu": digest "sha256:`},
		"a digest of no length":    {`["` + s1 + `"]`, `["cc"]`, `"/usr/bin/old": "cc" is no digest`},
		"a digest that is not hex": {`["` + s1 + `"]`, `["` + strings.Repeat("x", 40) + `"]`, "is no digest"},
		"a device-mapper policy":   {`"dm_policy": null`, `"dm_policy": {"x": 1}`, "ima.dm_policy"},
		"verification keys":        {`"verification-keys": ""`, `"verification-keys": "key"`, "verification-keys"},
		"an unknown key":           {`"release"`, `"relaese"`, "relaese"},
		"something behind it":      {"\n}", "\n} {}", "something follows"},
		"not JSON":                 {`"meta"`, `meta`, "invalid character"},
	} {
		if !strings.Contains(good, tc.old) {
			t.Fatalf("%s: the example has no %q", name, tc.old)
		}
		_, err := Parse([]byte(strings.Replace(good, tc.old, tc.new, 1)))
		if !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if _, err := Parse(make([]byte, MaxSize+1)); !errors.Is(err, ErrPolicy) {
		t.Errorf("an oversized policy: %v", err)
	}
	many := `{"excludes": ["x"` + strings.Repeat(`, "x"`, MaxPatterns) + `]}`
	if _, err := Parse([]byte(many)); !errors.Is(err, ErrPolicy) {
		t.Errorf("too many patterns: %v", err)
	}
}

func TestARealPolicyWithPrefixedDigestsGivesTheClearError(t *testing.T) {
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "keylime-policy", "runtime-policy-test.json"))
	if err != nil {
		t.Skipf("skipped: no vectors: %v", err)
	}
	_, err = Parse(raw)
	if !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), `"boot_aggregate"`) || !strings.Contains(err.Error(), "prefix") {
		t.Errorf("got %v", err)
	}
	if _, err := Parse(bytes.ReplaceAll(raw, []byte("sha256:"), nil)); err != nil {
		t.Errorf("without the prefixes: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"excludes": ["("]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrPolicy) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		p.Judge(entry("/usr/bin/qemu", "a", 32, false))
	})
}

// BenchmarkJudge200kEntries judges a list of 200,000 entries by a policy of 100,000 paths and ten patterns.
func BenchmarkJudge200kEntries(b *testing.B) {
	var text strings.Builder
	text.WriteString(`{"excludes": ["/tmp/.*"`)
	for i := range 9 {
		fmt.Fprintf(&text, `, "/var/lib/%d/.*"`, i)
	}
	text.WriteString(`], "digests": {"x": []`)
	for i := range 100_000 {
		fmt.Fprintf(&text, `, "/usr/bin/%d": [%q]`, i, dA)
	}
	text.WriteString("}}")
	p := parse(b, text.String())
	entries := make([]*ima.Entry, 1000)
	for i := range entries {
		entries[i] = entry(fmt.Sprintf("/usr/bin/%d", i*100), "a", 32, false)
	}
	b.ReportAllocs()
	for b.Loop() {
		for i := range 200_000 {
			if p.Judge(entries[i%1000]) != nil {
				b.Fatal("refused")
			}
		}
	}
}
