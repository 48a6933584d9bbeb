package dcap

import (
	"slices"
	"time"

	"github.com/safeconduct/safeconduct/attestation/quote"
)

// Result is what an authentic quote says, and the state of the platform that made it. Everything in it was verified; whether it is
// acceptable is not said.
type Result struct {
	// Quote is the quote, parsed: Quote.SGX or Quote.TDX holds the report.
	Quote *quote.Quote

	// Of the report. MREnclave, MRSigner, ISVProdID and ISVSVN are zero for a TD.
	ReportData          [64]byte
	MREnclave, MRSigner [32]byte
	ISVProdID, ISVSVN   uint16
	// Debug: the memory of the enclave or TD is open to its host.
	Debug bool

	// Status is PlatformStatus, QEStatus and ModuleStatus converged. ModuleStatus is empty for SGX, and for TDX modules without a version.
	Status, PlatformStatus, QEStatus, ModuleStatus Status
	// AdvisoryIDs of the platform's level, then of the quoting enclave's and the module's, each once.
	AdvisoryIDs []string
	// TCBDate is that of the platform's level (zero if there is none), QETCBDate that of the quoting enclave's.
	TCBDate, QETCBDate time.Time
	// The generations of TCB info and QE identity. A policy's minimum applies to both: see EvaluationDataNumber.
	TCBEvaluationDataNumber, QEEvaluationDataNumber uint32

	// PCK is what the PCK certificate says of the platform. PPID, FMSPC and PCEID are repeated from it; the latter in lower-case hex.
	PCK          PCK
	PPID         [16]byte
	FMSPC, PCEID string
	// PCKSerial is the PCK certificate's serial number in lower-case hex; PCKCA the common name of its issuer; RootSubject the subject of
	// the root as in RFC 2253; RootPin its key.
	PCKSerial, PCKCA, RootSubject string
	RootPin                       RootPin
	// The numbers of the two CRLs.
	PCKCRLNumber, RootCACRLNumber uint64

	// Everything is valid from NotBefore, when NotBeforeArtefact begins, to ExpiresAt, when ExpiresArtefact is the first to expire; both ends
	// included.
	NotBefore, ExpiresAt               time.Time
	NotBeforeArtefact, ExpiresArtefact Artefact
	// OldestIssued is when the oldest of TCB info, QE identity and the two CRLs was issued, and OldestArtefact which it is: the age of the
	// collateral, which says how long a revocation may have gone unseen.
	OldestIssued   time.Time
	OldestArtefact Artefact
}

// EvaluationDataNumber is the lower of the two generations.
func (r *Result) EvaluationDataNumber() uint32 {
	return min(r.TCBEvaluationDataNumber, r.QEEvaluationDataNumber)
}

// part is the status of one part of the platform.
type part struct {
	Status     Status
	Date       time.Time
	Advisories []string
}

func (r *Result) setReport(q *quote.Quote) {
	r.Quote, r.ReportData = q, q.ReportData()
	if q.TDX != nil {
		r.Debug = q.TDX.Debug()
		return
	}
	r.MREnclave, r.MRSigner, r.ISVProdID, r.ISVSVN, r.Debug = q.SGX.MREnclave, q.SGX.MRSigner, q.SGX.ISVProdID, q.SGX.ISVSVN, q.SGX.Debug()
}

func (r *Result) setStatus(platform, qe, module part) {
	r.PlatformStatus, r.QEStatus, r.ModuleStatus = platform.Status, qe.Status, module.Status
	r.Status = converge(converge(platform.Status, qe.Status), module.Status)
	r.TCBDate, r.QETCBDate = platform.Date, qe.Date
	for _, p := range []part{platform, qe, module} {
		for _, id := range p.Advisories {
			if !slices.Contains(r.AdvisoryIDs, id) {
				r.AdvisoryIDs = append(r.AdvisoryIDs, id)
			}
		}
	}
}
