package simulated

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/safeconduct/safeconduct/tee"
)

// The TCB of a default platform.
const (
	defaultPCESVN = 13
	defaultQESVN  = 8
)

func defaultComponents() [16]uint8 { return [16]uint8{7, 7, 2, 2, 3, 1, 0, 3} }

// The files of a platform. Those with keys have mode 0600.
const (
	platformFile = "platform.json"
	chainFile    = "pck_chain.pem"
	pckKeyFile   = "pck.key.pem"
	fuseFile     = "fuse.key"
)

const (
	platformSchema = "safeconduct/v1/simulated-platform"
	fuseSize       = 32
)

// PlatformOptions are the free choices of a new platform.
type PlatformOptions struct {
	// PPID; zero means a random one.
	PPID [16]byte
	// CA that certifies it.
	CA CA
	// FMSPC (zero means DefaultFMSPC) and PCEID.
	FMSPC [6]byte
	PCEID [2]byte
	// Components and PCESVN are the platform's patch level; nil and zero mean those that DefaultLevels calls UpToDate.
	Components *[16]uint8
	PCESVN     uint16
	// QESVN is the ISVSVN of the quoting enclave; zero means one that is UpToDate.
	QESVN uint16
	// At is when the PCK certificate is issued (zero: an hour ago), Validity how long it is valid (zero: a year).
	At       time.Time
	Validity time.Duration
}

// platformRecord is platform.json.
type platformRecord struct {
	Schema string `json:"schema"`
	// What is public about the platform, in hex. PPID, FMSPC and the serial number are for the reader; the certificate decides.
	PPID      string `json:"ppid"`
	FMSPC     string `json:"fmspc"`
	PCKSerial string `json:"pck_serial"`
	CPUSVN    string `json:"cpu_svn"`
	PCESVN    uint16 `json:"pce_svn"`
	QESVN     uint16 `json:"qe_isv_svn"`
}

// CreatePlatform makes a new platform in dir (mode 0700). It never overwrites one: the error is then ErrExists.
func (a *Authority) CreatePlatform(dir string, opts PlatformOptions) error {
	p := &pckIdentity{ppid: opts.PPID, components: defaultComponents(), pceSVN: opts.PCESVN, pceID: opts.PCEID, fmspc: opts.FMSPC, ca: opts.CA}
	if p.ppid == [16]byte{} {
		rand.Read(p.ppid[:])
	}
	if p.fmspc == [6]byte{} {
		p.fmspc = DefaultFMSPC()
	}
	if opts.Components != nil {
		p.components = *opts.Components
	}
	if p.pceSVN == 0 {
		p.pceSVN = defaultPCESVN
	}
	p.cpuSVN = p.components
	if opts.QESVN == 0 {
		opts.QESVN = defaultQESVN
	}
	pck, err := a.certify(p, orTime(opts.At), orDuration(opts.Validity, 365*24*time.Hour))
	if err != nil {
		return err
	}
	record, err := json.MarshalIndent(platformRecord{
		Schema: platformSchema, PPID: hexOf(p.ppid[:]), FMSPC: hexOf(p.fmspc[:]), PCKSerial: hexOf(pck.cert.SerialNumber.Bytes()),
		CPUSVN: hexOf(p.cpuSVN[:]), PCESVN: p.pceSVN, QESVN: opts.QESVN,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("simulated platform: %w", err)
	}
	if err := a.writePlatform(dir, p.ca, pck, append(record, '\n')); err != nil {
		return fmt.Errorf("simulated platform: %w", err)
	}
	return nil
}

func (a *Authority) writePlatform(dir string, ca CA, pck signer, record []byte) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the platform's own directory is 0700
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fuse := make([]byte, fuseSize)
	rand.Read(fuse)
	defer clear(fuse)
	// The fuse key first: where there is one, there is a platform, and nothing of it is touched.
	if err := writeNew(filepath.Join(dir, fuseFile), fuse, 0o600); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, pckKeyFile), pck.key); err != nil {
		return err
	}
	chain := bytes.Join([][]byte{encodeCert(pck.cert), encodeCert(a.cas[ca].cert), a.RootPEM()}, nil)
	if err := writeNew(filepath.Join(dir, chainFile), chain, 0o644); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, platformFile), record, 0o644)
}

// Platform is an enclave loaded on a simulated platform. It implements tee.Enclave.
type Platform struct {
	measurement Measurement
	record      platformRecord
	cpuSVN      [16]byte
	serial      *big.Int
	chain       []byte
	fuse        []byte
	// qe is made at Open, as the quoting enclave makes its attestation key.
	qe quotingEnclave
}

var _ tee.Enclave = (*Platform)(nil)

// Open loads an enclave of the given measurement on the platform in dir. Error: ErrNotPlatform.
func Open(dir string, m Measurement) (*Platform, error) {
	p := &Platform{measurement: m}
	pck, err := p.read(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotPlatform, dir, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("simulated quoting enclave: %w", err)
	}
	return p, p.startQuoting(key, pck)
}

func (p *Platform) read(dir string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(filepath.Join(dir, platformFile))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &p.record); err != nil {
		return nil, fmt.Errorf("%s: %w", platformFile, err)
	}
	if p.record.Schema != platformSchema {
		return nil, fmt.Errorf("%s: found schema %q, expected %q", platformFile, p.record.Schema, platformSchema)
	}
	if n, err := hex.Decode(p.cpuSVN[:], []byte(p.record.CPUSVN)[:min(len(p.record.CPUSVN), 32)]); err != nil || n != len(p.cpuSVN) {
		return nil, fmt.Errorf("%s: cpu_svn is not 16 bytes of hex", platformFile)
	}
	if p.fuse, err = os.ReadFile(filepath.Join(dir, fuseFile)); err != nil {
		return nil, err
	}
	if len(p.fuse) != fuseSize {
		return nil, fmt.Errorf("%s: found %d bytes, expected %d", fuseFile, len(p.fuse), fuseSize)
	}
	if p.chain, err = os.ReadFile(filepath.Join(dir, chainFile)); err != nil {
		return nil, err
	}
	cert, err := readCert(filepath.Join(dir, chainFile))
	if err != nil {
		return nil, err
	}
	p.serial = cert.SerialNumber
	key, err := readKey(filepath.Join(dir, pckKeyFile))
	if err != nil {
		return nil, err
	}
	return key, matches(key, cert)
}

func matches(key *ecdsa.PrivateKey, cert *x509.Certificate) error {
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("%s is not the key of the first certificate in %s", pckKeyFile, chainFile)
	}
	return nil
}

// Mode implements tee.Enclave.
func (p *Platform) Mode() tee.Mode { return tee.ModeSimulated }

// Measurement is what the enclave was loaded as.
func (p *Platform) Measurement() Measurement { return p.measurement }

// PCKSerial is the serial number of the platform's PCK certificate: what a CRL revokes.
func (p *Platform) PCKSerial() *big.Int { return new(big.Int).Set(p.serial) }

// String keeps the fuse key out of logs.
func (p *Platform) String() string { return "simulated platform " + p.record.PPID }

// GoString is String.
func (p *Platform) GoString() string { return p.String() }
