package appraise

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/bootlog"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/ima"
	"github.com/safeconduct/safeconduct/integrity/keylime"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
)

// maxListed bounds the mismatches of one IMA list that are told one by one; the rest is counted.
const maxListed = 100

// Fetch brings a piece of an attachment of the log, which begins at offset, and nothing at its end.
type Fetch func(name string, offset uint64) ([]byte, error)

// Boot says what is asked of the firmware's event log. One that is there must replay to the quoted PCRs in any case: PCR values say what was
// started, and the log explains them.
type Boot struct {
	// Required refuses a host without a boot log.
	Required bool `json:"required,omitempty"`
	// SecureBoot refuses a host whose PCR 7 does not say that UEFI Secure Boot was enabled; it needs the log.
	SecureBoot bool `json:"secure_boot,omitempty"`
}

// IMA says what is asked of the kernel's measurement list. The part of a list that the TPM quote covers is judged; a list that is there must have
// such a part in any case.
type IMA struct {
	// Required refuses a host without a list.
	Required bool `json:"required,omitempty"`
	// AllowViolations accepts entries that the kernel marked as measured while they were open for writing. Nothing of such an entry is covered by the
	// PCR, its path included.
	AllowViolations bool `json:"allow_violations,omitempty"`
	// RuntimePolicy is a Keylime runtime policy: what the entries are judged by.
	RuntimePolicy json.RawMessage `json:"runtime_policy,omitempty"`
	// ReportOnly accepts a list that replays without judging its entries, where there is no RuntimePolicy.
	ReportOnly bool `json:"report_only,omitempty"`

	parsed *keylime.Policy // of RuntimePolicy, once Validate has read it
}

// attachments judges the logs of firmware and kernel by the verified quote.
func (v *Verdict) attachments(log *v1.IntegrityLog, s *tpmquote.Statement, refs *ReferenceValues, fetch Fetch) {
	has := func(name string) (uint64, bool) {
		i := slices.IndexFunc(log.GetAttachments(), func(a *v1.Attachment) bool { return a.GetName() == name })
		if i < 0 {
			return 0, false
		}
		return log.GetAttachments()[i].GetSize(), true
	}
	if fetch == nil && len(log.GetAttachments()) > 0 {
		v.against(Mismatch{
			Item: log.GetAttachments()[0].GetName(), Kind: KindStale, Found: "a log whose attachments were not kept", Expected: "a log that can be judged whole",
			Remedy: "establish a new session",
		})
		return
	}
	size, ok := has(hostlog.AttachmentBoot)
	switch {
	case ok:
		v.boot(&attachment{name: hostlog.AttachmentBoot, size: size, fetch: fetch}, s, refs.Boot)
	case refs.Boot.Required || refs.Boot.SecureBoot:
		v.against(Mismatch{
			Item: "boot", Kind: KindMissing, Found: "no boot log", Expected: "the firmware's event log",
			Remedy: "set integrity.boot_log in that node's configuration",
		})
	}
	size, ok = has(hostlog.AttachmentIMA)
	switch {
	case ok:
		v.ima(&attachment{name: hostlog.AttachmentIMA, size: size, fetch: fetch}, s, refs)
	case refs.IMA.Required:
		v.against(Mismatch{
			Item: "ima", Kind: KindMissing, Found: "no IMA list", Expected: "the kernel's measurement list",
			Remedy: "start the host's kernel with an IMA policy and set integrity.ima_list in that node's configuration",
		})
	}
}

func (v *Verdict) boot(a *attachment, s *tpmquote.Statement, want Boot) {
	raw, err := io.ReadAll(io.LimitReader(a, bootlog.MaxSize+1))
	if a.err != nil {
		v.FetchErr = a.err
		return
	}
	if err == nil {
		err = a.whole()
	}
	var parsed *bootlog.Log
	if err == nil {
		parsed, err = bootlog.Parse(raw)
	}
	var compared *bootlog.Comparison
	if err == nil {
		compared, err = parsed.Compare(crypto.SHA256, bySlice(s))
	}
	if err != nil {
		v.against(Mismatch{
			Item: "boot", Kind: KindBootLog, Cause: err, Found: err.Error(), Expected: "a boot log with SHA-256 digests that replays to the quoted PCRs",
			Remedy: "check the firmware of that host; a log without SHA-256 digests is not accepted",
		})
		return
	}
	if !compared.OK() && len(compared.Mismatches) == 0 {
		v.against(Mismatch{
			Item: "boot", Kind: KindBootLog, Found: "none of the quoted PCRs is one that the log explains", Expected: "a quote over the PCRs of the boot log",
			Remedy: "add 0 to 7 to integrity.pcrs of that node's configuration",
		})
		return
	}
	for _, m := range compared.Mismatches {
		v.against(Mismatch{
			Item: fmt.Sprintf("boot/pcr/%d", m.PCR), Kind: KindBootLog, Found: fmt.Sprintf("%x from %d events", m.Replayed, m.Events),
			Expected: fmt.Sprintf("%x, as quoted", m.Quoted),
			Remedy:   "reboot that host; if it stays so, its firmware or somebody else extended the PCR without logging it",
		})
	}
	v.BootEvents = len(parsed.Events)
	if slices.Contains(compared.Matched, 7) {
		v.SecureBoot = string(parsed.SecureBoot(crypto.SHA256))
	}
	if want.SecureBoot && v.SecureBoot != string(bootlog.SecureBootEnabled) {
		v.against(Mismatch{
			Item: "boot/secure-boot", Kind: KindBootLog, Found: orUnknown(v.SecureBoot), Expected: string(bootlog.SecureBootEnabled),
			Remedy: "enable Secure Boot in that host's firmware, and quote PCR 7",
		})
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func bySlice(s *tpmquote.Statement) map[int][]byte {
	out := make(map[int][]byte, len(s.PCRs))
	for index, value := range s.PCRs {
		out[index] = value[:]
	}
	return out
}

// ima judges the prefix of the list that PCR 10 of the quote covers. An earlier list of the same TPM, since its last reset, is a prefix of it: a PCR
// comes to a value by one history only.
func (v *Verdict) ima(a *attachment, s *tpmquote.Statement, refs *ReferenceValues) {
	value, quoted := s.PCRs[ima.PCR]
	if !quoted {
		v.against(Mismatch{
			Item: "ima", Kind: KindIMA, Found: fmt.Sprintf("PCR %d is not in the quote", ima.PCR), Expected: "a quote that covers the list",
			Remedy: fmt.Sprintf("add %d to integrity.pcrs of that node's configuration", ima.PCR),
		})
		return
	}
	runtime, err := refs.IMA.runtime()
	if err == nil && runtime == nil && !refs.IMA.ReportOnly {
		err = errNoRuntimePolicy
	}
	if err != nil {
		v.against(Mismatch{
			Item: "ima", Kind: KindReferenceInvalid, Cause: err, Found: err.Error(), Expected: "a runtime policy to judge the list by, or ima.report_only",
			Remedy: "put a Keylime runtime policy into integrity.ima.runtime_policy",
		})
		return
	}
	against := listed{v: v, policy: runtime}
	match, err := ima.Prefix(a, ima.Limits{Bytes: hostlog.MaxAttachment}, ima.Registers{crypto.SHA256: {ima.PCR: value[:]}}, func(e *ima.Entry) error {
		against.entry(e, refs)
		return nil
	})
	switch {
	case a.err != nil:
		v.FetchErr = a.err
		return
	case err != nil:
		v.against(Mismatch{
			Item: "ima", Kind: KindIMA, Cause: err, Found: err.Error(), Expected: "a list of which a prefix replays to the quoted PCR 10",
			Remedy: "reboot that host; if it stays so, its list or its PCR 10 is not the kernel's alone",
		})
		return
	}
	against.end()
	v.IMAEntries, v.IMAIgnored = match.Entries, match.Ignored
}

// listed collects the objections to a list's entries.
type listed struct {
	v      *Verdict
	policy *keylime.Policy
	found  []Mismatch
	more   int
}

func (l *listed) entry(e *ima.Entry, refs *ReferenceValues) {
	m := Mismatch{Item: imaItem(e), Kind: KindIMA}
	switch {
	case !e.Violation && !e.RecordedMatches():
		m.Found, m.Expected = fmt.Sprintf("entry %d with a template hash that is not its own", e.Number), "the list as the kernel wrote it"
		m.Remedy = "treat it as an attack until explained: the list was changed"
	case e.Violation && !refs.IMA.AllowViolations:
		m.Found, m.Expected = fmt.Sprintf("entry %d, measured while it was open for writing", e.Number), "no violations"
		m.Remedy = "find out what wrote to the file on that host; or set ima.allow_violations"
	case e.Violation:
		return
	default:
		if l.policy == nil { // report_only: it has replayed, and that is all
			return
		}
		o := l.policy.Judge(e)
		if o == nil {
			return
		}
		m.Found, m.Expected = o.Found, o.Expected
		m.Remedy = "find out what it is and why that host ran or loaded it; if it is to be trusted, add it to the runtime policy"
	}
	if len(l.found) == maxListed {
		l.more++
		return
	}
	l.found = append(l.found, m)
}

func (l *listed) end() {
	for _, m := range l.found {
		l.v.against(m)
	}
	if l.more > 0 {
		l.v.against(Mismatch{
			Item: "ima", Kind: KindIMA, Found: fmt.Sprintf("%d more entries that are not accepted", l.more), Expected: "none", Remedy: "see the ones that are named",
		})
	}
}

// imaItem names an entry in characters that can stand on a terminal.
func imaItem(e *ima.Entry) string {
	const most = 200
	path := []byte(e.Path)
	for i, b := range path {
		if b < ' ' || b > '~' {
			path[i] = '?'
		}
	}
	if len(path) > most {
		path = append(path[:most], "..."...)
	}
	return "ima/" + string(path)
}

var errNoRuntimePolicy = errors.New("there is a list and no runtime policy")

// runtime is the runtime policy, or nil without one. Reading a large one takes a while: Validate does it, and keeps what it read.
func (i *IMA) runtime() (*keylime.Policy, error) {
	if i.parsed != nil || len(i.RuntimePolicy) == 0 {
		return i.parsed, nil
	}
	return keylime.Parse(i.RuntimePolicy)
}

// attachment reads an attachment piece by piece, to the size that the log gives.
type attachment struct {
	name  string
	size  uint64
	fetch Fetch
	read  uint64
	piece []byte
	err   error // of fetching: not the log's fault
}

var errAttachment = errors.New("the attachment is not as long as the log says")

// Read implements io.Reader.
func (a *attachment) Read(p []byte) (int, error) {
	for len(a.piece) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.read >= a.size {
			return 0, io.EOF
		}
		if a.piece, a.err = a.fetch(a.name, a.read); a.err != nil {
			return 0, a.err
		}
		if len(a.piece) == 0 || uint64(len(a.piece)) > a.size-a.read {
			return 0, errAttachment
		}
		a.read += uint64(len(a.piece))
	}
	n := copy(p, a.piece)
	a.piece = a.piece[n:]
	return n, nil
}

// whole says whether all of it was read.
func (a *attachment) whole() error {
	if a.read != a.size || len(a.piece) != 0 {
		return errAttachment
	}
	return nil
}
