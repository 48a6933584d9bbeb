package cli

import (
	"strings"

	"github.com/safeconduct/safeconduct/attestation/dcap"
)

// quoteFacts are what is known of a quote. Names and spellings are those of the expected.json of the vectors of real hardware.
type quoteFacts struct {
	// Crypto is "valid" or "invalid": whether the quote is authentic. Only an authentic one has the facts below.
	Crypto      string `json:"crypto"`
	QuoteSHA256 string `json:"quote_sha256"`
	VerifyAt    string `json:"verify_at"`
	*verifiedFacts
}

// verifiedFacts are what an authentic quote says, and the state of the platform that made it.
type verifiedFacts struct {
	QuoteVersion    uint16 `json:"quote_version"`
	TEEType         uint32 `json:"tee_type"`
	ConvergedStatus string `json:"converged_status"`
	PlatformStatus  string `json:"platform_tcb_status"`
	QEStatus        string `json:"qe_tcb_status"`
	// ModuleStatus of a TDX module that has a version.
	ModuleStatus string `json:"tdx_module_tcb_status,omitempty"`
	// AdvisoryIDs are null if there are none.
	AdvisoryIDs []string `json:"advisory_ids"`
	// TCBDate is empty if no level fits the platform.
	TCBDate      string `json:"tcb_date"`
	Generation   uint32 `json:"tcb_evaluation_data_number"`
	QEGeneration uint32 `json:"qe_tcb_evaluation_data_number"`
	Debug        bool   `json:"debug"`
	*enclaveFacts
	*domainFacts
	ReportData  string    `json:"report_data"`
	FMSPC       string    `json:"fmspc"`
	PCEID       string    `json:"pceid"`
	PCKCA       string    `json:"pck_ca"`
	PCKSerial   string    `json:"pck_serial"`
	Root        string    `json:"root"`
	RootPin     string    `json:"root_key_sha256"`
	ValidWindow [2]string `json:"valid_window"`
	// FirstToExpire is the artefact that ends the window.
	FirstToExpire string `json:"first_to_expire"`
}

// enclaveFacts are an SGX enclave's, domainFacts a TD's.
type enclaveFacts struct {
	MREnclave string `json:"mrenclave"`
	MRSigner  string `json:"mrsigner"`
	ISVProdID uint16 `json:"isv_prod_id"`
	ISVSVN    uint16 `json:"isv_svn"`
	CPUSVN    string `json:"cpu_svn"`
}

type domainFacts struct {
	MRTD         string `json:"mrtd"`
	TDAttributes string `json:"td_attributes"`
}

func factsOf(r *dcap.Result) *verifiedFacts {
	f := &verifiedFacts{
		QuoteVersion: r.Quote.Version, TEEType: r.Quote.TEEType,
		ConvergedStatus: string(r.Status), PlatformStatus: string(r.PlatformStatus), QEStatus: string(r.QEStatus),
		ModuleStatus: string(r.ModuleStatus),
		AdvisoryIDs:  r.AdvisoryIDs, TCBDate: stampTime(r.TCBDate), Generation: r.TCBEvaluationDataNumber, QEGeneration: r.QEEvaluationDataNumber,
		Debug: r.Debug, ReportData: hexOf(r.ReportData[:]),
		// Upper case, as TCB info has it and as every tool of Intel's prints it.
		FMSPC: strings.ToUpper(r.FMSPC), PCEID: r.PCEID, PCKCA: r.PCKCA, PCKSerial: r.PCKSerial, Root: r.RootSubject, RootPin: r.RootPin.String(),
		ValidWindow: [2]string{stampTime(r.NotBefore), stampTime(r.ExpiresAt)}, FirstToExpire: string(r.ExpiresArtefact),
	}
	if td := r.Quote.TDX; td != nil {
		f.domainFacts = &domainFacts{MRTD: hexOf(td.MRTD[:]), TDAttributes: hexOf(td.TDAttributes[:])}
	}
	if sgx := r.Quote.SGX; sgx != nil {
		f.enclaveFacts = &enclaveFacts{
			MREnclave: hexOf(sgx.MREnclave[:]), MRSigner: hexOf(sgx.MRSigner[:]), ISVProdID: sgx.ISVProdID, ISVSVN: sgx.ISVSVN,
			CPUSVN: hexOf(sgx.CPUSVN[:]),
		}
	}
	return f
}

// print is the report for people.
func (r *quoteReport) print(s *sheet) {
	r.head(s)
	s.field("judged at", r.VerifyAt)
	s.field("quote", "sha256:"+r.QuoteSHA256)
	if f := r.verifiedFacts; f != nil {
		f.print(s)
	}
	r.list(s)
}

func (f *verifiedFacts) print(s *sheet) {
	s.field("tcb status", f.ConvergedStatus)
	s.line("%-14s platform %s, quoting enclave %s%s", "", f.PlatformStatus, f.QEStatus, when(f.ModuleStatus != "", ", module "+f.ModuleStatus))
	s.field("advisories", orElse(strings.Join(f.AdvisoryIDs, ", "), "none"))
	s.field("tcb date", f.TCBDate)
	if e := f.enclaveFacts; e != nil {
		s.field("mrenclave", e.MREnclave)
		s.field("mrsigner", e.MRSigner)
		s.line("%-14s product %d, svn %d", "", e.ISVProdID, e.ISVSVN)
		s.field("cpu svn", e.CPUSVN)
	}
	if d := f.domainFacts; d != nil {
		s.field("mrtd", d.MRTD)
		s.field("td attributes", d.TDAttributes)
	}
	s.field("report data", f.ReportData)
	if f.Debug {
		s.field("debug", "YES: its memory is open to its host")
	}
	s.line("%-14s fmspc %s, pce id %s, %s", "platform", f.FMSPC, f.PCEID, f.PCKCA)
	s.field("root", f.Root)
	s.line("%-14s %s to %s (%s)", "valid", f.ValidWindow[0], f.ValidWindow[1], f.FirstToExpire)
}
