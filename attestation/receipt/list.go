package receipt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Summary is a line in a list of receipts.
type Summary struct {
	Number uint64
	ID     [32]byte
	// Of the record.
	Instance, MigrationID, Source, Destination, Mode string
	Outcome                                          Outcome
	// At is when this node stored it.
	At       time.Time
	SignedBy SignedBy
}

// Len is the number of receipts.
func (c *Chain) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.ids)
}

// List returns receipts after a number, oldest first: at most limit, and at most MaxList (also for a limit of 0). With an instance, only those of that
// VM. Errors: ErrDamaged, that of ctx, those of the file system.
func (c *Chain) List(ctx context.Context, instance string, after uint64, limit int) ([]Summary, error) {
	if limit <= 0 || limit > MaxList {
		limit = MaxList
	}
	c.mu.RLock()
	ids := c.ids // only ever appended to
	c.mu.RUnlock()
	var out []Summary
	for i := after; i < uint64(len(ids)) && len(out) < limit; i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := c.shelf.readReceipt(i+1, ids[i])
		if err != nil {
			return nil, err
		}
		if r := e.Decoded; instance == "" || r.InstanceID == instance {
			out = append(out, Summary{
				Number: i + 1, ID: ids[i], Instance: r.InstanceID, MigrationID: r.MigrationID, Source: r.Source.Host, Destination: r.Destination.Host,
				Mode: r.Mode, Outcome: r.Outcome, At: e.Chain.At, SignedBy: e.claimed(),
			})
		}
	}
	return out, nil
}

// claimed says whose signatures are there.
func (e *Export) claimed() SignedBy {
	switch source, destination := len(e.Source.Signature) > 0, len(e.Destination.Signature) > 0; {
	case source && destination:
		return SignedByBoth
	case source:
		return SignedBySource
	case destination:
		return SignedByDestination
	}
	return ""
}

// Get returns a receipt as it is exported, in bytes that Verifier and ParseExport read. Errors: REASON_NO_RECEIPT, ErrDamaged, those of the file system.
func (c *Chain) Get(id [32]byte) ([]byte, error) {
	c.mu.RLock()
	number, ok := c.numbers[id]
	c.mu.RUnlock()
	if !ok {
		return nil, refusal.New(v1.Reason_REASON_NO_RECEIPT, "this node has no receipt %x", id)
	}
	e, err := c.shelf.readReceipt(number, id)
	if err != nil {
		return nil, err
	}
	if err := c.addCollateral(e); err != nil {
		return nil, err
	}
	return e.Encode()
}

func (c *Chain) addCollateral(e *Export) error {
	for _, p := range []*Proof{&e.Source, &e.Destination} {
		if p.lost() || slices.ContainsFunc(e.Collateral, func(a Artefacts) bool { return bytes.Equal(a.Digest, p.Collateral) }) {
			continue
		}
		set, err := c.shelf.readSet(p.Collateral)
		if err != nil {
			return err
		}
		e.Collateral = append(e.Collateral, *set)
	}
	slices.SortFunc(e.Collateral, byDigest)
	return nil
}

// VerifyChain reads every receipt and its collateral, and checks that each is whole and signed, that each link follows from the one before, and that
// the last is the sealed head. It verifies no quote: Verifier does, on an export. Error: ErrDamaged, with the number of the first receipt that is wrong.
func (c *Chain) VerifyChain(ctx context.Context) error {
	c.mu.RLock()
	ids, last := c.ids, c.head
	c.mu.RUnlock()
	previous, sets := make([]byte, sha256.Size), make(map[string]bool)
	for i, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		number := uint64(i) + 1
		e, err := c.shelf.readReceipt(number, id)
		if err != nil {
			return err
		}
		if err := e.consistent(e.Decoded); err != nil {
			return damage("receipt %d: %w", number, err)
		}
		link := e.Chain.compute(id, &e.Source, &e.Destination)
		if e.Chain.Host != c.host || !bytes.Equal(e.Chain.Previous, previous) || !bytes.Equal(e.Chain.Link, link[:]) {
			return damage("receipt %d: found link %x after %x of %s, expected %x after %x of %s",
				number, []byte(e.Chain.Link), []byte(e.Chain.Previous), e.Chain.Host, link, previous, c.host)
		}
		previous = link[:]
		for _, p := range []*Proof{&e.Source, &e.Destination} {
			if p.lost() || sets[string(p.Collateral)] {
				continue
			}
			if _, err := c.shelf.readSet(p.Collateral); err != nil {
				return damage("receipt %d: %w", number, err)
			}
			sets[string(p.Collateral)] = true
		}
	}
	if !bytes.Equal(previous, last.Link) || uint64(len(ids)) != last.Number {
		return damage("found link %x at number %d, expected the sealed head %x at %d", previous, len(ids), []byte(last.Link), last.Number)
	}
	return nil
}
