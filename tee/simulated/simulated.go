// Package simulated is a TEE without hardware, for development, tests and demonstrations. IT PROTECTS NOTHING: its keys are files, and
// whoever reads them can forge every quote and open everything sealed.
//
// What it makes is real all the same: SGX ECDSA quotes with a PCK certificate chain, TCB info, QE identity and CRLs in Intel's formats,
// under a test root of its own. The verifier (attestation/dcap) judges them by the same code as Intel's, under another pinned root, so a
// simulated quote never passes where a real one is asked for. Everything says what it is: the subject of every certificate, the user data
// of every quote, the header of every key info.
//
//   - An Authority plays Intel: root, PCK CAs, TCB signing, collateral (CreateAuthority, Authority.Issue).
//   - A platform plays one processor: PPID, PCK key and certificate, fuse key (Authority.CreatePlatform).
//   - Open plays the CPU loading an enclave on a platform; the Platform that it returns is a tee.Enclave.
//
// Non-goals: no TDX quotes, no EPID, no PCCS protocol, no protection of any kind.
package simulated

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// Measurement is the identity of a simulated enclave: what SGX would have measured when it loaded it.
type Measurement struct {
	MREnclave, MRSigner [32]byte
	ISVProdID, ISVSVN   uint16
	// Debug marks an enclave whose memory its host may read. Its sealing key is another than the production enclave's.
	Debug bool
}

// Errors.
var (
	// ErrNotAuthority: the directory holds no complete simulated authority.
	ErrNotAuthority = errors.New("not a simulated authority")
	// ErrNotPlatform: the directory holds no complete simulated platform.
	ErrNotPlatform = errors.New("not a simulated platform")
	// ErrExists: the directory holds one already. Keys are never overwritten.
	ErrExists = errors.New("already exists")
)

const (
	measureLabel = "safeconduct/v1/simulated/mrenclave\x00"
	signerLabel  = "safeconduct/v1/simulated/mrsigner\x00"
)

// MeasureExecutable is the MRENCLAVE of a simulated enclave: SHA-256 over a label and the bytes of its executable. Real enclaves are
// measured page by page; the label makes sure that no real MRENCLAVE, nor a plain checksum, is ever taken for a simulated one.
func MeasureExecutable(path string) (m [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, fmt.Errorf("measure executable: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	h.Write([]byte(measureLabel))
	if _, err := io.Copy(h, f); err != nil {
		return m, fmt.Errorf("measure executable: %w", err)
	}
	return [32]byte(h.Sum(nil)), nil
}

// SignerOf is the MRSIGNER of a simulated enclave: SHA-256 over a label and the signer's name. Nothing is signed.
func SignerOf(name string) [32]byte { return sha256.Sum256([]byte(signerLabel + name)) }

func hexOf(b []byte) string { return hex.EncodeToString(b) }
