package dcap

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
)

// vectorsDir is where the vectors of real hardware are; they are not part of the project.
func vectorsDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "quotes")); err != nil {
		t.Skipf("the vectors of real hardware are not at %s: set SAFECONDUCT_VECTORS to run this test", dir)
	}
	return dir
}

// expected is a vector's expected.json.
type expected struct {
	AdvisoryIDs []string    `json:"advisory_ids"`
	Converged   Status      `json:"converged_status"`
	Platform    Status      `json:"platform_tcb_status"`
	QE          Status      `json:"qe_tcb_status"`
	CPUSVN      string      `json:"cpu_svn"`
	Debug       bool        `json:"debug"`
	FMSPC       string      `json:"fmspc"`
	ProdID      uint16      `json:"isv_prod_id"`
	SVN         uint16      `json:"isv_svn"`
	MREnclave   string      `json:"mrenclave"`
	MRSigner    string      `json:"mrsigner"`
	MRTD        string      `json:"mrtd"`
	PCEID       string      `json:"pceid"`
	PCKCA       string      `json:"pck_ca"`
	Version     uint16      `json:"quote_version"`
	ReportData  string      `json:"report_data"`
	TCBDate     string      `json:"tcb_date"`
	Number      uint32      `json:"tcb_evaluation_data_number"`
	TDAttr      string      `json:"td_attributes"`
	TEEType     uint32      `json:"tee_type"`
	Window      []time.Time `json:"valid_window"`
	VerifyAt    time.Time   `json:"verify_at"`
}

type vector struct {
	name       string
	quote      []byte
	collateral *collateral.Collateral
	want       expected
}

func loadVectors(t testing.TB) []vector {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(vectorsDir(t), "quotes", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	var all []vector
	for _, dir := range dirs {
		v := vector{name: filepath.Base(dir), quote: read(t, filepath.Join(dir, "quote.bin"))}
		if v.collateral, err = collateral.LoadDir(dir); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(read(t, filepath.Join(dir, "expected.json")), &v.want); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func intel() Verifier { return Verifier{Root: IntelRoot()} }

func TestQuotesOfRealHardwareGiveTheStatusOfTheirVector(t *testing.T) {
	for _, v := range loadVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			r, err := intel().Verify(v.quote, v.collateral, v.want.VerifyAt)
			if err != nil {
				t.Fatal(err)
			}
			var date string
			if !r.TCBDate.IsZero() {
				date = stamp(r.TCBDate)
			}
			for _, c := range []struct {
				what      string
				got, want any
			}{
				{"converged status", r.Status, v.want.Converged},
				{"platform status", r.PlatformStatus, v.want.Platform},
				{"QE status", r.QEStatus, v.want.QE},
				{"advisories", strings.Join(r.AdvisoryIDs, " "), strings.Join(v.want.AdvisoryIDs, " ")},
				{"TCB date", date, v.want.TCBDate},
				{"evaluation data number", r.TCBEvaluationDataNumber, v.want.Number},
				{"FMSPC", r.FMSPC, strings.ToLower(v.want.FMSPC)},
				{"PCEID", r.PCEID, v.want.PCEID},
				{"PCK CA", r.PCKCA, v.want.PCKCA},
				{"version", r.Quote.Version, v.want.Version},
				{"TEE type", r.Quote.TEEType, v.want.TEEType},
				{"debug", r.Debug, v.want.Debug},
				{"report data", hex.EncodeToString(r.ReportData[:]), v.want.ReportData},
				{"not before", r.NotBefore, v.want.Window[0]},
				{"expires at", r.ExpiresAt, v.want.Window[1]},
				{"root", r.RootSubject, "CN=Intel SGX Root CA,O=Intel Corporation,L=Santa Clara,ST=CA,C=US"},
				{"CRL numbers", []uint64{r.PCKCRLNumber, r.RootCACRLNumber}[0], uint64(1)},
			} {
				if c.got != c.want {
					t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
				}
			}
			checkMeasurements(t, r, &v.want)
		})
	}
}

func checkMeasurements(t *testing.T, r *Result, want *expected) {
	t.Helper()
	if td := r.Quote.TDX; td != nil {
		if got := hex.EncodeToString(td.MRTD[:]); got != want.MRTD {
			t.Errorf("MRTD: got %s, want %s", got, want.MRTD)
		}
		if got := hex.EncodeToString(td.TDAttributes[:]); got != want.TDAttr {
			t.Errorf("TD attributes: got %s, want %s", got, want.TDAttr)
		}
		return
	}
	got := []string{hex.EncodeToString(r.MREnclave[:]), hex.EncodeToString(r.MRSigner[:]), hex.EncodeToString(r.Quote.SGX.CPUSVN[:])}
	if !slices.Equal(got, []string{want.MREnclave, want.MRSigner, want.CPUSVN}) || r.ISVProdID != want.ProdID || r.ISVSVN != want.SVN {
		t.Errorf("got %v, %d, %d, want those of %+v", got, r.ISVProdID, r.ISVSVN, want)
	}
}

func TestOutsideItsWindowARealQuoteIsRefusedAndTheArtefactNamed(t *testing.T) {
	for _, v := range loadVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			checked, err := intel().CheckCollateral(v.collateral)
			if err != nil {
				t.Fatal(err)
			}
			r, err := checked.Verify(v.quote, v.want.VerifyAt)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				at       time.Time
				artefact Artefact // none: accepted
			}{
				{v.want.Window[0], ""}, {v.want.Window[1], ""},
				{v.want.Window[0].Add(-time.Second), r.NotBeforeArtefact}, {v.want.Window[1].Add(time.Second), r.ExpiresArtefact},
			} {
				_, err := checked.Verify(v.quote, c.at)
				if c.artefact == "" && err == nil {
					continue
				}
				var e *Error
				if !errors.As(err, &e) || e.Check != CheckValidity || e.Artefact != c.artefact || !strings.Contains(err.Error(), string(c.artefact)) {
					t.Errorf("at %s: got %v, want a refusal that names %q", stamp(c.at), err, c.artefact)
				}
			}
		})
	}
}

func TestTheSameQuoteUnderTwoEvaluationNumbersHasTwoVerdicts(t *testing.T) {
	all := loadVectors(t)
	find := func(prefix string) vector {
		i := slices.IndexFunc(all, func(v vector) bool { return strings.HasPrefix(v.name, prefix) })
		return all[i]
	}
	early, late := find("08-"), find("09-")
	if !bytes.Equal(early.quote, late.quote) {
		t.Fatal("the vectors are of two quotes")
	}
	a, err := intel().Verify(early.quote, early.collateral, early.want.VerifyAt)
	if err != nil {
		t.Fatal(err)
	}
	b, err := intel().Verify(late.quote, late.collateral, late.want.VerifyAt)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != UpToDate || b.Status != OutOfDate || a.TCBEvaluationDataNumber >= b.TCBEvaluationDataNumber {
		t.Errorf("got %s under %d and %s under %d", a.Status, a.TCBEvaluationDataNumber, b.Status, b.TCBEvaluationDataNumber)
	}
	if b.EvaluationDataNumber() != min(b.TCBEvaluationDataNumber, b.QEEvaluationDataNumber) || b.EvaluationDataNumber() == b.TCBEvaluationDataNumber {
		t.Errorf("the lower of %d and %d is not %d", b.TCBEvaluationDataNumber, b.QEEvaluationDataNumber, b.EvaluationDataNumber())
	}
}
