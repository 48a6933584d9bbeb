package transcript

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// TestVectors compares with hashes that crypto/testdata/vectors.py computed without this package.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/transcript.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Name, Label, H384, H512 string
		Fields                  []string
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			var fields [][]byte
			for _, f := range v.Fields {
				b, err := hex.DecodeString(f)
				if err != nil {
					t.Fatal(err)
				}
				fields = append(fields, b)
			}
			if h := H384(v.Label, fields...); hex.EncodeToString(h[:]) != v.H384 {
				t.Errorf("H384: found %x, expected %s", h, v.H384)
			}
			if h := H512(v.Label, fields...); hex.EncodeToString(h[:]) != v.H512 {
				t.Errorf("H512: found %x, expected %s", h, v.H512)
			}
		})
	}
}

func TestDifferentInputsHaveDifferentHashes(t *testing.T) {
	type input struct {
		label  string
		fields [][]byte
	}
	base := input{"label", [][]byte{[]byte("ab"), []byte("c")}}
	for name, in := range map[string]input{
		"a byte moved to the neighbouring field": {"label", [][]byte{[]byte("a"), []byte("bc")}},
		"the fields joined":                      {"label", [][]byte{[]byte("abc")}},
		"the fields swapped":                     {"label", [][]byte{[]byte("c"), []byte("ab")}},
		"an empty field added":                   {"label", [][]byte{[]byte("ab"), []byte("c"), nil}},
		"an empty field between":                 {"label", [][]byte{[]byte("ab"), nil, []byte("c")}},
		"a field dropped":                        {"label", [][]byte{[]byte("ab")}},
		"another label":                          {"labeL", [][]byte{[]byte("ab"), []byte("c")}},
		"the label moved into a field":           {"", [][]byte{[]byte("label"), []byte("ab"), []byte("c")}},
	} {
		t.Run(name, func(t *testing.T) {
			if H384(base.label, base.fields...) == H384(in.label, in.fields...) {
				t.Error("the same H384")
			}
			if H512(base.label, base.fields...) == H512(in.label, in.fields...) {
				t.Error("the same H512")
			}
		})
	}
}

// FuzzEncodingIsInjective cuts the same bytes in two at two places: the hashes are equal only if the places are.
func FuzzEncodingIsInjective(f *testing.F) {
	f.Add([]byte("abc"), uint8(1), uint8(2))
	f.Add([]byte{}, uint8(0), uint8(0))
	f.Add(binary.BigEndian.AppendUint64(nil, 8), uint8(0), uint8(8))
	f.Fuzz(func(t *testing.T, b []byte, i, j uint8) {
		cutI, cutJ := min(int(i), len(b)), min(int(j), len(b))
		same := H384("fuzz", b[:cutI], b[cutI:]) == H384("fuzz", b[:cutJ], b[cutJ:])
		if same != (cutI == cutJ) {
			t.Errorf("cut at %d and at %d: equal is %v", cutI, cutJ, same)
		}
	})
}
