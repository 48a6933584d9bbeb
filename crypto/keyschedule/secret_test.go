package keyschedule

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// canary is a secret that is easy to find in any rendering: no run of it occurs by chance.
var canary = []byte("\xc1\xc3\xc5\xc7CANARYcanary\xd1\xd3\xd5\xd7\xd9\xdb\xdd\xdf\xe1\xe3\xe5\xe7\xe9\xeb\xed\xef")

// detector finds secrets in output, by every fourth run of four bytes in every usual rendering.
type detector []string

func newDetector(secrets ...[]byte) (d detector) {
	for _, secret := range secrets {
		for i := 0; i+4 <= len(secret); i += 4 {
			part := secret[i : i+4]
			decimal := strings.Trim(fmt.Sprintf("%d", part), "[]")
			d = append(d,
				string(part), strings.Trim(fmt.Sprintf("%q", part), `"`),
				fmt.Sprintf("%x", part), fmt.Sprintf("%X", part), fmt.Sprintf("% x", part), fmt.Sprintf("% X", part),
				strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", part), "[]byte{"), "}"),
				decimal, strings.ReplaceAll(decimal, " ", ","), strings.ReplaceAll(decimal, " ", ", "),
				strings.Trim(fmt.Sprintf("%o", part), "[]"), strings.Trim(fmt.Sprintf("%b", part), "[]"),
				// As the words of an expanded AES key.
				fmt.Sprint(binary.BigEndian.Uint32(part)), fmt.Sprint(binary.LittleEndian.Uint32(part)),
			)
		}
		d = append(d, base64.StdEncoding.EncodeToString(secret))
	}
	return d
}

// leaks says whether out shows any of the secrets.
func (d detector) leaks(out string) bool {
	return slices.ContainsFunc(d, func(form string) bool { return strings.Contains(out, form) })
}

// renderings shows v in every way that this package promises to keep silent.
func renderings(v any) map[string]string {
	out := make(map[string]string)
	for _, flag := range []string{"", "+", "#", " ", "0", "-8", ".3"} {
		for _, verb := range "vTtbcdoOqxXUeEfFgGspw" {
			format := "%" + flag + string(verb)
			out["fmt "+format] = fmt.Sprintf(format, v)
		}
	}
	out["Sprint"] = fmt.Sprint(v)
	out["Errorf"] = fmt.Errorf("found %v, %w", v, errors.New("x")).Error()
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v, slog.Group("g", "v", v))
	out["slog text"] = b.String()
	b.Reset()
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v, slog.Group("g", "v", v))
	out["slog json"] = b.String()
	b.Reset()
	encoded, err := json.Marshal(v)
	out["json"] = fmt.Sprint(string(encoded), err)
	encoded, err = xml.Marshal(v)
	out["xml"] = fmt.Sprint(string(encoded), err)
	err = gob.NewEncoder(&b).Encode(v)
	out["gob"] = fmt.Sprint(b.String(), err)
	return out
}

func TestNothingPrintsASecret(t *testing.T) {
	secret := func() *Secret {
		s, err := SecretFrom(canary)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	type exported struct{ Key *Secret }
	type exportedValue struct{ Key Secret }
	type unexported struct{ key *Secret }
	type unexportedValue struct{ key Secret }
	type embedded struct{ Secret }
	type nested struct{ Inner *unexportedValue }
	d := newDetector(canary)
	for name, v := range map[string]any{
		"a pointer":                       secret(),
		"a value":                         *secret(),
		"an exported pointer field":       exported{secret()},
		"an exported value field":         exportedValue{*secret()},
		"an unexported pointer field":     unexported{secret()},
		"an unexported value field":       unexportedValue{*secret()},
		"a pointer to an unexported one":  &unexportedValue{*secret()},
		"an embedded value":               embedded{*secret()},
		"a field of a field":              nested{&unexportedValue{*secret()}},
		"a slice of pointers":             []*Secret{secret(), secret()},
		"a slice of values":               []Secret{*secret()},
		"an array in an interface":        any([1]any{secret()}),
		"a map of values":                 map[string]Secret{"k": *secret()},
		"a map of unexported value field": map[string]unexportedValue{"k": {*secret()}},
		"a pointer to a pointer":          func() any { s := secret(); return &s }(),
	} {
		t.Run(name, func(t *testing.T) {
			for how, out := range renderings(v) {
				if d.leaks(out) {
					t.Errorf("%s prints it", how)
				}
			}
		})
	}
	if out := fmt.Sprintf("%v %+v %#v %s %x %d", secret(), *secret(), secret(), secret(), secret(), secret()); strings.Count(out, redacted) != 6 {
		t.Errorf("found %q, expected %s six times", out, redacted)
	}
}

func TestTheLeakDetectorDetects(t *testing.T) {
	type naked struct{ key [32]byte }
	d, found := newDetector(canary), make(map[string]bool)
	for how, out := range renderings(naked{[32]byte(canary)}) {
		if d.leaks(out) {
			found[how] = true
		}
	}
	for _, how := range []string{"fmt %v", "fmt %+v", "fmt %#v", "fmt %s", "fmt %x", "fmt %d", "fmt %b", "fmt %o", "Sprint", "Errorf", "slog text"} {
		if !found[how] {
			t.Errorf("%s of a plain array is not detected", how)
		}
	}
}

// TestNothingPrintsAKeyOfTheSchedule prints everything that holds keys, and looks for each of its keys.
func TestNothingPrintsAKeyOfTheSchedule(t *testing.T) {
	v := readSchedule(t)[0]
	s := v.schedule(t)
	if !s.CheckConfirm(Destination, v.ConfirmD) {
		t.Fatal("no confirmation")
	}
	before := renderings(s)
	ch, err := s.Channel(true, [48]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := s.Finish([48]byte(v.TH3))
	if err != nil {
		t.Fatal(err)
	}
	kem, err := kemFromSeed(canary)
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{canary, v.PRK, v.SeedS, v.SeedD}
	for _, key := range v.Keys {
		secrets = append(secrets, key)
	}
	d := newDetector(secrets...)
	for name, outs := range map[string]map[string]string{
		"a schedule": before, "a schedule at its end": renderings(s), "a channel": renderings(ch), "keys": renderings(keys),
		"keys by value": renderings(*keys), "a KEM key": renderings(kem),
	} {
		t.Run(name, func(t *testing.T) {
			for how, out := range outs {
				if d.leaks(out) {
					t.Errorf("%s prints a key", how)
				}
			}
		})
	}
}

func TestASecretRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func() (*Secret, error)
		want error
	}{
		{"31 bytes", func() (*Secret, error) { return SecretFrom(canary[:31]) }, ErrSecretSize},
		{"33 bytes", func() (*Secret, error) { return SecretFrom(append(bytes.Clone(canary), 1)) }, ErrSecretSize},
		{"no bytes", func() (*Secret, error) { return SecretFrom(nil) }, ErrSecretSize},
		{"zeros", func() (*Secret, error) { return SecretFrom(make([]byte, 32)) }, ErrZeroSecret},
		{"zeros from a broken generator", func() (*Secret, error) { return NewSecret(bytes.NewReader(make([]byte, 32))) }, ErrZeroSecret},
		{"a generator that fails", func() (*Secret, error) { return NewSecret(iotest.ErrReader(errors.ErrUnsupported)) }, errors.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := c.make()
			if s != nil || !errors.Is(err, c.want) {
				t.Errorf("found %v, %v; expected %v", s, err, c.want)
			}
		})
	}
}

func TestASecretWithoutASourceIsRandom(t *testing.T) {
	a, errA := NewSecret(nil)
	b, errB := NewSecret(nil)
	if errA != nil || errB != nil || a.Equal(b) || len(a.Bytes()) != SecretSize {
		t.Errorf("found %d bytes, %v, %v; expected two different secrets", len(a.Bytes()), errA, errB)
	}
}

func TestWipeClearsTheBytesAndNotTheClone(t *testing.T) {
	s, err := SecretFrom(canary)
	if err != nil {
		t.Fatal(err)
	}
	alias, clone, itself := s.Bytes(), s.Clone(), s
	if !s.Equal(clone) {
		t.Error("a clone differs")
	}
	s.Wipe()
	s.Wipe()
	if !bytes.Equal(alias, make([]byte, 32)) {
		t.Error("the bytes are still there")
	}
	if s.Bytes() != nil || s.Clone().Bytes() != nil || s.Equal(itself) || s.Equal(clone) {
		t.Error("a wiped secret is still of use")
	}
	if !bytes.Equal(clone.Bytes(), canary) {
		t.Error("the clone was wiped too")
	}
	var none *Secret
	none.Wipe()
	if none.Bytes() != nil || (&Secret{}).Bytes() != nil {
		t.Error("a secret without bytes has bytes")
	}
}
