package endorsement

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

// keyOf returns a new endorsement key, as x509 and as the TPM has it.
func keyOf(t testing.TB) (*ecdsa.PublicKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	area := tpm2.ECCEKTemplate
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return &key.PublicKey, tpm2.Marshal(area)
}

func poolOf(c *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return pool
}

func TestACertificateIsBelievedOnlyIfEverythingHolds(t *testing.T) {
	maker, other := swtpmtest.NewMaker(t), swtpmtest.NewMaker(t)
	public, ek := keyOf(t)
	_, otherEK := keyOf(t)
	now := time.Now()
	type input struct {
		ek, certificate []byte
		chain           [][]byte
		roots           *x509.CertPool
		now             time.Time
	}
	leaf := func(change func(*x509.Certificate)) []byte {
		template := swtpmtest.Template(t)
		change(template)
		return maker.Issue(t, template, public).Raw
	}
	good := leaf(func(*x509.Certificate) {})
	half := len(maker.Intermediate.Raw) / 2
	for name, test := range map[string]struct {
		change func(*input)
		want   error
	}{
		"as it should be": {func(*input) {}, nil},
		"padded":          {func(i *input) { i.certificate = append(bytes.Clone(good), 0xff, 0xff) }, nil},
		"a chain over two parts": {func(i *input) {
			i.chain = [][]byte{maker.Intermediate.Raw[:half], maker.Intermediate.Raw[half:], {0, 0}}
		}, nil},
		"intermediate as a root":  {func(i *input) { i.chain, i.roots = nil, poolOf(maker.Intermediate) }, nil},
		"none":                    {func(i *input) { i.certificate = nil }, ErrNone},
		"not DER":                 {func(i *input) { i.certificate = []byte("certificate") }, ErrMalformed},
		"too large":               {func(i *input) { i.certificate = make([]byte, maxSize+1) }, ErrMalformed},
		"cut":                     {func(i *input) { i.certificate = good[:len(good)-1] }, ErrMalformed},
		"of another key":          {func(i *input) { i.ek = otherEK }, ErrOtherKey},
		"a key that is none":      {func(i *input) { i.ek = []byte{1} }, ErrMalformed},
		"of another maker":        {func(i *input) { i.roots = poolOf(other.Root) }, ErrUntrusted},
		"no roots":                {func(i *input) { i.roots = x509.NewCertPool() }, ErrUntrusted},
		"without its chain":       {func(i *input) { i.chain = nil }, ErrUntrusted},
		"a chain cut":             {func(i *input) { i.chain = [][]byte{maker.Intermediate.Raw[:half]} }, ErrMalformed},
		"a chain of no end":       {func(i *input) { i.chain = [][]byte{bytes.Repeat(maker.Intermediate.Raw, MaxCertificates+1)} }, ErrMalformed},
		"expired":                 {func(i *input) { i.now = now.AddDate(100, 0, 0) }, ErrUntrusted},
		"not valid yet":           {func(i *input) { i.now = now.AddDate(-10, 0, 0) }, ErrUntrusted},
		"of another purpose":      {func(i *input) { i.certificate = leaf(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }) }, ErrPurpose},
		"a certificate authority": {func(i *input) { i.certificate = leaf(func(c *x509.Certificate) { c.IsCA = true }) }, ErrPurpose},
		"an unknown critical extension": {func(i *input) {
			i.certificate = leaf(func(c *x509.Certificate) {
				c.ExtraExtensions = append(c.ExtraExtensions, c.ExtraExtensions[0])
				c.ExtraExtensions[1].Id = []int{1, 2, 3}
			})
		}, ErrUntrusted},
		"one flipped bit": {func(i *input) { i.certificate = bytes.Clone(good); i.certificate[len(good)-1] ^= 1 }, ErrUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			i := &input{ek, good, [][]byte{maker.Intermediate.Raw}, poolOf(maker.Root), now}
			test.change(i)
			s, err := Verify(i.ek, i.certificate, i.chain, i.roots, i.now)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || (s == nil) != (err != nil) {
				t.Errorf("statement %+v, error %v, expected %v", s, err, test.want)
			}
		})
	}
}

func TestRootsAreCertificatesAndNothingElse(t *testing.T) {
	maker := swtpmtest.NewMaker(t)
	one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: maker.Root.Raw})
	if _, err := Roots(bytes.Repeat(one, 2)); err != nil {
		t.Error(err)
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("root"), "a key": bytes.ReplaceAll(one, []byte("CERTIFICATE"), []byte("PUBLIC KEY")),
		"no certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"too many":       bytes.Repeat(one, MaxCertificates+1), "too large": make([]byte, maxSize+1),
	} {
		if _, err := Roots(raw); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// FuzzVerify demands that nothing but the genuine certificate of the key is believed, whatever a TPM stores.
func FuzzVerify(f *testing.F) {
	maker := swtpmtest.NewMaker(f)
	public, ek := keyOf(f)
	leaf := maker.Issue(f, swtpmtest.Template(f), public).Raw
	f.Add(ek, leaf, maker.Intermediate.Raw)
	f.Add(ek, append(bytes.Clone(leaf), 0xff), append(bytes.Clone(maker.Intermediate.Raw), 0))
	f.Add([]byte{}, []byte{0x30}, []byte{0x30, 0x80})
	roots, now := poolOf(maker.Root), time.Now()
	f.Fuzz(func(t *testing.T, key, certificate, chain []byte) {
		s, err := Verify(key, certificate, [][]byte{chain}, roots, now)
		if (s == nil) != (err != nil) {
			t.Fatalf("statement %v with error %v", s, err)
		}
		if err == nil && !bytes.HasPrefix(certificate, leaf) {
			t.Fatal("another certificate was believed")
		}
	})
}
