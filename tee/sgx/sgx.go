// Package sgx is the TEE on hardware: an SGX enclave under EGo, with quotes under Intel's root and sealing keys of the processor.
//
// Hardware is proven, never assumed. Outside an enclave and in simulation EGo's sealing calls succeed with an all-zero key, its zero report
// reads as that of a sound enclave, and the host chooses simulation by an environment variable, with the same signed binary. So Open asks
// the processor for a report and for several keys before it returns anything, and refuses on the first answer that no hardware gives.
// This protects the enclave from being run wrongly. A host that runs the binary outside an enclave on a kernel that plays EGo's calls can
// fool it, and gains nothing: no quote comes of that, and peers judge quotes.
//
// Which sealing key: the product key (MRSIGNER, ISVPRODID), so that the next version opens what this one sealed. See keyinfo.go.
//
// The calls into EGo need cgo and the build tag sgx (ego.go). Everything that decides is in files without a tag and is tested without
// hardware. Open in a build without them always fails.
//
// Non-goals: judging quotes (attestation/dcap), sealing data (crypto/sealed), TDX, and enclaves of other frameworks.
package sgx

import (
	"context"
	"fmt"

	"github.com/safeconduct/safeconduct/tee"
)

// maxQuotes bounds the quotes that are made at once. Each blocks a thread in a call to the host, and about 28 of these freeze an enclave of
// 32 TCS; see docs/enclave.md. The quoting service makes them one after the other anyway.
const maxQuotes = 2

// Options of Open. The zero value is for production.
type Options struct {
	// AcceptDebugEnclaveWhoseMemoryTheHostCanRead is for pre-production: such an enclave keeps nothing from its host. Its quotes say so, and
	// peers refuse them unless their policy accepts debug enclaves too.
	AcceptDebugEnclaveWhoseMemoryTheHostCanRead bool
}

// Enclave is the SGX enclave that this process runs in. It implements tee.Enclave. Open makes it.
type Enclave struct {
	hw   hardware
	self identity
	// quoting holds one element for each quote under way.
	quoting chan struct{}
}

var _ tee.Enclave = (*Enclave)(nil)

// identity is what the processor says of this enclave.
type identity struct {
	mrEnclave, mrSigner [32]byte
	isvSVN              uint16
	debug               bool
}

// hardware is EGo: the processor and the quoting service, or a stand-in in tests. Answers are EGo's bytes as they come; nothing is checked.
type hardware interface {
	// selfReport is the identity in a report that the processor made and verified.
	selfReport() (identity, error)
	// remoteReport is a quote behind an Open Enclave header. It blocks.
	remoteReport(reportData [tee.ReportDataSize]byte) ([]byte, error)
	// sealKeyID is a key that depends on the processor and the product id alone: no secret.
	sealKeyID() ([]byte, error)
	// productKey and uniqueKey are fresh sealing keys by MRSIGNER and by MRENCLAVE, with the key requests that made them.
	productKey() (key, request []byte, err error)
	uniqueKey() (key, request []byte, err error)
	// keyOf is the key of a key request.
	keyOf(request []byte) ([]byte, error)
}

// open proves hw and returns the enclave on it.
func open(hw hardware, lookupEnv func(string) (string, bool), o Options) (*Enclave, error) {
	self, err := prove(hw, lookupEnv, o)
	if err != nil {
		return nil, err
	}
	return &Enclave{hw: hw, self: self, quoting: make(chan struct{}, maxQuotes)}, nil
}

// Mode implements tee.Enclave: tee.ModeIntel.
func (e *Enclave) Mode() tee.Mode { return tee.ModeIntel }

// MREnclave and MRSigner are this enclave's measurements, as the processor reported them at Open.
func (e *Enclave) MREnclave() [32]byte { return e.self.mrEnclave }

// MRSigner is SHA-256 of the modulus of the key that signed this enclave.
func (e *Enclave) MRSigner() [32]byte { return e.self.mrSigner }

// guarded calls into EGo and makes an error of a panic. Its error comes with zero values. (Under EGo a nil dereference ends the process all
// the same.)
func guarded[T any](what string, call func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			var zero T
			out, err = zero, fmt.Errorf("%s: the call panicked: %v", what, p)
		}
	}()
	if out, err = call(); err != nil {
		var zero T
		return zero, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}

// keyAnswer is the answer to a request for a new key.
type keyAnswer struct{ key, request []byte }

func pair(key, request []byte, err error) (keyAnswer, error) { return keyAnswer{key, request}, err }

// SealKey implements tee.Enclave. Every call returns another key (a random key id is part of the request), and asks the processor anew.
func (e *Enclave) SealKey(ctx context.Context) (tee.SealKey, []byte, error) {
	if err := ctx.Err(); err != nil {
		return tee.SealKey{}, nil, err
	}
	key, request, err := newProductKey(e.hw, e.self)
	if err != nil {
		return tee.SealKey{}, nil, err
	}
	info, err := encodeKeyInfo(request, key)
	if err != nil {
		key.Clear()
		return tee.SealKey{}, nil, err
	}
	return key, info, nil
}

// RecoverSealKey implements tee.Enclave. What keyInfo asks for is checked before the processor is asked: a request that an attacker wrote
// could name a key that is no secret.
func (e *Enclave) RecoverSealKey(ctx context.Context, keyInfo []byte) (tee.SealKey, error) {
	if err := ctx.Err(); err != nil {
		return tee.SealKey{}, err
	}
	request, tag, err := splitKeyInfo(keyInfo)
	if err != nil {
		return tee.SealKey{}, err
	}
	if err := checkRequest(request, e.self); err != nil {
		return tee.SealKey{}, fmt.Errorf("%w: %w", tee.ErrForeignKeyInfo, err)
	}
	key, err := recoverKey(e.hw, request)
	if err != nil {
		if refusedForVersion(err) {
			return tee.SealKey{}, fmt.Errorf("%w: made on another processor, or under later microcode: %w", tee.ErrForeignKeyInfo, err)
		}
		return tee.SealKey{}, err
	}
	if err := checkTag(request, tag, key); err != nil {
		key.Clear()
		return tee.SealKey{}, err
	}
	return key, nil
}
