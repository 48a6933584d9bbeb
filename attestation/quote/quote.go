// Package quote parses SGX and TDX ECDSA quotes, versions 3 and 4: bytes to struct, nothing else. It judges nothing: a quote that parses may
// be forged in every byte (package dcap says whether it is authentic, package appraisal whether it is acceptable).
//
// Layouts: Intel SGX ECDSA Quote Library API, appendix A.4 (version 3); Intel TDX DCAP Quoting Library API, appendix A.3 (version 4).
// Every integer is little-endian.
//
// Lengths must add up to the last byte of the quote, and nothing may follow it. The certificate chain must be the PEM that its DER
// encodes to. What real quotes vary in is allowed and no more: the line ends of the PEM, and one NUL after it, which is how Intel's
// quoting library ends a string. So a quote that differs from an authentic one in anything but line ends is another quote.
//
// Non-goals: EPID quotes; quotes that name their PCK by an identifier instead of carrying its certificate (types 1 to 4: they
// would need a lookup by an encrypted PPID); version 5.
package quote

import (
	"bytes"
	"encoding/binary"
	"strconv"
)

// Sizes in bytes.
const (
	// MaxSize bounds a quote. Real ones have about 5 KiB, of which the certificate chain is 3.6; the rest is fixed but for the QE's
	// authentication data (32). 64 KiB leaves room for longer chains and keeps what a stranger can have us parse small.
	MaxSize = 64 << 10

	headerSize    = 48
	sgxReportSize = 384
	tdxReportSize = 584
	signatureSize = 64
	// maxAuthData bounds the QE's authentication data: 32 in every quote of Intel's QE.
	maxAuthData = 1024
)

// TEE types of the header.
const (
	TEESGX uint32 = 0
	TEETDX uint32 = 0x81
)

// Certification data types (appendix A.4, table 9).
const (
	certPCKChain = 5
	certQEReport = 6
)

const ecdsaP256 = 2

// Quote is a parsed quote. It shares no memory with the bytes it was parsed from.
type Quote struct {
	Version uint16
	TEEType uint32
	// QESVN and PCESVN are of the header; zero in version 4.
	QESVN, PCESVN uint16
	QEVendorID    [16]byte
	UserData      [20]byte

	// SGX is set if TEEType is TEESGX, TDX if it is TEETDX.
	SGX *SGXReport
	TDX *TDXReport

	// Signed is header and report: what Signature is over.
	Signed []byte
	// Signature is r || s under AttestationKey, x || y on P-256.
	Signature, AttestationKey [64]byte
	// QEReport is the quoting enclave's report; QEReportSignature is by the PCK key over its bytes, QEReportRaw.
	QEReport          SGXReport
	QEReportRaw       []byte
	QEReportSignature [64]byte
	AuthData          []byte
	// CertChain is the certificates of the chain in DER, as they came: leaf, intermediate and root, if the quote is honest.
	CertChain [][]byte
}

// SGXReport is the body of an SGX report (384 bytes).
type SGXReport struct {
	CPUSVN     [16]byte
	MiscSelect uint32
	// Attributes are FLAGS (8) and XFRM (8), as they stand.
	Attributes          [16]byte
	MREnclave, MRSigner [32]byte
	ISVProdID, ISVSVN   uint16
	ReportData          [64]byte
}

// Debug says whether the enclave's memory can be read by its host (ATTRIBUTES.FLAGS bit 1).
func (r *SGXReport) Debug() bool { return r.Attributes[0]&2 != 0 }

// TDXReport is the body of a TDX 1.0 report (584 bytes).
type TDXReport struct {
	TEETCBSVN      [16]byte
	MRSeam         [48]byte
	MRSignerSeam   [48]byte
	SeamAttributes [8]byte
	TDAttributes   [8]byte
	XFAM           [8]byte
	MRTD           [48]byte
	ReportData     [64]byte
}

// Debug says whether the TD is under debug: any bit of the first byte of its attributes, which Intel reserves for that (TUD).
func (r *TDXReport) Debug() bool { return r.TDAttributes[0] != 0 }

// ReportData is what the quoted enclave or TD put into its report.
func (q *Quote) ReportData() [64]byte {
	if q.TDX != nil {
		return q.TDX.ReportData
	}
	if q.SGX != nil {
		return q.SGX.ReportData
	}
	return [64]byte{}
}

// Parse reads a quote. Errors: *Error, which wraps ErrMalformed or ErrUnsupported.
func Parse(raw []byte) (*Quote, error) {
	if len(raw) > MaxSize {
		return nil, malformed("quote", bytesFound(len(raw)), "at most "+bytesFound(MaxSize))
	}
	r := &reader{rest: raw}
	q := new(Quote)
	if err := q.header(r); err != nil {
		return nil, err
	}
	body := sgxReportSize
	if q.TEEType == TEETDX {
		body = tdxReportSize
		q.TDX = parseTDX(r.take(body, "TDX report"))
	} else {
		q.SGX = parseSGX(r.take(body, "SGX report"))
	}
	n := r.u32("signature data length")
	r.end(n, "signature data")
	if r.err != nil {
		return nil, r.err
	}
	q.Signed = append([]byte(nil), raw[:headerSize+body]...)
	if err := q.signature(r); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *Quote) header(r *reader) error {
	q.Version = r.u16("version")
	keyType := r.u16("attestation key type")
	q.TEEType = r.u32("TEE type")
	q.QESVN, q.PCESVN = r.u16("QE SVN"), r.u16("PCE SVN")
	copy(q.QEVendorID[:], r.take(16, "QE vendor id"))
	copy(q.UserData[:], r.take(20, "user data"))
	switch {
	case r.err != nil:
		return r.err
	case q.Version != 3 && q.Version != 4:
		return unsupported("version", number(q.Version), "3 or 4")
	case keyType != ecdsaP256:
		return unsupported("attestation key type", number(keyType), "2 (ECDSA on P-256)")
	case q.TEEType != TEESGX && (q.Version == 3 || q.TEEType != TEETDX):
		return unsupported("TEE type", "0x"+strconv.FormatUint(uint64(q.TEEType), 16), "0 (SGX) or, in version 4, 0x81 (TDX)")
	}
	return nil
}

func parseSGX(b []byte) *SGXReport {
	r := &SGXReport{
		MiscSelect: binary.LittleEndian.Uint32(b[16:20]),
		ISVProdID:  binary.LittleEndian.Uint16(b[256:258]), ISVSVN: binary.LittleEndian.Uint16(b[258:260]),
	}
	copy(r.CPUSVN[:], b[0:16])
	copy(r.Attributes[:], b[48:64])
	copy(r.MREnclave[:], b[64:96])
	copy(r.MRSigner[:], b[128:160])
	copy(r.ReportData[:], b[320:384])
	return r
}

func parseTDX(b []byte) *TDXReport {
	r := new(TDXReport)
	copy(r.TEETCBSVN[:], b[0:16])
	copy(r.MRSeam[:], b[16:64])
	copy(r.MRSignerSeam[:], b[64:112])
	copy(r.SeamAttributes[:], b[112:120])
	copy(r.TDAttributes[:], b[120:128])
	copy(r.XFAM[:], b[128:136])
	copy(r.MRTD[:], b[136:184])
	copy(r.ReportData[:], b[520:584])
	return r
}

// signature reads the ECDSA signature data. In version 4 the QE's part is nested in certification data of type 6.
func (q *Quote) signature(r *reader) error {
	copy(q.Signature[:], r.take(signatureSize, "signature"))
	copy(q.AttestationKey[:], r.take(64, "attestation key"))
	if q.Version == 4 {
		kind, n := r.u16("certification data type"), r.u32("certification data length")
		if r.err == nil && kind != certQEReport {
			return unsupported("certification data type", number(kind), "6 (QE report)")
		}
		r.end(n, "certification data")
	}
	q.QEReportRaw = append([]byte(nil), r.take(sgxReportSize, "QE report")...)
	q.QEReport = *parseSGX(q.QEReportRaw)
	copy(q.QEReportSignature[:], r.take(signatureSize, "QE report signature"))
	n := int(r.u16("QE authentication data length"))
	if r.err == nil && n > maxAuthData {
		return malformed("QE authentication data", bytesFound(n), "at most "+bytesFound(maxAuthData))
	}
	q.AuthData = append([]byte(nil), r.take(n, "QE authentication data")...)
	kind, size := r.u16("certification data type"), r.u32("certification data length")
	if r.err == nil && kind != certPCKChain {
		return unsupported("certification data type", number(kind), "5 (PCK certificate chain)")
	}
	r.end(size, "PCK certificate chain")
	if r.err != nil {
		return r.err
	}
	var err error
	q.CertChain, err = ParseChain(bytes.TrimSuffix(r.rest, []byte{0}))
	return err
}
