package tpmquote

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// soft is a TPM in software: it signs whatever the test wants signed, as a real one would not.
type soft struct {
	kind, scheme, hashID uint16
	attributes           uint32
	nameAlg, symmetric   uint16
	kdf, curve           uint16
	bits                 uint16
	exponent             uint32
	hash                 crypto.Hash
	rsa                  *rsa.PrivateKey
	ecdsa                *ecdsa.PrivateKey
}

const goodAttributes = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrRestricted | attrSign | 1<<6

func softECC(t testing.TB, curve elliptic.Curve, id uint16) *soft {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &soft{
		kind: algECC, scheme: algECDSA, hashID: algSHA256, hash: crypto.SHA256, attributes: goodAttributes,
		nameAlg: algSHA256, symmetric: algNull, kdf: algNull, curve: id, ecdsa: key,
	}
}

func softRSA(t testing.TB, scheme uint16, bits int) *soft {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return &soft{
		kind: algRSA, scheme: scheme, hashID: algSHA256, hash: crypto.SHA256, attributes: goodAttributes,
		nameAlg: algSHA256, symmetric: algNull, bits: uint16(bits), rsa: key,
	}
}

type writer struct{ bytes.Buffer }

func (w *writer) put(values ...any) {
	for _, v := range values {
		if b, ok := v.([]byte); ok { // a TPM2B
			_ = binary.Write(w, binary.BigEndian, uint16(len(b)))
			w.Write(b)
			continue
		}
		_ = binary.Write(w, binary.BigEndian, v)
	}
}

func (s *soft) public() []byte {
	var w writer
	w.put(s.kind, s.nameAlg, s.attributes, []byte{}, s.symmetric, s.scheme)
	if s.scheme != algNull {
		w.put(s.hashID)
	}
	if s.kind == algRSA {
		w.put(s.bits, s.exponent, s.rsa.N.Bytes())
		return w.Bytes()
	}
	point, err := s.ecdsa.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	half := (len(point) - 1) / 2
	w.put(s.curve, s.kdf, point[1:1+half], point[1+half:])
	return w.Bytes()
}

func (s *soft) sign(message []byte) []byte {
	h := s.hash.New()
	h.Write(message)
	digest := h.Sum(nil)
	var w writer
	w.put(s.scheme, s.hashID)
	var signature []byte
	var err error
	switch s.scheme {
	case algRSASSA:
		signature, err = rsa.SignPKCS1v15(rand.Reader, s.rsa, s.hash, digest)
	case algRSAPSS:
		signature, err = rsa.SignPSS(rand.Reader, s.rsa, s.hash, digest, nil)
	default:
		r, sig, e := ecdsa.Sign(rand.Reader, s.ecdsa, digest)
		if e != nil {
			panic(e)
		}
		w.put(r.Bytes(), sig.Bytes())
		return w.Bytes()
	}
	if err != nil {
		panic(err)
	}
	w.put(signature)
	return w.Bytes()
}

// content of an attest, with every field that a forger could want to change.
type content struct {
	magic      uint32
	kind       uint16
	extra      []byte
	banks      []uint16 // one selection for each
	selection  []byte
	digest     []byte
	safe       uint8
	afterwards []byte
}

func goodContent(hash crypto.Hash, pcrs []*v1.PcrValue) content {
	c := content{magic: tpmGenerated, kind: stAttestQuote, extra: qualifying[:], banks: []uint16{algSHA256}, selection: make([]byte, 3), safe: 1}
	h := hash.New()
	for _, p := range pcrs {
		c.selection[p.GetIndex()/8] |= 1 << (p.GetIndex() % 8)
		h.Write(p.GetValue())
	}
	c.digest = h.Sum(nil)
	return c
}

func (c content) marshal() []byte {
	var w writer
	w.put(c.magic, c.kind, append([]byte{0, algSHA256}, make([]byte, 32)...), c.extra)
	w.put(uint64(1000), uint32(7), uint32(3), c.safe, uint64(0x2020)) // clock info, firmware
	w.put(uint32(len(c.banks)))
	for _, bank := range c.banks {
		w.put(bank, uint8(len(c.selection)))
		w.Write(c.selection)
	}
	w.put(c.digest)
	w.Write(c.afterwards)
	return w.Bytes()
}

var qualifying = [32]byte{1, 2, 3}

func somePCRs() []*v1.PcrValue {
	var out []*v1.PcrValue
	for _, index := range []uint32{0, 7, 10, 23} {
		out = append(out, &v1.PcrValue{Bank: "sha256", Index: index, Value: bytes.Repeat([]byte{byte(index)}, 32)})
	}
	return out
}

// forge makes a quote with a valid signature over whatever change made of it.
func (s *soft) forge(change func(*content)) *v1.TpmQuote {
	pcrs := somePCRs()
	c := goodContent(s.hash, pcrs)
	if change != nil {
		change(&c)
	}
	attest := c.marshal()
	return &v1.TpmQuote{Attest: attest, Signature: s.sign(attest), AkPublic: s.public(), Pcrs: pcrs}
}
