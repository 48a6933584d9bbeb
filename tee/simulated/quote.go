package simulated

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/safeconduct/safeconduct/tee"
)

// Layout: Intel SGX ECDSA Quote Library API, appendix A.4 (version 3); Intel TDX DCAP Quoting Library API, appendix A.3 (version 4).
// Every integer is little-endian, every size in bytes.
const (
	headerSize   = 48
	reportSize   = 384
	authDataSize = 32
	// userData marks the header of every simulated quote.
	userData = "SIMULATED"

	flagInit, flagDebug, flagMode64, flagProvision = 1, 2, 4, 16
	// xfrm is x87, SSE and AVX: what EGo's enclaves run with.
	xfrm     = 7
	qeProdID = 1
)

// qeVendorID is the one of Intel's quoting enclave, whose format this is.
func qeVendorID() []byte {
	return []byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}
}

// qeSigner is the MRSIGNER of simulated quoting enclaves; the simulated QE identity names it.
func qeSigner() [32]byte { return SignerOf("quoting enclave") }

// quotingEnclave holds an attestation key that the PCK has certified.
type quotingEnclave struct {
	key       *ecdsa.PrivateKey
	public    [64]byte
	report    []byte
	signature [64]byte
	authData  []byte
}

// startQuoting has the PCK sign the report of a quoting enclave that vouches for the attestation key.
func (p *Platform) startQuoting(key, pck *ecdsa.PrivateKey) error {
	point, err := key.PublicKey.Bytes() // 4 || x || y
	if err != nil {
		return fmt.Errorf("simulated quoting enclave: %w", err)
	}
	q := &p.qe
	q.key, q.public, q.authData = key, [64]byte(point[1:]), make([]byte, authDataSize)
	rand.Read(q.authData)
	bound := sha256.Sum256(append(q.public[:], q.authData...))
	qe := Measurement{
		MREnclave: sha256.Sum256([]byte(measureLabel + "quoting enclave")), MRSigner: qeSigner(), ISVProdID: qeProdID, ISVSVN: p.record.QESVN,
	}
	q.report = p.report(&qe, flagProvision, [tee.ReportDataSize]byte(append(bound[:], make([]byte, 32)...)))
	q.signature, err = sign(pck, q.report)
	return err
}

// report is the body of an SGX report.
func (p *Platform) report(m *Measurement, flags uint64, data [tee.ReportDataSize]byte) []byte {
	flags |= flagInit | flagMode64
	if m.Debug {
		flags |= flagDebug
	}
	b := make([]byte, reportSize)
	copy(b, p.cpuSVN[:])
	binary.LittleEndian.PutUint64(b[48:], flags)
	binary.LittleEndian.PutUint64(b[56:], xfrm)
	copy(b[64:], m.MREnclave[:])
	copy(b[128:], m.MRSigner[:])
	binary.LittleEndian.PutUint16(b[256:], m.ISVProdID)
	binary.LittleEndian.PutUint16(b[258:], m.ISVSVN)
	copy(b[320:], data[:])
	return b
}

// Quote implements tee.Enclave: an SGX ECDSA quote, version 3.
func (p *Platform) Quote(ctx context.Context, reportData [tee.ReportDataSize]byte) ([]byte, error) {
	return p.quote(ctx, 3, reportData)
}

// QuoteV4 is Quote in version 4, which newer quoting libraries can make for SGX too.
func (p *Platform) QuoteV4(ctx context.Context, reportData [tee.ReportDataSize]byte) ([]byte, error) {
	return p.quote(ctx, 4, reportData)
}

func (p *Platform) quote(ctx context.Context, version uint16, reportData [tee.ReportDataSize]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, 8192)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 2) // ECDSA P-256
	b = append(b, 0, 0, 0, 0)                  // reserved; in version 4, the TEE type of SGX
	qeSVN, pceSVN := p.record.QESVN, p.record.PCESVN
	if version == 4 {
		qeSVN, pceSVN = 0, 0
	}
	b = binary.LittleEndian.AppendUint16(b, qeSVN)
	b = binary.LittleEndian.AppendUint16(b, pceSVN)
	b = append(b, qeVendorID()...)
	b = append(b, userData...)
	b = append(b, make([]byte, headerSize-len(b))...)
	b = append(b, p.report(&p.measurement, 0, reportData)...)
	signature, err := sign(p.qe.key, b)
	if err != nil {
		return nil, err
	}
	data := p.signatureData(version, signature)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...), nil
}

func (p *Platform) signatureData(version uint16, signature [64]byte) []byte {
	q := &p.qe
	inner := make([]byte, 0, 4096)
	inner = append(inner, q.report...)
	inner = append(inner, q.signature[:]...)
	inner = binary.LittleEndian.AppendUint16(inner, authDataSize)
	inner = append(inner, q.authData...)
	inner = binary.LittleEndian.AppendUint16(inner, 5) // PCK certificate chain
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(p.chain)))
	inner = append(inner, p.chain...)

	data := append(signature[:], q.public[:]...)
	if version == 4 {
		data = binary.LittleEndian.AppendUint16(data, 6) // QE report certification data
		data = binary.LittleEndian.AppendUint32(data, uint32(len(inner)))
	}
	return append(data, inner...)
}
