// Package dcap verifies SGX and TDX ECDSA quotes: is a quote authentic, and what is the state of the platform that made it? It accepts or
// refuses nothing by policy; that is package appraisal's.
//
// The rules are those of Intel's quote verification library: SGX PCK certificate and CRL profile 1.5; TCB info v3 and enclave identity v2
// as the Provisioning Certification Service (API version 4) publishes them. In particular, all of this must hold:
//
//   - the quote's signature, by an attestation key that the quoting enclave's report binds, signed by the PCK;
//   - the PCK chain (certification data type 5: leaf, CA, root, in this order and no other), up to a root pinned by its public key, so
//     that another root of the same name, as Intel's pre-production one, is refused;
//   - both CRLs, from their proper issuers; no certificate used is revoked;
//   - the signatures of TCB info and QE identity over their exact bytes, by a TCB signing certificate under the same root;
//   - FMSPC and PCEID of TCB info are the platform's; the quoting enclave is the one of the QE identity;
//   - every certificate, CRL and document is in its period of validity at the given time.
//
// What then holds is said, not judged: the platform's TCB status, the quoting enclave's, for TDX the module's, and the three converged.
//
// The simulated TEE is judged by the same code under another pin. There is no way to verify less: the zero Verifier pins no root and
// refuses everything.
//
// Non-goals: no policy, no fetching, no clock (the caller gives the time), TDX 1.5 quotes (version 5).
package dcap

import "fmt"

// Check names what failed. Its values are stable: operators and tests go by them. It is an error, so that
// errors.Is(err, dcap.CheckCRL) asks which check failed.
type Check string

// The checks.
const (
	// CheckQuote: the quote does not parse. The error wraps a *quote.Error.
	CheckQuote Check = "quote format"
	// CheckQuoteSignature: the quote is not signed by its attestation key.
	CheckQuoteSignature Check = "quote signature"
	// CheckQEReport: the quoting enclave's report does not bind the attestation key, is not signed by the PCK, or is not the report of
	// the enclave that the QE identity describes.
	CheckQEReport Check = "quoting enclave's report"
	// CheckChain: a certificate chain is incomplete, in another order, of other certificates, or not properly signed.
	CheckChain Check = "certificate chain"
	// CheckRoot: the chain ends in a root other than the pinned one.
	CheckRoot Check = "pinned root"
	// CheckPCKExtension: the SGX extension of the PCK certificate is missing or malformed.
	CheckPCKExtension Check = "PCK extension"
	// CheckMissing: an artefact of the collateral is missing or too large. The error wraps a *collateral.Error.
	CheckMissing Check = "collateral"
	// CheckCRL: a CRL is malformed or from another issuer.
	CheckCRL Check = "CRL"
	// CheckRevoked: a certificate is revoked.
	CheckRevoked Check = "revocation"
	// CheckSignature: TCB info or QE identity is not signed by the TCB signing certificate.
	CheckSignature Check = "collateral signature"
	// CheckDocument: TCB info or QE identity is malformed, or of another version or kind than the quote needs.
	CheckDocument Check = "collateral document"
	// CheckPlatform: TCB info is for another FMSPC or PCEID than the platform's.
	CheckPlatform Check = "FMSPC and PCEID"
	// CheckValidity: an artefact is not valid yet, or no more.
	CheckValidity Check = "validity"
	// CheckTDXModule: the TDX module is not one that TCB info describes.
	CheckTDXModule Check = "TDX module"
)

// Error implements error.
func (c Check) Error() string { return string(c) }

// Artefact names a part of the evidence or the collateral, in errors and in Result.
type Artefact string

// The artefacts: the names of collateral files without their suffix, and the certificates.
const (
	ArtefactQuote          Artefact = "quote"
	ArtefactPCKChain       Artefact = "pck_chain"
	ArtefactPCKCertificate Artefact = "pck_certificate"
	ArtefactPCKCA          Artefact = "pck_ca_certificate"
	ArtefactRootCA         Artefact = "root_ca_certificate"
	ArtefactSigningChain   Artefact = "tcb_signing_chain"
	ArtefactTCBSigning     Artefact = "tcb_signing_certificate"
	ArtefactTCBInfo        Artefact = "tcb_info"
	ArtefactQEIdentity     Artefact = "qe_identity"
	ArtefactPCKCRL         Artefact = "pck_crl"
	ArtefactRootCACRL      Artefact = "root_ca_crl"
	ArtefactCollateral     Artefact = "collateral"
)

// Error says which check failed, on which artefact, what was found and what was expected. It wraps its Check and the cause, if any.
type Error struct {
	Check    Check
	Artefact Artefact
	// Found and Expected are for people.
	Found, Expected string
	Cause           error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s: found %s", e.Artefact, string(e.Check), e.Found)
	if e.Expected != "" {
		s += ", expected " + e.Expected
	}
	return s
}

// Unwrap returns the check and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Check}
	}
	return []error{e.Check, e.Cause}
}

func failed(check Check, artefact Artefact, found, expected string) error {
	return &Error{Check: check, Artefact: artefact, Found: found, Expected: expected}
}

func caused(check Check, artefact Artefact, err error) error {
	return &Error{Check: check, Artefact: artefact, Found: err.Error(), Cause: err}
}
