// Package pinned checks collateral under a pinned root before it is kept: it is the Check of a collateral.Cache.
//
// What package dcap verifies without a quote, it verifies: the signing chain up to the pinned root, the root's CRL, TCB info, QE identity.
// It adds what a cache needs to be safe from who answers its requests: that the set is the one that was asked for, and not another authentic
// one; that the PCK CRL, whose issuer dcap takes from a quote, was issued by the CA that was asked for; and the numbers and dates by which an
// older set is told from a newer one.
//
// Non-goals: no policy (minimum numbers are appraisal's), no TDX collateral. Every quote is still verified whole by dcap.
package pinned

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/quote"
)

// Errors, besides *dcap.Error.
var (
	// ErrOther: authentic, but not what the key asks for.
	ErrOther = errors.New("collateral of another kind of platform")
	// ErrIssuer: the PCK CRL is not the one of the CA that its issuer chain names under the pinned root, or there is no chain.
	ErrIssuer = errors.New("PCK CRL is not its CA's")
)

// Checker checks collateral under one root. The zero value pins none and refuses everything.
type Checker struct {
	Root dcap.RootPin
	// AllowUnverifiedPCKCRL accepts sets without a PCK CRL issuer chain. Their PCK CRL is judged with each quote only: one that nobody signed
	// makes quotes fail, never pass; and it does not replace one that was verified. It is meant for collateral that was gathered as five
	// files.
	AllowUnverifiedPCKCRL bool
}

// Check is a collateral.Config's Check. Errors: *dcap.Error, ErrOther, ErrIssuer.
func (p Checker) Check(key collateral.Key, c *collateral.Collateral) (*dcap.CheckedCollateral, collateral.Validity, error) {
	checked, v, err := p.check(key, c)
	if err != nil {
		return nil, collateral.Validity{}, err
	}
	return checked, v, nil
}

func (p Checker) check(key collateral.Key, c *collateral.Collateral) (*dcap.CheckedCollateral, collateral.Validity, error) {
	var v collateral.Validity
	if err := key.Valid(); err != nil {
		return nil, v, err
	}
	checked, err := dcap.Verifier{Root: p.Root}.CheckCollateral(c)
	if err != nil {
		return nil, v, err
	}
	// From here on the documents, the chain and the root's CRL are known to be authentic and to parse.
	tcb, qe, err := documents(c)
	if err != nil {
		return nil, v, err
	}
	if !strings.EqualFold(tcb.FMSPC, hex.EncodeToString(key.FMSPC[:])) || tcb.ID != "SGX" || qe.ID != "QE" {
		return nil, v, fmt.Errorf("%w: found TCB info of %s, FMSPC %s, and identity of %s, expected SGX, %x and QE", ErrOther, tcb.ID, tcb.FMSPC,
			qe.ID, key.FMSPC)
	}
	rootCRL, err := x509.ParseRevocationList(c.RootCACRL)
	if err != nil {
		return nil, v, err
	}
	pckCRL, err := x509.ParseRevocationList(c.PCKCRL)
	if err != nil {
		return nil, v, err
	}
	v.Versions = collateral.Versions{TCBInfo: tcb.version(), QEIdentity: qe.version(), RootCACRL: crlVersion(rootCRL)}
	switch {
	case len(c.PCKCRLIssuerChain) > 0:
		if err := p.issued(key.CA, c.PCKCRLIssuerChain, pckCRL, rootCRL); err != nil {
			return nil, v, err
		}
		v.Versions.PCKCRL = crlVersion(pckCRL)
	case !p.AllowUnverifiedPCKCRL:
		return nil, v, fmt.Errorf("%w: found no issuer chain (%s), expected one", ErrIssuer, collateral.PCKCRLIssuerChainFile)
	case !strings.HasSuffix(pckCRL.Issuer.CommonName, suffix(key.CA)):
		return nil, v, fmt.Errorf("%w: found a PCK CRL of %q, expected one of the %s CA", ErrOther, pckCRL.Issuer.CommonName, key.CA)
	}
	if err := begins(&v, c, pckCRL); err != nil {
		return nil, v, err
	}
	until, artefact := checked.ExpiresAt()
	v.NotAfter, v.Expires = until, string(artefact)
	return checked, v, nil
}

// document is what TCB info and QE identity have in common, and the former's FMSPC.
type document struct {
	ID     string    `json:"id"`
	Issued time.Time `json:"issueDate"`
	Number uint64    `json:"tcbEvaluationDataNumber"`
	FMSPC  string    `json:"fmspc"`
}

func (d document) version() collateral.Version {
	return collateral.Version{Number: d.Number, Issued: d.Issued}
}

func documents(c *collateral.Collateral) (tcb, qe document, err error) {
	var envelope struct {
		TCBInfo  document `json:"tcbInfo"`
		Identity document `json:"enclaveIdentity"`
	}
	for _, raw := range [][]byte{c.TCBInfo, c.QEIdentity} {
		if err := json.Unmarshal(raw, &envelope); err != nil {
			return tcb, qe, err
		}
	}
	return envelope.TCBInfo, envelope.Identity, nil
}

func crlVersion(l *x509.RevocationList) collateral.Version {
	return collateral.Version{Number: l.Number.Uint64(), Issued: l.ThisUpdate} // dcap has checked that it is there and fits
}

// suffix ends the common name of a CA: Intel's begin with "Intel", simulated ones with what they are.
func suffix(ca collateral.CA) string {
	if ca == collateral.PlatformCA {
		return " SGX PCK Platform CA"
	}
	return " SGX PCK Processor CA"
}

// issued verifies that the PCK CRL was issued by the CA that was asked for, which the pinned root certified and has not revoked.
func (p Checker) issued(ca collateral.CA, chain []byte, pckCRL, rootCRL *x509.RevocationList) error {
	ders, err := quote.ParseChain(chain)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	if len(ders) != 2 {
		return fmt.Errorf("%w: found %d certificates in its chain, expected 2", ErrIssuer, len(ders))
	}
	issuer, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	root, err := x509.ParseCertificate(ders[1])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	if pin := dcap.PinOf(root); p.Root == (dcap.RootPin{}) || pin != p.Root {
		return fmt.Errorf("%w: found root key %v, expected %v", ErrIssuer, pin, p.Root)
	}
	if err := errors.Join(root.CheckSignatureFrom(root), issuer.CheckSignatureFrom(root)); err != nil {
		return fmt.Errorf("%w: its chain: %w", ErrIssuer, err)
	}
	if !strings.HasSuffix(issuer.Subject.CommonName, suffix(ca)) {
		return fmt.Errorf("%w: found a PCK CRL of %q, expected one of the %s CA", ErrOther, issuer.Subject.CommonName, ca)
	}
	if !bytes.Equal(pckCRL.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("%w: found issuer %q, expected %q", ErrIssuer, pckCRL.Issuer, issuer.Subject)
	}
	if err := pckCRL.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	for _, entry := range rootCRL.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(issuer.SerialNumber) == 0 {
			return fmt.Errorf("%w: found %q on the root's CRL, expected a CA that is not revoked", ErrIssuer, issuer.Subject.CommonName)
		}
	}
	return nil
}

// begins finds when the last artefact becomes valid.
func begins(v *collateral.Validity, c *collateral.Collateral, pckCRL *x509.RevocationList) error {
	ders, err := quote.ParseChain(c.TCBSigningChain)
	if err != nil {
		return err
	}
	signing, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return err
	}
	for _, a := range []struct {
		artefact dcap.Artefact
		from     time.Time
	}{
		{dcap.ArtefactTCBSigning, signing.NotBefore},
		{dcap.ArtefactPCKCRL, pckCRL.ThisUpdate},
		{dcap.ArtefactRootCACRL, v.Versions.RootCACRL.Issued},
		{dcap.ArtefactTCBInfo, v.Versions.TCBInfo.Issued},
		{dcap.ArtefactQEIdentity, v.Versions.QEIdentity.Issued},
	} {
		if v.Begins == "" || a.from.After(v.NotBefore) {
			v.NotBefore, v.Begins = a.from, string(a.artefact)
		}
	}
	return nil
}
