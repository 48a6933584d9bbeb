package cli

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Names of the checks of evidence, as they are printed.
const (
	checkEvidence    = "evidence"
	checkFreshness   = "freshness"
	checkPolicy      = "policy"
	checkMeasurement = "measurement"
	checkDebug       = "debug"
	checkTCBStatus   = "tcb status"
	checkAdvisories  = "advisories"
	checkCollateral  = "collateral"
	checkEnrolment   = "enrolment"
	checkIntegrity   = "integrity log"
)

// asked says what the verifier was asked to judge: a check that nobody asked for did not pass.
type asked struct {
	// unjudged is why the policy was not applied, where it was not; nothing is then accepted.
	unjudged string
	// binding: the evidence must be bound to a nonce or to given report data.
	binding bool
	// host under whose enrolment the platform was judged.
	host string
}

// evidenceChecks turns the verdict on evidence, facts and refusals, into one row for each thing that was judged. attested is nil if the
// evidence is not authentic. No refusal is lost: one that fits no row gets its own.
func evidenceChecks(attested *v1.Attested, refusals []*v1.Refusal, ask asked) []check {
	left := slices.Clone(refusals)
	take := func(fits func(*v1.Refusal) bool) *v1.Refusal {
		i := slices.IndexFunc(left, fits)
		if i < 0 {
			return nil
		}
		r := left[i]
		left = slices.Delete(left, i, i+1)
		return r
	}
	var rows []check
	if attested == nil {
		if r := take(func(*v1.Refusal) bool { return true }); r != nil {
			rows = append(rows, failing(checkEvidence, r))
		}
	} else {
		rows = append(rows, check{Check: checkEvidence, Outcome: passed, Found: authentic(attested)})
	}
	for _, row := range evidenceRows(attested, ask) {
		if r := take(row.fits); r != nil {
			rows = append(rows, failing(row.name, r))
			continue
		}
		c := check{Check: row.name, Outcome: passed, Found: row.found}
		if row.skipped != "" {
			c = check{Check: row.name, Outcome: notJudged, Message: row.skipped}
		}
		rows = append(rows, c)
	}
	for _, r := range left {
		rows = append(rows, failing(orElse(r.GetItem(), "other"), r))
	}
	return afterMeasurement(rows)
}

// afterMeasurement: whether a debug enclave is accepted is asked only of one whose measurement is.
func afterMeasurement(rows []check) []check {
	i := slices.IndexFunc(rows, func(c check) bool { return c.Check == checkMeasurement && c.Outcome == notPassed })
	j := slices.IndexFunc(rows, func(c check) bool { return c.Check == checkDebug && c.Outcome == passed })
	if i >= 0 && j >= 0 {
		rows[j] = check{Check: checkDebug, Outcome: notJudged, Message: "no rule accepts the measurement"}
	}
	return rows
}

// row is one check of the policy: which refusal fails it, what is found when none does, and why it is not judged, if it is not.
type row struct {
	name, found, skipped string
	fits                 func(*v1.Refusal) bool
}

func evidenceRows(a *v1.Attested, ask asked) []row {
	because := func(reason v1.Reason, item string) func(*v1.Refusal) bool {
		return func(r *v1.Refusal) bool { return r.GetReason() == reason && (item == "" || r.GetItem() == item) }
	}
	unauthentic := when(a == nil, "the evidence is not authentic")
	unpoliced := orElse(unauthentic, ask.unjudged)
	unbound := orElse(unauthentic, when(!ask.binding, "nothing says what the evidence must be bound to"))
	unnamed := orElse(unpoliced, when(ask.host == "", "no host was named"))
	return []row{
		{checkFreshness, "bound to what was asked for", unbound, because(v1.Reason_REASON_QUOTE_NOT_BOUND, "")},
		{checkMeasurement, measurementText(a), unpoliced, because(v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, "")},
		{checkDebug, debugText(a), unpoliced, because(v1.Reason_REASON_DEBUG_ENCLAVE, "")},
		{checkTCBStatus, a.GetTcbStatus(), unpoliced, because(v1.Reason_REASON_TCB_NOT_ACCEPTED, "tcb status")},
		{checkAdvisories, orElse(strings.Join(a.GetAdvisoryIds(), ", "), "none"), unpoliced, because(v1.Reason_REASON_TCB_NOT_ACCEPTED,
			"advisories")},
		{checkCollateral, fmt.Sprintf("evaluation data number %d", a.GetTcbEvaluationDataNumber()), unpoliced,
			because(v1.Reason_REASON_COLLATERAL_INVALID, "")},
		{checkEnrolment, enrolmentText(a, ask.host), unnamed,
			because(v1.Reason_REASON_PLATFORM_NOT_ENROLLED, "")},
	}
}

func when(so bool, text string) string {
	if so {
		return text
	}
	return ""
}

func authentic(a *v1.Attested) string {
	text := "genuine under " + orElse(a.GetRoot(), "a root that is not named")
	if a.GetExpiresAt() != nil {
		text += ", until " + stamp(a.GetExpiresAt())
	}
	return text
}

func measurementText(a *v1.Attested) string {
	return fmt.Sprintf("mrenclave %s, mrsigner %s, product %d, svn %d", hexOf(a.GetMrenclave()), hexOf(a.GetMrsigner()), a.GetIsvProdId(),
		a.GetIsvSvn())
}

func debugText(a *v1.Attested) string {
	if a.GetDebug() {
		return "a debug enclave, which the policy names"
	}
	return "a production enclave"
}

func enrolmentText(a *v1.Attested, host string) string {
	if len(a.GetPlatformId()) == 0 {
		return host + ": the policy asks for no enrolment"
	}
	return fmt.Sprintf("%s is platform %s", host, hexOf(a.GetPlatformId()))
}

// attestedView is what evidence says, for machines. Names are those of quote verify where both have a field.
type attestedView struct {
	Host            string   `json:"host,omitempty"`
	MREnclave       string   `json:"mrenclave"`
	MRSigner        string   `json:"mrsigner"`
	ISVProdID       uint32   `json:"isv_prod_id"`
	ISVSVN          uint32   `json:"isv_svn"`
	Debug           bool     `json:"debug"`
	ConvergedStatus string   `json:"converged_status"`
	AdvisoryIDs     []string `json:"advisory_ids"`
	Generation      uint32   `json:"tcb_evaluation_data_number"`
	TCBDate         string   `json:"tcb_date"`
	FMSPC           string   `json:"fmspc"`
	Root            string   `json:"root"`
	ExpiresAt       string   `json:"expires_at,omitempty"`
	PlatformID      string   `json:"platform_id,omitempty"`
}

func viewAttested(a *v1.Attested) *attestedView {
	if a == nil {
		return nil
	}
	return &attestedView{
		Host: a.GetHost(), MREnclave: hexOf(a.GetMrenclave()), MRSigner: hexOf(a.GetMrsigner()), ISVProdID: a.GetIsvProdId(),
		ISVSVN: a.GetIsvSvn(),
		Debug:  a.GetDebug(), ConvergedStatus: a.GetTcbStatus(), AdvisoryIDs: a.GetAdvisoryIds(), Generation: a.GetTcbEvaluationDataNumber(),
		TCBDate: stamp(a.GetTcbDate()), FMSPC: strings.ToUpper(a.GetFmspc()), Root: a.GetRoot(), ExpiresAt: stamp(a.GetExpiresAt()),
		PlatformID: hexOf(a.GetPlatformId()),
	}
}
