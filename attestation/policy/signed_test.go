package policy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
)

func ed25519Key(t testing.TB) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p256Key(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t testing.TB, keys ...crypto.Signer) []byte {
	t.Helper()
	var out []byte
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	return out
}

func trust(t testing.TB, keys ...crypto.Signer) Keys {
	t.Helper()
	k, err := ParseKeys(publicPEM(t, keys...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, keys ...crypto.Signer) []byte {
	t.Helper()
	raw, err := Sign([]byte(good), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAPolicyIsOpenedByWhomItWasSigned(t *testing.T) {
	a, b, stranger := ed25519Key(t), p256Key(t, elliptic.P256()), ed25519Key(t)
	idA, _ := KeyID(a.Public())
	idB, _ := KeyID(b.Public())
	for name, tc := range map[string]struct {
		raw     []byte
		trusted Keys
		by      []string
	}{
		"Ed25519":                      {sign(t, a), trust(t, a), []string{idA}},
		"ECDSA on P-256":               {sign(t, b), trust(t, b), []string{idB}},
		"two of two":                   {sign(t, a, b), trust(t, a, b), []string{idA, idB}},
		"one of two, another beside":   {sign(t, a, stranger), trust(t, a, b), []string{idA}},
		"a stranger's key comes first": {sign(t, stranger, b), trust(t, b), []string{idB}},
	} {
		l, err := Open(tc.raw, tc.trusted)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		slices.Sort(tc.by)
		if !slices.Equal(l.SignedBy, tc.by) || l.SVN != 3 || !bytes.Equal(l.Raw, []byte(good)) {
			t.Errorf("%s: signed by %v, read %+v", name, l.SignedBy, l.Policy)
		}
	}
}

func TestAPolicyThatNobodyTrustedSignedIsRefused(t *testing.T) {
	a, b := ed25519Key(t), ed25519Key(t)
	raw := sign(t, a)
	change := func(f func(*envelope)) []byte {
		var e envelope
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		f(&e)
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	other, err := Sign([]byte(strings.Replace(good, `"policy_svn": 3`, `"policy_svn": 4`, 1)), a)
	if err != nil {
		t.Fatal(err)
	}
	var otherEnvelope envelope
	if err := json.Unmarshal(other, &otherEnvelope); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw  []byte
		keys Keys
		want error
	}{
		"by another key":                 {raw, trust(t, b), ErrUntrusted},
		"when nobody is trusted":         {raw, Keys{}, ErrUntrusted},
		"without signatures":             {change(func(e *envelope) { e.Signatures = nil }), trust(t, a), ErrUntrusted},
		"a policy that is not signed":    {[]byte(good), trust(t, a), ErrNotSigned},
		"another payload":                {change(func(e *envelope) { e.Payload = otherEnvelope.Payload }), trust(t, a), ErrBadSignature},
		"another signature":              {change(func(e *envelope) { e.Signatures[0].Sig = otherEnvelope.Signatures[0].Sig }), trust(t, a), ErrBadSignature},
		"an empty signature":             {change(func(e *envelope) { e.Signatures[0].Sig = "" }), trust(t, a), ErrBadSignature},
		"a bad signature beside a good":  {change(func(e *envelope) { e.Signatures = append(e.Signatures, signature{e.Signatures[0].KeyID, "AAAA"}) }), trust(t, a), ErrBadSignature},
		"another payload type":           {change(func(e *envelope) { e.PayloadType = "text/plain" }), trust(t, a), ErrNotSigned},
		"base64 with a line break in it": {change(func(e *envelope) { e.Payload = e.Payload[:8] + "\n" + e.Payload[8:] }), trust(t, a), ErrNotSigned},
		"too many signatures":            {change(func(e *envelope) { e.Signatures = make([]signature, 17) }), trust(t, a), ErrNotSigned},
		"an unknown key in the envelope": {[]byte(strings.Replace(string(raw), `"payload"`, `"x": 1, "payload"`, 1)), trust(t, a), ErrNotSigned},
		"a key given twice":              {[]byte(strings.Replace(string(raw), `"payloadType"`, `"payloadType": "x", "payloadType"`, 1)), trust(t, a), ErrNotSigned},
		"something behind the envelope":  {append(bytes.Clone(raw), '1'), trust(t, a), ErrNotSigned},
		"a file that is too large":       {make([]byte, MaxEnvelope+1), trust(t, a), ErrNotSigned},
	} {
		if _, err := Open(tc.raw, tc.keys); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	if payload, err := Unverified(raw); err != nil || string(payload) != good {
		t.Errorf("Unverified: %v", err)
	}
}

func TestWhatIsNoPolicyIsNotSigned(t *testing.T) {
	if _, err := Sign([]byte(`{"schema":"x"}`), ed25519Key(t)); err == nil {
		t.Error("it is signed")
	}
	if _, err := Sign([]byte(good)); !errors.Is(err, ErrKeys) {
		t.Errorf("without a signer: %v", err)
	}
	if _, err := Sign([]byte(good), p256Key(t, elliptic.P384())); !errors.Is(err, ErrKeys) {
		t.Errorf("on another curve: %v", err)
	}
}

func TestKeysThatAreNotUsable(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]crypto.Signer, 17)
	for i := range many {
		many[i] = ed25519Key(t)
	}
	for name, raw := range map[string][]byte{
		"none": nil, "not PEM": []byte("x"), "a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}),
		"RSA": publicPEM(t, rsaKey), "P-384": publicPEM(t, p256Key(t, elliptic.P384())), "17 of them": publicPEM(t, many...),
		"something behind": append(publicPEM(t, ed25519Key(t)), "x"...), "damaged": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}}),
	} {
		if _, err := ParseKeys(raw); !errors.Is(err, ErrKeys) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// memory is a Marks without a disk.
type memory struct {
	content []byte
	fail    error
}

func (m *memory) Get(context.Context, string, string) ([]byte, error) {
	if m.fail != nil {
		return nil, m.fail
	}
	if m.content == nil {
		return nil, fmt.Errorf("policy: %w", sealed.ErrNotFound)
	}
	return m.content, nil
}

func (m *memory) Put(_ context.Context, _, _ string, b []byte) error { m.content = b; return nil }

func version(t *testing.T, svn int, comment string) *Loaded {
	t.Helper()
	l, err := Parse([]byte(strings.Replace(good, `"policy_svn": 3`, fmt.Sprintf(`"policy_svn": %d`, svn), 1) + comment))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAnOldPolicyIsNotAcceptedAgain(t *testing.T) {
	m := new(memory)
	for _, step := range []struct {
		svn      int
		comment  string
		accepted bool
	}{{3, "", true}, {3, "", true}, {3, " ", false}, {2, "", false}, {5, "", true}, {3, "", false}, {5, "\n", false}, {6, "", true}} {
		err := Advance(t.Context(), m, version(t, step.svn, step.comment))
		if step.accepted && err != nil || !step.accepted && !errors.Is(err, refusal.Because(v1.Reason_REASON_POLICY_ROLLED_BACK)) {
			t.Errorf("%+v: %v", step, err)
		}
	}
}

func TestARecordThatCannotBeReadRefusesEveryPolicy(t *testing.T) {
	broken := errors.New("broken")
	if err := Advance(t.Context(), &memory{fail: broken}, version(t, 9, "")); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := Advance(t.Context(), &memory{content: []byte("x")}, version(t, 9, "")); err == nil {
		t.Error("a damaged record is accepted")
	}
}

func FuzzOpen(f *testing.F) {
	key := ed25519Key(f)
	raw, trusted := sign(f, key), trust(f, key)
	f.Add(raw)
	f.Add([]byte(`{"payloadType":"application/vnd.safeconduct.policy.v1+json","payload":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Open(b, trusted)
		if err == nil && string(l.Raw) != good {
			t.Error("a policy that was not signed is accepted")
		}
	})
}
