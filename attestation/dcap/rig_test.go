package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// issued is when everything simulated is issued, now when it is judged.
var (
	issued = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	now    = issued.Add(24 * time.Hour)
)

var measurement = simulated.Measurement{
	MREnclave: [32]byte{1, 2, 3}, MRSigner: simulated.SignerOf("tests"), ISVProdID: 7, ISVSVN: 9,
}

var reportData = [64]byte{0: 0xc0, 63: 0xde}

// rig is a simulated authority with one platform.
type rig struct {
	*simulated.Authority
	dir, platformDir string
	verifier         Verifier
}

func newRig(t testing.TB, opts simulated.PlatformOptions) *rig {
	t.Helper()
	r := &rig{dir: filepath.Join(t.TempDir(), "authority"), platformDir: filepath.Join(t.TempDir(), "platform")}
	var err error
	if r.Authority, err = simulated.CreateAuthority(r.dir, simulated.AuthorityOptions{At: issued}); err != nil {
		t.Fatal(err)
	}
	opts.At = issued
	if err := r.CreatePlatform(r.platformDir, opts); err != nil {
		t.Fatal(err)
	}
	if r.verifier.Root, err = PinPEM(r.RootPEM()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) platform(t testing.TB) *simulated.Platform {
	t.Helper()
	p, err := simulated.Open(r.platformDir, measurement)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *rig) quote(t testing.TB, version int) []byte {
	t.Helper()
	p := r.platform(t)
	quoteOf := p.Quote
	if version == 4 {
		quoteOf = p.QuoteV4
	}
	q, err := quoteOf(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func (r *rig) issue(t testing.TB, opts simulated.CollateralOptions) *collateral.Collateral {
	t.Helper()
	if opts.At.IsZero() {
		opts.At = issued
	}
	files, err := r.Issue(opts)
	if err != nil {
		t.Fatal(err)
	}
	return fromFiles(files)
}

func fromFiles(f simulated.Files) *collateral.Collateral {
	return &collateral.Collateral{
		TCBInfo: f[simulated.TCBInfoFile], QEIdentity: f[simulated.QEIdentityFile], TCBSigningChain: f[simulated.TCBSigningChainFile],
		PCKCRL: f[simulated.PCKCRLFile], RootCACRL: f[simulated.RootCACRLFile],
	}
}

// identity is a certificate with its key, read from the rig's files: what a forger who had Intel's keys could make.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (r *rig) authorityIdentity(t testing.TB, name string) identity {
	t.Helper()
	base := filepath.Join(r.dir, "private", name)
	return identity{readCertificates(t, base+".pem")[0], readPrivateKey(t, base+".key.pem")}
}

func (r *rig) pck(t testing.TB) identity {
	t.Helper()
	return identity{readCertificates(t, filepath.Join(r.platformDir, "pck_chain.pem"))[0], readPrivateKey(t, filepath.Join(r.platformDir, "pck.key.pem"))}
}

func readCertificates(t testing.TB, path string) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for rest := read(t, path); len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs, rest = append(certs, cert), after
	}
	return certs
}

func readPrivateKey(t testing.TB, path string) *ecdsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(read(t, path))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ecdsa.PrivateKey)
}

// reissue makes a copy of a certificate for the same key, changed by f, signed by issuer.
func reissue(t testing.TB, subject, issuer identity, f func(*x509.Certificate)) identity {
	t.Helper()
	c := *subject.cert
	c.SignatureAlgorithm = 0
	for _, e := range subject.cert.Extensions {
		if e.Id.Equal(oidSGX()) {
			c.ExtraExtensions = append(c.ExtraExtensions, e)
		}
	}
	f(&c)
	parent := *issuer.cert
	parent.PublicKey = nil // crypto/x509 would refuse a key that is not the issuer's
	der, err := x509.CreateCertificate(rand.Reader, &c, &parent, &subject.key.PublicKey, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity{cert, subject.key}
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encodeChain(chain ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// signed is {"name":body,"signature":...} by any key.
func signed(t testing.TB, key *ecdsa.PrivateKey, name, body string) []byte {
	t.Helper()
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, body, signRaw(t, key, []byte(body)))
}

// signRaw is r || s over SHA-256.
func signRaw(t testing.TB, key *ecdsa.PrivateKey, message []byte) (raw [64]byte) {
	t.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return raw
}

// refused checks that err is a refusal by one check on one artefact, which says what it found.
func refused(t testing.TB, err error, check Check, artefact Artefact) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, check) || e.Check != check || e.Artefact != artefact || e.Found == "" {
		t.Errorf("got %v, want a refusal by %q on %q", err, string(check), artefact)
	}
}

func bigInts(n ...int64) []*big.Int {
	out := make([]*big.Int, len(n))
	for i, v := range n {
		out[i] = big.NewInt(v)
	}
	return out
}

func consecutive(n int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(i) + 1
	}
	return out
}

func sgxReport(svn uint16) *quote.SGXReport { return &quote.SGXReport{ISVSVN: svn} }
