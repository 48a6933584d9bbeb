package tpmquote

import (
	"bytes"
	"crypto/elliptic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// FuzzVerify gives the attacker all of the quote, the key included. Whatever verifies is over bytes that the seeds' keys signed.
func FuzzVerify(f *testing.F) {
	var seeds [][]byte
	for _, s := range []*soft{softECC(f, elliptic.P256(), curveP256), softECC(f, elliptic.P384(), curveP384)} {
		q := s.forge(nil)
		seeds = append(seeds, q.GetAttest())
		f.Add(q.GetAttest(), q.GetSignature(), q.GetAkPublic(), q.GetPcrs()[0].GetValue())
		f.Add(q.GetAttest()[:40], q.GetSignature()[:8], q.GetAkPublic()[:20], []byte{})
	}
	f.Fuzz(func(t *testing.T, attest, signature, ak, value []byte) {
		pcrs := somePCRs()
		pcrs[0].Value = value
		q := &v1.TpmQuote{Attest: attest, Signature: signature, AkPublic: ak, Pcrs: pcrs}
		if _, err := Verify(q, ak, qualifying); err != nil {
			return
		}
		for _, s := range seeds {
			if bytes.Equal(s, attest) {
				return
			}
		}
		t.Errorf("accepted an attest that no seed's key signed: %x", attest)
	})
}

// FuzzParsers compares with another implementation: whatever these parsers accept, go-tpm reads too, and writes back as the same bytes.
func FuzzParsers(f *testing.F) {
	s := softECC(f, elliptic.P256(), curveP256)
	q := s.forge(nil)
	f.Add(q.GetAttest())
	f.Add(q.GetSignature())
	f.Add(q.GetAkPublic())
	r := &soft{kind: algRSA, scheme: algRSASSA, hashID: algSHA256, attributes: goodAttributes, nameAlg: algSHA256, symmetric: algNull, bits: 2048}
	var public writer
	public.put(r.kind, r.nameAlg, r.attributes, []byte{}, r.symmetric, r.scheme, r.hashID, r.bits, r.exponent, make([]byte, 256))
	f.Add(public.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := parseAttest(raw); err == nil {
			theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
			if err != nil || !bytes.Equal(tpm2.Marshal(theirs), raw) || !bytes.Equal(theirs.ExtraData.Buffer, a.extraData) {
				t.Errorf("attest %x: %+v, %v", raw, theirs, err)
			}
		}
		if _, err := parseSignature(raw); err == nil {
			theirs, err := tpm2.Unmarshal[tpm2.TPMTSignature](raw)
			if err != nil || !bytes.Equal(tpm2.Marshal(theirs), raw) {
				t.Errorf("signature %x: %v", raw, err)
			}
		}
		if p, err := parsePublic(raw); err == nil && p.checkAttributes() == nil {
			if _, err := p.verifier(); err != nil {
				return
			}
			theirs, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
			if err != nil || !bytes.Equal(tpm2.Marshal(theirs), raw) {
				t.Errorf("public area %x: %v", raw, err)
			}
		}
	})
}
