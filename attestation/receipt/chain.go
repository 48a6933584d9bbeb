package receipt

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/durable"
	"github.com/safeconduct/safeconduct/crypto/sealed"
)

const (
	// MarkKind is the kind under which a chain's head is sealed.
	MarkKind = "receipts"
	markName = "head"
	// DefaultMaxReceipts bounds a chain that is not told another bound. At some 30 KiB a receipt it is 3 GiB.
	DefaultMaxReceipts = 100_000
	// MaxList bounds what one List returns.
	MaxList = 1000
)

// ErrDamaged says that the files of a chain are not those that were stored: one is missing, changed, too many, or older than the sealed head.
var ErrDamaged = errors.New("the chain of receipts is damaged")

func damage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// Marks is sealed storage; crypto/sealed.Store is one. Get answers sealed.ErrNotFound for what is not there.
type Marks interface {
	Get(ctx context.Context, kind, name string) ([]byte, error)
	Put(ctx context.Context, kind, name string, plaintext []byte) error
}

// head is what is sealed: the last link that was acknowledged, and the one that is being written, if any. Without the latter a host could not be
// told from a crash: either may leave the last receipt missing.
type head struct {
	Number  uint64     `json:"number"`
	Link    policy.Hex `json:"link"`
	Pending policy.Hex `json:"pending,omitempty"`
}

// Chain keeps the receipts of one node, in order, each hashed together with the one before. One process owns its directory. A Chain is safe for
// concurrent use.
type Chain struct {
	host  string
	bound int
	shelf shelf
	marks Marks
	now   func() time.Time

	mu   sync.RWMutex
	head head
	// unsettled: an Append failed, and what it left is not known.
	unsettled bool
	// ids[i] is the receipt of number i+1; numbers is the inverse.
	ids     [][32]byte
	numbers map[[32]byte]uint64
}

// Options of a chain.
type Options struct {
	// Host whose chain it is.
	Host string
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// MaxReceipts bounds the chain; zero means DefaultMaxReceipts.
	MaxReceipts int
}

// OpenChain opens the chain in dir, which is made if it does not exist, and settles what a crash has left. It looks at names and at the last receipt
// only; VerifyChain reads everything. Errors: ErrDamaged, if a receipt is missing, or the last one is not the sealed head; those of marks and of the file
// system. A damaged chain is not repaired: move the directory away, and the sealed head with it, and a new chain begins, from number 1.
func OpenChain(ctx context.Context, dir string, marks Marks, o Options) (*Chain, error) {
	return openChain(ctx, shelf{dir, durable.Disk{}}, marks, o)
}

func openChain(ctx context.Context, s shelf, marks Marks, o Options) (*Chain, error) {
	if !isHost(o.Host) {
		return nil, fmt.Errorf("receipts: found host %.80q, expected a host name", o.Host)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxReceipts <= 0 {
		o.MaxReceipts = DefaultMaxReceipts
	}
	c := &Chain{host: o.Host, bound: o.MaxReceipts, shelf: s, marks: marks, now: o.Now}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	if err := c.settle(ctx); err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	return c, nil
}

// settle reads the sealed head and brings the directory in line with it: a pending receipt that is whole is kept, any other is dropped.
func (c *Chain) settle(ctx context.Context) error {
	h, err := c.readHead(ctx)
	if err != nil {
		return err
	}
	found, err := c.shelf.receipts()
	if err != nil {
		return err
	}
	ids := make([][32]byte, h.Number, h.Number+1)
	for i := range ids {
		id, ok := found[uint64(i)+1]
		if !ok {
			return damage("receipt %d of %d is missing", i+1, h.Number)
		}
		ids[i] = id
		delete(found, uint64(i)+1)
	}
	if h.Number > 0 {
		last, err := c.shelf.readReceipt(h.Number, ids[h.Number-1])
		if err != nil {
			return err
		}
		if !bytes.Equal(last.Chain.Link, h.Link) {
			return damage("receipt %d: found link %x, expected %x", h.Number, []byte(last.Chain.Link), []byte(h.Link))
		}
	}
	if len(h.Pending) > 0 {
		if ids, err = c.settlePending(ctx, &h, found, ids); err != nil {
			return err
		}
	}
	if len(found) > 0 {
		return damage("found %d receipts after number %d, the sealed head", len(found), h.Number)
	}
	c.head, c.ids, c.unsettled = h, ids, false
	c.numbers = make(map[[32]byte]uint64, len(ids))
	for i, id := range ids {
		c.numbers[id] = uint64(i) + 1
	}
	return nil
}

// settlePending decides about the receipt that was being written.
func (c *Chain) settlePending(ctx context.Context, h *head, found map[uint64][32]byte, ids [][32]byte) ([][32]byte, error) {
	number := h.Number + 1
	next := head{Number: h.Number, Link: h.Link}
	if id, ok := found[number]; ok {
		delete(found, number)
		e, err := c.shelf.readReceipt(number, id)
		switch {
		case err == nil && bytes.Equal(e.Chain.Link, h.Pending):
			next, ids = head{Number: number, Link: h.Pending}, append(ids, id)
		case err == nil || errors.Is(err, ErrDamaged): // not what was being written, and never acknowledged
			if err := c.shelf.dropReceipt(number, id); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
		// Its name may not have been durable yet.
		if err := c.shelf.files.SyncDir(c.shelf.dir); err != nil {
			return nil, err
		}
	}
	if err := c.writeHead(ctx, next); err != nil {
		return nil, err
	}
	*h = next
	return ids, nil
}

func (c *Chain) readHead(ctx context.Context) (head, error) {
	raw, err := c.marks.Get(ctx, MarkKind, markName)
	if errors.Is(err, sealed.ErrNotFound) {
		return head{Link: make([]byte, sha256.Size)}, nil
	}
	if err != nil {
		return head{}, fmt.Errorf("the sealed head: %w", err)
	}
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return head{}, damage("the sealed head: %w", err)
	}
	if len(h.Link) != sha256.Size || len(h.Pending) != 0 && len(h.Pending) != sha256.Size || h.Number > maxNumber {
		return head{}, damage("the sealed head: found number %d, links of %d and %d bytes", h.Number, len(h.Link), len(h.Pending))
	}
	return h, nil
}

func (c *Chain) writeHead(ctx context.Context, h head) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := c.marks.Put(ctx, MarkKind, markName, raw); err != nil {
		return fmt.Errorf("the sealed head: %w", err)
	}
	return nil
}

// Entry is what is kept of a migration.
type Entry struct {
	Record []byte
	// Signatures over the record; nil for a side that did not sign.
	SourceSignature, DestinationSignature []byte
	// The quotes, and the collateral by which each was judged: nil if that is lost. A receipt is kept without it, and verifies for nobody until it is found.
	SourceEvidence, DestinationEvidence     []byte
	SourceCollateral, DestinationCollateral *collateral.Collateral
	// The logs. One that is nil, or longer than MaxLog, is not kept.
	SourceLog, DestinationLog []byte
}

// export makes the entry a receipt, and sees that it is one: signed by whom it says, with the quotes and logs that it names.
func (e *Entry) export() (*Export, *Record, error) {
	r, err := ParseRecord(e.Record)
	if err != nil {
		return nil, nil, err
	}
	id, ofS, ofD := ID(e.Record), digestOf(e.SourceCollateral), digestOf(e.DestinationCollateral)
	x := &Export{
		Schema: ExportSchema, ReceiptID: id[:], Record: e.Record, Decoded: r, Collateral: []Artefacts{},
		Source:      Proof{Signature: e.SourceSignature, Evidence: e.SourceEvidence, Log: kept(e.SourceLog), Collateral: ofS[:]},
		Destination: Proof{Signature: e.DestinationSignature, Evidence: e.DestinationEvidence, Log: kept(e.DestinationLog), Collateral: ofD[:]},
	}
	return x, r, x.consistent(r)
}

// digestOf is zeros for collateral that a node does not have.
func digestOf(c *collateral.Collateral) (digest [sha256.Size]byte) {
	if c != nil {
		digest = c.Digest()
	}
	return digest
}

// lost says that there was no collateral.
func (p *Proof) lost() bool { return bytes.Equal(p.Collateral, make([]byte, sha256.Size)) }

func kept(log []byte) []byte {
	if len(log) > MaxLog {
		return nil
	}
	return log
}

// consistent checks signatures by the keys in the record, and digests. Whether quotes bind those keys is Verifier's to say.
func (e *Export) consistent(r *Record) error {
	_, _, th2, _ := r.Hashes()
	signed := false
	for _, role := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		p, s := e.proof(role), r.side(role)
		if !bytes.Equal(sum384(p.Evidence), s.Evidence) || len(p.Log) > 0 && !bytes.Equal(sum384(p.Log), s.Log) {
			return fmt.Errorf("%w: found another quote or log of %s than the record names", ErrExport, s.Host)
		}
		if len(p.Signature) == 0 {
			continue
		}
		if !ed25519.Verify(ed25519.PublicKey(s.SignPublic), Signed(role, th2, e.Record), p.Signature) {
			return fmt.Errorf("%w: found a signature that %s did not make", ErrExport, s.Host)
		}
		signed = true
	}
	if !signed {
		return fmt.Errorf("%w: nobody has signed it", ErrExport)
	}
	return nil
}

// Append stores a receipt. It is on disk, and part of the chain, when Append returns. A receipt that is in the chain already is not added again: its
// link is returned. Errors: ErrRecord, ErrExport, REASON_LIMIT_EXCEEDED, ErrDamaged, those of marks and of the file system.
func (c *Chain) Append(ctx context.Context, entry *Entry) (Link, error) {
	e, r, err := entry.export()
	if err != nil {
		return Link{}, err
	}
	if r.Source.Host != c.host && r.Destination.Host != c.host {
		return Link{}, fmt.Errorf("%w: found a migration from %s to %s, expected one of %s", ErrExport, r.Source.Host, r.Destination.Host, c.host)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unsettled {
		if err := c.settle(ctx); err != nil {
			return Link{}, err
		}
	}
	id := [32]byte(e.ReceiptID)
	if number, ok := c.numbers[id]; ok {
		known, err := c.shelf.readReceipt(number, id)
		if err != nil {
			return Link{}, err
		}
		return known.Chain, nil
	}
	if len(c.ids) >= c.bound {
		return Link{}, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "this node has %d receipts already", c.bound).
			Do("raise the bound on receipts, or archive the chain and begin a new one")
	}
	e.Chain = Link{Host: c.host, Number: c.head.Number + 1, At: stamp(c.now()), Previous: slices.Clone(c.head.Link)}
	link := e.Chain.compute(id, &e.Source, &e.Destination)
	e.Chain.Link = link[:]
	if err := c.store(ctx, e, entry); err != nil {
		c.unsettled = true
		return Link{}, err
	}
	c.head = head{Number: e.Chain.Number, Link: e.Chain.Link}
	c.ids, c.numbers[id] = append(c.ids, id), e.Chain.Number
	return e.Chain, nil
}

// store writes, in this order: collateral, the head with what is pending, the receipt, the head.
func (c *Chain) store(ctx context.Context, e *Export, entry *Entry) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	for _, set := range []*collateral.Collateral{entry.SourceCollateral, entry.DestinationCollateral} {
		if set == nil {
			continue
		}
		a := artefactsOf(set)
		if err := c.shelf.writeSet(&a); err != nil {
			return err
		}
	}
	if err := c.writeHead(ctx, head{Number: c.head.Number, Link: c.head.Link, Pending: e.Chain.Link}); err != nil {
		return err
	}
	if err := c.shelf.writeReceipt(e); err != nil {
		return err
	}
	return c.writeHead(ctx, head{Number: e.Chain.Number, Link: e.Chain.Link})
}
