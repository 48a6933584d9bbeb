package hostlog

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of IntegrityLog, in proto/safeconduct/v1/integrity.proto.
const (
	fieldEntries  = 4
	fieldTpmQuote = 5
	fieldAttach   = 6
)

// maxQuoteMessage bounds the encoding of a TpmQuote: three TPM structures, all PCRs, and room for tags and lengths.
const maxQuoteMessage = 3*MaxTPMStructure + (MaxPCR+1)*64 + 64

// bounded walks the outermost fields before anything is allocated for them. An empty entry takes two bytes on the wire and some two
// hundred in memory, so that 8 MiB of them would fill the heap of an enclave before Validate could count them.
func bounded(raw []byte) error {
	var seen [fieldAttach + 1]int
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return &Error{Field: "log", Cause: protowire.ParseError(n)}
		}
		m := protowire.ConsumeFieldValue(number, kind, raw[n:])
		if m < 0 {
			return &Error{Field: "log", Cause: protowire.ParseError(m)}
		}
		raw = raw[n+m:]
		if number > fieldAttach {
			return &Error{Field: "log", Found: fmt.Sprintf("field number %d", number), Expected: fmt.Sprintf("only fields of version %d", Version)}
		}
		seen[number]++
		switch {
		case number == fieldEntries && seen[number] > MaxEntries:
			return &Error{Field: "entries", Found: fmt.Sprintf("more than %d", MaxEntries), Expected: fmt.Sprintf("at most %d", MaxEntries)}
		case number == fieldTpmQuote && m > maxQuoteMessage:
			return &Error{Field: "tpm_quote", Found: fmt.Sprintf("%d bytes", m), Expected: fmt.Sprintf("at most %d bytes", maxQuoteMessage)}
		case number == fieldAttach && seen[number] > len(AttachmentNames()):
			return &Error{Field: "attachments", Found: fmt.Sprintf("more than %d", len(AttachmentNames())), Expected: "each once"}
		case number != fieldEntries && number != fieldAttach && seen[number] > 1:
			return &Error{Field: "log", Found: fmt.Sprintf("field number %d twice", number), Expected: "each field once"}
		}
	}
	return nil
}
