package hostlog

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Validate checks everything about a log that needs no key and no reference value. The error is an *Error.
func Validate(log *v1.IntegrityLog) error {
	if err := knownFieldsOnly("log", log); err != nil {
		return err
	}
	if log.GetVersion() != Version {
		return &Error{Field: "version", Found: strconv.FormatUint(uint64(log.GetVersion()), 10), Expected: strconv.Itoa(Version)}
	}
	if err := text("host", log.GetHost(), 1, MaxHost); err != nil {
		return err
	}
	if err := log.GetMeasuredAt().CheckValid(); err != nil {
		return &Error{Field: "measured_at", Cause: err}
	}
	if err := knownFieldsOnly("measured_at", log.GetMeasuredAt()); err != nil {
		return err
	}
	if n := len(log.GetEntries()); n > MaxEntries {
		return &Error{Field: "entries", Found: strconv.Itoa(n), Expected: fmt.Sprintf("at most %d", MaxEntries)}
	}
	previous := ""
	for i, e := range log.GetEntries() {
		field := fmt.Sprintf("entries[%d]", i)
		if err := validateEntry(field, e); err != nil {
			return err
		}
		if e.GetName() <= previous {
			return &Error{Field: field + ".name", Found: e.GetName() + " after " + previous, Expected: "names sorted and unique"}
		}
		previous = e.GetName()
	}
	if err := validateAttachments(log); err != nil {
		return err
	}
	if log.GetTpmQuote() == nil {
		return nil
	}
	return validateQuote(log.GetTpmQuote())
}

func validateAttachments(log *v1.IntegrityLog) error {
	previous := ""
	for i, a := range log.GetAttachments() {
		field := fmt.Sprintf("attachments[%d]", i)
		if err := knownFieldsOnly(field, a); err != nil {
			return err
		}
		switch {
		case log.GetTpmQuote() == nil:
			return &Error{Field: field, Found: "an attachment without a TPM quote", Expected: "a quote that covers it"}
		case !slices.Contains(AttachmentNames(), a.GetName()):
			return &Error{Field: field + ".name", Found: quoted(a.GetName()), Expected: fmt.Sprintf("one of %v", AttachmentNames())}
		case a.GetName() <= previous:
			return &Error{Field: field + ".name", Found: a.GetName() + " after " + previous, Expected: "names sorted and unique"}
		case a.GetSize() == 0 || a.GetSize() > MaxAttachment:
			return &Error{Field: field + ".size", Found: strconv.FormatUint(a.GetSize(), 10), Expected: fmt.Sprintf("1 to %d bytes", MaxAttachment)}
		}
		previous = a.GetName()
	}
	return nil
}

// validateEntry checks one entry: either a digest and the size of what was hashed, or the reason why there is none.
func validateEntry(field string, e *v1.IntegrityEntry) error {
	if err := knownFieldsOnly(field, e); err != nil {
		return err
	}
	if !ValidName(e.GetName()) {
		return &Error{Field: field + ".name", Found: quoted(e.GetName()), Expected: "a name that matches [a-z0-9][a-z0-9/_.-]{0,127}"}
	}
	if err := text(field+".path", e.GetPath(), 0, MaxPath); err != nil {
		return err
	}
	if err := text(field+".absent", e.GetAbsent(), 0, MaxAbsent); err != nil {
		return err
	}
	if err := text(field+".text", e.GetText(), 0, MaxText); err != nil {
		return err
	}
	switch e.GetProvenance() {
	case v1.Provenance_PROVENANCE_ENCLAVE_READ, v1.Provenance_PROVENANCE_TPM_BACKED:
	default:
		return &Error{Field: field + ".provenance", Found: e.GetProvenance().String(), Expected: "a provenance that this version knows"}
	}
	if e.GetAbsent() != "" {
		if len(e.GetDigest()) != 0 || e.GetDigestAlgorithm() != "" || e.GetSize() != 0 || e.GetText() != "" {
			return &Error{Field: field, Found: "a digest, its algorithm, a size or a text beside a reason for absence", Expected: "one or the other"}
		}
		return nil
	}
	if e.GetDigestAlgorithm() != SHA256 {
		return &Error{Field: field + ".digest_algorithm", Found: quoted(e.GetDigestAlgorithm()), Expected: quoted(SHA256)}
	}
	if n := len(e.GetDigest()); n != DigestSize {
		return &Error{Field: field + ".digest", Found: fmt.Sprintf("%d bytes", n), Expected: fmt.Sprintf("%d bytes, or a reason for absence", DigestSize)}
	}
	if sum := sha256.Sum256([]byte(e.GetText())); e.GetText() != "" && !bytes.Equal(sum[:], e.GetDigest()) {
		return &Error{Field: field + ".text", Found: "a text of another digest", Expected: "the text that was hashed"}
	}
	return nil
}

// validateQuote checks the shape of a quote. Whether it is genuine is for package tpmquote.
func validateQuote(q *v1.TpmQuote) error {
	if err := knownFieldsOnly("tpm_quote", q); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		value []byte
	}{{"attest", q.GetAttest()}, {"signature", q.GetSignature()}, {"ak_public", q.GetAkPublic()}} {
		if n := len(f.value); n == 0 || n > MaxTPMStructure {
			return &Error{Field: "tpm_quote." + f.name, Found: fmt.Sprintf("%d bytes", n), Expected: fmt.Sprintf("1 to %d bytes", MaxTPMStructure)}
		}
	}
	if n := len(q.GetPcrs()); n == 0 || n > MaxPCR+1 {
		return &Error{Field: "tpm_quote.pcrs", Found: strconv.Itoa(n), Expected: fmt.Sprintf("1 to %d", MaxPCR+1)}
	}
	previous := -1
	for i, p := range q.GetPcrs() {
		field := fmt.Sprintf("tpm_quote.pcrs[%d]", i)
		if err := knownFieldsOnly(field, p); err != nil {
			return err
		}
		if p.GetBank() != SHA256 {
			return &Error{Field: field + ".bank", Found: quoted(p.GetBank()), Expected: quoted(SHA256)}
		}
		if p.GetIndex() > MaxPCR || int(p.GetIndex()) <= previous {
			return &Error{
				Field: field + ".index", Found: strconv.FormatUint(uint64(p.GetIndex()), 10),
				Expected: fmt.Sprintf("above %d, at most %d: sorted and unique", previous, MaxPCR),
			}
		}
		previous = int(p.GetIndex())
		if n := len(p.GetValue()); n != DigestSize {
			return &Error{Field: field + ".value", Found: fmt.Sprintf("%d bytes", n), Expected: fmt.Sprintf("%d bytes", DigestSize)}
		}
	}
	return nil
}

// ValidName reports whether s can be the name of an entry: [a-z0-9][a-z0-9/_.-]{0,127}. Names are plain so that they can stand in a
// policy, a metric and a terminal without quoting.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '/' || c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// knownFieldsOnly refuses fields of a later version: a log that says more than its reader understands is not judged by half.
func knownFieldsOnly(field string, m proto.Message) error {
	if n := len(m.ProtoReflect().GetUnknown()); n != 0 {
		return &Error{Field: field, Found: fmt.Sprintf("%d bytes of unknown fields", n), Expected: "only fields of version " + strconv.Itoa(Version)}
	}
	return nil
}

// text checks length and character set: these texts come from another host and end up on terminals and in logs.
func text(field, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return &Error{Field: field, Found: fmt.Sprintf("%d bytes", len(s)), Expected: fmt.Sprintf("%d to %d bytes", least, most)}
	}
	if !utf8.ValidString(s) {
		return &Error{Field: field, Found: "invalid UTF-8", Expected: "UTF-8"}
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return &Error{Field: field, Found: fmt.Sprintf("character %U", r), Expected: "printable characters"}
		}
	}
	return nil
}

// quoted shortens and escapes a text of unknown origin for an error.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strconv.QuoteToASCII(s)
}
