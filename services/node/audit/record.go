// Package audit is the log of every request that matters: one JSON object a line, each with the SHA-256 of the line before, in files that are
// rotated by size. Verify shows that nothing in it was changed, left out or put in.
//
// What it does not show. Nothing signs the lines, so whoever may write the directory can write another chain, or cut the end off. Against the first and
// the second stands the sealed head: the enclave seals the number and the digest of the last record, finds at its start what the files lack, and tells
// them to who asks (GetStatus), so that Verify can be held to them. A host that puts back an old directory together with the old sealed head, which no
// hardware counter prevents, is found only by who has noted a later head, or has the lines elsewhere: ship them off the host. Records of the last
// moments before a power cut may be missing. Who called is the host's word.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Version of the format of a record.
const Version = 1

// Limits, in bytes.
const (
	// MaxText bounds each text of a record: some come from callers and peers.
	MaxText = 512
	// MaxLine bounds a line.
	MaxLine = 32 << 10
)

// The events.
const (
	EventStart   = "start"   // the service starts
	EventStop    = "stop"    // it stops, in order
	EventCall    = "call"    // a request that matters
	EventSession = "session" // a session ended
	EventReceipt = "receipt" // a receipt was stored
	EventGap     = "gap"     // records could not be written before this one; Lost says how many
	EventPruned  = "pruned"  // the records up to Through were removed, as configured
)

// The verdicts.
const (
	Allowed  = "allowed"
	Refused  = "refused"
	Canceled = "canceled" // the caller went away
)

// Caller is who asked, on this host; the kernel's word, which in an enclave is the host's.
type Caller struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	PID int32  `json:"pid"`
	// Process is the name of the process when it connected.
	Process string `json:"process,omitempty"`
}

// Record is one line. Log fills in what is above Event, and Previous.
type Record struct {
	Version  int       `json:"v"`
	Sequence uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Host     string    `json:"host"`
	Mode     string    `json:"mode"`

	Event string `json:"event"`
	// Of a call: who, and what. Caller is nil for a peer, whose name is Peer as far as it is known.
	Caller *Caller `json:"caller,omitempty"`
	Method string  `json:"method,omitempty"`
	// For which migration.
	Instance  string `json:"instance,omitempty"`
	Migration string `json:"migration,omitempty"`
	Session   string `json:"session,omitempty"`
	Peer      string `json:"peer,omitempty"`
	// Subject is what else the request named: a secret's id, an image, a purpose.
	Subject string `json:"subject,omitempty"`
	// State that a session ended in.
	State string `json:"state,omitempty"`
	// Of a refusal.
	Verdict  string `json:"verdict,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
	Item     string `json:"item,omitempty"`
	Found    string `json:"found,omitempty"`
	Expected string `json:"expected,omitempty"`
	// Receipt is the id of a receipt, in hex, and Signed by whom.
	Receipt string `json:"receipt,omitempty"`
	Signed  string `json:"signed,omitempty"`
	// Request is the caller's id of the request (Nova's req-...), Trace the trace id.
	Request string `json:"request,omitempty"`
	Trace   string `json:"trace,omitempty"`
	// Lost counts records that could not be written, Suppressed the refused calls of strangers that were too many to record.
	Lost       uint64 `json:"lost,omitempty"`
	Suppressed uint64 `json:"suppressed,omitempty"`
	// Through is the last record that was removed.
	Through *Head `json:"through,omitempty"`

	// Previous is the digest of the line before; of the first record of all, zeros.
	Previous Digest `json:"prev"`
}

// Digest of a line, without its end, after a label of its own.
type Digest [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText accepts 64 lower-case hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	var v Digest
	if len(text) != hex.EncodedLen(len(v)) {
		return fmt.Errorf("digest: found %.80q, expected 64 hexadecimal digits", text)
	}
	if _, err := hex.Decode(v[:], text); err != nil || v.String() != string(text) {
		return fmt.Errorf("digest: found %.80q, expected 64 lower-case hexadecimal digits", text)
	}
	*d = v
	return nil
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Head is the last record: what an auditor notes, and the enclave seals.
type Head struct {
	Sequence uint64 `json:"seq"`
	Digest   Digest `json:"digest"`
}

func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Sequence, h.Digest) }

// ParseHead reads what String writes.
func ParseHead(s string) (h Head, err error) {
	number, digest, ok := strings.Cut(s, ":")
	if _, serr := fmt.Sscanf(number, "%d", &h.Sequence); !ok || serr != nil || fmt.Sprint(h.Sequence) != number {
		return Head{}, fmt.Errorf("a head is SEQUENCE:DIGEST, not %.120q", s)
	}
	return h, h.Digest.UnmarshalText([]byte(digest))
}

func digestOf(line []byte) Digest {
	h := sha256.New()
	h.Write([]byte("safeconduct/v1/audit\x00"))
	h.Write(line)
	return Digest(h.Sum(nil))
}

// encode makes the line of a record, without its end.
func (r *Record) encode() ([]byte, error) {
	for _, text := range []*string{
		&r.Method, &r.Instance, &r.Migration, &r.Session, &r.Peer, &r.Subject, &r.State, &r.Reason, &r.Message, &r.Item, &r.Found, &r.Expected,
		&r.Receipt, &r.Request, &r.Trace,
	} {
		*text = cut(*text)
	}
	if r.Caller != nil {
		c := *r.Caller
		c.Process = cut(c.Process)
		r.Caller = &c
	}
	line, err := json.Marshal(r)
	if err == nil && len(line) > MaxLine {
		err = fmt.Errorf("a record of %d bytes, more than %d", len(line), MaxLine)
	}
	return line, err
}

func cut(s string) string {
	if len(s) > MaxText {
		s = s[:MaxText] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// parse reads a line, strictly: a line has one spelling, that of encode.
func parse(line []byte) (*Record, error) {
	if len(line) > MaxLine {
		return nil, fmt.Errorf("%d bytes, more than %d", len(line), MaxLine)
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if r.Version != Version {
		return nil, fmt.Errorf("version %d, not %d", r.Version, Version)
	}
	if r.Sequence == 0 {
		return nil, errors.New("no seq")
	}
	again, err := json.Marshal(&r)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, line) {
		return nil, errors.New("not as the service writes it")
	}
	return &r, nil
}
