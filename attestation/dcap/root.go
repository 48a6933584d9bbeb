package dcap

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
)

// RootPin names a root by its key: SHA-256 over the DER SubjectPublicKeyInfo of its certificate. Names and dates of the certificate do not
// count. The zero pin pins nothing and matches nothing.
type RootPin [sha256.Size]byte

// IntelRootKeySHA256 is the pin of "Intel SGX Root CA", production, in hex: the key 04 0ba9c4c0...7394 on P-256.
const IntelRootKeySHA256 = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"

// IntelRoot is the pin of Intel's production root.
func IntelRoot() RootPin {
	b, _ := hex.DecodeString(IntelRootKeySHA256) // a constant; a test decodes it
	return RootPin(b)
}

// PinOf is the pin of a certificate's key.
func PinOf(cert *x509.Certificate) RootPin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// ErrRootFile says that a file is not exactly one certificate in PEM.
var ErrRootFile = errors.New("not one certificate in PEM")

// PinPEM is the pin of a root certificate in PEM, such as a simulated authority's root_ca.pem. Error: ErrRootFile.
func PinPEM(raw []byte) (RootPin, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		return RootPin{}, ErrRootFile
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return RootPin{}, errors.Join(ErrRootFile, err)
	}
	return PinOf(cert), nil
}

func (p RootPin) String() string { return hex.EncodeToString(p[:]) }
