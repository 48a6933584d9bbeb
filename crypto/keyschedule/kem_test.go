package keyschedule

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// TestKEMVectors opens seeds that crypto/testdata/vectors.py sealed with its own HPKE over OpenSSL's ML-KEM.
func TestKEMVectors(t *testing.T) {
	var vectors []struct {
		Name                       string
		KEMSeed                    hexBytes `json:"kem_seed"`
		Public, Info, Seed, Sealed hexBytes
	}
	readVectors(t, "kem.json", &vectors)
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			k, err := kemFromSeed(v.KEMSeed)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(k.Public(), v.Public) {
				t.Error("the public key differs")
			}
			seed, err := k.OpenSeed(v.Sealed, v.Info)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(seed.Bytes(), v.Seed) {
				t.Errorf("found %x, expected %x", seed.Bytes(), v.Seed)
			}
		})
	}
}

func generate(t testing.TB) *KEMPrivate {
	t.Helper()
	k, err := GenerateKEM()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestASealedSeedOpensOnceForItsKeyAndInfo(t *testing.T) {
	seed, err := NewSecret(nil)
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t)
	if len(k.Public()) != KEMPublicSize {
		t.Fatalf("found a public key of %d bytes, expected %d", len(k.Public()), KEMPublicSize)
	}
	sealed, err := SealSeed(k.Public(), seed, []byte("th1S->D"))
	if err != nil || len(sealed) != SealedSeedSize {
		t.Fatalf("found %d bytes, %v; expected %d", len(sealed), err, SealedSeedSize)
	}
	opened, err := k.OpenSeed(sealed, []byte("th1S->D"))
	if err != nil || !opened.Equal(seed) {
		t.Fatalf("found another seed, %v", err)
	}
	if _, err := k.OpenSeed(sealed, []byte("th1S->D")); !errors.Is(err, ErrWiped) {
		t.Errorf("a second time: found %v, expected %v", err, ErrWiped)
	}
	if len(k.Public()) != KEMPublicSize {
		t.Error("the public key went with the private one")
	}
}

func TestASealedSeedIsRefused(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	for _, c := range []struct {
		name   string
		info   string
		change func([]byte) []byte
	}{
		{"for the other direction", "th1D->S", nil},
		{"for another session", "TH1S->D", nil},
		{"without info", "", nil},
		{"with a flipped bit in the ML-KEM part", "th1S->D", flip(0)},
		{"with a flipped bit in the X25519 part", "th1S->D", flip(1100)},
		{"with a flipped bit in the seed", "th1S->D", flip(KEMEncapsulationSize)},
		{"with a flipped bit in the tag", "th1S->D", flip(SealedSeedSize - 1)},
		{"with an X25519 point of low order", "th1S->D", func(b []byte) []byte { clear(b[1088:1120]); return b }},
		{"cut", "th1S->D", func(b []byte) []byte { return b[:len(b)-1] }},
		{"longer", "th1S->D", func(b []byte) []byte { return append(b, 0) }},
		{"empty", "th1S->D", func([]byte) []byte { return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			seed, err := NewSecret(nil)
			if err != nil {
				t.Fatal(err)
			}
			k := generate(t)
			sealed, err := SealSeed(k.Public(), seed, []byte("th1S->D"))
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				sealed = c.change(sealed)
			}
			if _, err := k.OpenSeed(sealed, []byte(c.info)); !errors.Is(err, ErrSealedSeed) {
				t.Errorf("found %v, expected %v", err, ErrSealedSeed)
			}
			if _, err := k.OpenSeed(sealed, []byte(c.info)); !errors.Is(err, ErrWiped) {
				t.Errorf("after a failure: found %v, expected %v", err, ErrWiped)
			}
		})
	}
}

func TestAPublicKeyIsRefused(t *testing.T) {
	seed, err := NewSecret(nil)
	if err != nil {
		t.Fatal(err)
	}
	good := generate(t).Public()
	for name, public := range map[string][]byte{
		"empty":                    nil,
		"cut":                      good[:KEMPublicSize-1],
		"longer":                   append(slices.Clone(good), 0),
		"ML-KEM out of range":      append(bytes.Repeat([]byte{0xff}, 1184), good[1184:]...),
		"X25519 of low order":      append(slices.Clone(good[:1184]), make([]byte, 32)...),
		"only an X25519 key of it": good[1184:],
	} {
		if _, err := SealSeed(public, seed, nil); !errors.Is(err, ErrPublicKey) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrPublicKey)
		}
	}
	if _, err := SealSeed(good, &Secret{}, nil); !errors.Is(err, ErrWiped) {
		t.Errorf("a wiped seed: found %v, expected %v", err, ErrWiped)
	}
}

func TestWipeClearsThePrivateSeed(t *testing.T) {
	k, err := kemFromSeed(canary)
	if err != nil {
		t.Fatal(err)
	}
	alias, err := k.key().Bytes()
	if err != nil || !bytes.Equal(alias, canary) {
		t.Fatalf("found %x, %v", alias, err)
	}
	k.Wipe()
	k.Wipe()
	if !bytes.Equal(alias, make([]byte, 32)) {
		t.Error("crypto/hpke now returns a copy of its seed: the comment in wipe is out of date, and so is docs/keys.md")
	}
}

func FuzzOpenSeed(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(make([]byte, SealedSeedSize), []byte("S->D"))
	f.Add(bytes.Repeat([]byte{0xff}, SealedSeedSize), []byte("D->S"))
	f.Fuzz(func(t *testing.T, sealed, info []byte) {
		k, err := kemFromSeed(canary)
		if err != nil {
			t.Fatal(err)
		}
		if seed, err := k.OpenSeed(sealed, info); err == nil || seed != nil {
			t.Errorf("a seed that nobody sealed: %v", err)
		}
	})
}

// BenchmarkKEM is the costly part of a handshake on one side: a key pair, one seed sealed, one opened.
func BenchmarkKEM(b *testing.B) {
	seed, err := NewSecret(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k := generate(b)
		sealed, err := SealSeed(k.Public(), seed, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := k.OpenSeed(sealed, nil); err != nil {
			b.Fatal(err)
		}
	}
}
