package sealed

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

// fakeKeys is a KeySource whose keys are what the test says.
type fakeKeys struct {
	mode    string
	key     []byte
	keyInfo []byte
	err     error
	asked   int
}

func (k *fakeKeys) Mode() string { return k.mode }

func (k *fakeKeys) SealKey(context.Context) ([]byte, []byte, error) {
	k.asked++
	return bytes.Clone(k.key), k.keyInfo, k.err
}

func (k *fakeKeys) RecoverSealKey(_ context.Context, keyInfo []byte) ([]byte, error) {
	k.asked++
	if k.err == nil && !bytes.Equal(keyInfo, k.keyInfo) {
		return bytes.Repeat([]byte{0xee}, 16), nil // another key, as the hardware would derive
	}
	return bytes.Clone(k.key), k.err
}

func newKeys(mode string) *fakeKeys {
	return &fakeKeys{mode: mode, key: bytes.Repeat([]byte{5}, 16), keyInfo: []byte("key info")}
}

var everyError = []error{
	ErrID, ErrMalformed, ErrVersion, ErrMode, ErrWrongBlob, ErrSealKey, ErrNotAuthentic, ErrTooLong, ErrNotFound, ErrRollback,
}

func checkError(t *testing.T, err, expected error) {
	t.Helper()
	if !errors.Is(err, expected) {
		t.Errorf("found %v, expected %v", err, expected)
	}
	for _, other := range everyError {
		if !errors.Is(expected, other) && errors.Is(err, other) {
			t.Errorf("%v is also %v", err, other)
		}
	}
}

// TestVectors compares with blobs that crypto/testdata/vectors.py sealed without this package.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/sealed.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Name, Mode, Kind, Salt, Plaintext, Blob string
		BlobName                                string `json:"blob_name"`
		SealKey                                 string `json:"seal_key"`
		KeyInfo                                 string `json:"key_info"`
		Generation                              uint64
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			keys := &fakeKeys{mode: v.Mode, key: unhex(v.SealKey), keyInfo: unhex(v.KeyInfo)}
			id := ID{v.Kind, v.BlobName}
			plaintext, generation, err := Open(t.Context(), keys, id, unhex(v.Blob))
			if err != nil || generation != v.Generation || hex.EncodeToString(plaintext) != v.Plaintext {
				t.Errorf("found %x, generation %d, %v", plaintext, generation, err)
			}
			blob, err := seal(t.Context(), keys, id, v.Generation, unhex(v.Plaintext), [saltSize]byte(unhex(v.Salt)))
			if err != nil || hex.EncodeToString(blob) != v.Blob {
				t.Errorf("sealed %x, %v", blob, err)
			}
		})
	}
}

var testID = ID{"escrow", "5d5a7a1e-0000-4000-8000-000000000001"}

func mustSeal(t testing.TB, keys KeySource, id ID, generation uint64, plaintext string) []byte {
	t.Helper()
	blob, err := Seal(t.Context(), keys, id, generation, []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func TestABlobIsRefusedForItsOwnReason(t *testing.T) {
	good := mustSeal(t, newKeys(ModeSimulated), testID, 3, "passphrase")
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	modeAt := len(Magic) + 2
	kindAt := modeAt + len(ModeSimulated) + 1
	nameAt := kindAt + len(testID.Kind) + 1
	generationAt := nameAt + len(testID.Name)
	keyInfoAt := generationAt + 10
	for _, c := range []struct {
		name  string
		blob  []byte
		keys  *fakeKeys
		id    ID
		want  error
		asked int // times that a key was asked for
	}{
		{"nothing", nil, newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"something else", []byte("SCSEALEDnot"), newKeys(ModeSimulated), testID, ErrVersion, 0},
		{"another magic", edit(func(b []byte) []byte { b[0] = 'X'; return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"another version", edit(func(b []byte) []byte { b[len(Magic)]++; return b }), newKeys(ModeSimulated), testID, ErrVersion, 0},
		{"a mode that does not exist", edit(func(b []byte) []byte { b[modeAt] = 'x'; return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"a kind that is not allowed", edit(func(b []byte) []byte { b[kindAt] = '/'; return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"a name that is not allowed", edit(func(b []byte) []byte { b[nameAt] = '.'; return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"generation 0", edit(func(b []byte) []byte { clear(b[generationAt : generationAt+8]); return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"a key info longer than the blob", edit(func(b []byte) []byte { b[generationAt+8] = 0x10; return b }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"a simulated one on hardware", good, newKeys(ModeIntel), testID, ErrMode, 0},
		{"a hardware one in a simulation", mustSeal(t, newKeys(ModeIntel), testID, 1, ""), newKeys(ModeSimulated), testID, ErrMode, 0},
		{"any, if this is neither", good, newKeys(""), testID, ErrMode, 0},
		{"another name's", good, newKeys(ModeSimulated), ID{testID.Kind, "other"}, ErrWrongBlob, 0},
		{"another kind's", good, newKeys(ModeSimulated), ID{"receipt", testID.Name}, ErrWrongBlob, 0},
		{"any, under a bad name", good, newKeys(ModeSimulated), ID{testID.Kind, "../x"}, ErrID, 0},
		{"one with another mode written over", edit(func(b []byte) []byte {
			return append(append([]byte(Magic+"\x01\x05intel"), b[kindAt-1:]...), 0)
		}), newKeys(ModeIntel), testID, ErrNotAuthentic, 1},
		{"one with a name written over", edit(func(b []byte) []byte { b[nameAt] = 'a'; return b }), newKeys(ModeSimulated),
			ID{testID.Kind, "a" + testID.Name[1:]}, ErrNotAuthentic, 1},
		{"one with a generation written over", edit(func(b []byte) []byte { b[generationAt+7]++; return b }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one with a key info written over", edit(func(b []byte) []byte { b[keyInfoAt]++; return b }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one with a salt written over", edit(func(b []byte) []byte { b[keyInfoAt+8]++; return b }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one with a flipped bit in the text", edit(func(b []byte) []byte { b[len(b)-17] ^= 1; return b }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one with a flipped bit in the tag", edit(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one with a byte behind", edit(func(b []byte) []byte { return append(b, 0) }), newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one cut by a byte", good[:len(good)-1], newKeys(ModeSimulated), testID, ErrNotAuthentic, 1},
		{"one cut to less than a tag", good[:len(good)-len("passphrase")-1], newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"one with too long a text", edit(func(b []byte) []byte { return append(b, make([]byte, MaxPlaintext)...) }), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"one with too long a key info", edit(func(b []byte) []byte {
			return append(append(b[:generationAt+8:generationAt+8], 0x10, 0x01), make([]byte, MaxKeyInfo+1+saltSize+tagSize)...)
		}), newKeys(ModeSimulated), testID, ErrMalformed, 0},
		{"one of another machine", good, &fakeKeys{mode: ModeSimulated, key: bytes.Repeat([]byte{6}, 16), keyInfo: []byte("key info")}, testID, ErrNotAuthentic, 1},
		{"any, under an all-zero key", good, &fakeKeys{mode: ModeSimulated, key: make([]byte, 16), keyInfo: []byte("key info")}, testID, ErrSealKey, 1},
		{"any, under a short key", good, &fakeKeys{mode: ModeSimulated, key: []byte("short"), keyInfo: []byte("key info")}, testID, ErrSealKey, 1},
		{"any, if the hardware fails", good, &fakeKeys{mode: ModeSimulated, err: errors.ErrUnsupported}, testID, errors.ErrUnsupported, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			plaintext, _, err := Open(t.Context(), c.keys, c.id, c.blob)
			checkError(t, err, c.want)
			if plaintext != nil {
				t.Errorf("found %q with an error", plaintext)
			}
			if c.keys.asked != c.asked {
				t.Errorf("a key was asked for %d times, expected %d", c.keys.asked, c.asked)
			}
		})
	}
	if got, generation, err := Open(t.Context(), newKeys(ModeSimulated), testID, good); err != nil || generation != 3 || string(got) != "passphrase" {
		t.Errorf("the good one: found %q, %d, %v", got, generation, err)
	}
}

func TestSealingIsRefused(t *testing.T) {
	long := make([]byte, MaxPlaintext+1)
	for _, c := range []struct {
		name       string
		keys       *fakeKeys
		id         ID
		generation uint64
		plaintext  []byte
		want       error
	}{
		{"in no mode", newKeys(""), testID, 1, nil, ErrMode},
		{"in a mode that does not exist", newKeys("Intel"), testID, 1, nil, ErrMode},
		{"under no name", newKeys(ModeIntel), ID{}, 1, nil, ErrID},
		{"of too much", newKeys(ModeIntel), testID, 1, long, ErrTooLong},
		{"as generation 0", newKeys(ModeIntel), testID, 0, nil, ErrMalformed},
		{"with an all-zero key, as EGo gives outside an enclave", &fakeKeys{mode: ModeIntel, key: make([]byte, 16)}, testID, 1, nil, ErrSealKey},
		{"with no key", &fakeKeys{mode: ModeIntel}, testID, 1, nil, ErrSealKey},
		{"with a short key", &fakeKeys{mode: ModeIntel, key: make([]byte, 15)}, testID, 1, nil, ErrSealKey},
		{"with too much key info", &fakeKeys{mode: ModeIntel, key: []byte("0123456789abcdef"), keyInfo: make([]byte, MaxKeyInfo+1)}, testID, 1, nil, ErrSealKey},
		{"if the hardware fails", &fakeKeys{mode: ModeIntel, err: errors.ErrUnsupported}, testID, 1, nil, errors.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob, err := Seal(t.Context(), c.keys, c.id, c.generation, c.plaintext)
			if blob != nil {
				t.Error("a blob with an error")
			}
			checkError(t, err, c.want)
		})
	}
	keys := newKeys(ModeIntel)
	keys.keyInfo = make([]byte, MaxKeyInfo)
	id := ID{strings.Repeat("k", MaxKind), strings.Repeat("N", MaxName)}
	blob, err := Seal(t.Context(), keys, id, ^uint64(0), long[1:])
	if err != nil || len(blob) > maxBlob {
		t.Fatalf("the greatest of everything: %d bytes, %v", len(blob), err)
	}
	if got, _, err := Open(t.Context(), keys, id, blob); err != nil || len(got) != MaxPlaintext {
		t.Errorf("the greatest of everything: %d bytes, %v", len(got), err)
	}
}

func TestTwoBlobsOfTheSameDiffer(t *testing.T) {
	a := mustSeal(t, newKeys(ModeIntel), testID, 1, "passphrase")
	b := mustSeal(t, newKeys(ModeIntel), testID, 1, "passphrase")
	if bytes.Equal(a[len(a)-26:], b[len(b)-26:]) {
		t.Error("the same key and nonce twice")
	}
}

func TestIDs(t *testing.T) {
	for _, c := range []struct {
		kind, name string
		good       bool
	}{
		{"escrow", "5d5a7a1e-0000-4000-8000-000000000001", true},
		{"tcb-minimum", "A.b_c-9", true},
		{"k", "-", true},
		{"", "n", false},
		{"k", "", false},
		{"9k", "n", false},
		{"-k", "n", false},
		{"K", "n", false},
		{"k.k", "n", false},
		{"..", "n", false},
		{"k/k", "n", false},
		{"k", ".", false},
		{"k", "..", false},
		{"k", ".tmp-1", false},
		{"k", "a/b", false},
		{"k", "a/../b", false},
		{"k", "a\x00b", false},
		{"k", "a b", false},
		{"k", "é", false},
		{strings.Repeat("k", MaxKind+1), "n", false},
		{"k", strings.Repeat("n", MaxName+1), false},
	} {
		if err := (ID{c.kind, c.name}).check(); (err == nil) != c.good || !c.good && !errors.Is(err, ErrID) {
			t.Errorf("%q, %q: found %v, expected good to be %v", c.kind, c.name, err, c.good)
		}
	}
}

// FuzzParse gives the parser arbitrary blobs. Whatever it accepts encodes to the same bytes again: there is one encoding.
func FuzzParse(f *testing.F) {
	f.Add([]byte(Magic))
	f.Add(mustSeal(f, newKeys(ModeSimulated), testID, 1, "passphrase"))
	f.Add(mustSeal(f, newKeys(ModeIntel), ID{"k", "n"}, 1<<40, ""))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := parse(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
				t.Errorf("an error of no type: %v", err)
			}
			return
		}
		if again := append(b.encodeHeader(), b.ciphertext...); !bytes.Equal(again, raw) {
			t.Errorf("found %x, expected %x", again, raw)
		}
		if !bytes.Equal(append(bytes.Clone(b.header), b.ciphertext...), raw) {
			t.Error("the AAD and the ciphertext are not the whole blob")
		}
	})
}
