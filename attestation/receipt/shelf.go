package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/safeconduct/safeconduct/crypto/durable"
)

const (
	collateralDir = "collateral"
	fileSuffix    = ".json"
	// maxSet bounds a file of collateral: what the artefacts may have, in base64.
	maxSet = 3 << 20
)

// shelf is the directory of a chain: one file a receipt, DIR/NUMBER-ID.json, and one a set of collateral, DIR/collateral/DIGEST.json. A file appears
// whole under its name, or not at all.
type shelf struct {
	dir   string
	files durable.FileSystem
}

func (s shelf) collateralDir() string { return filepath.Join(s.dir, collateralDir) }

// prepare makes the directories and removes what crashed writers left.
func (s shelf) prepare() error {
	for _, dir := range []string{s.dir, s.collateralDir()} {
		if err := durable.MakeDir(s.files, dir); err != nil {
			return err
		}
		if err := durable.Sweep(s.files, dir); err != nil {
			return err
		}
	}
	return nil
}

func receiptName(number uint64, id [32]byte) string {
	return fmt.Sprintf("%012d-%x%s", number, id, fileSuffix)
}

// parseName is the inverse of receiptName; false for a file of somebody else.
func parseName(name string) (number uint64, id [32]byte, ok bool) {
	digits, rest, found := strings.Cut(strings.TrimSuffix(name, fileSuffix), "-")
	raw, err := hex.DecodeString(rest)
	if !found || err != nil || len(raw) != sha256.Size {
		return 0, id, false
	}
	number, err = strconv.ParseUint(digits, 10, 53)
	id = [32]byte(raw)
	return number, id, err == nil && receiptName(number, id) == name
}

// receipts lists the files of receipts: which number has which id. Two files of one number are an error: nobody writes that.
func (s shelf) receipts() (map[uint64][32]byte, error) {
	names, err := s.files.List(s.dir)
	if err != nil {
		return nil, err
	}
	out := make(map[uint64][32]byte, len(names))
	for _, name := range names {
		number, id, ok := parseName(name)
		if !ok {
			continue
		}
		if _, twice := out[number]; twice {
			return nil, damage("found two receipts of number %d", number)
		}
		out[number] = id
	}
	return out, nil
}

// readReceipt reads a receipt without its collateral. It comes from an untrusted disk.
func (s shelf) readReceipt(number uint64, id [32]byte) (*Export, error) {
	raw, err := s.files.Read(filepath.Join(s.dir, receiptName(number, id)), MaxExport+1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damage("receipt %d is missing", number)
	}
	if err != nil {
		return nil, err
	}
	e, err := ParseExport(raw)
	if err != nil {
		return nil, damage("receipt %d: %w", number, err)
	}
	if e.Chain.Number != number || ID(e.Record) != id || !bytes.Equal(e.ReceiptID, id[:]) || len(e.Collateral) > 0 {
		return nil, damage("receipt %d: found another file in its place", number)
	}
	return e, nil
}

func (s shelf) writeReceipt(e *Export) error {
	raw, err := e.Encode()
	if err != nil {
		return err
	}
	return durable.Put(s.files, s.dir, receiptName(e.Chain.Number, [32]byte(e.ReceiptID)), raw)
}

func (s shelf) dropReceipt(number uint64, id [32]byte) error {
	if err := s.files.Remove(filepath.Join(s.dir, receiptName(number, id))); err != nil {
		return err
	}
	return s.files.SyncDir(s.dir)
}

func setName(digest []byte) string { return hex.EncodeToString(digest) + fileSuffix }

// writeSet stores collateral, unless it is there.
func (s shelf) writeSet(a *Artefacts) error {
	if err := a.check(); err != nil {
		return err
	}
	if _, err := s.readSet(a.Digest); err == nil {
		return nil
	}
	raw, err := marshal(a, " ")
	if err != nil {
		return err
	}
	return durable.Put(s.files, s.collateralDir(), setName(a.Digest), append(raw, '\n'))
}

func (s shelf) readSet(digest []byte) (*Artefacts, error) {
	raw, err := s.files.Read(filepath.Join(s.collateralDir(), setName(digest)), maxSet+1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damage("collateral %x is missing", digest)
	}
	if err != nil {
		return nil, err
	}
	a := new(Artefacts)
	if err := json.Unmarshal(raw, a); err != nil || len(raw) > maxSet {
		return nil, damage("collateral %x: not JSON, or longer than %d bytes", digest, maxSet)
	}
	if err := a.check(); err != nil {
		return nil, damage("%w", err)
	}
	if !bytes.Equal(a.Digest, digest) {
		return nil, damage("collateral %x: found %x in its place", digest, []byte(a.Digest))
	}
	return a, nil
}
