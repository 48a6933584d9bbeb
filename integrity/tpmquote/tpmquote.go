// Package tpmquote verifies TPM 2.0 quotes: that a TPM which holds a given attestation key signed certain PCR values for a certain
// purpose (TPM 2.0 Library, Part 3, section 18.4, TPM2_Quote; structures by Part 2).
//
// It needs no TPM and uses the standard library only. It does not say whether the key is one to trust (enrolment does) nor whether the
// values are good ones (package appraise does). Package hosttpm makes quotes.
package tpmquote

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"encoding/hex"
	"fmt"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// DigestSize is the size of a SHA-256 PCR value, in bytes.
const DigestSize = 32

// maxStructure bounds each structure, in bytes: a TPM's buffer is 4096.
const maxStructure = 4096

// Check names one thing that Verify demands. It is the target for errors.Is: errors.Is(err, tpmquote.CheckSignature).
type Check string

// The checks, in the order in which Verify makes them.
const (
	// CheckStructure: attest, signature, key and PCR list parse to their last byte, within bounds.
	CheckStructure Check = "structure"
	// CheckKey: the attestation key in the quote is the one that the caller expects, byte for byte.
	CheckKey Check = "attestation key"
	// CheckKeyAttributes: the key is restricted, signs, and cannot leave its TPM. Any other key can be made to sign a forged quote.
	CheckKeyAttributes Check = "attestation key attributes"
	// CheckAlgorithm: an algorithm or strength that is accepted: ECDSA on P-256 or P-384, RSASSA or RSAPSS from 2048 bits; SHA-256 or longer.
	CheckAlgorithm Check = "algorithm"
	// CheckSignature: the signature is the key's, over the exact bytes of attest.
	CheckSignature Check = "signature"
	// CheckMagic: the structure was made inside a TPM (TPM_GENERATED_VALUE), not handed to it for signing.
	CheckMagic Check = "magic"
	// CheckType: it is a quote, not another attestation.
	CheckType Check = "type"
	// CheckQualifyingData: it was made for this exchange.
	CheckQualifyingData Check = "qualifying data"
	// CheckSelection: it covers exactly the PCRs listed, in the SHA-256 bank.
	CheckSelection Check = "PCR selection"
	// CheckPCRDigest: the PCR values listed are those signed.
	CheckPCRDigest Check = "PCR digest"
)

// Error makes a Check a target for errors.Is.
func (c Check) Error() string { return "tpm quote: " + string(c) }

// Error says which check failed and on what.
type Error struct {
	Check           Check
	Found, Expected string
}

// Error names the check, what was found and what was expected.
func (e *Error) Error() string {
	return fmt.Sprintf("tpm quote: %s: found %s, expected %s", string(e.Check), e.Found, e.Expected)
}

// Unwrap returns the Check.
func (e *Error) Unwrap() error { return e.Check }

// Statement is what a verified quote says.
type Statement struct {
	// QualifiedSigner is the qualified name of the key that signed: algorithm (2 bytes) and digest.
	QualifiedSigner []byte
	// Clock in milliseconds of powered time since the TPM was last cleared, as the TPM counts it.
	Clock uint64
	// ResetCount is the number of resets since the TPM was last cleared. It grows with every boot of the host.
	ResetCount uint32
	// RestartCount is the number of resumes since the last reset.
	RestartCount uint32
	// ClockSafe is false if Clock may have been reported higher before.
	ClockSafe bool
	// FirmwareVersion in the vendor's own encoding.
	FirmwareVersion uint64
	// PCRs of the SHA-256 bank, by index.
	PCRs map[int][DigestSize]byte
}

// Verify checks that q is a quote by the attestation key akPublic (TPMT_PUBLIC, the enrolled bytes) over qualifying and over exactly
// the PCR values that q lists. The error is an *Error.
func Verify(q *v1.TpmQuote, akPublic []byte, qualifying [32]byte) (*Statement, error) {
	return verify(q, akPublic, qualifying[:])
}

func verify(q *v1.TpmQuote, akPublic, qualifying []byte) (*Statement, error) {
	if !bytes.Equal(q.GetAkPublic(), akPublic) || len(akPublic) == 0 {
		return nil, &Error{CheckKey, describeKey(q.GetAkPublic()), describeKey(akPublic)}
	}
	ak, err := parsePublic(akPublic)
	if err != nil {
		return nil, err
	}
	if err := ak.checkAttributes(); err != nil {
		return nil, err
	}
	verifier, err := ak.verifier()
	if err != nil {
		return nil, err
	}
	sig, err := parseSignature(q.GetSignature())
	if err != nil {
		return nil, err
	}
	if len(q.GetAttest()) > maxStructure {
		return nil, malformed("attest", "%d bytes, more than %d", len(q.GetAttest()), maxStructure)
	}
	// The signature comes before the content: what an attacker wrote is not worth an opinion.
	if err := verifier.verify(q.GetAttest(), sig); err != nil {
		return nil, err
	}
	a, err := parseAttest(q.GetAttest())
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(a.extraData, qualifying) != 1 {
		return nil, &Error{CheckQualifyingData, short(a.extraData), short(qualifying)}
	}
	pcrs, err := a.covers(q.GetPcrs(), verifier.hash)
	if err != nil {
		return nil, err
	}
	a.statement.PCRs = pcrs
	return &a.statement, nil
}

// covers checks that the selection is exactly the PCRs listed, and that the digest is over their values.
func (a *attest) covers(listed []*v1.PcrValue, hash crypto.Hash) (map[int][DigestSize]byte, error) {
	values := make(map[int][DigestSize]byte, len(listed))
	h := hash.New()
	previous := -1
	for _, p := range listed {
		index := int(p.GetIndex())
		if p.GetBank() != "sha256" || len(p.GetValue()) != DigestSize || p.GetIndex() > maxPCRIndex || index <= previous {
			return nil, malformed("pcrs", "an entry that is not a SHA-256 PCR value, sorted and unique")
		}
		previous = index
		values[index] = [DigestSize]byte(p.GetValue())
		h.Write(p.GetValue())
	}
	// Equal in number and each one selected: the two sets are the same.
	for index := range values {
		if !a.selected(index) {
			return nil, &Error{CheckSelection, fmt.Sprintf("PCR %d listed, not quoted", index), "the PCRs that the quote covers"}
		}
	}
	if n := a.selectedCount(); n != len(values) {
		return nil, &Error{CheckSelection, fmt.Sprintf("%d PCRs listed, %d quoted", len(values), n), "the PCRs that the quote covers"}
	}
	if len(values) == 0 {
		return nil, &Error{CheckSelection, "no PCR", "at least one"}
	}
	if sum := h.Sum(nil); subtle.ConstantTimeCompare(sum, a.pcrDigest) != 1 {
		return nil, &Error{CheckPCRDigest, short(sum) + " over the values listed", short(a.pcrDigest) + ", as signed"}
	}
	return values, nil
}

func describeKey(akPublic []byte) string {
	if len(akPublic) == 0 {
		return "no key"
	}
	h := crypto.SHA256.New()
	h.Write(akPublic)
	return "key with SHA-256 " + hex.EncodeToString(h.Sum(nil))
}

// short renders bytes for an error, cut to 64.
func short(b []byte) string {
	switch {
	case len(b) == 0:
		return "nothing"
	case len(b) > 64:
		return hex.EncodeToString(b[:64]) + "..."
	}
	return hex.EncodeToString(b)
}
