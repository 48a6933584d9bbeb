// Package collateral holds what Intel's Provisioning Certification Service publishes for judging the quotes of one kind of platform: TCB
// info, QE identity, the certificates that signed them, and the two CRLs. Byte for byte: signatures are over the exact bytes.
//
// It also keeps collateral: a Cache that asks a Source (package pccs is one, BundleFile another) before what it has expires, keeps it on disk,
// and never gives out what its Check did not accept (package pinned is one). Whoever verifies never waits for a network while there is
// something valid. Bundles carry collateral to sites without a network.
//
// Non-goals: nothing here verifies a signature (package dcap does), speaks HTTP (package pccs does), or trusts the disk: a cache directory
// belongs to the host, which can withhold files, or put back old ones that are still valid.
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
	// PCKCRLIssuerChainFile may be absent.
	PCKCRLIssuerChainFile = "pck_crl_issuer_chain.pem"
)

// Size limits in bytes, each at least ten times the largest known: TCB info 9 KiB, QE identity 1.4 KiB, chain 1.9 KiB, root CRL 0.3 KiB.
// The PCK CRL grows by some 50 bytes with each revoked processor, so that its limit is room for 20,000 of them.
const (
	MaxTCBInfo         = 256 << 10
	MaxQEIdentity      = 64 << 10
	MaxTCBSigningChain = 64 << 10
	MaxPCKCRL          = 1 << 20
	MaxRootCACRL       = 64 << 10
	// MaxPCKCRLIssuerChain is the limit of the chain that signed the PCK CRL, 1.9 KiB.
	MaxPCKCRLIssuerChain = 64 << 10
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

// Collateral is the five artefacts as published, and a sixth that helps to judge one of them early.
type Collateral struct {
	// TCBInfo is {"tcbInfo":...,"signature":"..."}; QEIdentity is {"enclaveIdentity":...,"signature":"..."}.
	TCBInfo, QEIdentity []byte
	// TCBSigningChain is PEM: the TCB signing certificate, then the root.
	TCBSigningChain []byte
	// PCKCRL and RootCACRL are DER.
	PCKCRL, RootCACRL []byte
	// PCKCRLIssuerChain is PEM: the PCK CA that signed the PCK CRL, then the root. It may be empty: every quote brings these certificates
	// too. With it, a PCK CRL that nobody signed is found out before there is a quote. It is no part of the Digest.
	PCKCRLIssuerChain []byte
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

func (c *Collateral) optional() artefact {
	return artefact{PCKCRLIssuerChainFile, MaxPCKCRLIssuerChain, &c.PCKCRLIssuerChain}
}

// Check says whether all five artefacts are there and all six within their limits. Every objection is in the error: *Error, joined.
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
	if a := c.optional(); len(*a.bytes) > a.limit {
		errs = append(errs, &Error{a.file, tooLarge(len(*a.bytes), a.limit)})
	}
	return errors.Join(errs...)
}

func tooLarge(found, limit int) error {
	return fmt.Errorf("%w: found %d bytes or more, expected at most %d", ErrTooLarge, found, limit)
}

// LoadDir reads collateral from the five files of a directory, and the sixth if it is there, and checks it as Check does.
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
	a := c.optional()
	switch b, err := readFile(filepath.Join(dir, a.file), a.limit); {
	case err == nil:
		*a.bytes = b
	case !errors.Is(err, ErrMissing):
		errs = append(errs, &Error{a.file, err})
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
