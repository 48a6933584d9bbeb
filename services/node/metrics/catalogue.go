// Package metrics is what Prometheus scrapes of a node service. This file is the one list of every metric, its labels and every value that a label can
// have: the registry is built from it, docs/metrics.md is generated from it, and tests hold both, and what a scrape returns, to it.
//
// A label's values come from enums and from the names of methods that the servers have, so nothing that a peer or a caller sends makes a new series.
// Names and labels are a promise: they only grow.
package metrics

import (
	"slices"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// The names. The unit of every _seconds is seconds, of every _bytes_total bytes.
const (
	PhaseDuration      = "safeconduct_phase_duration_seconds"
	Calls              = "safeconduct_calls_total"
	Refusals           = "safeconduct_refusals_total"
	Sessions           = "safeconduct_sessions"
	OldestSession      = "safeconduct_session_oldest_age_seconds"
	SessionsEnded      = "safeconduct_sessions_ended_total"
	ProtectedBytes     = "safeconduct_protected_bytes_total"
	Quotes             = "safeconduct_quotes_total"
	SelfChecks         = "safeconduct_self_checks_total"
	SelfCheckAge       = "safeconduct_self_check_age_seconds"
	Ready              = "safeconduct_ready"
	Draining           = "safeconduct_draining"
	CollateralAge      = "safeconduct_collateral_age_seconds"
	CollateralExpires  = "safeconduct_collateral_expires_in_seconds"
	CollateralFetches  = "safeconduct_collateral_fetches_total"
	CertificateExpires = "safeconduct_certificate_expires_in_seconds"
	PolicySVN          = "safeconduct_policy_svn"
	PolicyWindow       = "safeconduct_policy_window_closes_in_seconds"
	Reloads            = "safeconduct_reloads_total"
	SealedErrors       = "safeconduct_sealed_store_errors_total"
	Receipts           = "safeconduct_receipts_total"
	ReceiptsMissing    = "safeconduct_receipts_missing_total"
	AuditRecords       = "safeconduct_audit_records_total"
	AuditErrors        = "safeconduct_audit_errors_total"
	BuildInfo          = "safeconduct_build_info"
)

// Kind of a metric, in Prometheus's words.
type Kind string

// The kinds in use.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Label of a metric.
type Label struct {
	Name string
	// Values are all that it can have; nil where Bound says what bounds them.
	Values []string
	Bound  string
}

// Metric is one name. Every metric has the label "mode" besides its own.
type Metric struct {
	Name   string
	Kind   Kind
	Help   string
	Labels []Label
}

// Phase is what a duration is of.
type Phase string

// The phases, in the order of a migration.
const (
	PhaseEvidence  Phase = "evidence"
	PhaseVerify    Phase = "verify"
	PhaseHandshake Phase = "handshake"
	PhaseIntegrity Phase = "integrity"
	PhaseKeys      Phase = "keys"
	PhaseSecret    Phase = "secret"
	PhaseEstablish Phase = "establish"
	PhaseArm       Phase = "arm"
	PhaseProtect   Phase = "protect"
	PhaseUnprotect Phase = "unprotect"
	PhaseCommit    Phase = "commit"
)

// PhaseMeaning says what a phase covers.
type PhaseMeaning struct {
	Phase Phase
	Means string
}

// Phases are all phases, in the order of a migration.
func Phases() []PhaseMeaning {
	return []PhaseMeaning{
		{PhaseEvidence, "the enclave makes one quote"},
		{PhaseVerify, "one quote is verified: signatures, certificates, collateral, TCB"},
		{PhaseHandshake, "phase 1 of a handshake: both enclaves attest each other"},
		{PhaseIntegrity, "phase 2 of a handshake: both hosts are measured and appraised"},
		{PhaseKeys, "the keys of the transfer are derived"},
		{PhaseSecret, "the source sends the VM's secrets, enclave to enclave"},
		{PhaseEstablish, "a whole session is established, as the side that dials sees it"},
		{PhaseArm, "both nodes are bound to a migration, the integrity exchange made again if it had grown old"},
		{PhaseProtect, "one blob of the vTPM's state is encrypted; the VM is stopped meanwhile"},
		{PhaseUnprotect, "one blob of the vTPM's state is decrypted; the VM is stopped meanwhile"},
		{PhaseCommit, "the session is committed; on the source with the receipt that both sign"},
	}
}

// Side is who asked.
type Side string

// The sides.
const (
	Local Side = "local"
	Peer  Side = "peer"
)

// Values of labels that have no type of their own.
const (
	ok      = "ok"
	refused = "refused"
	failed  = "failed"

	// DirectionProtect and DirectionUnprotect are which way bytes cross.
	DirectionProtect   = "protect"
	DirectionUnprotect = "unprotect"
	// KindState and KindImage are what crosses.
	KindState = "state"
	KindImage = "image"
	// OwnCollateral is that of this node's kind of platform, PeersCollateral the worst of all other that is kept.
	OwnCollateral   = "own"
	PeersCollateral = "peers"
	// CertificateTLS and CertificateTLSCA are peer.tls's, CertificateEvidence the first to expire of what this node's own quote is verified with.
	CertificateTLS      = "peer_tls"
	CertificateTLSCA    = "peer_tls_ca"
	CertificateEvidence = "own_evidence"
	// WindowOwn is the policy's acceptance of this node's own enclave, WindowEnclaves and WindowReferences the first to close of all rules.
	WindowOwn        = "own_enclave"
	WindowEnclaves   = "enclaves"
	WindowReferences = "references"
)

func reasons() []string {
	numbers := make([]int32, 0, len(v1.Reason_name))
	for n := range v1.Reason_name {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	names := make([]string, 0, len(numbers))
	for _, n := range numbers {
		names = append(names, refusal.Name(v1.Reason(n)))
	}
	return names
}

func openStates() []string {
	var names []string
	for s := session.Offered; !s.Ended(); s++ {
		names = append(names, s.String())
	}
	return names
}

// Catalogue is every metric, in the order of the documentation.
func Catalogue() []Metric {
	var phase []string
	for _, p := range Phases() {
		phase = append(phase, string(p.Phase))
	}
	outcome := Label{Name: "outcome", Values: []string{ok, refused}}
	reason := Label{Name: "reason", Values: reasons()}
	state := Label{Name: "state", Values: openStates()}
	side := Label{Name: "caller", Values: []string{string(Local), string(Peer)}}
	of := Label{Name: "of", Values: []string{OwnCollateral, PeersCollateral}}
	return []Metric{
		{PhaseDuration, Histogram, "Time that one phase took, by phase and outcome.", []Label{{Name: "phase", Values: phase}, outcome}},
		{Calls, Counter, "Calls served, by method and outcome.", []Label{{Name: "method", Bound: "the methods that the servers have"}, outcome}},
		{Refusals, Counter, "Refusals by this node, by typed reason and by whether a caller on this host or a peer was refused.", []Label{reason, side}},
		{Sessions, Gauge, "Open sessions, by state.", []Label{state}},
		{OldestSession, Gauge, "Age of the oldest open session in a state; 0 if there is none.", []Label{state}},
		{SessionsEnded, Counter, "Sessions that ended, by how.", []Label{{Name: "outcome", Values: []string{session.Committed.String(), session.Aborted.String()}}}},
		{ProtectedBytes, Counter, "Bytes of plaintext that crossed the enclave, by direction and kind.",
			[]Label{{Name: "direction", Values: []string{DirectionProtect, DirectionUnprotect}}, {Name: "kind", Values: []string{KindState, KindImage}}}},
		{Quotes, Counter, "Quotes that this enclave was to make, by outcome.", []Label{{Name: "outcome", Values: []string{ok, failed}}}},
		{SelfChecks, Counter, "Times that this node attested and appraised itself, by outcome.", []Label{outcome}},
		{SelfCheckAge, Gauge, "Time since this node last attested and appraised itself with success; since the start if it never has.", nil},
		{Ready, Gauge, "1 if /readyz says that this node is ready, else 0.", nil},
		{Draining, Gauge, "1 if the node drains, else 0.", nil},
		{CollateralAge, Gauge, "Time since the collateral was fetched: this node's own kind of platform, and the oldest of the others.", []Label{of}},
		{CollateralExpires, Gauge, "Time until the collateral expires, negative after: this node's own kind of platform, and the first of the others.", []Label{of}},
		{CollateralFetches, Counter, "Attempts to fetch collateral, by outcome.",
			[]Label{{Name: "outcome", Values: []string{ok, "unavailable", "rejected", "expired", "rolled_back"}}}},
		{CertificateExpires, Gauge, "Time until a certificate expires, negative after.",
			[]Label{{Name: "certificate", Values: []string{CertificateTLS, CertificateTLSCA, CertificateEvidence}}}},
		{PolicySVN, Gauge, "policy_svn of the policy in force.", nil},
		{PolicyWindow, Gauge, "Time until the first rule of the policy in force that is still open ends to accept; absent if none has an end.",
			[]Label{{Name: "window", Values: []string{WindowOwn, WindowEnclaves, WindowReferences}}}},
		{Reloads, Counter, "Reloads of policy and collateral, by outcome.", []Label{outcome}},
		{SealedErrors, Counter, "Operations of the sealed store that failed, by operation.",
			[]Label{{Name: "operation", Values: []string{"get", "put", "delete", "list"}}}},
		{Receipts, Counter, "Receipts stored, by who has signed them.", []Label{{Name: "signed", Values: []string{"both", "one"}}}},
		{ReceiptsMissing, Counter, "Armed migrations that ended here without a receipt that could be made and stored.", nil},
		{AuditRecords, Counter, "Records written to the audit log.", nil},
		{AuditErrors, Counter, "Records that could not be written to the audit log.", nil},
		{BuildInfo, Gauge, "Always 1; the labels say what runs.",
			[]Label{{Name: "version", Bound: "one: that of this build"}, {Name: "goversion", Bound: "one: that of this build"}}},
	}
}
