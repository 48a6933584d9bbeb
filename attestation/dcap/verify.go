package dcap

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/quote"
)

// Verifier verifies quotes under one root. The zero value pins none and refuses everything.
type Verifier struct {
	Root RootPin
}

// Verify verifies a quote against collateral at a time. It is CheckCollateral and CheckedCollateral.Verify in one; who verifies more than
// one quote against the same collateral does better with those. Error: *Error.
func (v Verifier) Verify(rawQuote []byte, c *collateral.Collateral, now time.Time) (*Result, error) {
	checked, err := v.CheckCollateral(c)
	if err != nil {
		return nil, err
	}
	return checked.Verify(rawQuote, now)
}

// CheckedCollateral is collateral whose signatures are verified, but for the PCK CRL's: its issuer's certificate comes with the quote. Its
// dates are not judged yet. It is immutable and may be used concurrently.
type CheckedCollateral struct {
	pin           RootPin
	signing, root *x509.Certificate
	rootCRL       *crl
	pckCRL        *crl
	tcb           *tcbInfo
	qe            *qeIdentity
}

// CheckCollateral parses collateral and verifies what does not depend on a quote or a time. Error: *Error.
func (v Verifier) CheckCollateral(c *collateral.Collateral) (*CheckedCollateral, error) {
	if c == nil {
		c = new(collateral.Collateral)
	}
	if err := c.Check(); err != nil {
		return nil, &Error{Check: CheckMissing, Artefact: ArtefactCollateral, Found: err.Error(), Cause: err}
	}
	ders, err := quote.ParseChain(c.TCBSigningChain)
	if err != nil {
		return nil, caused(CheckChain, ArtefactSigningChain, err)
	}
	chain, err := parseChain(ArtefactSigningChain, ders, signingRoles(), v.Root)
	if err != nil {
		return nil, err
	}
	k := &CheckedCollateral{pin: v.Root, signing: chain[0], root: chain[1]}
	if k.rootCRL, err = parseCRL(ArtefactRootCACRL, c.RootCACRL); err != nil {
		return nil, err
	}
	if err := k.rootCRL.issuedBy(k.root); err != nil {
		return nil, err
	}
	if err := k.rootCRL.check(ArtefactTCBSigning, k.signing); err != nil {
		return nil, err
	}
	if k.pckCRL, err = parseCRL(ArtefactPCKCRL, c.PCKCRL); err != nil {
		return nil, err
	}
	if err := k.documents(c); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *CheckedCollateral) documents(c *collateral.Collateral) error {
	key := k.signing.PublicKey.(*ecdsa.PublicKey) // parseChain has checked the type
	body, err := verifiedBody(ArtefactTCBInfo, "tcbInfo", c.TCBInfo, key)
	if err != nil {
		return err
	}
	if k.tcb, err = parseTCBInfo(body); err != nil {
		return caused(CheckDocument, ArtefactTCBInfo, err)
	}
	if body, err = verifiedBody(ArtefactQEIdentity, "enclaveIdentity", c.QEIdentity, key); err != nil {
		return err
	}
	if k.qe, err = parseQEIdentity(body); err != nil {
		return caused(CheckDocument, ArtefactQEIdentity, err)
	}
	return nil
}

func verifiedBody(artefact Artefact, name string, raw []byte, key *ecdsa.PublicKey) ([]byte, error) {
	d, err := parseDocument(artefact, name, raw)
	if err != nil {
		return nil, err
	}
	return d.body, d.verify(key)
}

func (k *CheckedCollateral) periods() []period {
	return []period{
		certPeriod(ArtefactTCBSigning, k.signing), certPeriod(ArtefactRootCA, k.root), k.pckCRL.period(), k.rootCRL.period(),
		k.tcb.period(ArtefactTCBInfo), k.qe.period(ArtefactQEIdentity),
	}
}

// oldest is the artefact that is issued again and again which was issued first.
func (k *CheckedCollateral) oldest() (at time.Time, of Artefact) {
	for _, p := range []period{k.tcb.period(ArtefactTCBInfo), k.qe.period(ArtefactQEIdentity), k.pckCRL.period(), k.rootCRL.period()} {
		if of == "" || p.from.Before(at) {
			at, of = p.from, p.artefact
		}
	}
	return at, of
}

// ExpiresAt is the moment after which no quote verifies against this collateral, and the artefact that is then the first to expire: for
// whoever watches over its renewal.
func (k *CheckedCollateral) ExpiresAt() (time.Time, Artefact) {
	w := intersect(k.periods())
	return w.to, w.expires
}

// Verify verifies a quote at a time. Error: *Error.
func (k *CheckedCollateral) Verify(rawQuote []byte, now time.Time) (*Result, error) {
	q, err := quote.Parse(rawQuote)
	if err != nil {
		return nil, caused(CheckQuote, ArtefactQuote, err)
	}
	if err := checkOwnSignature(q); err != nil {
		return nil, err
	}
	chain, err := parseChain(ArtefactPCKChain, q.CertChain, pckRoles(), k.pin)
	if err != nil {
		return nil, err
	}
	leaf, ca, root := chain[0], chain[1], chain[2]
	pck, err := parsePCK(leaf)
	if err != nil {
		return nil, caused(CheckPCKExtension, ArtefactPCKCertificate, err)
	}
	key := leaf.PublicKey.(*ecdsa.PublicKey) // parseChain has checked the type
	if !verifyRaw(key, q.QEReportRaw, q.QEReportSignature) {
		return nil, failed(CheckQEReport, ArtefactQuote, "a signature that does not verify", "one by the PCK over the quoting enclave's report")
	}
	if err := k.revocation(leaf, ca); err != nil {
		return nil, err
	}
	if err := k.fits(q, pck); err != nil {
		return nil, err
	}
	own := []period{certPeriod(ArtefactPCKCertificate, leaf), certPeriod(ArtefactPCKCA, ca), certPeriod(ArtefactRootCA, root)}
	w := intersect(append(own, k.periods()...))
	if err := w.contains(now); err != nil {
		return nil, err
	}
	r := &Result{
		TCBEvaluationDataNumber: *k.tcb.Number, QEEvaluationDataNumber: *k.qe.Number,
		PCK: *pck, PPID: pck.PPID, FMSPC: pck.FMSPC, PCEID: pck.PCEID, PCKSerial: serialText(leaf.SerialNumber), PCKCA: ca.Subject.CommonName,
		RootSubject: root.Subject.String(), RootPin: k.pin, PCKCRLNumber: k.pckCRL.number, RootCACRLNumber: k.rootCRL.number,
		NotBefore: w.from, ExpiresAt: w.to, NotBeforeArtefact: w.begins, ExpiresArtefact: w.expires,
	}
	r.OldestIssued, r.OldestArtefact = k.oldest()
	r.setReport(q)
	return k.judge(r)
}

// qeVendorID is Intel's (Intel SGX ECDSA Quote Library API, appendix A.4, table 3). The formats verified here are its quoting enclave's.
const qeVendorID = "939a7233f79c4ca9940a0db3957f0607"

// checkOwnSignature verifies what a quote proves by itself: it is signed by its attestation key, and the report of a quoting enclave, whose
// own signature is still to be verified, binds that key.
func checkOwnSignature(q *quote.Quote) error {
	if got := hex.EncodeToString(q.QEVendorID[:]); got != qeVendorID {
		return failed(CheckQuote, ArtefactQuote, "QE vendor "+got, qeVendorID)
	}
	if !verifyWithPoint(q.AttestationKey, q.Signed, q.Signature) {
		return failed(CheckQuoteSignature, ArtefactQuote, "a signature that does not verify", "one by the attestation key over header and report")
	}
	bound := sha256.New()
	bound.Write(q.AttestationKey[:])
	bound.Write(q.AuthData)
	want := append(bound.Sum(nil), make([]byte, 32)...)
	if subtle.ConstantTimeCompare(q.QEReport.ReportData[:], want) != 1 {
		return failed(CheckQEReport, ArtefactQuote, fmt.Sprintf("report data %x", q.QEReport.ReportData), fmt.Sprintf("%x, binding the attestation key", want))
	}
	return nil
}

// revocation verifies that the PCK CRL is of the CA that issued the PCK, and that neither is revoked.
func (k *CheckedCollateral) revocation(leaf, ca *x509.Certificate) error {
	if err := k.pckCRL.issuedBy(ca); err != nil {
		return err
	}
	if err := k.rootCRL.check(ArtefactPCKCA, ca); err != nil {
		return err
	}
	return k.pckCRL.check(ArtefactPCKCertificate, leaf)
}

// fits checks that the collateral is for this kind of quote and platform, and the quoting enclave the one it describes.
func (k *CheckedCollateral) fits(q *quote.Quote, pck *PCK) error {
	wantTCB, wantQE := idSGX, idQE
	if q.TEEType == quote.TEETDX {
		wantTCB, wantQE = idTDX, idTDQE
	}
	fmspc, pceid := hex.EncodeToString(k.tcb.FMSPC), hex.EncodeToString(k.tcb.PCEID)
	switch {
	case k.tcb.ID != wantTCB:
		return failed(CheckDocument, ArtefactTCBInfo, "TCB info of "+k.tcb.ID, wantTCB)
	case k.qe.ID != wantQE:
		return failed(CheckDocument, ArtefactQEIdentity, "identity of "+k.qe.ID, wantQE)
	case fmspc != pck.FMSPC || pceid != pck.PCEID:
		return failed(CheckPlatform, ArtefactTCBInfo, fmt.Sprintf("FMSPC %s, PCEID %s", fmspc, pceid), fmt.Sprintf("%s, %s as in the PCK certificate", pck.FMSPC, pck.PCEID))
	}
	return k.qe.describes(&q.QEReport)
}

// judge finds the statuses of an authentic quote.
func (k *CheckedCollateral) judge(r *Result) (*Result, error) {
	platform, module := part{Status: Unsupported}, part{}
	if l := k.tcb.match(&r.PCK, r.Quote.TDX); l != nil {
		platform = part{l.Status, l.Date, l.Advisories}
	}
	if r.Quote.TDX != nil {
		var err error
		if module, err = k.tcb.moduleStatus(r.Quote.TDX); err != nil {
			return nil, err
		}
	}
	r.setStatus(platform, k.qe.status(&r.Quote.QEReport), module)
	return r, nil
}
