package tpmquote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // registers SHA-256 for crypto.Hash
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"fmt"
	"math/big"
	"strings"
)

// Bits of TPMA_OBJECT (Part 2, section 8.3.2).
const (
	attrFixedTPM            = 1 << 1
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18
)

// Strength of an RSA key, in bits.
const (
	minRSABits = 2048
	maxRSABits = 8192 // beyond it, verification costs more than a stranger's quote deserves
)

// checkAttributes demands what makes a signature of this key a TPM's own word. A key that is not restricted signs any digest, a forged
// TPMS_ATTEST among them; one that is not fixed to its TPM, or not made in it, may have copies.
func (p *public) checkAttributes() error {
	var wrong []string
	for _, a := range []struct {
		bit  uint32
		name string
	}{
		{attrFixedTPM, "fixedTPM"}, {attrFixedParent, "fixedParent"}, {attrSensitiveDataOrigin, "sensitiveDataOrigin"},
		{attrRestricted, "restricted"}, {attrSign, "sign"},
	} {
		if p.attributes&a.bit == 0 {
			wrong = append(wrong, "not "+a.name)
		}
	}
	if p.attributes&attrDecrypt != 0 {
		wrong = append(wrong, "decrypt")
	}
	if wrong != nil {
		return &Error{CheckKeyAttributes, strings.Join(wrong, ", "), "a restricted signing key fixed to its TPM"}
	}
	return nil
}

// verifier checks signatures of one attestation key.
type verifier struct {
	scheme, hashID uint16
	hash           crypto.Hash
	rsa            *rsa.PublicKey
	ecdsa          *ecdsa.PublicKey
}

func (p *public) verifier() (*verifier, error) {
	v := verifier{scheme: p.scheme, hashID: p.hash}
	switch p.hash {
	case algSHA256:
		v.hash = crypto.SHA256
	case algSHA384:
		v.hash = crypto.SHA384
	case algSHA512:
		v.hash = crypto.SHA512
	default:
		return nil, &Error{CheckAlgorithm, fmt.Sprintf("hash %#04x", p.hash), "SHA-256 or longer"}
	}
	var err error
	switch {
	case p.kind == algRSA && (p.scheme == algRSASSA || p.scheme == algRSAPSS):
		v.rsa, err = p.rsaKey()
	case p.kind == algECC && p.scheme == algECDSA:
		v.ecdsa, err = p.ecdsaKey()
	default:
		err = &Error{CheckAlgorithm, fmt.Sprintf("key type %#04x with scheme %#04x", p.kind, p.scheme), "RSA with RSASSA or RSAPSS, or ECC with ECDSA"}
	}
	if err != nil {
		return nil, err
	}
	return &v, nil
}

func (p *public) rsaKey() (*rsa.PublicKey, error) {
	n := new(big.Int).SetBytes(p.modulus)
	if n.BitLen() != int(p.keyBits) || n.BitLen() < minRSABits || n.BitLen() > maxRSABits {
		return nil, &Error{CheckAlgorithm, fmt.Sprintf("RSA modulus of %d bits in a key of %d", n.BitLen(), p.keyBits), fmt.Sprintf("%d to %d", minRSABits, maxRSABits)}
	}
	// Zero stands for 2^16 + 1 (Part 2, section 12.2.3.5); TPMs rarely offer another.
	if p.exponent != 0 && p.exponent != 65537 {
		return nil, &Error{CheckAlgorithm, fmt.Sprintf("RSA exponent %d", p.exponent), "65537"}
	}
	return &rsa.PublicKey{N: n, E: 65537}, nil
}

func (p *public) ecdsaKey() (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch p.curve {
	case curveP256:
		curve = elliptic.P256()
	case curveP384:
		curve = elliptic.P384()
	default:
		return nil, &Error{CheckAlgorithm, fmt.Sprintf("curve %#04x", p.curve), "P-256 or P-384"}
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(p.x) > size || len(p.y) > size {
		return nil, malformed("ak_public", "coordinates of %d and %d bytes on a curve of %d", len(p.x), len(p.y), size)
	}
	// Some TPMs leave out leading zeros. The uncompressed form has none left out.
	point := make([]byte, 1+2*size)
	point[0] = 4
	copy(point[1+size-len(p.x):], p.x)
	copy(point[1+2*size-len(p.y):], p.y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, malformed("ak_public", "a point that is not on its curve")
	}
	return key, nil
}

// verify checks sig over message. The scheme and hash must be those of the key: a restricted key signs with no other.
func (v *verifier) verify(message []byte, sig *signature) error {
	if sig.scheme != v.scheme || sig.hash != v.hashID {
		return &Error{
			CheckAlgorithm, fmt.Sprintf("signature scheme %#04x with hash %#04x", sig.scheme, sig.hash),
			fmt.Sprintf("the key's own, %#04x with %#04x", v.scheme, v.hashID),
		}
	}
	h := v.hash.New()
	h.Write(message)
	digest := h.Sum(nil)
	ok := false
	switch v.scheme {
	case algRSASSA:
		ok = rsa.VerifyPKCS1v15(v.rsa, v.hash, digest, sig.rsa) == nil
	case algRSAPSS:
		// TPMs differ in the length of the salt: the digest's, or the longest that fits (Part 1, appendix B.7).
		ok = rsa.VerifyPSS(v.rsa, v.hash, digest, sig.rsa, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	case algECDSA:
		ok = len(sig.r) <= 66 && len(sig.s) <= 66 &&
			ecdsa.Verify(v.ecdsa, digest, new(big.Int).SetBytes(sig.r), new(big.Int).SetBytes(sig.s))
	}
	if !ok {
		return &Error{CheckSignature, "a signature that is not this key's over these bytes", "one that is"}
	}
	return nil
}
