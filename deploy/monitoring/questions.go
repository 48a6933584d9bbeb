// Package monitoring is what an operator looks at: the questions that the metrics answer, with their queries, and what is made of them: the Grafana
// dashboard in deploy/grafana and the second half of docs/metrics.md. `go test ./deploy/monitoring -update` writes both. make demo puts every query to a
// Prometheus that scrapes two nodes.
//
// Non-goals: alert rules, which are written by hand in deploy/prometheus, since their thresholds are judgement.
package monitoring

// Unit of a query's answer, in Grafana's words.
type Unit string

// The units in use.
const (
	Seconds   Unit = "s"
	PerSecond Unit = "ops"
	BytesRate Unit = "Bps"
	Count     Unit = "short"
	YesNo     Unit = "bool_yes_no"
)

// Question that an operator asks.
type Question struct {
	Title string
	// Expr is PromQL. $instance and $mode are regular expressions, $window a range such as 5m.
	Expr string
	// Legend names a series of the answer, in Grafana's template.
	Legend string
	Unit   Unit
	Means  string
	// MayBeEmpty says that no answer is a good one: nothing of the kind is there.
	MayBeEmpty bool
	// Now asks for one number per node and not for a history.
	Now bool
}

// Row is a group of questions.
type Row struct {
	Title     string
	Questions []Question
}

const where = `{instance=~"$instance", mode=~"$mode"}`

func with(more string) string { return `{instance=~"$instance", mode=~"$mode", ` + more + `}` }

// Rows are all questions, in the order of the dashboard.
func Rows() []Row {
	quantile := func(q, phases, by string) string {
		return `histogram_quantile(` + q + `, sum by (` + by + `, le) (rate(safeconduct_phase_duration_seconds_bucket` + with(phases) + `[$window])))`
	}
	return []Row{
		{"Is the fleet well?", []Question{
			{Title: "Ready", Expr: `safeconduct_ready` + where, Legend: "{{instance}}", Unit: YesNo, Now: true,
				Means: "0 is a node whose own policy refuses it, or that has not attested itself lately: its peers refuse it too"},
			{Title: "Last accepted itself", Expr: `safeconduct_self_check_age_seconds` + where, Legend: "{{instance}}", Unit: Seconds, Now: true,
				Means: "over a few minutes, the checks fail or do not come to an end: look at aesmd, the PCCS and the TPM"},
			{Title: "What runs", Expr: `sum by (version, mode) (safeconduct_build_info` + where + `)`, Legend: "{{version}} {{mode}}", Unit: Count, Now: true,
				Means: "nodes by release and mode; simulated protects nothing"},
			{Title: "Policies in force", Expr: `count by (policy_svn) (count_values by (instance) ("policy_svn", safeconduct_policy_svn` + where + `))`,
				Legend: "policy_svn {{policy_svn}}", Unit: Count, Now: true, Means: "nodes by policy_svn: more than one while a policy is rolled out"},
		}},
		{"Migrations", []Question{
			{Title: "Open sessions", Expr: `sum by (state) (safeconduct_sessions` + where + `)`, Legend: "{{state}}", Unit: Count,
				Means: "sessions by state; each migration is one on both nodes"},
			{Title: "Oldest open session", Expr: `max by (instance, state) (safeconduct_session_oldest_age_seconds` + with(`state=~"armed|transferring"`) + `)`,
				Legend: "{{instance}} {{state}}", Unit: Seconds, Means: "an armed session that grows old is a migration that neither ended nor was aborted"},
			{Title: "Sessions that ended", Expr: `sum by (outcome) (rate(safeconduct_sessions_ended_total` + where + `[$window]))`, Legend: "{{outcome}}",
				Unit: PerSecond, Means: "committed and aborted"},
			{Title: "State that crossed", Expr: `sum by (direction, kind) (rate(safeconduct_protected_bytes_total` + where + `[$window]))`,
				Legend: "{{direction}} {{kind}}", Unit: BytesRate, Means: "plaintext of vTPM state and images that the enclaves protected and opened"},
			{Title: "Receipts", Expr: `sum by (signed) (rate(safeconduct_receipts_total` + where + `[$window]))`, Legend: "signed by {{signed}}", Unit: PerSecond,
				Means: "one signature means that the other node did not answer at the end"},
			{Title: "Migrations without a receipt", Expr: `sum by (instance) (increase(safeconduct_receipts_missing_total` + where + `[$window]))`,
				Legend: "{{instance}}", Unit: Count, Means: "anything above 0 is a gap in the proof: read the node's log"},
		}},
		{"How long it takes", []Question{
			{Title: "Half of the phases took less than", Expr: quantile("0.5", `outcome="ok"`, "phase"), Legend: "{{phase}}", Unit: Seconds,
				Means: "the median of each phase"},
			{Title: "95 of 100 phases took less than", Expr: quantile("0.95", `outcome="ok"`, "phase"), Legend: "{{phase}}", Unit: Seconds,
				Means: "the slow ones; protect and unprotect add to the VM's downtime one for one"},
			{Title: "Establish, 95 of 100, by node", Expr: quantile("0.95", `phase="establish"`, "instance"), Legend: "{{instance}}", Unit: Seconds,
				MayBeEmpty: true, Means: "what nova-compute waits for before a migration, on the side that dials"},
		}},
		{"Why it refuses", []Question{
			{Title: "Refusals by reason", Expr: `sum by (reason) (rate(safeconduct_refusals_total` + where + `[$window])) > 0`, Legend: "{{reason}}",
				Unit: PerSecond, MayBeEmpty: true, Means: "safeconduct explain REASON says what to do"},
			{Title: "Refusals by node", Expr: `sum by (instance, caller) (rate(safeconduct_refusals_total` + where + `[$window]))`, Legend: "{{instance}} {{caller}}",
				Unit: PerSecond, Means: "caller peer: this node refused another; caller local: it refused a caller on its host, or passed on what a peer refused"},
			{Title: "Steps refused", Expr: `sum by (phase) (rate(safeconduct_phase_duration_seconds_count` + with(`outcome="refused"`) + `[$window]))`,
				Legend: "{{phase}}", Unit: PerSecond, MayBeEmpty: true, Means: "at which phase it ends"},
		}},
		{"What will go wrong next", []Question{
			{Title: "Collateral expires in", Expr: `safeconduct_collateral_expires_in_seconds` + where, Legend: "{{instance}} {{of}}", Unit: Seconds,
				Means: "no quote is accepted without valid collateral"},
			{Title: "Collateral fetched", Expr: `sum by (outcome) (rate(safeconduct_collateral_fetches_total` + where + `[$window]))`, Legend: "{{outcome}}",
				Unit: PerSecond, Means: "anything but ok is a PCCS that does not answer, or answers with something that is not accepted"},
			{Title: "Certificates expire in", Expr: `safeconduct_certificate_expires_in_seconds` + where, Legend: "{{instance}} {{certificate}}", Unit: Seconds,
				Means: "of the peer port's TLS, and the first of all that this node's quote is verified with"},
			{Title: "Policy windows close in", Expr: `safeconduct_policy_window_closes_in_seconds` + where, Legend: "{{instance}} {{window}}", Unit: Seconds,
				MayBeEmpty: true, Means: "own_enclave: from then on this node is refused; absent where the policy has no ends"},
			{Title: "Quotes that failed", Expr: `sum by (instance) (rate(safeconduct_quotes_total` + with(`outcome="failed"`) + `[$window]))`,
				Legend: "{{instance}}", Unit: PerSecond, Means: "the enclave could not make a quote: aesmd, the devices or the PCCS"},
			{Title: "Sealed store errors", Expr: `sum by (instance, operation) (rate(safeconduct_sealed_store_errors_total` + where + `[$window]))`,
				Legend: "{{instance}} {{operation}}", Unit: PerSecond, Means: "a full disk, or sealed files of another machine or enclave"},
			{Title: "Audit records not written", Expr: `sum by (instance) (rate(safeconduct_audit_errors_total` + where + `[$window]))`, Legend: "{{instance}}",
				Unit: PerSecond, Means: "the node is not ready while its audit log cannot be written"},
		}},
	}
}
