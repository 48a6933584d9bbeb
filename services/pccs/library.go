// Package pccs serves collateral as a PCCS does: for tests, for the simulated mode, and for sites without a way to Intel, from files that
// were carried in. It answers what package attestation/pccs asks, and what Intel's quoting libraries ask for verification, byte for byte as it
// was published.
//
// Non-goals: it is no full PCCS. It fetches nothing, verifies nothing, registers no platform, and gives out no PCK certificate; whoever asks
// verifies. No TDX.
package pccs

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
)

// ErrEmpty says that there is no collateral to serve.
var ErrEmpty = errors.New("no collateral to serve")

// Library is what is served: immutable, and ordered for the questions of the API, each of which asks for a part of a set only.
type Library struct {
	tcb      map[[6]byte]part
	crl      map[collateral.CA]part
	identity part
	rootCRL  part
}

// part is an artefact with its issuer chain, and when it was issued: of several, the newest is served.
type part struct {
	body, chain []byte
	number      uint64
	issued      time.Time
}

func (p part) newer(other part) bool {
	return other.body == nil || p.number > other.number || p.number == other.number && p.issued.After(other.issued)
}

// NewLibrary orders sets. They need not be authentic, but must have their numbers and dates where the formats put them. Errors: those of
// Collateral.Check, of Key.Valid, and of the parsers; ErrEmpty.
func NewLibrary(entries []collateral.Entry) (*Library, error) {
	l := &Library{tcb: make(map[[6]byte]part), crl: make(map[collateral.CA]part)}
	for _, e := range entries {
		if err := l.add(e); err != nil {
			return nil, fmt.Errorf("%v: %w", e.Key, err)
		}
	}
	if len(entries) == 0 {
		return nil, ErrEmpty
	}
	return l, nil
}

func (l *Library) add(e collateral.Entry) error {
	c := e.Collateral
	if err := errors.Join(e.Key.Valid(), c.Check()); err != nil {
		return err
	}
	tcb, err := document(collateral.TCBInfoFile, c.TCBInfo, c.TCBSigningChain)
	if err != nil {
		return err
	}
	identity, err := document(collateral.QEIdentityFile, c.QEIdentity, c.TCBSigningChain)
	if err != nil {
		return err
	}
	pckCRL, err := list(collateral.PCKCRLFile, c.PCKCRL, c.PCKCRLIssuerChain)
	if err != nil {
		return err
	}
	rootCRL, err := list(collateral.RootCACRLFile, c.RootCACRL, nil)
	if err != nil {
		return err
	}
	if tcb.newer(l.tcb[e.Key.FMSPC]) {
		l.tcb[e.Key.FMSPC] = tcb
	}
	if pckCRL.newer(l.crl[e.Key.CA]) {
		l.crl[e.Key.CA] = pckCRL
	}
	if identity.newer(l.identity) {
		l.identity = identity
	}
	if rootCRL.newer(l.rootCRL) {
		l.rootCRL = rootCRL
	}
	return nil
}

func document(file string, body, chain []byte) (part, error) {
	type fields struct {
		Number uint64    `json:"tcbEvaluationDataNumber"`
		Issued time.Time `json:"issueDate"`
	}
	var d struct {
		TCBInfo  *fields `json:"tcbInfo"`
		Identity *fields `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(body, &d); err != nil {
		return part{}, &collateral.Error{File: file, Err: err}
	}
	f := d.TCBInfo
	if file == collateral.QEIdentityFile {
		f = d.Identity
	}
	if f == nil {
		return part{}, &collateral.Error{File: file, Err: errors.New("found another document")}
	}
	return part{body: body, chain: chain, number: f.Number, issued: f.Issued}, nil
}

func list(file string, body, chain []byte) (part, error) {
	l, err := x509.ParseRevocationList(body)
	if err != nil {
		return part{}, &collateral.Error{File: file, Err: err}
	}
	p := part{body: body, chain: chain, issued: l.ThisUpdate}
	if l.Number != nil && l.Number.IsUint64() {
		p.number = l.Number.Uint64()
	}
	return p, nil
}

// LoadDir reads the sets of a directory: one sub-directory each, FMSPC-CA, laid out as collateral.LoadDir wants it; or the directory itself is
// one set, of which the TCB info says the FMSPC and the PCK CRL's issuer the CA. Errors: those of collateral.LoadDir and NewLibrary.
func LoadDir(dir string) (*Library, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []collateral.Entry
	for _, d := range names {
		key, err := collateral.ParseKey(d.Name())
		if err != nil || !d.IsDir() {
			continue
		}
		c, err := collateral.LoadDir(filepath.Join(dir, d.Name()))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, d.Name()), err)
		}
		entries = append(entries, collateral.Entry{Key: key, Collateral: c})
	}
	switch _, err := os.Stat(filepath.Join(dir, collateral.TCBInfoFile)); {
	case err == nil:
		e, err := flat(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		entries = append(entries, e)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	library, err := NewLibrary(entries)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return library, nil
}

// flat reads a directory that is one set, and finds out what it is for.
func flat(dir string) (collateral.Entry, error) {
	c, err := collateral.LoadDir(dir)
	if err != nil {
		return collateral.Entry{}, err
	}
	var tcb struct {
		TCBInfo struct {
			FMSPC string `json:"fmspc"`
		} `json:"tcbInfo"`
	}
	if err := json.Unmarshal(c.TCBInfo, &tcb); err != nil {
		return collateral.Entry{}, &collateral.Error{File: collateral.TCBInfoFile, Err: err}
	}
	crl, err := x509.ParseRevocationList(c.PCKCRL)
	if err != nil {
		return collateral.Entry{}, &collateral.Error{File: collateral.PCKCRLFile, Err: err}
	}
	ca := collateral.ProcessorCA
	if strings.HasSuffix(crl.Issuer.CommonName, " Platform CA") {
		ca = collateral.PlatformCA
	}
	key, err := collateral.ParseKey(strings.ToLower(tcb.TCBInfo.FMSPC) + "-" + string(ca))
	return collateral.Entry{Key: key, Collateral: c}, err
}

// LoadBundle reads a bundle. Errors: those of collateral.ReadBundle and NewLibrary.
func LoadBundle(path string) (_ *Library, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	entries, err := collateral.ReadBundle(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return NewLibrary(entries)
}

// FMSPCs are the processor models that there is TCB info for, in lower-case hex and in order.
func (l *Library) FMSPCs() []string {
	all := make([]string, 0, len(l.tcb))
	for fmspc := range l.tcb {
		all = append(all, fmt.Sprintf("%x", fmspc))
	}
	slices.Sort(all)
	return all
}
