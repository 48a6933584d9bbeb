package cli

import (
	"fmt"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// sessionView is a session for machines.
type sessionView struct {
	SessionID   string         `json:"session_id"`
	InstanceID  string         `json:"instance_id"`
	Role        string         `json:"role"`
	Source      string         `json:"source_host"`
	Destination string         `json:"destination_host"`
	State       string         `json:"state"`
	Mode        string         `json:"mode"`
	MigrationID string         `json:"migration_id,omitempty"`
	CreatedAt   string         `json:"created_at,omitempty"`
	AppraisedAt string         `json:"appraised_at,omitempty"`
	ExpiresAt   string         `json:"expires_at,omitempty"`
	Bytes       uint64         `json:"bytes_protected"`
	Refusal     *refusalView   `json:"refusal,omitempty"`
	Attested    *attestedView  `json:"peer_attested,omitempty"`
	Appraised   *appraisedView `json:"peer_appraised,omitempty"`
	Steps       []stepView     `json:"steps,omitempty"`
	Blobs       []blobView     `json:"blobs,omitempty"`
}

type refusalView struct {
	Reason   string `json:"reason"`
	Message  string `json:"message"`
	Item     string `json:"item,omitempty"`
	Found    string `json:"found,omitempty"`
	Expected string `json:"expected,omitempty"`
	Do       string `json:"do,omitempty"`
}

type stepView struct {
	Step    string       `json:"step"`
	Took    float64      `json:"milliseconds"`
	Refusal *refusalView `json:"refusal,omitempty"`
}

type blobView struct {
	Type       string  `json:"type"`
	Plaintext  uint64  `json:"plaintext_bytes"`
	Ciphertext uint64  `json:"ciphertext_bytes"`
	Took       float64 `json:"milliseconds"`
}

// appraisedView is what was found in a host's integrity log.
type appraisedView struct {
	Host       string   `json:"host"`
	Matched    uint32   `json:"matched"`
	Unjudged   uint32   `json:"unjudged"`
	TPMQuote   bool     `json:"tpm_quote_verified"`
	LogDigest  string   `json:"log_sha256"`
	Items      []string `json:"items,omitempty"`
	IMAEntries uint32   `json:"ima_entries"`
	IMAIgnored uint32   `json:"ima_ignored"`
	BootEvents uint32   `json:"boot_events"`
	SecureBoot string   `json:"secure_boot,omitempty"`
}

func viewRefusal(r *v1.Refusal) *refusalView {
	if r == nil {
		return nil
	}
	return &refusalView{
		Reason: refusal.Name(r.GetReason()), Message: r.GetMessage(), Item: r.GetItem(), Found: r.GetFound(), Expected: r.GetExpected(),
		Do: orElse(r.GetRemedy(), refusal.Remedies(r.GetReason())),
	}
}

func viewAppraised(a *v1.Appraised) *appraisedView {
	if a == nil {
		return nil
	}
	return &appraisedView{
		Host: a.GetHost(), Matched: a.GetMatched(), Unjudged: a.GetUnjudged(), TPMQuote: a.GetTpmQuoteVerified(),
		LogDigest: hexOf(a.GetLogDigest()),
		Items:     a.GetItems(), IMAEntries: a.GetImaEntries(), IMAIgnored: a.GetImaIgnored(), BootEvents: a.GetBootEvents(),
		SecureBoot: a.GetSecureBoot(),
	}
}

// appraisedText is the same in a line.
func appraisedText(a *v1.Appraised) string {
	parts := []string{fmt.Sprintf("%d of the log's entries match, %d are not judged", a.GetMatched(), a.GetUnjudged())}
	if a.GetTpmQuoteVerified() {
		parts = append(parts, "quoted by the host's TPM")
	} else {
		parts = append(parts, "no TPM vouches for them")
	}
	if n := a.GetImaEntries(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d IMA entries", n))
	}
	if n := a.GetBootEvents(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d boot events", n))
	}
	if b := a.GetSecureBoot(); b != "" {
		parts = append(parts, "secure boot "+b)
	}
	return strings.Join(parts, ", ")
}

func viewSession(x *v1.Session) sessionView {
	v := sessionView{
		SessionID: hexOf(x.GetSessionId()), InstanceID: x.GetInstanceId(), Role: enumName(x.GetRole().String(), "ROLE_"),
		Source:      x.GetSourceHost(),
		Destination: x.GetDestinationHost(), State: enumName(x.GetState().String(), "SESSION_STATE_"), Mode: modeName(x.GetMode()),
		MigrationID: x.GetMigrationId(), CreatedAt: stamp(x.GetCreatedAt()), AppraisedAt: stamp(x.GetAppraisedAt()),
		ExpiresAt: stamp(x.GetExpiresAt()),
		Bytes:     x.GetBytesProtected(), Refusal: viewRefusal(x.GetRefusal()), Attested: viewAttested(x.GetPeerAttested()),
		Appraised: viewAppraised(x.GetPeerAppraised()),
	}
	for _, s := range x.GetSteps() {
		v.Steps = append(v.Steps, stepView{Step: enumName(s.GetStep().String(), "STEP_"), Took: millis(s.GetElapsed()),
			Refusal: viewRefusal(s.GetRefusal())})
	}
	for _, b := range x.GetBlobs() {
		v.Blobs = append(v.Blobs, blobView{
			Type: enumName(b.GetType().String(), "STATE_TYPE_"), Plaintext: b.GetPlaintextBytes(), Ciphertext: b.GetCiphertextBytes(),
			Took: millis(b.GetElapsed()),
		})
	}
	return v
}

func viewSessions(all []*v1.Session) []sessionView {
	out := make([]sessionView, 0, len(all))
	for _, x := range all {
		out = append(out, viewSession(x))
	}
	return out
}

// sessionRows prints sessions, one a line.
func sessionRows(s *sheet, all []sessionView) {
	rows := make([][]string, 0, len(all))
	for _, v := range all {
		why := ""
		if v.Refusal != nil {
			why = v.Refusal.Reason
		}
		rows = append(rows, []string{v.SessionID, v.InstanceID, v.Source + " > " + v.Destination, v.State, modeWord(v.Mode), v.MigrationID, why})
	}
	s.rows([]string{"SESSION", "INSTANCE", "HOSTS", "STATE", "MODE", "MIGRATION", "REASON"}, rows)
}

// modeWord is the mode in a column.
func modeWord(mode string) string {
	if mode == "intel" {
		return mode
	}
	return strings.ToUpper(mode)
}

// print is one session for people.
func (v *sessionView) print(s *sheet) {
	s.field("session", v.SessionID)
	s.field("instance", v.InstanceID)
	s.line("%-14s %s to %s; this node is the %s", "hosts", v.Source, v.Destination, v.Role)
	s.field("state", v.State)
	s.field("mode", modeLine(v.Mode))
	s.field("migration", v.MigrationID)
	s.field("created", v.CreatedAt)
	s.field("appraised", v.AppraisedAt)
	s.field("expires", v.ExpiresAt)
	s.line("%-14s %d bytes", "protected", v.Bytes)
	if a := v.Attested; a != nil {
		s.line("%-14s mrenclave %s, tcb %s, root %s", "peer", a.MREnclave, a.ConvergedStatus, a.Root)
	}
	if a := v.Appraised; a != nil {
		s.line("%-14s %d entries match, %d not judged, log sha256:%s", "peer's host", a.Matched, a.Unjudged, a.LogDigest)
	}
	for _, st := range v.Steps {
		s.line("%-14s %s, %.1f ms%s", "step", st.Step, st.Took, when(st.Refusal != nil, ", refused"))
	}
	for _, b := range v.Blobs {
		s.line("%-14s %s, %d bytes as %d, %.1f ms", "blob", b.Type, b.Plaintext, b.Ciphertext, b.Took)
	}
	if r := v.Refusal; r != nil {
		s.blank()
		s.line("%s: %s", r.Reason, r.Message)
		s.field("item", r.Item)
		s.field("found", r.Found)
		s.field("expected", r.Expected)
		s.field("do", r.Do)
	}
}
