package dcap

import (
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/quote"
)

// PlatformOf says which collateral a quote needs: the processor model and the CA that its PCK certificate names. Nothing of it is verified: it serves to
// find the collateral under which the quote is then verified whole. Error: *Error.
func PlatformOf(rawQuote []byte) (collateral.Key, error) {
	q, err := quote.Parse(rawQuote)
	if err != nil {
		return collateral.Key{}, caused(CheckQuote, ArtefactQuote, err)
	}
	for _, der := range q.CertChain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return collateral.Key{}, caused(CheckChain, ArtefactPCKChain, err)
		}
		pck, err := parsePCK(cert)
		if err != nil {
			continue // a CA's: only the leaf has the extension
		}
		key := collateral.Key{CA: collateral.ProcessorCA}
		if strings.HasSuffix(cert.Issuer.CommonName, " Platform CA") {
			key.CA = collateral.PlatformCA
		}
		fmspc, err := hex.DecodeString(pck.FMSPC)
		if err != nil || copy(key.FMSPC[:], fmspc) != len(key.FMSPC) {
			return collateral.Key{}, failed(CheckPCKExtension, ArtefactPCKCertificate, pck.FMSPC, "an FMSPC of 6 bytes")
		}
		return key, nil
	}
	return collateral.Key{}, failed(CheckPCKExtension, ArtefactPCKChain, "no certificate with the SGX extension", "a PCK certificate")
}
