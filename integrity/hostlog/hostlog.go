// Package hostlog is the format of the integrity log: the bundle in which a host says what it is made of (messages M2 and M3 of
// the handshake, docs/protocol.md). Build makes the exact bytes that are signed and sent; Parse reads them and refuses whatever
// Build could not have made.
//
// It measures nothing, verifies no TPM quote and accepts no host: packages measure, tpmquote and appraise do. The signature over the
// bytes is the handshake's.
package hostlog

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Version of the format that this package reads and writes.
const Version = 1

// Bounds of a log. Texts are in bytes of UTF-8.
const (
	// MaxSize of a whole log, in bytes. docs/protocol.md gives a log message this much room.
	MaxSize = 8 << 20
	// MaxEntries is the number of measured things in one log.
	MaxEntries = 4096
	// MaxName of an entry.
	MaxName = 128
	// MaxHost is the length of the longest DNS name.
	MaxHost = 253
	// MaxPath is Linux's PATH_MAX.
	MaxPath = 4096
	// MaxText bounds the text that is carried beside its digest.
	MaxText = 4096
	// MaxAbsent bounds the reason for which a digest is missing.
	MaxAbsent = 1024
	// MaxPCR is the highest PCR of the PC Client platform.
	MaxPCR = 23
	// MaxTPMStructure bounds each structure of a TPM quote, in bytes: a TPM's command buffer is 4096 bytes.
	MaxTPMStructure = 4096
)

// MaxAttachment bounds one attachment, in bytes: an IMA list of 200,000 entries has about 30 MB.
const MaxAttachment = 48 << 20

// Names of attachments.
const (
	// AttachmentBoot is the firmware's event log (TCG PC Client Platform Firmware Profile, crypto-agile format).
	AttachmentBoot = "boot"
	// AttachmentIMA is the kernel's binary measurement list.
	AttachmentIMA = "ima"
)

// AttachmentNames are all that there are, sorted.
func AttachmentNames() []string { return []string{AttachmentBoot, AttachmentIMA} }

// Names of the only digest algorithm and PCR bank of version 1, and the size of both, in bytes.
const (
	SHA256     = "sha256"
	DigestSize = 32
)

// Error says what in a log is not as the format demands.
type Error struct {
	// Field is the path of the field, such as "entries[3].digest".
	Field           string
	Found, Expected string
	// Cause is set where a decoder or encoder failed.
	Cause error
}

// Error names the field, what was found and what was expected.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("integrity log: %s: %v", e.Field, e.Cause)
	}
	return fmt.Sprintf("integrity log: %s: found %s, expected %s", e.Field, e.Found, e.Expected)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Build makes the bytes of a log. They are to be signed and sent as they are, and never marshalled again. Entries and attachments must be sorted
// by name; quote is nil on a host without a TPM, which has no attachments either: only a TPM vouches for them. The error is an *Error.
func Build(host string, measuredAt time.Time, entries []*v1.IntegrityEntry, quote *v1.TpmQuote, attachments ...*v1.Attachment) ([]byte, error) {
	log := &v1.IntegrityLog{
		Version: Version, Host: host, MeasuredAt: timestamppb.New(measuredAt.UTC()), Entries: entries, TpmQuote: quote,
		Attachments: attachments,
	}
	if err := Validate(log); err != nil {
		return nil, err
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(log)
	if err != nil {
		return nil, &Error{Field: "log", Cause: err}
	}
	if len(raw) > MaxSize {
		return nil, tooLarge(len(raw))
	}
	return raw, nil
}

// Parse reads the bytes of a log and validates it. It does not verify the quote. The error is an *Error.
func Parse(raw []byte) (*v1.IntegrityLog, error) {
	if len(raw) > MaxSize {
		return nil, tooLarge(len(raw))
	}
	if err := bounded(raw); err != nil {
		return nil, err
	}
	log := &v1.IntegrityLog{}
	if err := proto.Unmarshal(raw, log); err != nil {
		return nil, &Error{Field: "log", Cause: err}
	}
	if err := Validate(log); err != nil {
		return nil, err
	}
	return log, nil
}

func tooLarge(n int) error {
	return &Error{Field: "log", Found: fmt.Sprintf("%d bytes", n), Expected: fmt.Sprintf("at most %d bytes", MaxSize)}
}
