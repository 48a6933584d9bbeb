// Package endorsement believes, or not, the certificate of a TPM's endorsement key (TCG EK Credential Profile for TPM Family 2.0, 2.5).
package endorsement

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// MaxCertificates bounds the certificates of a chain, and of a file of roots.
	MaxCertificates = 64
	// maxSize bounds each input, in bytes.
	maxSize = 1 << 20
)

// Errors that a caller may want to tell apart.
var (
	// ErrNone: the TPM has no certificate of its endorsement key.
	ErrNone = errors.New("the tpm has no endorsement certificate")
	// ErrMalformed: an input is not what it should be, or is too large.
	ErrMalformed = errors.New("malformed")
	// ErrOtherKey: the certificate is of another key than the TPM's endorsement key.
	ErrOtherKey = errors.New("the certificate is of another endorsement key")
	// ErrUntrusted: no path leads from the certificate to a root that the caller trusts, or the path is not valid now.
	ErrUntrusted = errors.New("the endorsement certificate does not lead to a trusted root")
	// ErrPurpose: the certificate is not one of an endorsement key.
	ErrPurpose = errors.New("not the certificate of an endorsement key")
)

var (
	// ekCertificate is tcg-kp-EKCertificate.
	ekCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	// alternativeName carries the TPM's model as a directory name, which the standard library does not read and therefore calls unhandled.
	alternativeName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Statement is what a believed certificate says.
type Statement struct {
	// Issuer and Root are the names of the certificate's issuer and of the root that it leads to.
	Issuer, Root string
	// NotAfter is the earliest end of a certificate on the path. Makers often write 9999 into an endorsement certificate.
	NotAfter time.Time
}

// Roots reads one or more CA certificates in PEM. The error is ErrMalformed.
func Roots(raw []byte) (*x509.CertPool, error) {
	if len(raw) > maxSize {
		return nil, fmt.Errorf("roots: %w: found %d bytes, expected at most %d", ErrMalformed, len(raw), maxSize)
	}
	pool := x509.NewCertPool()
	n := 0
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("roots: %w: found a PEM block %q, expected CERTIFICATE", ErrMalformed, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("roots: %w: certificate %d: %w", ErrMalformed, n+1, err)
		}
		if n++; n > MaxCertificates {
			return nil, fmt.Errorf("roots: %w: more than %d certificates", ErrMalformed, MaxCertificates)
		}
		pool.AddCert(c)
	}
	if n == 0 {
		return nil, fmt.Errorf("roots: %w: found no certificate in PEM", ErrMalformed)
	}
	return pool, nil
}

// Verify believes the certificate of the endorsement key ekPublic (TPMT_PUBLIC) if it leads to one of roots at now. Chain is what the TPM stores of its
// issuers; intermediates that it does not store belong into roots. Revocation is not checked: few makers publish it.
// The errors are those of the package.
func Verify(ekPublic, certificate []byte, chain [][]byte, roots *x509.CertPool, now time.Time) (*Statement, error) {
	if len(certificate) == 0 {
		return nil, ErrNone
	}
	leaf, err := leafOf(certificate)
	if err != nil {
		return nil, err
	}
	if err := sameKey(leaf, ekPublic); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(leaf.UnknownExtKeyUsage, ekCertificate.Equal) {
		return nil, fmt.Errorf("%w: extended key usage %v is missing", ErrPurpose, ekCertificate)
	}
	if leaf.IsCA {
		return nil, fmt.Errorf("%w: it is a certificate authority's", ErrPurpose)
	}
	intermediates, err := intermediatesOf(chain)
	if err != nil {
		return nil, err
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, alternativeName.Equal)
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: issued by %q: %w", ErrUntrusted, leaf.Issuer, err)
	}
	path := paths[0]
	s := &Statement{Issuer: leaf.Issuer.String(), Root: path[len(path)-1].Subject.String(), NotAfter: leaf.NotAfter}
	for _, c := range path {
		if c.NotAfter.Before(s.NotAfter) {
			s.NotAfter = c.NotAfter
		}
	}
	return s, nil
}

// leafOf parses the certificate at the start of raw: an NV index may be larger than what it holds.
func leafOf(raw []byte) (*x509.Certificate, error) {
	if len(raw) > maxSize {
		return nil, fmt.Errorf("endorsement certificate: %w: found %d bytes, expected at most %d", ErrMalformed, len(raw), maxSize)
	}
	var der asn1.RawValue
	if _, err := asn1.Unmarshal(raw, &der); err != nil {
		return nil, fmt.Errorf("endorsement certificate: %w: %w", ErrMalformed, err)
	}
	c, err := x509.ParseCertificate(der.FullBytes)
	if err != nil {
		return nil, fmt.Errorf("endorsement certificate: %w: %w", ErrMalformed, err)
	}
	return c, nil
}

// intermediatesOf reads certificates that follow one another; one may go on in the next index. What follows the last is padding.
func intermediatesOf(chain [][]byte) (*x509.CertPool, error) {
	rest := slices.Concat(chain...)
	if len(rest) > maxSize {
		return nil, fmt.Errorf("endorsement chain: %w: found %d bytes, expected at most %d", ErrMalformed, len(rest), maxSize)
	}
	const sequence = 0x30
	pool := x509.NewCertPool()
	for n := 1; len(rest) > 0 && rest[0] == sequence; n++ {
		if n > MaxCertificates {
			return nil, fmt.Errorf("endorsement chain: %w: more than %d certificates", ErrMalformed, MaxCertificates)
		}
		var der asn1.RawValue
		after, err := asn1.Unmarshal(rest, &der)
		if err != nil {
			return nil, fmt.Errorf("endorsement chain: %w: certificate %d: %w", ErrMalformed, n, err)
		}
		c, err := x509.ParseCertificate(der.FullBytes)
		if err != nil {
			return nil, fmt.Errorf("endorsement chain: %w: certificate %d: %w", ErrMalformed, n, err)
		}
		pool.AddCert(c)
		rest = after
	}
	return pool, nil
}

// sameKey compares the certified key with the TPM's.
func sameKey(c *x509.Certificate, ekPublic []byte) error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ekPublic)
	if err != nil {
		return fmt.Errorf("endorsement key: %w: %w", ErrMalformed, err)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return fmt.Errorf("endorsement key: %w: %w", ErrMalformed, err)
	}
	certified, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return fmt.Errorf("endorsement certificate: %w: a public key of an unknown kind", ErrMalformed)
	}
	if !certified.Equal(key) {
		return fmt.Errorf("%w (issued by %q, serial number %v)", ErrOtherKey, c.Issuer, c.SerialNumber)
	}
	return nil
}
