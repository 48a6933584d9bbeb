package replay

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// zeros are the digits of a value of SHA-256.
var zeros = strings.Repeat("00", 32)

func TestPCRValuesAreRead(t *testing.T) {
	const ones = "0101010101010101010101010101010101010101"
	pcrs := pcrsOf(t, []byte(`{"origin": "a host", "licence": "none", "banks": {"SHA256": {"0": "`+zeros+`"}, "sha1": {"23": "`+ones+`"}}} `))
	if len(pcrs) != 2 || !bytes.Equal(pcrs[crypto.SHA256][0], make([]byte, 32)) || !bytes.Equal(pcrs[crypto.SHA1][23], bytes.Repeat([]byte{1}, 20)) {
		t.Errorf("found %x", pcrs)
	}
}

func TestPCRValuesThatAreNotWholeAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                 ``,
		"no object":               `[]`,
		"no bank":                 `{"banks": {}}`,
		"an unknown field":        `{"banks": {"SHA256": {"0": "` + zeros + `"}}, "bank": {}}`,
		"more after the object":   `{"banks": {"SHA256": {"0": "` + zeros + `"}}} {}`,
		"an unknown bank":         `{"banks": {"MD5": {"0": "` + zeros + `"}}}`,
		"a bank twice":            `{"banks": {"SHA256": {"0": "` + zeros + `"}, "sha256": {"0": "` + zeros + `"}}}`,
		"a bank without values":   `{"banks": {"SHA256": {}}}`,
		"an index above 23":       `{"banks": {"SHA256": {"24": "` + zeros + `"}}}`,
		"an index below 0":        `{"banks": {"SHA256": {"-1": "` + zeros + `"}}}`,
		"an index written oddly":  `{"banks": {"SHA256": {"00": "` + zeros + `"}}}`,
		"an index that is a name": `{"banks": {"SHA256": {"ten": "` + zeros + `"}}}`,
		"a value too short":       `{"banks": {"SHA256": {"0": "00"}}}`,
		"a value that is not hex": `{"banks": {"SHA256": {"0": "` + strings.Replace(zeros, "00", "zz", 1) + `"}}}`,
		"a file too large":        `{"origin": "` + strings.Repeat("x", maxPCRsSize) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			pcrs, err := ParsePCRs(strings.NewReader(text))
			var e *PCRsError
			if !errors.As(err, &e) || e.Found == "" || e.Expected == "" || pcrs != nil || len(err.Error()) > 500 {
				t.Errorf("found %v, %v", pcrs, err)
			}
		})
	}
	gone := errors.New("gone")
	if _, err := ParsePCRs(iotest.ErrReader(gone)); !errors.Is(err, gone) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// FuzzParsePCRs demands that what is accepted has only values that can be compared with.
func FuzzParsePCRs(f *testing.F) {
	f.Add([]byte(`{"banks": {"SHA256": {"0": "` + zeros + `"}}}`))
	f.Add([]byte(`{"origin": "a host", "banks": {"SHA1": {"0": "` + zeros[:40] + `", "23": "` + zeros[:40] + `"}, "sha512": {}}}`))
	f.Add([]byte(`{"banks": null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pcrs, err := ParsePCRs(bytes.NewReader(raw))
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if len(pcrs) == 0 {
			t.Fatal("accepted no bank")
		}
		for h, values := range pcrs {
			for i, v := range values {
				if i < 0 || i > maxPCR || len(v) != h.Size() || len(values) == 0 {
					t.Fatalf("accepted PCR %d of %v with %d bytes", i, h, len(v))
				}
			}
		}
	})
}

// FuzzReplay gives a hostile file to both replays: the outcome must be bounded.
func FuzzReplay(f *testing.F) {
	f.Add(boot(true))
	f.Add(boot(false))
	f.Add([]byte(line(10, "boot_aggregate") + line(10, "/a")))
	f.Add([]byte(unknown()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pcrs := PCRs{crypto.SHA256: {0: make([]byte, 32), 10: pcr10(crypto.SHA256, "boot_aggregate")}}
		for _, r := range []*Result{EventLog(bytes.NewReader(raw), pcrs, Options{Events: true}), IMA(bytes.NewReader(raw), pcrs, Options{})} {
			if r.OK != (len(r.Problems) == 0) || len(r.Problems) > maxProblems {
				t.Fatalf("%s: %d problems, ok %t", r.Kind, len(r.Problems), r.OK)
			}
			for _, p := range r.Problems {
				if len(p.Message) > 2000 || p.Message == "" {
					t.Fatalf("%s: a message of %d bytes", r.Kind, len(p.Message))
				}
			}
		}
	})
}
