package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

// ExportSchema names the format of exports.
const ExportSchema = "safeconduct/receipt-export/v1"

// Bounds in bytes. A typical export has 100 KiB.
const (
	MaxExport   = 8 << 20
	MaxEvidence = 64 << 10
	// MaxLog bounds a log that is exported; of a larger one the record has the digest.
	MaxLog = 256 << 10

	signatureSize = 64
	maxCollateral = 2
)

// ErrExport says that something is no export of a receipt.
var ErrExport = errors.New("not an export of a receipt")

// Export is a receipt with everything that is needed to verify it.
type Export struct {
	Schema    string     `json:"schema"`
	ReceiptID policy.Hex `json:"receipt_id"`
	// Record is the exact bytes that were signed, Decoded the same for the reader's eye: ParseExport sees to it that it is the same.
	Record      []byte  `json:"record"`
	Decoded     *Record `json:"record_decoded"`
	Source      Proof   `json:"source"`
	Destination Proof   `json:"destination"`
	// Collateral is that of both quotes, in the order of its digests, each once. In a Chain's files it is absent.
	Collateral []Artefacts `json:"collateral"`
	Chain      Link        `json:"chain"`
}

// Proof is what vouches for one side of the record.
type Proof struct {
	// Signature over the record by the side's log key; absent if this side did not sign.
	Signature []byte `json:"signature,omitempty"`
	// Evidence is the quote that binds the key.
	Evidence []byte `json:"evidence"`
	// Log is the side's integrity log; absent if it was too large.
	Log []byte `json:"log,omitempty"`
	// Collateral is the digest of that by which the quote is verified; zeros if the node had none.
	Collateral policy.Hex `json:"collateral"`
}

// Artefacts is a set of collateral, as published.
type Artefacts struct {
	Digest          policy.Hex `json:"digest"`
	TCBInfo         []byte     `json:"tcb_info"`
	QEIdentity      []byte     `json:"qe_identity"`
	TCBSigningChain []byte     `json:"tcb_signing_chain"`
	PCKCRL          []byte     `json:"pck_crl"`
	RootCACRL       []byte     `json:"root_ca_crl"`
}

// Link is a receipt's place in the chain of the node that exported it.
type Link struct {
	// Host whose chain it is.
	Host string `json:"host"`
	// Number counts from 1.
	Number uint64 `json:"number"`
	// At is when the node stored it, by its own clock.
	At time.Time `json:"at"`
	// Previous is the link before, 32 bytes; zeros for the first.
	Previous policy.Hex `json:"previous"`
	Link     policy.Hex `json:"link"`
}

func artefactsOf(c *collateral.Collateral) Artefacts {
	digest := c.Digest()
	return Artefacts{
		Digest: digest[:], TCBInfo: c.TCBInfo, QEIdentity: c.QEIdentity, TCBSigningChain: c.TCBSigningChain, PCKCRL: c.PCKCRL, RootCACRL: c.RootCACRL,
	}
}

func (a *Artefacts) collateral() *collateral.Collateral {
	return &collateral.Collateral{
		TCBInfo: a.TCBInfo, QEIdentity: a.QEIdentity, TCBSigningChain: a.TCBSigningChain, PCKCRL: a.PCKCRL, RootCACRL: a.RootCACRL,
	}
}

// check sees that the artefacts are all there, within their limits, and what their digest says.
func (a *Artefacts) check() error {
	c := a.collateral()
	if err := c.Check(); err != nil {
		return err
	}
	if got := c.Digest(); !bytes.Equal(got[:], a.Digest) {
		return fmt.Errorf("collateral: found digest %x, expected %x", got, []byte(a.Digest))
	}
	return nil
}

// compute is the link's hash: SHA-256 over a label and what is chained, each field preceded by its length (8 bytes, big-endian).
func (l *Link) compute(id [32]byte, source, destination *Proof) [32]byte {
	signatures := sha256.New()
	frame(signatures, source.Signature, destination.Signature)
	h := sha256.New()
	frame(h, []byte("safeconduct/v1/receipt-chain"), []byte(l.Host), binary.BigEndian.AppendUint64(nil, l.Number), l.Previous, id[:],
		signatures.Sum(nil), []byte(l.At.UTC().Format(time.RFC3339)))
	return [32]byte(h.Sum(nil))
}

func frame(h hash.Hash, fields ...[]byte) {
	for _, f := range fields {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
		h.Write(f)
	}
}

// Encode is the export in its one encoding. Error: ErrExport.
func (e *Export) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	raw, err := marshal(e, " ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	raw = append(raw, '\n')
	if len(raw) > MaxExport {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrExport, len(raw), MaxExport)
	}
	return raw, nil
}

// ParseExport reads exactly what Encode writes, to the byte. It checks form; Verifier checks truth. Errors: ErrExport, ErrRecord.
func ParseExport(raw []byte) (*Export, error) {
	if len(raw) > MaxExport {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrExport, len(raw), MaxExport)
	}
	e := new(Export)
	if err := json.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	decoded, err := ParseRecord(e.Record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	e.Decoded = decoded // in the bytes below: an export that shows the reader another record is not canonical
	canonical, err := e.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(canonical, raw) {
		return nil, fmt.Errorf("%w: found another encoding of its content than the one that there is", ErrExport)
	}
	return e, nil
}

// check checks form.
func (e *Export) check() error {
	switch {
	case e.Schema != ExportSchema:
		return fmt.Errorf("schema: found %.80q, expected %q", e.Schema, ExportSchema)
	case len(e.ReceiptID) != sha256.Size:
		return fmt.Errorf("receipt_id: found %d bytes, expected %d", len(e.ReceiptID), sha256.Size)
	case e.Decoded == nil || len(e.Record) == 0:
		return errors.New("found no record")
	case e.Collateral == nil || len(e.Collateral) > maxCollateral:
		return fmt.Errorf("collateral: found %d sets, expected a list of at most %d", len(e.Collateral), maxCollateral)
	case !slices.IsSortedFunc(e.Collateral, byDigest) || len(e.Collateral) == 2 && byDigest(e.Collateral[0], e.Collateral[1]) == 0:
		return errors.New("collateral: found it out of order or twice")
	}
	for i := range e.Collateral {
		if err := e.Collateral[i].check(); err != nil {
			return err
		}
	}
	if err := e.Source.check(roleSource); err != nil {
		return err
	}
	if err := e.Destination.check(roleDestination); err != nil {
		return err
	}
	return e.Chain.check()
}

func byDigest(a, b Artefacts) int { return strings.Compare(string(a.Digest), string(b.Digest)) }

func (p *Proof) check(role string) error {
	switch {
	case len(p.Signature) != 0 && len(p.Signature) != signatureSize:
		return fmt.Errorf("%s.signature: found %d bytes, expected %d", role, len(p.Signature), signatureSize)
	case len(p.Evidence) == 0 || len(p.Evidence) > MaxEvidence:
		return fmt.Errorf("%s.evidence: found %d bytes, expected 1 to %d", role, len(p.Evidence), MaxEvidence)
	case len(p.Log) > MaxLog:
		return fmt.Errorf("%s.log: found %d bytes, expected at most %d", role, len(p.Log), MaxLog)
	case len(p.Collateral) != sha256.Size:
		return fmt.Errorf("%s.collateral: found %d bytes, expected %d", role, len(p.Collateral), sha256.Size)
	}
	return nil
}

func (l *Link) check() error {
	_, offset := l.At.Zone()
	switch {
	case !isHost(l.Host):
		return fmt.Errorf("chain.host: found %.80q, expected a host name", l.Host)
	case l.Number == 0 || l.Number > maxNumber:
		return fmt.Errorf("chain.number: found %d, expected 1 to 2^53", l.Number)
	case len(l.Previous) != sha256.Size || len(l.Link) != sha256.Size:
		return fmt.Errorf("chain: found links of %d and %d bytes, expected %d", len(l.Previous), len(l.Link), sha256.Size)
	case offset != 0 || l.At.Nanosecond() != 0 || l.At.Year() < 2020 || l.At.Year() > 9999:
		return fmt.Errorf("chain.at: found %v, expected a time in UTC, to the second", l.At)
	}
	return nil
}

// proof is the given role's.
func (e *Export) proof(role v1.Role) *Proof {
	if role == v1.Role_ROLE_SOURCE {
		return &e.Source
	}
	return &e.Destination
}

func (r *Record) side(role v1.Role) *Side {
	if role == v1.Role_ROLE_SOURCE {
		return &r.Source
	}
	return &r.Destination
}
