package collateral

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// BundleFormat names the format of bundles. A reader refuses every other.
const BundleFormat = "safeconduct/collateral-bundle/v1"

// Bounds of a bundle. A set is some 20 KiB, so that MaxBundle bytes are room for a thousand kinds of platforms.
const (
	MaxBundle = 32 << 20
	MaxKeys   = 4096
)

// ErrBundle says that something is no bundle.
var ErrBundle = errors.New("not a collateral bundle")

// Entry is one set of collateral in a bundle.
type Entry struct {
	Key Key
	// Fetched is when it was fetched, to the second. Nothing vouches for it.
	Fetched    time.Time
	Collateral *Collateral
}

type bundleJSON struct {
	Format  string      `json:"format"`
	Entries []entryJSON `json:"entries"`
}

// entryJSON holds the artefacts in base64: what was signed are bytes, and JSON would not keep them.
type entryJSON struct {
	FMSPC             string    `json:"fmspc"`
	CA                CA        `json:"ca"`
	Fetched           time.Time `json:"fetched"`
	TCBInfo           []byte    `json:"tcb_info"`
	QEIdentity        []byte    `json:"qe_identity"`
	TCBSigningChain   []byte    `json:"tcb_signing_chain"`
	PCKCRL            []byte    `json:"pck_crl"`
	RootCACRL         []byte    `json:"root_ca_crl"`
	PCKCRLIssuerChain []byte    `json:"pck_crl_issuer_chain,omitempty"`
}

func (e Entry) json() entryJSON {
	c := e.Collateral
	return entryJSON{
		FMSPC: hex.EncodeToString(e.Key.FMSPC[:]), CA: e.Key.CA, Fetched: e.Fetched.UTC().Truncate(time.Second),
		TCBInfo: c.TCBInfo, QEIdentity: c.QEIdentity, TCBSigningChain: c.TCBSigningChain, PCKCRL: c.PCKCRL, RootCACRL: c.RootCACRL,
		PCKCRLIssuerChain: c.PCKCRLIssuerChain,
	}
}

func (j entryJSON) entry() (Entry, error) {
	key, err := ParseKey(j.FMSPC + "-" + string(j.CA))
	if err != nil {
		return Entry{}, err
	}
	c := &Collateral{
		TCBInfo: j.TCBInfo, QEIdentity: j.QEIdentity, TCBSigningChain: j.TCBSigningChain, PCKCRL: j.PCKCRL, RootCACRL: j.RootCACRL,
		PCKCRLIssuerChain: j.PCKCRLIssuerChain,
	}
	if err := c.Check(); err != nil {
		return Entry{}, fmt.Errorf("%v: %w", key, err)
	}
	return Entry{Key: key, Fetched: j.Fetched, Collateral: c}, nil
}

// WriteBundle writes a bundle, its entries in the order of their keys. Errors: ErrBundle (a key that comes twice, too many entries, an
// artefact that is missing or too large, more than MaxBundle bytes), and those of w.
func WriteBundle(w io.Writer, entries []Entry) error {
	raw, err := encodeBundle(entries)
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

func encodeBundle(entries []Entry) ([]byte, error) {
	if len(entries) > MaxKeys {
		return nil, fmt.Errorf("%w: found %d entries, expected at most %d", ErrBundle, len(entries), MaxKeys)
	}
	sorted := slices.SortedFunc(slices.Values(entries), func(a, b Entry) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	b := bundleJSON{Format: BundleFormat, Entries: make([]entryJSON, 0, len(sorted))}
	for i, e := range sorted {
		if i > 0 && sorted[i-1].Key == e.Key {
			return nil, fmt.Errorf("%w: found %v twice, expected once", ErrBundle, e.Key)
		}
		if e.Collateral == nil {
			e.Collateral = new(Collateral) // misses everything
		}
		if err := errors.Join(e.Key.Valid(), e.Collateral.Check()); err != nil {
			return nil, fmt.Errorf("%w: %v: %w", ErrBundle, e.Key, err)
		}
		b.Entries = append(b.Entries, e.json())
	}
	return b.encode()
}

func (b bundleJSON) encode() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", " ")
	if err := enc.Encode(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if out.Len() > MaxBundle {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrBundle, out.Len(), MaxBundle)
	}
	return out.Bytes(), nil
}

// ReadBundle reads a bundle. It takes exactly what WriteBundle writes, to the byte: what encoding/json would forgive (another case, a key
// twice, other white space) is refused. It verifies nothing. Errors: ErrBundle, and those of r.
func ReadBundle(r io.Reader) ([]Entry, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxBundle+1))
	if err != nil {
		return nil, err
	}
	return decodeBundle(raw)
}

func decodeBundle(raw []byte) ([]Entry, error) {
	if len(raw) > MaxBundle {
		return nil, fmt.Errorf("%w: found more than %d bytes", ErrBundle, MaxBundle)
	}
	var b bundleJSON
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if b.Format != BundleFormat {
		return nil, fmt.Errorf("%w: found format %.80q, expected %q", ErrBundle, b.Format, BundleFormat)
	}
	if len(b.Entries) > MaxKeys {
		return nil, fmt.Errorf("%w: found %d entries, expected at most %d", ErrBundle, len(b.Entries), MaxKeys)
	}
	entries := make([]Entry, 0, len(b.Entries))
	for i, j := range b.Entries {
		e, err := j.entry()
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrBundle, i+1, err)
		}
		entries = append(entries, e)
	}
	canonical, err := encodeBundle(entries)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(canonical, raw) {
		return nil, fmt.Errorf("%w: found another encoding of its content than the one that there is", ErrBundle)
	}
	return entries, nil
}
