// Package tee is the one interface to the hardware: what the rest of Safeconduct may ask of the enclave it runs in. The two
// implementations, EGo on SGX and the simulated one (tee/simulated), differ in Mode and in nothing that a caller could forget to look at:
// quotes of the one never verify under the root of the other, and sealing keys of the one are never recovered by the other.
//
// Non-goals: nothing here judges a quote (attestation/dcap), encrypts anything (crypto/sealed) or starts an enclave.
package tee

import (
	"context"
	"errors"
)

// Mode of a TEE. The zero value is no mode, and nothing accepts it.
type Mode string

// The modes. They never mix.
const (
	// ModeIntel is an SGX enclave on hardware, under Intel's production root.
	ModeIntel Mode = "intel"
	// ModeSimulated is an ordinary process. It protects nothing.
	ModeSimulated Mode = "simulated"
)

// ReportDataSize is the number of bytes that a quote carries for its maker.
const ReportDataSize = 64

// The errors of an Enclave.
var (
	// ErrNoHardware: this process is in no enclave that could make a quote or a key, or the enclave runs in simulation.
	ErrNoHardware = errors.New("no hardware enclave")
	// ErrUnusableKey: the hardware returned a sealing key of the wrong size, or all zero as SGX libraries do outside an enclave.
	ErrUnusableKey = errors.New("unusable sealing key")
	// ErrForeignKeyInfo: the key info was not made by this kind of enclave, on this platform, for this signer's product.
	ErrForeignKeyInfo = errors.New("foreign key info")
)

// Enclave is what the node service needs of the hardware. Its methods may be called concurrently. They can block for seconds on hardware
// (a quoting daemon): they return early when ctx ends.
type Enclave interface {
	// Mode never changes.
	Mode() Mode
	// Quote returns an SGX ECDSA quote, version 3, that carries reportData. Error: ErrNoHardware, or what the quoting service said.
	Quote(ctx context.Context, reportData [ReportDataSize]byte) ([]byte, error)
	// SealKey returns the current sealing key of this enclave's signer and product on this platform, and the key info with which
	// RecoverSealKey derives it again, in a later version of the same product too. The key info is no secret. The caller clears the key.
	// Errors: ErrNoHardware, ErrUnusableKey.
	SealKey(ctx context.Context) (key SealKey, keyInfo []byte, err error)
	// RecoverSealKey returns the key that keyInfo stands for. keyInfo comes from an untrusted disk. Errors: ErrForeignKeyInfo,
	// ErrNoHardware, ErrUnusableKey.
	RecoverSealKey(ctx context.Context, keyInfo []byte) (SealKey, error)
}
