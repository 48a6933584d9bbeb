package simulated

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The files of collateral.
const (
	TCBInfoFile           = "tcb_info.json"
	QEIdentityFile        = "qe_identity.json"
	TCBSigningChainFile   = "tcb_signing_chain.pem"
	PCKCRLIssuerChainFile = "pck_crl_issuer_chain.pem"
	PCKCRLFile            = "pck_crl.der"
	RootCACRLFile         = "root_ca_crl.der"
)

// Files maps the names of collateral files to their exact bytes.
type Files map[string][]byte

// TCBLevel is one level of TCB info v3. A platform has the first level of the list that it reaches in every component and in PCESVN.
type TCBLevel struct {
	Components [16]uint8
	PCESVN     uint16
	Date       time.Time
	// Status in Intel's words: UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate,
	// OutOfDateConfigurationNeeded, Revoked.
	Status     string
	Advisories []string
}

// QELevel is one level of QE identity v2: UpToDate, OutOfDate or Revoked.
type QELevel struct {
	ISVSVN     uint16
	Date       time.Time
	Status     string
	Advisories []string
}

// CollateralOptions are the free choices of an issue of collateral. The zero value is what a healthy default platform needs.
type CollateralOptions struct {
	// At is the time of issue; zero means an hour ago.
	At time.Time
	// Validity of every artefact; zero means DefaultValidity. The CRLs' can be set apart.
	Validity, PCKCRLValidity, RootCRLValidity time.Duration
	// CA whose CRL is issued; it must be the one of the platforms that are judged.
	CA CA
	// FMSPC and PCEID that the TCB info is for; zero FMSPC means DefaultFMSPC.
	FMSPC [6]byte
	PCEID [2]byte
	// EvaluationDataNumber of TCB info and QE identity; zero means 1.
	EvaluationDataNumber uint32
	// CRLNumber of both CRLs; zero means 1.
	CRLNumber int64
	// Levels, best first; nil means DefaultLevels. QELevels likewise.
	Levels   []TCBLevel
	QELevels []QELevel
	// Serial numbers that the PCK CRL revokes, and what the root's CRL revokes.
	RevokedPCKs      []*big.Int
	RevokedCAs       []CA
	RevokeTCBSigning bool
}

// DefaultFMSPC is the model of simulated processors: "SIM" in ASCII.
func DefaultFMSPC() [6]byte { return [6]byte{'S', 'I', 'M'} }

// DefaultLevels are one level that a default platform reaches, UpToDate, and one below it for every other platform, OutOfDate.
func DefaultLevels() []TCBLevel {
	return []TCBLevel{
		{Components: defaultComponents(), PCESVN: defaultPCESVN, Date: date(2026), Status: "UpToDate"},
		{Date: date(2020), Status: "OutOfDate", Advisories: []string{"SIMULATED-SA-00001"}},
	}
}

func defaultQELevels() []QELevel {
	return []QELevel{{ISVSVN: defaultQESVN, Date: date(2026), Status: "UpToDate"}, {Date: date(2020), Status: "OutOfDate"}}
}

func date(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }

func (o CollateralOptions) withDefaults() CollateralOptions {
	o.At = orTime(o.At)
	o.Validity = orDuration(o.Validity, DefaultValidity)
	o.PCKCRLValidity = orDuration(o.PCKCRLValidity, o.Validity)
	o.RootCRLValidity = orDuration(o.RootCRLValidity, o.Validity)
	if o.FMSPC == [6]byte{} {
		o.FMSPC = DefaultFMSPC()
	}
	o.EvaluationDataNumber = max(o.EvaluationDataNumber, 1)
	o.CRLNumber = max(o.CRLNumber, 1)
	if o.Levels == nil {
		o.Levels = DefaultLevels()
	}
	if o.QELevels == nil {
		o.QELevels = defaultQELevels()
	}
	return o
}

// Issue makes collateral: the five files that package collateral reads.
func (a *Authority) Issue(opts CollateralOptions) (Files, error) {
	o := opts.withDefaults()
	var cas []*big.Int
	for _, ca := range o.RevokedCAs {
		cas = append(cas, a.cas[ca].cert.SerialNumber)
	}
	if o.RevokeTCBSigning {
		cas = append(cas, a.signing.cert.SerialNumber)
	}
	rootCRL, err := a.root.crl(cas, o.CRLNumber, o.At, o.RootCRLValidity)
	if err != nil {
		return nil, err
	}
	pckCRL, err := a.cas[o.CA].crl(o.RevokedPCKs, o.CRLNumber, o.At, o.PCKCRLValidity)
	if err != nil {
		return nil, err
	}
	tcbInfo, err := a.signJSON("tcbInfo", o.tcbInfo())
	if err != nil {
		return nil, err
	}
	identity, err := a.signJSON("enclaveIdentity", o.qeIdentity())
	if err != nil {
		return nil, err
	}
	return Files{
		TCBInfoFile: tcbInfo, QEIdentityFile: identity, PCKCRLFile: pckCRL, RootCACRLFile: rootCRL,
		TCBSigningChainFile:   append(encodeCert(a.signing.cert), a.RootPEM()...),
		PCKCRLIssuerChainFile: append(encodeCert(a.cas[o.CA].cert), a.RootPEM()...),
	}, nil
}

// WriteCollateral issues collateral into dir, replacing what was there file by file.
func (a *Authority) WriteCollateral(dir string, opts CollateralOptions) error {
	files, err := a.Issue(opts)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // public by nature
		return fmt.Errorf("simulated collateral: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writePublic(filepath.Join(dir, name), files[name]); err != nil {
			return fmt.Errorf("simulated collateral: %w", err)
		}
	}
	return nil
}

func (s *signer) crl(serials []*big.Int, number int64, at time.Time, validity time.Duration) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: at, NextUpdate: at.Add(validity)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: at, ReasonCode: 1, // key compromise, as Intel's
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.cert, s.key)
	if err != nil {
		return nil, fmt.Errorf("simulated CRL: %w", err)
	}
	return der, nil
}

type jsonComponent struct {
	SVN uint8 `json:"svn"`
}

type jsonTCB struct {
	Components *[16]jsonComponent `json:"sgxtcbcomponents,omitempty"`
	PCESVN     *uint16            `json:"pcesvn,omitempty"`
	ISVSVN     *uint16            `json:"isvsvn,omitempty"`
}

type jsonLevel struct {
	TCB        jsonTCB   `json:"tcb"`
	Date       time.Time `json:"tcbDate"`
	Status     string    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs,omitempty"`
}

func (o CollateralOptions) tcbInfo() any {
	levels := make([]jsonLevel, 0, len(o.Levels))
	for _, l := range o.Levels {
		var c [16]jsonComponent
		for i, svn := range l.Components {
			c[i].SVN = svn
		}
		levels = append(levels, jsonLevel{jsonTCB{Components: &c, PCESVN: &l.PCESVN}, l.Date.UTC(), l.Status, l.Advisories})
	}
	return struct {
		ID         string      `json:"id"`
		Version    int         `json:"version"`
		IssueDate  time.Time   `json:"issueDate"`
		NextUpdate time.Time   `json:"nextUpdate"`
		FMSPC      string      `json:"fmspc"`
		PCEID      string      `json:"pceId"`
		TCBType    int         `json:"tcbType"`
		Number     uint32      `json:"tcbEvaluationDataNumber"`
		Levels     []jsonLevel `json:"tcbLevels"`
	}{"SGX", 3, o.At, o.At.Add(o.Validity), strings.ToUpper(hexOf(o.FMSPC[:])), strings.ToUpper(hexOf(o.PCEID[:])), 0, o.EvaluationDataNumber, levels}
}

func (o CollateralOptions) qeIdentity() any {
	levels := make([]jsonLevel, 0, len(o.QELevels))
	for _, l := range o.QELevels {
		levels = append(levels, jsonLevel{jsonTCB{ISVSVN: &l.ISVSVN}, l.Date.UTC(), l.Status, l.Advisories})
	}
	signer := qeSigner()
	return struct {
		ID             string      `json:"id"`
		Version        int         `json:"version"`
		IssueDate      time.Time   `json:"issueDate"`
		NextUpdate     time.Time   `json:"nextUpdate"`
		Number         uint32      `json:"tcbEvaluationDataNumber"`
		MiscSelect     string      `json:"miscselect"`
		MiscSelectMask string      `json:"miscselectMask"`
		Attributes     string      `json:"attributes"`
		AttributesMask string      `json:"attributesMask"`
		MRSigner       string      `json:"mrsigner"`
		ISVProdID      uint16      `json:"isvprodid"`
		Levels         []jsonLevel `json:"tcbLevels"`
	}{
		"QE", 2, o.At, o.At.Add(o.Validity), o.EvaluationDataNumber, "00000000", "FFFFFFFF", "11000000000000000000000000000000",
		"FBFFFFFFFFFFFFFF0000000000000000", strings.ToUpper(hexOf(signer[:])), qeProdID, levels,
	}
}

// signJSON wraps a value as the PCS does: {"name":VALUE,"signature":"hex of r || s over the bytes of VALUE"}.
func (a *Authority) signJSON(name string, value any) ([]byte, error) {
	inner, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("simulated %s: %w", name, err)
	}
	signature, err := sign(a.signing.key, inner)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"%s":%s,"signature":"%x"}`, name, inner, signature)
	return b.Bytes(), nil
}

// sign is ECDSA over SHA-256, as r || s, 32 bytes each, big-endian.
func sign(key *ecdsa.PrivateKey, message []byte) ([64]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return [64]byte{}, fmt.Errorf("simulated signature: %w", err)
	}
	var out [64]byte
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}
