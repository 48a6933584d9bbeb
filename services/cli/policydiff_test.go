package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const basePolicy = `{"schema": "safeconduct/policy/v1", "policy_svn": 7, "mode": "simulated",
 "enclaves": [{"name": "1.0", "mrenclave": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],
 "tcb": {"statuses": ["UpToDate"], "min_evaluation_data_number": 17},
 "platforms": [{"host": "compute1", "platform_id": "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"},
               {"host": "compute2", "platform_id": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}],
 "integrity": {"boot": {"required": true}}}`

func TestADiffOfPoliciesSaysWhatIsAcceptedMoreOrLess(t *testing.T) {
	for name, tc := range map[string]struct{ from, to, path, effect string }{
		"another enclave": {`"enclaves": [`, `"enclaves": [{"name": "1.1", "mrenclave": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}, `,
			"enclaves[bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb].mrenclave", acceptsMore},
		"an end for an enclave": {`"name": "1.0"`, `"name": "1.0", "not_after": "2027-01-01T00:00:00Z"`,
			"enclaves[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa].not_after", acceptsLess},
		"a debug enclave": {`"name": "1.0"`, `"name": "1.0", "debug": true`,
			"enclaves[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa].debug", acceptsMore},
		"a status":              {`["UpToDate"]`, `["UpToDate", "SWHardeningNeeded"]`, "tcb.statuses[SWHardeningNeeded]", acceptsMore},
		"a higher minimum":      {`17`, `19`, "tcb.min_evaluation_data_number", acceptsLess},
		"no minimum":            {`, "min_evaluation_data_number": 17`, ``, "tcb.min_evaluation_data_number", acceptsMore},
		"no boot log":           {`"boot": {"required": true}`, `"boot": {"required": false}`, "integrity.boot.required", acceptsMore},
		"a key that leaves":     {`"tcb"`, `"exported_keys": ["tunnel"], "tcb"`, "exported_keys[tunnel]", acceptsMore},
		"no enrolment":          {`"tcb"`, `"enrolment": "none", "tcb"`, "enrolment", acceptsMore},
		"saves that are sealed": {`"tcb"`, `"local_save": "seal", "tcb"`, "local_save", acceptsMore},
		"a file's reference value": {`"integrity": {`, `"integrity": {"files": {"x": {"sha256": ["eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"]}}, `,
			"integrity.files.x.sha256[eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee]", acceptsMore},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(basePolicy, tc.from) {
				t.Fatal("the base has no such text")
			}
			dir := t.TempDir()
			before, after := filepath.Join(dir, "a"), filepath.Join(dir, "b")
			for path, text := range map[string]string{before: basePolicy, after: strings.Replace(basePolicy, tc.from, tc.to, 1)} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, way := range [][2]string{{before, after}, {after, before}} {
				out, errs, code := do(t, "policy", "diff", way[0], way[1], "-o", "json")
				var v policyDiffView
				if err := json.Unmarshal([]byte(out), &v); err != nil || code != ExitRefused {
					t.Fatalf("exit %d, %v, %s", code, err, errs)
				}
				want := tc.effect
				if way[0] == after { // backwards, the opposite
					want = map[string]string{acceptsMore: acceptsLess, acceptsLess: acceptsMore}[want]
				}
				found := false
				for _, c := range v.Changes {
					if c.Path == tc.path {
						found = true
						if c.Effect != want {
							t.Errorf("%+v, expected %s", c, want)
						}
					}
				}
				if !found {
					t.Errorf("no change of %s in %+v", tc.path, v.Changes)
				}
			}
			if _, _, code := do(t, "policy", "diff", before, before); code != ExitOK {
				t.Errorf("a policy differs from itself: exit %d", code)
			}
		})
	}
}
