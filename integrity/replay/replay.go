// Package replay replays a boot event log or an IMA list for an operator, and says in a form for machines what it comes to and what is wrong with
// it: what "safeconduct integrity replay" prints as JSON.
//
// It is for looking, not for deciding: the values it compares with are a file's, which no TPM signed. A node that judges its peer uses packages bootlog
// and ima with the values of a verified quote.
package replay

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// Kinds of logs.
const (
	KindBoot = "boot"
	KindIMA  = "ima"
)

// maxProblems bounds the problems that a Result lists; the rest are counted.
const maxProblems = 1000

// Options of a replay. The zero value is the strict one.
type Options struct {
	// AllowSHA1 accepts a log or values without the SHA-256 bank.
	AllowSHA1 bool
	// Events lists the events of a boot event log in the Result.
	Events bool
}

// Result is the outcome of a replay. Its JSON form is stable: names are not changed or given another meaning, only added.
type Result struct {
	// Kind is "boot" or "ima".
	Kind string `json:"kind"`
	// OK: there are no problems. Without PCR values it means only that the log is whole.
	OK bool `json:"ok"`
	// Entries that were read: events of a boot event log, measurements of an IMA list.
	Entries int `json:"entries"`
	// Banks are the values that PCRs come to: by bank ("sha1", "sha256", "sha384", "sha512"), then index, in lower-case hexadecimal. Of an IMA list they
	// are the values after the prefix, if one was found, else after the last entry that was read.
	Banks map[string]map[int]string `json:"banks"`
	// Compared are the outcomes of comparing a boot event log with PCR values, by bank.
	Compared map[string]Compared `json:"compared,omitempty"`
	// Prefix is the part of an IMA list that the PCR values cover, if there is one.
	Prefix *Prefix `json:"prefix,omitempty"`
	// Violations of an IMA list, up to the end of the prefix.
	Violations int `json:"violations,omitempty"`
	// SecureBoot is "enabled", "disabled", or absent where a boot event log does not say so in a way that its digests cover, or PCR 7 does not match.
	SecureBoot string `json:"secure_boot,omitempty"`
	// CommandLines are kernel command lines in a boot event log that their digests cover; absent if PCR 8 does not match. Bytes that are not printable are
	// escaped.
	CommandLines []string `json:"command_lines,omitempty"`
	// Events of a boot event log, if they were asked for.
	Events []Event `json:"events,omitempty"`
	// Problems are all that is wrong, the first 1000.
	Problems []Problem `json:"problems"`
	// ProblemsOmitted counts those beyond.
	ProblemsOmitted int `json:"problems_omitted,omitempty"`
}

// Compared lists PCRs by how a boot event log explains them; see bootlog.Comparison.
type Compared struct {
	Matched    []int `json:"matched,omitempty"`
	Mismatched []int `json:"mismatched,omitempty"`
	Uncovered  []int `json:"uncovered,omitempty"`
	Unquoted   []int `json:"unquoted,omitempty"`
}

// Prefix is the part of an IMA list that PCR values cover.
type Prefix struct {
	Entries int `json:"entries"`
	// Ignored entries follow it.
	Ignored int `json:"ignored"`
	// IgnoredError is where reading them ended, if that was before the end of the list.
	IgnoredError string `json:"ignored_error,omitempty"`
}

// Event of a boot event log.
type Event struct {
	Number int               `json:"number"`
	PCR    int               `json:"pcr"`
	Type   string            `json:"type"`
	Digest map[string]string `json:"digests,omitempty"`
	// Size of the data in bytes.
	Size int `json:"size"`
	// Covered: the digest is over the data, or over the part of them that Text shows.
	Covered bool   `json:"covered"`
	Text    string `json:"text,omitempty"`
}

// ProblemKind says what is wrong. The texts are stable.
type ProblemKind string

// The kinds of problems.
const (
	// ProblemMalformed: the log does not have its form. Nothing after the entry was read.
	ProblemMalformed ProblemKind = "malformed"
	// ProblemLimit: the log is larger than is read.
	ProblemLimit ProblemKind = "limit"
	// ProblemRead: the log could not be read.
	ProblemRead ProblemKind = "read"
	// ProblemBankMissing: a bank is required that the log or the values do not have.
	ProblemBankMissing ProblemKind = "bank_missing"
	// ProblemPCRMismatch: a PCR has another value than the boot event log comes to.
	ProblemPCRMismatch ProblemKind = "pcr_mismatch"
	// ProblemNotCompared: there is no value to compare the log with, or one that says nothing.
	ProblemNotCompared ProblemKind = "not_compared"
	// ProblemPrefix: no prefix of the IMA list comes to the values.
	ProblemPrefix ProblemKind = "prefix_not_found"
	// ProblemPCR: an entry of the IMA list is for another PCR than 10, so that nothing vouches for it.
	ProblemPCR ProblemKind = "other_pcr"
	// ProblemTemplate: the template of an entry of the IMA list is not known; it replays, but says nothing.
	ProblemTemplate ProblemKind = "template_unknown"
	// ProblemTemplateHash: the template hash in the IMA list is not that of the entry.
	ProblemTemplateHash ProblemKind = "template_hash"
)

// Problem is one thing that is wrong.
type Problem struct {
	Kind ProblemKind `json:"kind"`
	// Entry counts from 1.
	Entry int `json:"entry,omitempty"`
	// PCR is nil where the problem is not one PCR's.
	PCR      *int   `json:"pcr,omitempty"`
	Bank     string `json:"bank,omitempty"`
	Found    string `json:"found,omitempty"`
	Expected string `json:"expected,omitempty"`
	// Message is a sentence for a reader; it is not stable.
	Message string `json:"message"`
}

func newResult(kind string) *Result {
	return &Result{Kind: kind, Banks: map[string]map[int]string{}, Problems: []Problem{}}
}

func (r *Result) add(p Problem) {
	if len(r.Problems) == maxProblems {
		r.ProblemsOmitted++
		return
	}
	r.Problems = append(r.Problems, p)
}

func (r *Result) done() *Result {
	r.OK = len(r.Problems) == 0
	return r
}

// bank sets the values of a bank.
func (r *Result) bank(h crypto.Hash, pcrs map[int][]byte) {
	out := make(map[int]string, len(pcrs))
	for i, v := range pcrs {
		out[i] = hex.EncodeToString(v)
	}
	r.Banks[bankName(h)] = out
}

// required complains where the SHA-256 bank is missing in what has the banks given.
func (r *Result) required(what string, has bool, o Options) {
	if has || o.AllowSHA1 {
		return
	}
	r.add(Problem{
		Kind: ProblemBankMissing, Bank: bankName(crypto.SHA256), Found: what + " without SHA-256", Expected: "SHA-256",
		Message: "there is no SHA-256 bank in " + what + ", and SHA-1 alone is not accepted",
	})
}

// kindOf finds the kind of an error of package bootlog or ima.
func kindOf(err error, kinds map[error]ProblemKind) ProblemKind {
	for check, kind := range kinds {
		if errors.Is(err, check) {
			return kind
		}
	}
	return ProblemMalformed
}

// bankName is the name of a bank as the command line and the JSON have it.
func bankName(h crypto.Hash) string {
	switch h {
	case crypto.SHA1:
		return "sha1"
	case crypto.SHA256:
		return "sha256"
	case crypto.SHA384:
		return "sha384"
	case crypto.SHA512:
		return "sha512"
	default:
		return fmt.Sprintf("hash-%d", h)
	}
}

// quote renders text of a log for JSON that may end on a terminal.
func quote(s string) string {
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}
