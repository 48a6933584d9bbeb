package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// crl is a parsed CRL (SGX PCK certificate and CRL profile 1.5, section 3).
type crl struct {
	artefact Artefact
	list     *x509.RevocationList
	number   uint64
	revoked  map[string]bool
}

// parseCRL reads a CRL. It must be whole: a delta, or one that covers some certificates only, would leave revoked ones out.
func parseCRL(artefact Artefact, der []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, caused(CheckCRL, artefact, err)
	}
	if len(list.Raw) != len(der) { // crypto/x509 ignores what follows
		return nil, failed(CheckCRL, artefact, fmt.Sprintf("%d bytes after the CRL", len(der)-len(list.Raw)), "none")
	}
	if list.ThisUpdate.IsZero() || list.NextUpdate.IsZero() {
		return nil, failed(CheckCRL, artefact, "no date of the next update", "one")
	}
	if list.Number == nil || !list.Number.IsUint64() {
		return nil, failed(CheckCRL, artefact, fmt.Sprintf("number %v", list.Number), "a number of 64 bits at most")
	}
	for _, e := range list.Extensions {
		if isID(e.Id, 27) || isID(e.Id, 28) || e.Critical {
			return nil, failed(CheckCRL, artefact, fmt.Sprintf("extension %v", e.Id), "no delta, no distribution point, nothing critical")
		}
	}
	c := &crl{artefact: artefact, list: list, number: list.Number.Uint64(), revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, entry := range list.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical {
				return nil, failed(CheckCRL, artefact, fmt.Sprintf("an entry with critical extension %v", e.Id), "none")
			}
		}
		c.revoked[string(entry.SerialNumber.Bytes())] = true
	}
	return c, nil
}

// isID says whether oid is 2.5.29.n: 27 is the delta CRL indicator, 28 the issuing distribution point.
func isID(oid asn1.ObjectIdentifier, n int) bool {
	return oid.Equal(asn1.ObjectIdentifier{2, 5, 29, n})
}

// issuedBy verifies that the CRL is the issuer's.
func (c *crl) issuedBy(issuer *x509.Certificate) error {
	if !bytes.Equal(c.list.RawIssuer, issuer.RawSubject) {
		return failed(CheckCRL, c.artefact, fmt.Sprintf("issuer %q", c.list.Issuer), fmt.Sprintf("%q", issuer.Subject))
	}
	if !bytes.Equal(c.list.AuthorityKeyId, issuer.SubjectKeyId) {
		return failed(CheckCRL, c.artefact, fmt.Sprintf("authority key id %x", c.list.AuthorityKeyId), fmt.Sprintf("%x", issuer.SubjectKeyId))
	}
	if err := c.list.CheckSignatureFrom(issuer); err != nil {
		return caused(CheckCRL, c.artefact, err)
	}
	return nil
}

// check refuses a certificate that is revoked. Whatever an entry gives as its reason, the certificate is not used.
func (c *crl) check(artefact Artefact, cert *x509.Certificate) error {
	if c.revoked[string(cert.SerialNumber.Bytes())] {
		return failed(CheckRevoked, artefact, fmt.Sprintf("%q, serial %s, on the CRL of %q", cert.Subject.CommonName, serialText(cert.SerialNumber),
			c.list.Issuer.CommonName), "a certificate that is not revoked")
	}
	return nil
}

// serialText is a serial number in lower-case hex.
func serialText(n *big.Int) string { return fmt.Sprintf("%x", n.Bytes()) }
