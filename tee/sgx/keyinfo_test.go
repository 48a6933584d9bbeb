package sgx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/tee"
)

func TestAKeyIsRecoveredByItsKeyInfoAcrossVersions(t *testing.T) {
	p := newProcessor(t)
	e := mustOpen(t, p)
	key, info, err := e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info) > sealed.MaxKeyInfo {
		t.Errorf("a key info of %d bytes, more than %d", len(info), sealed.MaxKeyInfo)
	}
	p.self.mrEnclave[0]++
	p.self.isvSVN++
	next := mustOpen(t, p)
	got, err := next.RecoverSealKey(t.Context(), info)
	if err != nil || !got.Equal(key) {
		t.Errorf("the next version: got another key, %v", err)
	}
	other, otherInfo, err := next.SealKey(t.Context())
	if err != nil || other.Equal(key) || bytes.Equal(info, otherInfo) {
		t.Errorf("a new key is not new: %v", err)
	}
	if got, err := e.RecoverSealKey(t.Context(), otherInfo); !errors.Is(err, tee.ErrForeignKeyInfo) || got.Bytes() != nil {
		t.Errorf("an earlier version got a later one's key: %v", err)
	}
}

func TestAForeignKeyInfoIsRefused(t *testing.T) {
	for name, change := range map[string]func(*processor){
		"of another processor":             func(p *processor) { p.fuses = "others" },
		"of another signer":                func(p *processor) { p.self.mrSigner[0]++ },
		"of another product":               func(p *processor) { p.prodID++ },
		"of a debug enclave of the signer": func(p *processor) { p.self.debug = true },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcessor(t)
			e := mustOpen(t, p)
			foreign := *p
			change(&foreign)
			_, info, err := mustOpen(t, &foreign).SealKey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if key, err := e.RecoverSealKey(t.Context(), info); !errors.Is(err, tee.ErrForeignKeyInfo) || key.Bytes() != nil {
				t.Errorf("got %v, want ErrForeignKeyInfo and no key", err)
			}
		})
	}
}

// An attacker who can derive a key by himself, in an enclave of his own, makes a key info with the right tag for it. What he seals under that key
// must not open.
func TestAKeyInfoForAKeyThatIsNoSecretIsRefused(t *testing.T) {
	put16 := binary.LittleEndian.PutUint16
	for name, tc := range map[string]struct {
		change func(r []byte)
		says   string
	}{
		"a key of every enclave with this product id": {func(r []byte) { put16(r[2:], 0) }, "key policy: found 0x0"},
		"a key by MRENCLAVE":                          {func(r []byte) { put16(r[2:], 1) }, "key policy: found 0x1"},
		"a key by both measurements":                  {func(r []byte) { put16(r[2:], 3) }, "key policy: found 0x3"},
		"a key of every product of the signer":        {func(r []byte) { put16(r[2:], 2|4) }, "key policy: found 0x6"},
		"the report key":                              {func(r []byte) { put16(r[0:], 3) }, "key name: found 0x3"},
		"the provisioning key":                        {func(r []byte) { put16(r[0:], 1) }, "key name: found 0x1"},
		"a key that a debug enclave has too":          {func(r []byte) { r[24] &^= 2 }, "attribute mask"},
		"a key with more attributes in it":            {func(r []byte) { r[24] |= 4 }, "attribute mask"},
		"a key with XFRM in it":                       {func(r []byte) { r[32] = 1 }, "xfrm mask"},
		"a key with another misc mask":                {func(r []byte) { r[75] = 0 }, "misc mask"},
		"data in the reserved field":                  {func(r []byte) { r[6] = 1 }, "reserved field"},
		"a CONFIGSVN":                                 {func(r []byte) { r[76] = 1 }, "data after byte 76"},
		"data in the last byte":                       {func(r []byte) { r[511] = 1 }, "data after byte 76"},
		"the key of a later version":                  {func(r []byte) { put16(r[4:], 4) }, "the key of version 4, expected 3 at most"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcessor(t)
			e := mustOpen(t, p)
			request := p.request(2)
			tc.change(request)
			raw, err := p.derive("seal key", request)
			if err != nil {
				t.Fatal(err)
			}
			known, err := tee.NewSealKey(raw)
			if err != nil {
				t.Fatal(err)
			}
			info, err := encodeKeyInfo(request, known)
			if err != nil {
				t.Fatal(err)
			}
			asked := false
			p.onKey = func(_ string, key []byte) ([]byte, error) { asked = true; return key, nil }
			key, err := e.RecoverSealKey(t.Context(), info)
			if !errors.Is(err, tee.ErrForeignKeyInfo) || !strings.Contains(err.Error(), tc.says) || key.Bytes() != nil {
				t.Errorf("got %v, want ErrForeignKeyInfo that says %q, and no key", err, tc.says)
			}
			if asked {
				t.Error("the processor was asked")
			}
		})
	}
}

func TestAKeyInfoOfLaterMicrocodeIsForeign(t *testing.T) {
	p := newProcessor(t)
	e := mustOpen(t, p)
	p.onRequest = func(r []byte) { r[8] = 8 }
	_, info, err := e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if key, err := e.RecoverSealKey(t.Context(), info); !errors.Is(err, tee.ErrForeignKeyInfo) || !strings.Contains(err.Error(), "later microcode") || key.Bytes() != nil {
		t.Errorf("got %v, want ErrForeignKeyInfo", err)
	}
	p.onRequest, p.onKey = nil, failing("seal key")
	_, info, err = e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.RecoverSealKey(t.Context(), info); err == nil || errors.Is(err, tee.ErrForeignKeyInfo) {
		t.Errorf("another failure of the processor: got %v, want its own error", err)
	}
}

func TestAnEarlierVersionsKeyIsRecovered(t *testing.T) {
	p := newProcessor(t)
	e := mustOpen(t, p)
	p.onRequest = func(r []byte) { r[4] = 1 }
	_, info, err := e.SealKey(t.Context())
	p.onRequest = nil
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.RecoverSealKey(t.Context(), info); err != nil {
		t.Error(err)
	}
}

func TestAnAlteredKeyInfoIsRefused(t *testing.T) {
	e := mustOpen(t, newProcessor(t))
	_, info, err := e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	altered := map[string][]byte{
		"nothing": nil, "cut": info[:len(info)-1], "longer": append(slices.Clone(info), 0),
		"a key request alone": info[len(keyInfoMagic):][:requestSize],
	}
	for i := range info {
		b := slices.Clone(info)
		b[i] ^= 1
		altered["bit flipped in byte "+strings.Repeat("i", i)] = b
	}
	for name, b := range altered {
		if key, err := e.RecoverSealKey(t.Context(), b); !errors.Is(err, tee.ErrForeignKeyInfo) || key.Bytes() != nil {
			t.Errorf("%.40s (%d bytes): got %v", name, len(b), err)
		}
	}
}

func TestATagIsOfItsRequestAndItsKey(t *testing.T) {
	tags := map[string]bool{}
	for _, raw := range []string{"key of 16 bytes.", "key of 16 bytes!"} {
		key, err := tee.NewSealKey([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		for _, request := range [][]byte{make([]byte, requestSize), bytes.Repeat([]byte{1}, requestSize)} {
			tag, err := tagOf(request, key)
			if err != nil {
				t.Fatal(err)
			}
			tags[string(tag)] = true
		}
	}
	if len(tags) != 4 {
		t.Errorf("four pairs of request and key have %d tags", len(tags))
	}
}

func TestAKeyThatFailsLaterIsReturnedByNobody(t *testing.T) {
	p := newProcessor(t)
	e := mustOpen(t, p)
	_, info, err := e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, onKey := range map[string]func(string, []byte) ([]byte, error){
		"all zero": func(string, []byte) ([]byte, error) { return make([]byte, tee.SealKeySize), nil },
		"too long": func(_ string, key []byte) ([]byte, error) { return append(key, 1), nil },
		"nothing":  func(string, []byte) ([]byte, error) { return nil, nil },
	} {
		p.onKey = onKey
		if key, info, err := e.SealKey(t.Context()); !errors.Is(err, tee.ErrUnusableKey) || key.Bytes() != nil || info != nil {
			t.Errorf("%s: SealKey: got %v", name, err)
		}
		if key, err := e.RecoverSealKey(t.Context(), info); !errors.Is(err, tee.ErrUnusableKey) || key.Bytes() != nil {
			t.Errorf("%s: RecoverSealKey: got %v", name, err)
		}
	}
	p.onKey = nil
	for _, call := range []string{"product seal key", "seal key"} {
		p.panicking = call
		_, _, sealErr := e.SealKey(t.Context())
		_, recoverErr := e.RecoverSealKey(t.Context(), info)
		if err := errors.Join(sealErr, recoverErr); err == nil || !strings.Contains(err.Error(), call+": the call panicked") {
			t.Errorf("%s: got %v", call, err)
		}
	}
}

func TestNoKeyIsDerivedForACallerWhoIsGone(t *testing.T) {
	p := newProcessor(t)
	e := mustOpen(t, p)
	_, info, err := e.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.onKey = func(string, []byte) ([]byte, error) { t.Error("the processor was asked"); return nil, nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := e.SealKey(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("SealKey: %v", err)
	}
	if _, err := e.RecoverSealKey(ctx, info); !errors.Is(err, context.Canceled) {
		t.Errorf("RecoverSealKey: %v", err)
	}
}

func TestAStoreSealsAndOpensWithTheseKeys(t *testing.T) {
	p := newProcessor(t)
	dir := t.TempDir()
	id := sealed.ID{Kind: "escrow", Name: "a"}
	s, err := sealed.NewStore(dir, tee.SealKeys{Enclave: mustOpen(t, p)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), id.Kind, id.Name, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	p.self.mrEnclave[0]++ // an upgrade
	s, err = sealed.NewStore(dir, tee.SealKeys{Enclave: mustOpen(t, p)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), id.Kind, id.Name); err != nil || string(got) != "secret" {
		t.Errorf("after an upgrade: got %q, %v", got, err)
	}
	p.fuses = "of another machine"
	s, err = sealed.NewStore(dir, tee.SealKeys{Enclave: mustOpen(t, p)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), id.Kind, id.Name); !errors.Is(err, tee.ErrForeignKeyInfo) {
		t.Errorf("on another machine: got %v, want ErrForeignKeyInfo", err)
	}
}

func FuzzRecoverSealKey(f *testing.F) {
	p := &processor{fuses: "fuses", prodID: 1, self: identity{mrEnclave: [32]byte{1}, mrSigner: [32]byte{2}, isvSVN: 3}}
	e, err := open(p, env(nil), Options{})
	if err != nil {
		f.Fatal(err)
	}
	_, info, err := e.SealKey(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(info)
	f.Add(info[:len(info)-1])
	f.Add([]byte(keyInfoMagic))
	f.Add(append([]byte(keyInfoMagic), make([]byte, requestSize+tagSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := e.RecoverSealKey(t.Context(), b)
		if (err == nil) != (key.Bytes() != nil) {
			t.Fatalf("a key with an error, or neither: %v", err)
		}
		if err == nil {
			// Fuzzing runs in several processes: the key info need not be the one above, but it must be one that this processor makes.
			again, err := encodeKeyInfo(b[len(keyInfoMagic):][:requestSize], key)
			if err != nil || !bytes.Equal(again, b) || binary.LittleEndian.Uint16(b[len(keyInfoMagic)+2:]) != 2 {
				t.Fatal("a key for a key info that nobody made")
			}
			return
		}
		if !errors.Is(err, tee.ErrForeignKeyInfo) {
			t.Fatalf("got %v, want ErrForeignKeyInfo", err)
		}
	})
}
