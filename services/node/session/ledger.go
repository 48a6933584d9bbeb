package session

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// maxLedger bounds the record of migration ids (32 bytes of memory each).
const maxLedger = 1 << 20

// FileLedger is a Ledger in an append-only file: one line a migration id, the hex SHA-256 of it, fsynced before Use returns. An id of an
// earlier life of the node is refused too. Whoever rules the host's disk can put an old file back; what then protects is that
// keys are fresh in every session: the ledger catches mistakes and replays of requests, not that adversary.
type FileLedger struct {
	f    *os.File
	size int64
	seen map[[32]byte]struct{}
}

// OpenLedger reads or creates the ledger at path. A last line that a crash cut short is completed away; any other damage is an error.
func OpenLedger(path string) (*FileLedger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record of migration ids: %w", err)
	}
	l := &FileLedger{f: f, seen: make(map[[32]byte]struct{})}
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("record of migration ids %s: %w", path, err), f.Close())
	}
	return l, nil
}

func (l *FileLedger) load() error {
	r := bufio.NewReader(l.f)
	var whole int64
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if err != nil { // an incomplete last line was never acknowledged
			break
		}
		raw, err := hex.DecodeString(strings.TrimSuffix(line, "\n"))
		if err != nil || len(raw) != sha256.Size {
			return fmt.Errorf("line %d is not a SHA-256 in hex", n)
		}
		l.seen[[32]byte(raw)] = struct{}{}
		whole += int64(len(line))
	}
	if err := l.f.Truncate(whole); err != nil {
		return err
	}
	l.size = whole
	return nil
}

// Use implements Ledger. The table calls it under its lock.
func (l *FileLedger) Use(id string) (bool, error) {
	key := sha256.Sum256([]byte(id))
	if _, ok := l.seen[key]; ok {
		return false, nil
	}
	if len(l.seen) >= maxLedger {
		return false, fmt.Errorf("it holds %d ids, its bound: archive the file and start a new one", maxLedger)
	}
	line := hex.EncodeToString(key[:]) + "\n"
	if _, err := l.f.WriteAt([]byte(line), l.size); err != nil {
		return false, err // the next id overwrites what was written of this one
	}
	if err := l.f.Sync(); err != nil {
		return false, err
	}
	l.size += int64(len(line))
	l.seen[key] = struct{}{}
	return true, nil
}

// Close closes the file.
func (l *FileLedger) Close() error {
	if err := l.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}
