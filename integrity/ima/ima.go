// Package ima reads the measurement list of Linux's Integrity Measurement Architecture, as the kernel shows it in
// /sys/kernel/security/ima/binary_runtime_measurements and ascii_runtime_measurements, and replays it against PCR values.
//
// The list is hostile input: the host keeps it. Only what replays to a PCR value that a TPM signed is true. A quote lags the list, for the
// kernel goes on measuring; so Prefix finds the part of the list that the quote covers, and what follows is ignored.
//
// Entries are read one at a time: memory does not grow with the list. The binary list is little-endian, as every x86 kernel writes it and any
// kernel with ima_canonical_fmt does. The ASCII list is ambiguous where a path has a line break in it; prefer the binary one.
//
// It verifies no signature of a file, does not say which files are acceptable, and does not read the list of a kernel before 5.8 against the
// SHA-256 bank: those extended it with the SHA-1 digest, padded. It uses the standard library only.
package ima

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the kernel records the template hash as SHA-1; no verdict rests on it
	"fmt"
)

// Limits bound what is read of a list. Zero fields mean the defaults.
type Limits struct {
	// Entries of the list.
	Entries int
	// EntryBytes is the size of one entry in bytes: of a line, in the ASCII list.
	EntryBytes int
	// Bytes of the whole list.
	Bytes int64
}

// Defaults of Limits.
const (
	DefaultEntries    = 1 << 20
	DefaultEntryBytes = 256 << 10
	DefaultBytes      = 256 << 20
)

// PCR is the register that the kernel extends unless it was built or told to use another (CONFIG_IMA_MEASURE_PCR_IDX).
const PCR = 10

// maxPCR is the highest PCR of the PC Client platform.
const maxPCR = 23

// maxTemplateName bounds the name of a template, in bytes; the kernel's own longest is 65.
const maxTemplateName = 255

func (l Limits) orDefault() Limits {
	if l.Entries <= 0 {
		l.Entries = DefaultEntries
	}
	if l.EntryBytes <= 0 {
		l.EntryBytes = DefaultEntryBytes
	}
	if l.Bytes <= 0 {
		l.Bytes = DefaultBytes
	}
	return l
}

// Entry is one measurement. Its slices are valid until the next entry is read; Clone makes a copy that stays.
//
// The PCR covers Data, and with it every field that is decoded from it, but not Recorded. Of a Violation it covers nothing but that there was one:
// its path is the host's word.
type Entry struct {
	// Number counts from 1.
	Number int
	// PCR that the kernel extended.
	PCR int
	// Template is the name ("ima-ng") or, where it has none, the format ("d-ng|n-ng").
	Template string
	// Recorded is the SHA-1 template hash that the list gives; zeros for a violation.
	Recorded [sha1.Size]byte
	// Violation: a file was open for writing and measured at once, so that the measurement means nothing. The PCR was extended with 0xff.
	Violation bool
	// Data is the template data, as it is hashed to extend the PCR.
	Data []byte
	// Opaque: the template is not known to this package. Data replays; the fields below are empty.
	Opaque bool

	// DigestType is "ima" or "verity" in the templates that say so (d-ngv2), else empty.
	DigestType string
	// DigestAlgorithm is the kernel's name, such as "sha256". For the template "ima" it is "sha1".
	DigestAlgorithm string
	// Digest of the file or of Buffer.
	Digest []byte
	// Path of the file or name of the buffer: the bytes that the kernel wrote, which need not be UTF-8. The kernel puts '_' for a space.
	Path string
	// Signature of the file (security.ima), if it has one.
	Signature []byte
	// Buffer that was measured (ima-buf): a command line, a key, critical data.
	Buffer []byte
	// ModuleDigestAlgorithm, ModuleDigest and ModuleSignature are of a signature appended to the file (ima-modsig).
	ModuleDigestAlgorithm         string
	ModuleDigest, ModuleSignature []byte
}

// Clone returns a copy that does not share memory with the reader of the list.
func (e Entry) Clone() Entry {
	for _, b := range []*[]byte{&e.Data, &e.Digest, &e.Signature, &e.Buffer, &e.ModuleDigest, &e.ModuleSignature} {
		*b = bytes.Clone(*b)
	}
	return e
}

// RecordedMatches reports whether the template hash in the list is the SHA-1 of the template data. It is true for a violation, which has none. A list
// for which it is false was changed or damaged, even if it replays: the SHA-256 bank does not cover the recorded hash.
func (e *Entry) RecordedMatches() bool {
	return e.Violation || sha1.Sum(e.Data) == e.Recorded //nolint:gosec // see the import
}

// Check names one thing that is demanded of a list. It is the target for errors.Is: errors.Is(err, ima.CheckPrefix).
type Check string

// The checks.
const (
	// CheckStructure: an entry has the form that the kernel writes.
	CheckStructure Check = "structure"
	// CheckTemplate: the template of an entry in the ASCII list is known. Without it there is no template data to replay; take the binary list.
	CheckTemplate Check = "template"
	// CheckLimit: the list and its entries are within the Limits.
	CheckLimit Check = "limit"
	// CheckRead: the list could be read.
	CheckRead Check = "read"
	// CheckBank: a bank can be replayed: SHA-1, SHA-256, SHA-384 or SHA-512.
	CheckBank Check = "bank"
	// CheckQuoted: the quoted values are usable: at least one, each of its bank's size, and not all at the value of a PCR that nothing extended.
	CheckQuoted Check = "quoted values"
	// CheckPCR: an entry extends a PCR that the quoted values have.
	CheckPCR Check = "pcr"
	// CheckPrefix: a prefix of the list replays to the quoted values.
	CheckPrefix Check = "prefix"
)

// Error makes a Check a target for errors.Is.
func (c Check) Error() string { return "ima list: " + string(c) }

// Error says which check failed, at which entry, and on what.
type Error struct {
	Check Check
	// Entry counts from 1; 0 where the matter is not one entry's.
	Entry           int
	Found, Expected string
	// Cause is set for CheckRead.
	Cause error
}

// Error names the check, the entry, what was found and what was expected.
func (e *Error) Error() string {
	where := "ima list: " + string(e.Check)
	if e.Entry > 0 {
		where = fmt.Sprintf("ima list: entry %d: %s", e.Entry, string(e.Check))
	}
	return fmt.Sprintf("%s: found %s, expected %s", where, e.Found, e.Expected)
}

// Unwrap returns the Check, and the cause if there is one.
func (e *Error) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Check, e.Cause}
	}
	return []error{e.Check}
}
