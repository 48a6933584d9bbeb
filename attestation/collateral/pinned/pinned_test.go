package pinned

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

var (
	issued = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	key    = collateral.Key{FMSPC: simulated.DefaultFMSPC(), CA: collateral.PlatformCA}
)

// rig is a simulated authority.
type rig struct {
	*simulated.Authority
	dir     string
	checker Checker
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{dir: filepath.Join(t.TempDir(), "authority")}
	var err error
	if r.Authority, err = simulated.CreateAuthority(r.dir, simulated.AuthorityOptions{At: issued}); err != nil {
		t.Fatal(err)
	}
	if r.checker.Root, err = dcap.PinPEM(r.RootPEM()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// caChain is the chain of a CA: its certificate, then the root's.
func (r *rig) caChain(t testing.TB, ca simulated.CA) []byte {
	t.Helper()
	file := "pck_platform_ca.pem"
	if ca == simulated.ProcessorCA {
		file = "pck_processor_ca.pem"
	}
	return append(r.read(t, "private/"+file), r.RootPEM()...)
}

func (r *rig) issue(t testing.TB, o simulated.CollateralOptions) *collateral.Collateral {
	t.Helper()
	o.At = issued
	f, err := r.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	return &collateral.Collateral{
		TCBInfo: f[simulated.TCBInfoFile], QEIdentity: f[simulated.QEIdentityFile], TCBSigningChain: f[simulated.TCBSigningChainFile],
		PCKCRL: f[simulated.PCKCRLFile], RootCACRL: f[simulated.RootCACRLFile], PCKCRLIssuerChain: r.caChain(t, o.CA),
	}
}

func TestAGoodSetIsAcceptedAndItsVersionsAreThoseThatWereIssued(t *testing.T) {
	for ca, cas := range map[collateral.CA]simulated.CA{collateral.PlatformCA: simulated.PlatformCA, collateral.ProcessorCA: simulated.ProcessorCA} {
		r := newRig(t)
		c := r.issue(t, simulated.CollateralOptions{CA: cas, EvaluationDataNumber: 19, CRLNumber: 42, PCKCRLValidity: 7 * 24 * time.Hour})
		checked, v, err := r.checker.Check(collateral.Key{FMSPC: key.FMSPC, CA: ca}, c)
		if err != nil || checked == nil {
			t.Fatal(err)
		}
		document, crl := collateral.Version{Number: 19, Issued: issued}, collateral.Version{Number: 42, Issued: issued}
		if want := (collateral.Versions{TCBInfo: document, QEIdentity: document, PCKCRL: crl, RootCACRL: crl}); v.Versions != want {
			t.Errorf("got %+v, want %+v", v.Versions, want)
		}
		if !v.NotBefore.Equal(issued) || !v.NotAfter.Equal(issued.Add(7*24*time.Hour)) || v.Expires != "pck_crl" || v.Begins == "" {
			t.Errorf("got %+v", v)
		}
	}
}

func TestWhatIsNotAuthenticOrNotAskedForIsRefused(t *testing.T) {
	r, stranger := newRig(t), newRig(t)
	good := func() *collateral.Collateral { return r.issue(t, simulated.CollateralOptions{}) }
	foreign := stranger.issue(t, simulated.CollateralOptions{})
	with := func(f func(*collateral.Collateral)) *collateral.Collateral {
		c := good()
		f(c)
		return c
	}
	other := key
	other.FMSPC[5]++
	for name, tc := range map[string]struct {
		checker Checker
		key     collateral.Key
		set     *collateral.Collateral
		err     error
	}{
		"no root is pinned":       {Checker{}, key, good(), dcap.CheckRoot},
		"another root is pinned":  {stranger.checker, key, good(), dcap.CheckRoot},
		"no set":                  {r.checker, key, nil, dcap.CheckMissing},
		"no such CA":              {r.checker, collateral.Key{FMSPC: key.FMSPC}, good(), collateral.ErrKey},
		"forged TCB info":         {r.checker, key, with(func(c *collateral.Collateral) { c.TCBInfo = foreign.TCBInfo }), dcap.CheckSignature},
		"another FMSPC":           {r.checker, other, good(), ErrOther},
		"the other CA":            {r.checker, collateral.Key{FMSPC: key.FMSPC, CA: collateral.ProcessorCA}, good(), ErrOther},
		"no issuer chain":         {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = nil }), ErrIssuer},
		"a PCK CRL by another CA": {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRL = foreign.PCKCRL }), ErrIssuer},
		"another authority's chain": {r.checker, key, with(func(c *collateral.Collateral) {
			c.PCKCRL, c.PCKCRLIssuerChain = foreign.PCKCRL, foreign.PCKCRLIssuerChain
		}), ErrIssuer},
		"a chain without the root":  {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = r.read(t, "private/pck_platform_ca.pem") }), ErrIssuer},
		"a chain that is none":      {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = []byte("x") }), ErrIssuer},
		"a chain of the root twice": {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = append(r.RootPEM(), r.RootPEM()...) }), ErrOther},
		"a stranger under our root": {r.checker, key, with(func(c *collateral.Collateral) {
			c.PCKCRL, c.PCKCRLIssuerChain = foreign.PCKCRL, append(stranger.read(t, "private/pck_platform_ca.pem"), r.RootPEM()...)
		}), ErrIssuer},
		"the root's CRL as PCK CRL":    {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRL = c.RootCACRL }), ErrIssuer},
		"a signing certificate as CA":  {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = c.TCBSigningChain }), ErrOther},
		"a revoked CA":                 {r.checker, key, r.issue(t, simulated.CollateralOptions{RevokedCAs: []simulated.CA{simulated.PlatformCA}}), ErrIssuer},
		"the chain of the other CA":    {r.checker, key, with(func(c *collateral.Collateral) { c.PCKCRLIssuerChain = r.caChain(t, simulated.ProcessorCA) }), ErrOther},
		"an unsigned PCK CRL, allowed": {Checker{Root: r.checker.Root, AllowUnverifiedPCKCRL: true}, key, with(func(c *collateral.Collateral) { c.PCKCRL = foreign.PCKCRL }), ErrIssuer},
		"the other CA's, unverified": {Checker{Root: r.checker.Root, AllowUnverifiedPCKCRL: true}, key, with(func(c *collateral.Collateral) {
			c.PCKCRL, c.PCKCRLIssuerChain = r.issue(t, simulated.CollateralOptions{CA: simulated.ProcessorCA}).PCKCRL, nil
		}), ErrOther},
	} {
		t.Run(name, func(t *testing.T) {
			checked, v, err := tc.checker.Check(tc.key, tc.set)
			if !errors.Is(err, tc.err) || checked != nil || v != (collateral.Validity{}) {
				t.Errorf("got %v, %+v, %v, want %v", checked != nil, v, err, tc.err)
			}
		})
	}
}

func TestWithoutAChainThePCKCRLIsAllowedLoudlyAndRanksBelowEveryVerifiedOne(t *testing.T) {
	r := newRig(t)
	c := r.issue(t, simulated.CollateralOptions{CRLNumber: 42})
	c.PCKCRLIssuerChain = nil
	_, v, err := Checker{Root: r.checker.Root, AllowUnverifiedPCKCRL: true}.Check(key, c)
	if err != nil || v.Versions.PCKCRL != (collateral.Version{}) || v.Versions.RootCACRL.Number != 42 {
		t.Errorf("got %+v, %v", v, err)
	}
}

// TestAPCKCRLThatItsCADidNotIssueIsRefused is why the chain is asked for: a forged CRL of the highest number would never be replaced.
func TestAPCKCRLThatItsCADidNotIssueIsRefused(t *testing.T) {
	r := newRig(t)
	for name, tc := range map[string]struct {
		signer *rig
		change func(*x509.Certificate)
		err    error
	}{
		"signed by the CA":               {r, func(*x509.Certificate) {}, nil},
		"signed by another key":          {newRig(t), func(*x509.Certificate) {}, ErrIssuer},
		"signed by the CA, another name": {r, func(c *x509.Certificate) { c.RawSubject, c.Subject.CommonName = nil, "x" }, ErrIssuer},
	} {
		block, _ := pem.Decode(r.read(t, "private/pck_platform_ca.pem"))
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		block, _ = pem.Decode(tc.signer.read(t, "private/pck_platform_ca.key.pem"))
		key8, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		signer := key8.(*ecdsa.PrivateKey)
		ca.PublicKey = &signer.PublicKey // crypto/x509 would refuse a key that is not the issuer's
		tc.change(ca)
		c := r.issue(t, simulated.CollateralOptions{})
		list := &x509.RevocationList{Number: big.NewInt(1 << 62), ThisUpdate: issued, NextUpdate: issued.Add(time.Hour)}
		if c.PCKCRL, err = x509.CreateRevocationList(rand.Reader, list, ca, signer); err != nil {
			t.Fatal(err)
		}
		if _, v, err := r.checker.Check(key, c); !errors.Is(err, tc.err) || (tc.err == nil) != (v.Versions.PCKCRL.Number == 1<<62) {
			t.Errorf("%s: got %v, %v", name, v.Versions.PCKCRL, err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	r := newRig(b)
	c := r.issue(b, simulated.CollateralOptions{})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.checker.Check(key, c); err != nil {
			b.Fatal(err)
		}
	}
}
