package cli

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/goccy/go-yaml"
)

func TestTextThatCouldFoolATerminalIsEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, ÄÖ 漢字": "plain text, ÄÖ 漢字", "\x1b[31mred": `\x1b[31mred`, "a\r\nb": `a\r\nb`, "\u202eabc": `\u202eabc`,
		"\u009b2J": `\u009b2J`,
		"\xff\xfe": `\xff\xfe`, "": "", "\x00": `\x00`, "\u200b": `\u200b`, "a\tb": `a\tb`,
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzCleanLeavesNothingThatIsNotPrintable(f *testing.F) {
	for _, s := range []string{"", "abc", "\x1b[2J", "\u202e", "\xff", "é\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if i := strings.IndexFunc(clean(s), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q: byte %d of %q", s, i, clean(s))
		}
	})
}

// awkward is a document with every kind of value, and texts that YAML would read as something else.
func awkward(text string) any {
	return map[string]any{
		"a": text, "no": []any{text, nil, true, false, 1.5, -3.0, []any{}, map[string]any{}, []any{[]any{text}}},
		"file-system": map[string]any{text: text, "deep": []any{map[string]any{"x": text, "y": []any{1.0}}}},
	}
}

func FuzzMachinesReadTheSameFromYAMLAsFromJSON(f *testing.F) {
	for _, s := range []string{"", "no", "00e10000", "0x1f", "1_000", "a: b", "- c", "# d", "\x1b[2J\u202e\U000e0001", "line\nline", "~",
		"'\"\\", "<&>", "\x85\u2028", "é漢", "--- x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		raw, err := encode(awkward(s))
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(string(raw), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("byte %d of %q", i, raw)
		}
		var want any
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if s == strings.ToValidUTF8(s, "\ufffd") && !reflect.DeepEqual(want, awkward(s)) {
			t.Errorf("JSON: got %v, want %v", want, awkward(s))
		}
		out, err := yamlOf(raw)
		if err != nil {
			t.Fatal(err)
		}
		var got any
		if err := yaml.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var through any
		if err := json.Unmarshal(again, &through); err != nil || !reflect.DeepEqual(through, want) {
			t.Errorf("YAML: got %v, want %v, %v\n%s", through, want, err, out)
		}
	})
}

func TestAnUnknownFormatIsAUsageError(t *testing.T) {
	r := run(t, "-o", "xml", "version").exits(t, ExitUsage)
	if !strings.Contains(r.err, "xml") || !strings.Contains(r.err, "--help") {
		t.Errorf("got %s", r.err)
	}
}

func TestAWriterThatFailsIsReported(t *testing.T) {
	for _, output := range []string{"table", "json", "yaml"} {
		var stderr strings.Builder
		code := Run(t.Context(), []string{"-o", output, "explain"}, Env{Out: fullDisk{}, Err: &stderr})
		if code != ExitUsage || !strings.Contains(stderr.String(), errFull.Error()) {
			t.Errorf("%s: exit code %d, %s", output, code, stderr.String())
		}
	}
}

var errFull = errors.New("no space left on device")

// fullDisk is a standard output that takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }
