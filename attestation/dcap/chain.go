package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// role is what a certificate of Intel's hierarchy is for. Its subject says so, and a certificate of one role never serves in another: the
// keys of the PCK CAs, for one, must not sign TCB info.
type role string

const (
	roleRoot       role = "SGX Root CA"
	rolePlatformCA role = "SGX PCK Platform CA"
	roleProcessor  role = "SGX PCK Processor CA"
	roleSigning    role = "SGX TCB Signing"
	rolePCK        role = "SGX PCK Certificate"
	roleOther      role = "unknown"
)

// roleOf goes by the end of the common name: Intel's begin with "Intel", simulated ones with what they are.
func roleOf(c *x509.Certificate) role {
	for _, r := range []role{roleRoot, rolePlatformCA, roleProcessor, roleSigning, rolePCK} {
		if strings.HasSuffix(c.Subject.CommonName, " "+string(r)) {
			return r
		}
	}
	return roleOther
}

func (r role) in(allowed []role) bool {
	for _, a := range allowed {
		if r == a {
			return true
		}
	}
	return false
}

func (r role) isCA() bool { return r == roleRoot || r == rolePlatformCA || r == roleProcessor }

// The two chains that there are, leaf first. The order is the one of the specifications (SGX ECDSA Quote Library API, appendix A.4, table
// 9, type 5; PCS API, TCB-Info-Issuer-Chain). Some quoting libraries have emitted another; such a chain is refused and not sorted, so that
// a quote has one encoding.
func pckRoles() [][]role {
	return [][]role{{rolePCK}, {rolePlatformCA, roleProcessor}, {roleRoot}}
}

func signingRoles() [][]role { return [][]role{{roleSigning}, {roleRoot}} }

// parseChain reads certificates and verifies that they are a chain of the given roles whose root is the pinned one. It does not look at
// dates: validity is judged apart, at the time that the caller gives.
func parseChain(artefact Artefact, ders [][]byte, roles [][]role, pin RootPin) ([]*x509.Certificate, error) {
	if len(ders) != len(roles) {
		return nil, failed(CheckChain, artefact, fmt.Sprintf("%d certificates", len(ders)), fmt.Sprintf("%d", len(roles)))
	}
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, caused(CheckChain, artefact, fmt.Errorf("certificate %d: %w", i+1, err))
		}
		certs[i] = cert
	}
	if err := checkRoles(artefact, certs, roles); err != nil {
		return nil, err
	}
	root := certs[len(certs)-1]
	if pin == (RootPin{}) || PinOf(root) != pin {
		return nil, failed(CheckRoot, artefact, fmt.Sprintf("%q with key %v", root.Subject, PinOf(root)), "key "+pin.text())
	}
	if err := verifyPath(certs); err != nil {
		return nil, caused(CheckChain, artefact, err)
	}
	return certs, nil
}

func (p RootPin) text() string {
	if p == (RootPin{}) {
		return "none: no root is pinned"
	}
	return p.String()
}

func checkRoles(artefact Artefact, certs []*x509.Certificate, roles [][]role) error {
	var found, expected []string
	ok := true
	for i, c := range certs {
		ok = ok && roleOf(c).in(roles[i])
		found = append(found, fmt.Sprintf("%q", c.Subject.CommonName))
		expected = append(expected, string(roles[i][0]))
	}
	if !ok {
		return failed(CheckChain, artefact, strings.Join(found, ", "), "in this order "+strings.Join(expected, ", "))
	}
	for _, c := range certs {
		key, isECDSA := c.PublicKey.(*ecdsa.PublicKey)
		want := x509.KeyUsageDigitalSignature
		if roleOf(c).isCA() {
			want = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		switch {
		case !isECDSA || key.Curve != elliptic.P256() || c.SignatureAlgorithm != x509.ECDSAWithSHA256:
			return failed(CheckChain, artefact, fmt.Sprintf("%q of %v, signed with %v", c.Subject.CommonName, c.PublicKeyAlgorithm, c.SignatureAlgorithm),
				"ECDSA with SHA-256 on P-256")
		case !c.BasicConstraintsValid || c.IsCA != roleOf(c).isCA() || c.KeyUsage&want != want:
			return failed(CheckChain, artefact, fmt.Sprintf("%q with CA %t and key usage %#x", c.Subject.CommonName, c.IsCA, int(c.KeyUsage)),
				fmt.Sprintf("CA %t and key usage %#x", roleOf(c).isCA(), int(want)))
		}
	}
	return nil
}

// verifyPath has crypto/x509 verify the path, and the root's own signature: the pin is of the key alone, and the rest of the root must
// not be anybody's to change.
func verifyPath(certs []*x509.Certificate) error {
	root := certs[len(certs)-1]
	if err := root.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("the root's own signature: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range certs[1 : len(certs)-1] {
		between.AddCert(c)
	}
	paths, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: commonTime(certs), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	for _, path := range paths {
		if len(path) == len(certs) {
			return nil
		}
	}
	return fmt.Errorf("found no path through all %d certificates", len(certs))
}

// commonTime is a moment at which all certificates are valid, if there is one.
func commonTime(certs []*x509.Certificate) time.Time {
	var t time.Time
	for _, c := range certs {
		if c.NotBefore.After(t) {
			t = c.NotBefore
		}
	}
	return t
}
