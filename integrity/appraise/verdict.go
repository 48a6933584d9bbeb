package appraise

import (
	"crypto/sha256"
	"fmt"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
)

// Kind is the reason of a Mismatch. The texts are stable: they may stand in metrics and audit logs.
type Kind string

// The kinds. The comment says which Item they come with.
const (
	// KindLogInvalid: the log is malformed. Item: "log".
	KindLogInvalid Kind = "log_invalid"
	// KindReferenceInvalid: there are no reference values, or they contradict themselves. Item: "policy".
	KindReferenceInvalid Kind = "reference_invalid"
	// KindWrongHost: the log is another host's. Item: "host".
	KindWrongHost Kind = "wrong_host"
	// KindStale: the log was measured too long ago, or in the future. Item: "measured_at".
	KindStale Kind = "stale"
	// KindDigest: an entry has a digest that is not accepted. Item: its name.
	KindDigest Kind = "digest"
	// KindAbsent: an entry has no digest. Item: its name.
	KindAbsent Kind = "absent"
	// KindMissing: an entry that is required is not in the log. Item: its name.
	KindMissing Kind = "missing"
	// KindUnlisted: there is no reference value for an entry. Item: its name.
	KindUnlisted Kind = "unlisted"
	// KindTPMMissing: there is no TPM quote. Item: "tpm".
	KindTPMMissing Kind = "tpm_missing"
	// KindTPMNotEnrolled: no attestation key is enrolled for the host. Item: "tpm".
	KindTPMNotEnrolled Kind = "tpm_not_enrolled"
	// KindTPMQuote: the quote does not verify; Mismatch.Cause is a *tpmquote.Error. Item: "tpm".
	KindTPMQuote Kind = "tpm_quote"
	// KindTPMReset: the TPM was reset, or resumed, since the host was last accepted in this session. Item: "tpm".
	KindTPMReset Kind = "tpm_reset"
	// KindBootLog: the boot log does not replay to the quoted PCRs, or Secure Boot is not as asked. Item: "boot", "boot/pcr/N" or
	// "boot/secure-boot".
	KindBootLog Kind = "boot_log"
	// KindIMA: the IMA list has no prefix that the quote covers (item "ima"), or an entry that is not accepted (item "ima/" and its path).
	KindIMA Kind = "ima"
	// KindPCR: a PCR has a value that is not accepted, or is not in the quote. Item: "pcr/" and its index.
	KindPCR Kind = "pcr"
)

// Reason is the reason that crosses the wire for this kind.
func (k Kind) Reason() v1.Reason {
	switch k {
	case KindLogInvalid, KindWrongHost:
		return v1.Reason_REASON_PROTOCOL_VIOLATION
	case KindReferenceInvalid:
		return v1.Reason_REASON_POLICY_REFUSED
	case KindStale:
		return v1.Reason_REASON_INTEGRITY_STALE
	case KindTPMMissing, KindTPMNotEnrolled, KindTPMQuote, KindTPMReset:
		return v1.Reason_REASON_TPM_QUOTE_INVALID
	default:
		return v1.Reason_REASON_INTEGRITY_MISMATCH
	}
}

// Mismatch is one reason against a host. Texts from the log in it are printable and bounded.
type Mismatch struct {
	// Item is the entry, "pcr/N", or the part of the log that Kind names.
	Item            string
	Kind            Kind
	Found, Expected string
	// Remedy says what the operator can do.
	Remedy string
	// Cause is set for KindTPMQuote, KindLogInvalid and KindReferenceInvalid.
	Cause error
}

// Error makes a Mismatch an error.
func (m Mismatch) Error() string {
	return fmt.Sprintf("%s: %s: found %s, expected %s", m.Item, string(m.Kind), m.Found, m.Expected)
}

// Unwrap returns the cause.
func (m Mismatch) Unwrap() error { return m.Cause }

// Verdict on a host. The zero value is a refusal.
type Verdict struct {
	// Mismatches are all the reasons against the host: those of the log itself, of its entries by name, of the TPM, of PCRs by index.
	Mismatches []Mismatch
	// Matched and Unjudged are names of entries and "pcr/N". Unjudged ones are not vouched for.
	Matched, Unjudged []string
	// TPM is what the verified quote says; nil if there is none.
	TPM *tpmquote.Statement
	// IMAEntries were covered by the quote and judged; IMAIgnored follow them. BootEvents are those of the boot log. SecureBoot is "enabled",
	// "disabled" or, where PCR 7 does not say, empty.
	IMAEntries, IMAIgnored, BootEvents int
	SecureBoot                         string
	// FetchErr is set when an attachment could not be had: the host is then not judged.
	FetchErr error

	judged bool
}

// Accepted reports whether the host was judged and nothing speaks against it.
func (v *Verdict) Accepted() bool {
	return v != nil && v.judged && v.FetchErr == nil && len(v.Mismatches) == 0
}

// Err is nil if the host is accepted, else a *RefusedError.
func (v *Verdict) Err() error {
	if v.Accepted() {
		return nil
	}
	if v != nil && v.FetchErr != nil {
		return fmt.Errorf("the attachments of the log: %w", v.FetchErr)
	}
	return &RefusedError{Verdict: v}
}

// Summary is the verdict on an accepted host as a caller on this node may see it. raw is the log's exact bytes.
func (v *Verdict) Summary(host string, raw []byte) *v1.Appraised {
	sum := sha256.Sum256(raw)
	return &v1.Appraised{
		Host: host, Matched: uint32(len(v.Matched)), Unjudged: uint32(len(v.Unjudged)),
		TpmQuoteVerified: v.TPM != nil, LogDigest: sum[:], Items: v.Matched,
		ImaEntries: uint32(v.IMAEntries), ImaIgnored: uint32(v.IMAIgnored), BootEvents: uint32(v.BootEvents), SecureBoot: v.SecureBoot,
	}
}

// RefusedError carries the verdict that refused a host. errors.Is and errors.As look at every mismatch.
type RefusedError struct{ Verdict *Verdict }

// Error counts the mismatches and shows the first few.
func (e *RefusedError) Error() string {
	const shown = 3
	if e.Verdict == nil || len(e.Verdict.Mismatches) == 0 {
		return "host integrity was not judged"
	}
	all := e.Verdict.Mismatches
	var parts []string
	for _, m := range all[:min(shown, len(all))] {
		parts = append(parts, m.Error())
	}
	if len(all) > shown {
		parts = append(parts, fmt.Sprintf("and %d more", len(all)-shown))
	}
	return "host integrity is not accepted: " + strings.Join(parts, "; ")
}

// Unwrap returns the mismatches.
func (e *RefusedError) Unwrap() []error {
	if e.Verdict == nil {
		return nil
	}
	errs := make([]error, 0, len(e.Verdict.Mismatches))
	for _, m := range e.Verdict.Mismatches {
		errs = append(errs, m)
	}
	return errs
}
