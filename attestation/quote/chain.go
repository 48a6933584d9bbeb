package quote

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
)

// maxCertificates bounds a chain. A PCK chain has three; the bound is what a forged quote can make its reader do.
const maxCertificates = 8

const (
	pemBegin = "-----BEGIN CERTIFICATE-----"
	pemEnd   = "-----END CERTIFICATE-----"
)

// ParseChain reads a PEM chain, of a quote or of collateral, to DER: one to eight certificates, in the order they come. It is strict:
// encoding/pem skips what is between blocks and forgives much within them, so what it read is encoded again and, line ends aside, must
// be what came (Intel's service has published lines of 64 and of 76 characters). Error: *Error, ErrMalformed.
func ParseChain(raw []byte) ([][]byte, error) {
	const field, want = "certificate chain", "certificates in PEM and nothing else"
	var chain [][]byte
	var canonical []byte
	for rest := raw; len(chain) <= maxCertificates; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
		canonical = append(canonical, pemBegin...)
		canonical = base64.StdEncoding.AppendEncode(canonical, block.Bytes)
		canonical = append(canonical, pemEnd...)
	}
	switch {
	case len(chain) == 0:
		return nil, malformed(field, "no certificate", want)
	case len(chain) > maxCertificates:
		return nil, malformed(field, "more than eight certificates", "three")
	case !bytes.Equal(canonical, withoutLineEnds(raw)):
		return nil, malformed(field, "text that is not the PEM of its certificates", want)
	}
	return chain, nil
}

func withoutLineEnds(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c != '\n' && c != '\r' {
			out = append(out, c)
		}
	}
	return out
}
