package simulated

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Defaults of an authority.
const (
	// DefaultValidity is how long certificates of platforms and collateral are valid: long enough for a demonstration rig.
	DefaultValidity = 30 * 24 * time.Hour
	// caValidity is how long the authority's own certificates are valid.
	caValidity = 10 * 365 * 24 * time.Hour
	// backdate is subtracted where no time of issue is given, so that hosts whose clocks differ accept what was just issued.
	backdate = time.Hour
)

// CA is one of the two authorities that certify PCKs.
type CA int

// The CAs: multi-package platforms are certified by the first, single-package processors by the second.
const (
	PlatformCA CA = iota
	ProcessorCA
)

// Subjects. The suffixes are those of Intel's subjects, by which a verifier tells the roles apart.
const (
	organization = "Safeconduct SIMULATED"
	nameRoot     = "Safeconduct SIMULATED SGX Root CA"
	namePlatform = "Safeconduct SIMULATED SGX PCK Platform CA"
	nameProc     = "Safeconduct SIMULATED SGX PCK Processor CA"
	nameSigning  = "Safeconduct SIMULATED SGX TCB Signing"
	namePCK      = "Safeconduct SIMULATED SGX PCK Certificate"
)

// The public files of an authority besides its collateral (collateral.go).
const (
	RootFile    = "root_ca.pem"
	privateDir  = "private"
	keySuffix   = ".key.pem"
	certSuffix  = ".pem"
	rootName    = "root_ca"
	platName    = "pck_platform_ca"
	procName    = "pck_processor_ca"
	signingName = "tcb_signing"
)

// AuthorityOptions are the free choices of a new authority.
type AuthorityOptions struct {
	// At is when its certificates are issued; zero means an hour ago.
	At time.Time
	// Validity of its certificates; zero means ten years.
	Validity time.Duration
	// Collateral is what is issued into the authority's directory at once. Its At, if zero, is the authority's.
	Collateral CollateralOptions
}

// signer is a certificate and its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Authority plays Intel for simulated platforms.
type Authority struct {
	root, signing signer
	cas           [2]signer
}

// CreateAuthority makes a new authority in dir: root_ca.pem and the collateral of opts beside it, laid out as package collateral reads it,
// and below dir/private (mode 0700) every private key (mode 0600). It never overwrites one: the error is then ErrExists.
func CreateAuthority(dir string, opts AuthorityOptions) (*Authority, error) {
	at, validity := orTime(opts.At), orDuration(opts.Validity, caValidity)
	a := new(Authority)
	var err error
	ca := func(name string, serial int64, maxPath int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: subject(name), NotBefore: at, NotAfter: at.Add(validity), IsCA: true, MaxPathLen: maxPath,
			MaxPathLenZero: maxPath == 0, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	if a.root, err = issue(ca(nameRoot, 1, 1), nil); err != nil {
		return nil, err
	}
	if a.cas[PlatformCA], err = issue(ca(namePlatform, 2, 0), &a.root); err != nil {
		return nil, err
	}
	if a.cas[ProcessorCA], err = issue(ca(nameProc, 3, 0), &a.root); err != nil {
		return nil, err
	}
	leaf := ca(nameSigning, 4, 0)
	leaf.IsCA, leaf.MaxPathLenZero, leaf.KeyUsage = false, false, x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment
	if a.signing, err = issue(leaf, &a.root); err != nil {
		return nil, err
	}
	if err := a.write(dir); err != nil {
		return nil, fmt.Errorf("simulated authority: %w", err)
	}
	if opts.Collateral.At.IsZero() {
		opts.Collateral.At = at
	}
	return a, a.WriteCollateral(dir, opts.Collateral)
}

// OpenAuthority reads an authority that CreateAuthority made. Error: ErrNotAuthority.
func OpenAuthority(dir string) (*Authority, error) {
	a := new(Authority)
	for name, s := range a.members() {
		var err error
		if s.key, err = readKey(filepath.Join(dir, privateDir, name+keySuffix)); err == nil {
			s.cert, err = readCert(filepath.Join(dir, privateDir, name+certSuffix))
		}
		if err == nil && !s.key.PublicKey.Equal(s.cert.PublicKey) {
			err = errors.New("its key is not its certificate's")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %s: %w", ErrNotAuthority, dir, name, err)
		}
	}
	return a, nil
}

// RootPEM is the root's certificate: what a verifier of simulated quotes pins.
func (a *Authority) RootPEM() []byte { return encodeCert(a.root.cert) }

func (a *Authority) members() map[string]*signer {
	return map[string]*signer{rootName: &a.root, platName: &a.cas[PlatformCA], procName: &a.cas[ProcessorCA], signingName: &a.signing}
}

func (a *Authority) write(dir string) error {
	private := filepath.Join(dir, privateDir)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // certificates and CRLs are public
		return err
	}
	if err := os.Mkdir(private, 0o700); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", private, ErrExists)
	} else if err != nil {
		return err
	}
	for name, s := range a.members() {
		if err := writeKey(filepath.Join(private, name+keySuffix), s.key); err != nil {
			return err
		}
		if err := writeNew(filepath.Join(private, name+certSuffix), encodeCert(s.cert), 0o600); err != nil {
			return err
		}
	}
	return writePublic(filepath.Join(dir, RootFile), a.RootPEM())
}

func subject(name string) pkix.Name {
	return pkix.Name{CommonName: name, Organization: []string{organization}}
}

// issue makes a key and has parent certify it; without a parent the certificate is self-signed.
func issue(template *x509.Certificate, parent *signer) (signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return signer{}, fmt.Errorf("simulated authority: %w", err)
	}
	if parent == nil {
		parent = &signer{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		return signer{}, fmt.Errorf("simulated authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return signer{}, fmt.Errorf("simulated authority: %w", err)
	}
	return signer{cert: cert, key: key}, nil
}

func orTime(t time.Time) time.Time {
	if t.IsZero() {
		t = time.Now().Add(-backdate)
	}
	return t.UTC().Truncate(time.Second)
}

func orDuration(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
