// Package collateral holds what Intel's Provisioning Certification Service publishes for judging the quotes of one kind of platform: TCB
// info, QE identity, the certificates that signed them, and the two CRLs. Byte for byte: signatures are over the exact bytes.
//
// Non-goals: nothing here is parsed, verified (package dcap) or fetched. Collateral is public and comes from an untrusted disk.
package collateral

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// The files of a collateral directory.
const (
	TCBInfoFile         = "tcb_info.json"
	QEIdentityFile      = "qe_identity.json"
	TCBSigningChainFile = "tcb_signing_chain.pem"
	PCKCRLFile          = "pck_crl.der"
	RootCACRLFile       = "root_ca_crl.der"
)

// Size limits in bytes, each at least ten times the largest known: TCB info 9 KiB, QE identity 1.4 KiB, chain 1.9 KiB, root CRL 0.3 KiB.
// The PCK CRL grows by some 50 bytes with each revoked processor, so that its limit is room for 20,000 of them.
const (
	MaxTCBInfo         = 256 << 10
	MaxQEIdentity      = 64 << 10
	MaxTCBSigningChain = 64 << 10
	MaxPCKCRL          = 1 << 20
	MaxRootCACRL       = 64 << 10
)

// Errors, wrapped by *Error.
var (
	// ErrMissing: an artefact is not there, or empty.
	ErrMissing = errors.New("missing")
	// ErrTooLarge: an artefact exceeds its limit.
	ErrTooLarge = errors.New("too large")
)

// Error says what is wrong with which file.
type Error struct {
	// File is the name of the artefact as in a collateral directory.
	File string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("collateral: %s: %v", e.File, e.Err) }

// Unwrap returns the cause: ErrMissing, ErrTooLarge or an error of the file system.
func (e *Error) Unwrap() error { return e.Err }

// Collateral is the five artefacts as published.
type Collateral struct {
	// TCBInfo is {"tcbInfo":...,"signature":"..."}; QEIdentity is {"enclaveIdentity":...,"signature":"..."}.
	TCBInfo, QEIdentity []byte
	// TCBSigningChain is PEM: the TCB signing certificate, then the root.
	TCBSigningChain []byte
	// PCKCRL and RootCACRL are DER.
	PCKCRL, RootCACRL []byte
}

type artefact struct {
	file  string
	limit int
	bytes *[]byte
}

func (c *Collateral) artefacts() [5]artefact {
	return [5]artefact{
		{TCBInfoFile, MaxTCBInfo, &c.TCBInfo},
		{QEIdentityFile, MaxQEIdentity, &c.QEIdentity},
		{TCBSigningChainFile, MaxTCBSigningChain, &c.TCBSigningChain},
		{PCKCRLFile, MaxPCKCRL, &c.PCKCRL},
		{RootCACRLFile, MaxRootCACRL, &c.RootCACRL},
	}
}

// Check says whether all five artefacts are there and within their limits. Every objection is in the error: *Error, joined.
func (c *Collateral) Check() error {
	var errs []error
	for _, a := range c.artefacts() {
		switch n := len(*a.bytes); {
		case n == 0:
			errs = append(errs, &Error{a.file, ErrMissing})
		case n > a.limit:
			errs = append(errs, &Error{a.file, tooLarge(n, a.limit)})
		}
	}
	return errors.Join(errs...)
}

func tooLarge(found, limit int) error {
	return fmt.Errorf("%w: found %d bytes or more, expected at most %d", ErrTooLarge, found, limit)
}

// LoadDir reads collateral from the five files of a directory, and checks it as Check does.
func LoadDir(dir string) (*Collateral, error) {
	c := new(Collateral)
	var errs []error
	for _, a := range c.artefacts() {
		b, err := readFile(filepath.Join(dir, a.file), a.limit)
		if err != nil {
			errs = append(errs, &Error{a.file, err})
			continue
		}
		*a.bytes = b
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

func readFile(path string, limit int) (b []byte, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, fmt.Errorf("%w: %s is empty", ErrMissing, path)
	case len(b) > limit:
		return nil, tooLarge(len(b), limit)
	}
	return b, nil
}

// Digest identifies collateral: SHA-256 over the five artefacts in the order of the struct's fields, each after its length (8 bytes,
// big-endian).
func (c *Collateral) Digest() [32]byte {
	h := sha256.New()
	for _, a := range c.artefacts() {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(*a.bytes))))
		h.Write(*a.bytes)
	}
	return [32]byte(h.Sum(nil))
}
