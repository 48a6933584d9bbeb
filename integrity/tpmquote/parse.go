package tpmquote

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Constants of TPM 2.0 Library, Part 2: sections 6.2 (TPM_GENERATED), 6.3 (TPM_ALG_ID), 6.4 (TPM_ECC_CURVE) and 6.9 (TPM_ST).
const (
	tpmGenerated  = 0xff544347
	stAttestQuote = 0x8018

	algRSA    = 0x0001
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
	algNull   = 0x0010
	algRSASSA = 0x0014
	algRSAPSS = 0x0016
	algECDSA  = 0x0018
	algECC    = 0x0023

	curveP256 = 0x0003
	curveP384 = 0x0004
)

// maxPCRIndex is the last PCR of the PC Client platform; its selections have three octets.
const (
	maxPCRIndex      = 23
	selectionOctets  = 3
	maxSelectionSize = 4
)

// attest is a parsed TPMS_ATTEST with a TPMS_QUOTE_INFO (Part 2, sections 10.12.8 and 10.12.1).
type attest struct {
	extraData []byte
	selection []byte
	pcrDigest []byte
	statement Statement
}

func (a *attest) selected(index int) bool {
	return index/8 < len(a.selection) && a.selection[index/8]&(1<<(index%8)) != 0
}

func (a *attest) selectedCount() int {
	n := 0
	for _, b := range a.selection {
		n += bits.OnesCount8(b)
	}
	return n
}

func parseAttest(raw []byte) (*attest, error) {
	r := reader{what: "attest", rest: raw}
	magic, kind := r.u32(), r.u16()
	if r.err == nil && magic != tpmGenerated {
		return nil, &Error{CheckMagic, fmt.Sprintf("%#08x", magic), fmt.Sprintf("%#08x", uint32(tpmGenerated))}
	}
	if r.err == nil && kind != stAttestQuote {
		return nil, &Error{CheckType, fmt.Sprintf("attestation of type %#04x", kind), fmt.Sprintf("a quote, %#04x", stAttestQuote)}
	}
	var a attest
	a.statement.QualifiedSigner = r.sized()
	a.extraData = r.sized()
	a.statement.Clock = r.u64()
	a.statement.ResetCount = r.u32()
	a.statement.RestartCount = r.u32()
	a.statement.ClockSafe = r.yesNo()
	a.statement.FirmwareVersion = r.u64()
	banks := r.u32()
	if r.err == nil && banks != 1 {
		return nil, &Error{CheckSelection, fmt.Sprintf("%d banks", banks), "the SHA-256 bank alone"}
	}
	if bank := r.u16(); r.err == nil && bank != algSHA256 {
		return nil, &Error{CheckSelection, fmt.Sprintf("bank %#04x", bank), fmt.Sprintf("SHA-256, %#04x", algSHA256)}
	}
	size := int(r.u8())
	if r.err == nil && (size < selectionOctets || size > maxSelectionSize) {
		return nil, malformed("attest", "a PCR selection of %d octets", size)
	}
	a.selection = r.bytes(size)
	a.pcrDigest = r.sized()
	return &a, r.end()
}

// signature is a parsed TPMT_SIGNATURE (Part 2, section 11.3.4).
type signature struct {
	scheme, hash uint16
	// RSA: the signature. ECDSA: r and s, big-endian.
	rsa, r, s []byte
}

func parseSignature(raw []byte) (*signature, error) {
	r := reader{what: "signature", rest: raw}
	s := signature{scheme: r.u16(), hash: r.u16()}
	if r.err == nil {
		switch s.scheme {
		case algRSASSA, algRSAPSS:
			s.rsa = r.sized()
		case algECDSA:
			s.r, s.s = r.sized(), r.sized()
		default:
			return nil, &Error{CheckAlgorithm, fmt.Sprintf("signature scheme %#04x", s.scheme), "RSASSA, RSAPSS or ECDSA"}
		}
	}
	return &s, r.end()
}

// public is a parsed TPMT_PUBLIC (Part 2, section 12.2.4) of a signing key.
type public struct {
	kind       uint16
	attributes uint32
	scheme     uint16
	hash       uint16
	// RSA.
	keyBits  uint16
	exponent uint32
	modulus  []byte
	// ECC.
	curve uint16
	x, y  []byte
}

func parsePublic(raw []byte) (*public, error) {
	r := reader{what: "ak_public", rest: raw}
	if len(raw) > maxStructure {
		return nil, malformed(r.what, "%d bytes, more than %d", len(raw), maxStructure)
	}
	p := public{kind: r.u16()}
	nameAlg := r.u16()
	p.attributes = r.u32()
	_ = r.sized() // authPolicy: how the key may be used on its TPM, no matter here
	if r.err == nil && nameAlg != algSHA256 && nameAlg != algSHA384 && nameAlg != algSHA512 {
		return nil, &Error{CheckAlgorithm, fmt.Sprintf("name algorithm %#04x", nameAlg), "SHA-256 or longer"}
	}
	if symmetric := r.u16(); r.err == nil && symmetric != algNull {
		// A signing key has no symmetric part; only storage keys do.
		return nil, &Error{CheckKeyAttributes, fmt.Sprintf("symmetric algorithm %#04x", symmetric), "a signing key"}
	}
	if p.scheme = r.u16(); p.scheme != algNull {
		p.hash = r.u16()
	}
	switch p.kind {
	case algRSA:
		p.keyBits, p.exponent, p.modulus = r.u16(), r.u32(), r.sized()
	case algECC:
		p.curve = r.u16()
		if kdf := r.u16(); r.err == nil && kdf != algNull {
			return nil, &Error{CheckAlgorithm, fmt.Sprintf("key derivation %#04x", kdf), "none"}
		}
		p.x, p.y = r.sized(), r.sized()
	default:
		if r.err == nil {
			return nil, &Error{CheckAlgorithm, fmt.Sprintf("key type %#04x", p.kind), "RSA or ECC"}
		}
	}
	return &p, r.end()
}

// reader takes big-endian values off a structure. After its first error it returns zeros; end reports the error.
type reader struct {
	what string
	rest []byte
	err  error
}

func (r *reader) bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.rest) {
		r.err = malformed(r.what, "the end of the bytes inside a field of %d", n)
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized takes a TPM2B: a length of two bytes and that many bytes.
func (r *reader) sized() []byte { return r.bytes(int(r.u16())) }

// yesNo takes a TPMI_YES_NO, which has no third value.
func (r *reader) yesNo() bool {
	v := r.u8()
	if r.err == nil && v > 1 {
		r.err = malformed(r.what, "a yes-or-no of %d", v)
	}
	return v == 1
}

// end reports the first error, or bytes left over.
func (r *reader) end() error {
	if r.err == nil && len(r.rest) != 0 {
		r.err = malformed(r.what, "%d bytes after the end", len(r.rest))
	}
	return r.err
}

func malformed(what, format string, args ...any) error {
	return &Error{CheckStructure, fmt.Sprintf(format, args...), "a well-formed " + what}
}
