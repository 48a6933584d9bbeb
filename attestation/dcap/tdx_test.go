package dcap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/quote"
)

// tdxInfo is TCB info of TDX with one level: SGX components 1, TDX components as given, PCESVN 5.
func tdxInfo(tdx string) string {
	components := func(svns string) string {
		var c []string
		for _, svn := range strings.Fields(svns) {
			c = append(c, `{"svn":`+svn+`}`)
		}
		return "[" + strings.Join(c, ",") + "]"
	}
	const module = `"mrsigner":"` + zeros48 + `","attributes":"0000000000000000","attributesMask":"FFFFFFFFFFFFFFFF"`
	return fmt.Sprintf(`{"id":"TDX","version":3,"issueDate":"2026-11-01T00:00:00Z","nextUpdate":"2026-12-01T00:00:00Z","fmspc":"000000000000",
		"pceId":"0000","tcbType":0,"tcbEvaluationDataNumber":1,"tdxModule":{%s},"tdxModuleIdentities":[
		{"id":"TDX_03",%s,"tcbLevels":[{"tcb":{"isvsvn":3},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"UpToDate"}]},
		{"id":"TDX_01",%s,"tcbLevels":[
			{"tcb":{"isvsvn":6},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"UpToDate"},
			{"tcb":{"isvsvn":4},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"OutOfDate","advisoryIDs":["A"]}]}],
		"tcbLevels":[{"tcb":{"sgxtcbcomponents":%s,"tdxtcbcomponents":%s,"pcesvn":5},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"UpToDate"}]}`,
		module, module, module, components("1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"), components(tdx))
}

const zeros48 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

func td(svn ...byte) *quote.TDXReport {
	r := new(quote.TDXReport)
	copy(r.TEETCBSVN[:], svn)
	return r
}

func TestATDXLevelIsReachedByTheTDXComponentsToo(t *testing.T) {
	info, err := parseTCBInfo([]byte(tdxInfo("5 0 7 0 0 0 0 0 0 0 0 0 0 0 0 2")))
	if err != nil {
		t.Fatal(err)
	}
	ones := [16]uint8{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}
	for name, tc := range map[string]struct {
		td  *quote.TDXReport
		sgx [16]uint8
		pce uint16
		ok  bool
	}{
		"everything reached":                          {td(5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), ones, 5, true},
		"a module without version, its SVN too low":   {td(4, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), ones, 5, false},
		"a module with a version, judged by its own":  {td(4, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), ones, 5, true},
		"a component too low":                         {td(5, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), ones, 5, false},
		"the last component too low":                  {td(5, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), ones, 5, false},
		"an SGX component too low":                    {td(5, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), [16]uint8{}, 5, false},
		"the PCE too old":                             {td(5, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), ones, 4, false},
		"no TD, so that its components do not matter": {nil, ones, 5, true},
	} {
		if got := info.match(&PCK{ComponentSVNs: tc.sgx, PCESVN: tc.pce}, tc.td); (got != nil) != tc.ok {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestATDXModuleIsJudgedByTheIdentityOfItsVersion(t *testing.T) {
	info, err := parseTCBInfo([]byte(tdxInfo(strings.Repeat("0 ", 16))))
	if err != nil {
		t.Fatal(err)
	}
	foreign := td(6, 1)
	foreign.MRSignerSeam[47] = 1
	odd := td(6, 1)
	odd.SeamAttributes[0] = 1
	foreignUnversioned := td(6, 0)
	foreignUnversioned.MRSignerSeam[0] = 1
	for name, tc := range map[string]struct {
		td     *quote.TDXReport
		status Status
		check  Check
		on     Artefact
	}{
		"its best level":             {td(6, 1), UpToDate, "", ""},
		"above its best level":       {td(9, 1), UpToDate, "", ""},
		"a lower level":              {td(5, 1), OutOfDate, "", ""},
		"below every level":          {td(3, 1), Unsupported, "", ""},
		"another version":            {td(3, 3), UpToDate, "", ""},
		"no version":                 {td(3, 0), "", "", ""},
		"a version without identity": {td(9, 2), "", CheckTDXModule, ArtefactTCBInfo},
		"another signer":             {foreign, "", CheckTDXModule, ArtefactQuote},
		"other attributes":           {odd, "", CheckTDXModule, ArtefactQuote},
		"another signer, no version": {foreignUnversioned, "", CheckTDXModule, ArtefactQuote},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := info.moduleStatus(tc.td)
			if tc.check != "" {
				refused(t, err, tc.check, tc.on)
			} else if err != nil || got.Status != tc.status {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestTCBInfoOfTDXIsCheckedWhole(t *testing.T) {
	good := tdxInfo(strings.Repeat("0 ", 16))
	for name, tc := range map[string]struct{ from, to string }{
		"15 TDX components":     {`"tdxtcbcomponents":[{"svn":0},`, `"tdxtcbcomponents":[`},
		"no TDX components":     {`"tdxtcbcomponents"`, `"x"`},
		"a short module signer": {`"tdxModule":{"mrsigner":"00`, `"tdxModule":{"mrsigner":"`},
		"no module":             {`"tdxModule":`, `"x":`},
		"an identity that is null": {`[
		{"id":"TDX_03"`, `[null,{"id":"TDX_03"`},
		"an identity without levels":  {`"tcbLevels":[{"tcb":{"isvsvn":3}`, `"x":[{"tcb":{"isvsvn":3}`},
		"an identity level of no SVN": {`{"isvsvn":6}`, `{}`},
	} {
		bad := strings.Replace(good, tc.from, tc.to, 1)
		if bad == good {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := parseTCBInfo([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAModuleOutOfDateMakesThePlatformSo(t *testing.T) {
	r := new(Result)
	r.setStatus(part{Status: ConfigurationNeeded, Advisories: []string{"P"}}, part{Status: UpToDate}, part{Status: OutOfDate, Advisories: []string{"M", "P"}})
	if r.Status != OutOfDateConfigurationNeeded || r.ModuleStatus != OutOfDate || strings.Join(r.AdvisoryIDs, " ") != "P M" {
		t.Errorf("got %+v", r)
	}
}

func TestAModuleBelowEveryLevelMakesThePlatformUnsupported(t *testing.T) {
	for _, platform := range []Status{UpToDate, SWHardeningNeeded, OutOfDate} {
		r := new(Result)
		r.setStatus(part{Status: platform}, part{Status: UpToDate}, part{Status: Unsupported})
		if r.Status != Unsupported || r.PlatformStatus != platform {
			t.Errorf("%s: got %+v", platform, r)
		}
	}
}
