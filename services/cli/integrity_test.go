package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/integrity/replay"
)

// integrityVectors is where the vectors of real machines are; the test is skipped without.
func integrityVectors(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "eventlog")); err != nil {
		t.Skipf("skipped: no vectors at %s; set SAFECONDUCT_VECTORS", dir)
	}
	return dir
}

// do runs the command line and returns what it printed and its exit code.
func do(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), args, Env{
		Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) },
	})
	return out.String(), errs.String(), code
}

func TestEveryBootLogOfARealMachineReplays(t *testing.T) {
	logs, err := filepath.Glob(filepath.Join(integrityVectors(t), "eventlog", "*.bin"))
	if err != nil || len(logs) == 0 {
		t.Fatal(err, logs)
	}
	for _, log := range logs {
		args := []string{"integrity", "replay", "--eventlog", log, "--pcrs", log + ".pcrs.json", "-o", "json"}
		sha1Only := strings.Contains(log, "debian-10")
		if sha1Only {
			if _, _, code := do(t, args...); code != ExitRefused {
				t.Errorf("%s: a log without SHA-256 exits %d", log, code)
			}
			args = append(args, "--allow-sha1")
		}
		out, errs, code := do(t, args...)
		var r replay.Result
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != ExitOK || !r.OK || len(r.Problems) != 0 {
			t.Errorf("%s: exit %d, %v, %s %v", filepath.Base(log), code, err, errs, r.Problems)
		}
		for bank, compared := range r.Compared {
			if len(compared.Mismatched) != 0 || len(compared.Matched) == 0 {
				t.Errorf("%s, %s: %+v", filepath.Base(log), bank, compared)
			}
		}
	}
}

func TestEveryIMAListOfARealMachineReplays(t *testing.T) {
	dir := filepath.Join(integrityVectors(t), "ima")
	raw, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob(filepath.Join(dir, "*measurements"))
	if err != nil {
		t.Fatal(err)
	}
	more, _ := filepath.Glob(filepath.Join(dir, "*.ascii"))
	for _, list := range append(lists, more...) {
		out, errs, code := do(t, "integrity", "replay", "--ima", list, "-o", "json")
		var r replay.Result
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != ExitOK && code != ExitRefused {
			t.Fatalf("%s: exit %d, %v, %s", filepath.Base(list), code, err, errs)
		}
		// expected.json has the replayed value of PCR 10 of each bank among its values.
		for _, bank := range []string{"sha1", "sha256"} {
			if value := r.Banks[bank][10]; value == "" || !bytes.Contains(raw, []byte(value)) {
				t.Errorf("%s: PCR 10 of %s is %s, which expected.json does not have", filepath.Base(list), bank, value)
			}
		}
	}
}

const logFile = `{"measured_at":"2026-11-23T12:00:00Z","log":{"version":1,"host":"compute1","measured_at":"2026-11-23T12:00:00Z","entries":[
 {"name":"vmm/qemu","path":"/usr/bin/qemu","digest_algorithm":"sha256","digest":"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=","provenance":"PROVENANCE_ENCLAVE_READ","size":"5"}]}}`

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReferenceValuesFromAGoldenHostToARolledPolicy(t *testing.T) {
	golden := write(t, "golden.json", logFile)
	upgraded := write(t, "upgraded.json", strings.Replace(logFile, "QUFB", "QkJC", 1))
	generate := func(log string) string {
		t.Helper()
		out := filepath.Join(t.TempDir(), "refs.json")
		if _, errs, code := do(t, "integrity", "policy", "generate", "--out", out, log); code != ExitOK {
			t.Fatalf("exit %d: %s", code, errs)
		}
		return out
	}
	old, next := generate(golden), generate(upgraded)
	if _, errs, code := do(t, "integrity", "appraise", "--policy", old, golden); code != ExitOK {
		t.Errorf("the golden host: exit %d: %s", code, errs)
	}
	out, _, code := do(t, "integrity", "appraise", "--policy", old, upgraded, "-o", "json")
	if code != ExitRefused || !strings.Contains(out, `"item": "vmm/qemu"`) || !strings.Contains(out, `"kind": "digest"`) {
		t.Errorf("the upgraded host: exit %d: %s", code, out)
	}
	out, _, code = do(t, "integrity", "policy", "diff", old, next)
	if code != ExitOK || !strings.Contains(out, "no longer accepts") || strings.Count(out, "vmm/qemu") != 2 {
		t.Errorf("diff: exit %d: %s", code, out)
	}
	both := filepath.Join(t.TempDir(), "both.json")
	if _, errs, code := do(t, "integrity", "policy", "roll", "--until", "2026-12-01T00:00:00Z", "--out", both, old, next); code != ExitOK {
		t.Fatalf("roll: exit %d: %s", code, errs)
	}
	for _, log := range []string{golden, upgraded} {
		if out, errs, code := do(t, "integrity", "appraise", "--policy", both, log); code != ExitOK {
			t.Errorf("within the window: exit %d: %s %s", code, out, errs)
		}
	}
	if _, _, code := do(t, "integrity", "policy", "roll", "--until", "2026-11-01T00:00:00Z", old, next); code != ExitUsage {
		t.Errorf("a window that is over: exit %d", code)
	}
}

func TestFilesThatAreNoLogs(t *testing.T) {
	for name, args := range map[string][]string{
		"no log":         {"integrity", "appraise", "--policy", write(t, "x", "{}"), write(t, "y", "{}")},
		"no reference":   {"integrity", "appraise", "--policy", write(t, "x", "[]"), write(t, "y", logFile)},
		"nothing there":  {"integrity", "replay", "--eventlog", "/nowhere"},
		"neither":        {"integrity", "replay"},
		"both":           {"integrity", "replay", "--eventlog", "a", "--ima", "b"},
		"bad PCR values": {"integrity", "replay", "--eventlog", "/dev/null", "--pcrs", write(t, "p", "x")},
	} {
		if _, errs, code := do(t, args...); code != ExitUsage || errs == "" {
			t.Errorf("%s: exit %d: %s", name, code, errs)
		}
	}
}
