package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

var (
	d32  = strings.Repeat("ab", 32)
	good = `{
  "schema": "safeconduct/policy/v1", "policy_svn": 3, "mode": "simulated",
  "enclaves": [{"name": "release 1", "mrenclave": "` + d32 + `", "not_before": "2026-11-01T00:00:00Z"},
               {"mrsigner": "` + d32 + `", "isv_prod_id": 1, "min_isv_svn": 2, "debug": true}],
  "tcb": {"statuses": ["UpToDate", "SWHardeningNeeded"], "tolerated_advisories": ["INTEL-SA-00615"], "min_evaluation_data_number": 17,
          "min_pck_crl_number": 2, "min_root_ca_crl_number": 3, "max_collateral_age": "720h"},
  "platforms": [{"host": "compute1", "platform_id": "` + d32 + `", "tpm_key": "0011"}],
  "integrity": {"files": {"vmm/qemu": {"sha256": ["` + d32 + `"]}}, "pcrs": {"0": ["` + d32 + `"]}, "tpm": {}}
}`
)

func TestAGoodPolicyIsRead(t *testing.T) {
	p, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if p.SVN != 3 || len(p.Enclaves) != 2 || p.Enclaves[1].MinISVSVN != 2 || !p.Enclaves[1].Debug || p.TCB.MinEvaluationDataNumber != 17 {
		t.Errorf("read %+v", p.Policy)
	}
	if !p.Enclaves[0].NotBefore.Equal(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("not_before %v", p.Enclaves[0].NotBefore)
	}
	if pl, ok := p.Enrolled("compute1"); !ok || len(pl.TPMKey) != 2 {
		t.Errorf("enrolled %+v", pl)
	}
	if _, ok := p.Enrolled("compute2"); ok {
		t.Error("a host that is not listed is enrolled")
	}
	if !p.AcceptsStatus("SWHardeningNeeded") || p.AcceptsStatus("OutOfDate") {
		t.Error("statuses are not as listed")
	}
}

func TestThePolicyIsIdentifiedByItsExactBytes(t *testing.T) {
	a, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(good + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest == b.Digest {
		t.Error("two files have one digest")
	}
}

func TestTheZeroPolicyAcceptsOnlyUpToDateOfNobody(t *testing.T) {
	var p Policy
	if !p.AcceptsStatus("UpToDate") || p.AcceptsStatus("SWHardeningNeeded") || p.AcceptsStatus("") || len(p.Enclaves) != 0 {
		t.Error("the zero policy is not the strict one")
	}
}

func TestABadPolicyIsRefusedWithTheKey(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"an unknown key":                 {`"tcb":`, `"tbc":`, `unknown field "tbc"`},
		"an unknown key further down":    {`"isv_prod_id"`, `"isv_prodid"`, `unknown field "isv_prodid"`},
		"a key given twice":              {`"policy_svn": 3`, `"policy_svn": 3, "policy_svn": 4`, `"policy_svn" is given twice`},
		"a key given in two spellings":   {`"policy_svn": 3`, `"policy_svn": 3, "Policy_SVN": 4`, `"Policy_SVN" is given twice`},
		"a nested key given twice":       {`"host": "compute1"`, `"host": "compute1", "host": "x"`, `"platforms.host" is given twice`},
		"a second document":              {"\n}", "\n} {}", "something follows"},
		"another schema":                 {"policy/v1", "policy/v2", `schema is "safeconduct/policy/v2"`},
		"no version number":              {`"policy_svn": 3`, `"policy_svn": 0`, "policy_svn is missing"},
		"no mode":                        {`"simulated"`, `""`, `mode is ""`},
		"upper-case hex":                 {`"mrsigner": "ab`, `"mrsigner": "AB`, "not lower-case hex"},
		"a short measurement":            {`"mrenclave": "ab`, `"mrenclave": "`, "mrenclave has 31 bytes"},
		"a rule that names nothing":      {`"mrenclave": "` + d32 + `",`, ``, "neither mrenclave nor mrsigner"},
		"a window that never opens":      {`"not_before": "2026-11-01T00:00:00Z"`, `"not_before": "2026-11-01T00:00:00Z", "not_after": "2026-11-01T00:00:00Z"`, "not_after is not after"},
		"a status that does not exist":   {`"SWHardeningNeeded"`, `"Fine"`, `"Fine" is not one of`},
		"revoked as an accepted status":  {`"SWHardeningNeeded"`, `"Revoked"`, `"Revoked" is not one of`},
		"a negative age":                 {`"720h"`, `"-1h"`, "is not a duration"},
		"an age without a unit":          {`"720h"`, `"30"`, "is not a duration"},
		"a key that is never exported":   {`"platforms"`, `"exported_keys": ["state"], "platforms"`, `exported_keys[0] is "state"`},
		"an unknown enrolment":           {`"platforms"`, `"enrolment": "maybe", "platforms"`, `enrolment is "maybe"`},
		"a host enrolled twice":          {`"tpm_key": "0011"}`, `"tpm_key": "0011"}, {"host": "compute1", "platform_id": "` + strings.Repeat("cd", 32) + `"}`, "host compute1 is listed twice"},
		"a platform under two names":     {`"tpm_key": "0011"}`, `"tpm_key": "0011"}, {"host": "compute2", "platform_id": "` + d32 + `"}`, "platform_id is listed twice"},
		"a short platform id":            {`"platform_id": "ab`, `"platform_id": "`, "platform_id has 31 bytes"},
		"a reference value of no length": {`"sha256": ["` + d32 + `"]`, `"sha256": ["` + d32[2:] + `"]`, "digest"},
		"not JSON":                       {`"schema"`, `schema`, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, tc.old) {
				t.Fatalf("the example has no %q", tc.old)
			}
			_, err := Parse([]byte(strings.Replace(good, tc.old, tc.new, 1)))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := Parse([]byte(strings.Repeat("[", 1<<20))); err == nil || !strings.Contains(err.Error(), "deep") {
		t.Errorf("deep nesting: %v", err)
	}
	if _, err := Parse(make([]byte, MaxSize+1)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an oversized file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"schema":"safeconduct/policy/v1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(p.Policy)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("an accepted policy does not survive being written: %v\n%s", err, again)
		}
	})
}
