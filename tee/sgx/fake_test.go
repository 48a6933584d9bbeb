package sgx

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"

	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// processor stands in for hardware. It derives keys as EGETKEY does, for any request: from its fuses, the identity that the request's policy
// names, the attributes under its mask, and the request itself.
type processor struct {
	fuses  string
	self   identity
	prodID uint16
	// quoter makes real quotes, under a test root.
	quoter *simulated.Platform

	// What a test breaks.
	reportErr  error
	onQuote    func([]byte, error) ([]byte, error)
	onRequest  func(request []byte)
	onKey      func(name string, key []byte) ([]byte, error)
	panicking  string
	sameKeys   bool
	forgetful  bool
	quoteStart chan<- struct{}
	quoteGate  <-chan struct{}
}

func newProcessor(t *testing.T) *processor {
	t.Helper()
	dir := t.TempDir()
	a, err := simulated.CreateAuthority(filepath.Join(dir, "authority"), simulated.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	platform := filepath.Join(dir, "platform")
	if err := a.CreatePlatform(platform, simulated.PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	p := &processor{
		fuses: "fuses", prodID: 1,
		self: identity{mrEnclave: sha256.Sum256([]byte("enclave")), mrSigner: sha256.Sum256([]byte("signer")), isvSVN: 3},
	}
	p.quoter, err = simulated.Open(platform, simulated.Measurement{
		MREnclave: p.self.mrEnclave, MRSigner: p.self.mrSigner, ISVProdID: p.prodID, ISVSVN: p.self.isvSVN,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *processor) selfReport() (identity, error) {
	if p.panicking == "self report" {
		panic("index out of range")
	}
	return p.self, p.reportErr
}

func (p *processor) remoteReport(reportData [tee.ReportDataSize]byte) ([]byte, error) {
	if p.panicking == "remote report" {
		panic("index out of range")
	}
	if p.quoteGate != nil {
		p.quoteStart <- struct{}{}
		<-p.quoteGate
	}
	quote, err := p.quoter.Quote(context.Background(), reportData)
	report := binary.LittleEndian.AppendUint32(nil, 1)
	report = binary.LittleEndian.AppendUint32(report, 2)
	report = binary.LittleEndian.AppendUint64(report, uint64(len(quote)))
	report = append(report, quote...)
	if p.onQuote != nil {
		return p.onQuote(report, err)
	}
	return report, err
}

// request is a key request as EGo makes it.
func (p *processor) request(policy uint16) []byte {
	r := make([]byte, requestSize)
	binary.LittleEndian.PutUint16(r[0:], 4)
	binary.LittleEndian.PutUint16(r[2:], policy)
	binary.LittleEndian.PutUint16(r[4:], p.self.isvSVN)
	r[8] = 7 // CPUSVN
	binary.LittleEndian.PutUint64(r[24:], 0xff0000000000000b)
	rand.Read(r[40:72])
	binary.LittleEndian.PutUint32(r[72:], 0xf0000000)
	if p.onRequest != nil {
		p.onRequest(r)
	}
	return r
}

func (p *processor) derive(name string, request []byte) ([]byte, error) {
	if p.panicking == name {
		panic("runtime error: invalid memory address")
	}
	mac := hmac.New(sha256.New, []byte(p.fuses))
	policy := binary.LittleEndian.Uint16(request[2:])
	if policy&1 != 0 {
		mac.Write(p.self.mrEnclave[:])
	}
	if policy&2 != 0 {
		mac.Write(p.self.mrSigner[:])
	}
	mac.Write(binary.LittleEndian.AppendUint16(nil, p.prodID))
	attributes := uint64(0x5) // INIT, MODE64
	if p.self.debug {
		attributes |= 2
	}
	mac.Write(binary.LittleEndian.AppendUint64(nil, attributes&binary.LittleEndian.Uint64(request[24:])))
	mac.Write(request)
	if p.forgetful {
		mac.Write([]byte(rand.Text()))
	}
	key := mac.Sum(nil)[:tee.SealKeySize]
	if p.sameKeys {
		key = bytes.Repeat([]byte{1}, tee.SealKeySize)
	}
	if p.onKey != nil {
		return p.onKey(name, key)
	}
	return key, nil
}

func (p *processor) sealKeyID() ([]byte, error) {
	request := make([]byte, requestSize)
	request[0] = 4
	return p.derive("seal key id", request)
}

func (p *processor) productKey() ([]byte, []byte, error) {
	request := p.request(2)
	key, err := p.derive("product seal key", request)
	return key, request, err
}

func (p *processor) uniqueKey() ([]byte, []byte, error) {
	request := p.request(1)
	key, err := p.derive("unique seal key", request)
	return key, request, err
}

func (p *processor) keyOf(request []byte) ([]byte, error) {
	if binary.LittleEndian.Uint16(request[4:]) > p.self.isvSVN {
		return nil, errors.New("OE_INVALID_ISVSVN")
	}
	if request[8] > 7 {
		return nil, errors.New("OE_INVALID_CPUSVN")
	}
	return p.derive("seal key", request)
}

// env is an environment of one or more name=value pairs.
func env(values map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	}
}

func mustOpen(t *testing.T, p *processor) *Enclave {
	t.Helper()
	e, err := open(p, env(nil), Options{AcceptDebugEnclaveWhoseMemoryTheHostCanRead: p.self.debug})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
