package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/safeconduct/safeconduct/attestation/policy"
)

// vectorsDir is where the vectors of real hardware are; they are not part of the project.
func vectorsDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(abs, "quotes")); err != nil {
		t.Skipf("the vectors of real hardware are not at %s: set SAFECONDUCT_VECTORS to run this test", dir)
	}
	return abs
}

func vectors(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(vectorsDir(t), "quotes", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	return dirs
}

func expectedOf(t *testing.T, dir string) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	return want
}

// verifyArgs are the arguments that verify a vector at its own moment.
func verifyArgs(dir string, want map[string]any, more ...string) []string {
	return append([]string{"quote", "verify", "--collateral", dir, "--at", want["verify_at"].(string), "-o", "json", filepath.Join(dir,
		"quote.bin")}, more...)
}

func TestEveryFieldOfEveryVectorIsPrintedAsItIsExpected(t *testing.T) {
	for _, dir := range vectors(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			want := expectedOf(t, dir)
			r := run(t, verifyArgs(dir, want)...).exits(t, ExitRefused)
			got := decode[map[string]any](t, r.out)
			for field, value := range want {
				if field == "origin" || field == "note" { // remarks about the vector
					continue
				}
				if found, there := got[field]; !there || fmt.Sprint(found) != fmt.Sprint(value) {
					t.Errorf("%s: got %v, want %v", field, found, value)
				}
			}
			if got["verdict"] != refused || got["mode"] != "intel" || got["warning"] != nil {
				t.Errorf("got %v, %v, %v", got["verdict"], got["mode"], got["warning"])
			}
		})
	}
}

// acceptingPolicy accepts the very enclave of a vector in the state that its platform is in.
func acceptingPolicy(t *testing.T, want map[string]any) []byte {
	t.Helper()
	var mr policy.Hex
	if err := mr.UnmarshalText([]byte(text(want["mrenclave"], strings.Repeat("00", 32)))); err != nil {
		t.Fatal(err)
	}
	p := policy.Policy{Schema: policy.Schema, SVN: 1, Mode: "intel", Enclaves: []policy.Enclave{{MREnclave: mr,
		Debug: want["debug"] == true}}, Platforms: []policy.Platform{}}
	if status := want["converged_status"].(string); status != "UNSUPPORTED" {
		p.TCB.Statuses = []string{status}
	}
	ids, _ := want["advisory_ids"].([]any)
	for _, id := range ids {
		p.TCB.ToleratedAdvisories = append(p.TCB.ToleratedAdvisories, id.(string))
	}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Parse(raw); err != nil {
		t.Fatal(err)
	}
	return raw
}

func text(v any, other string) string {
	if s, ok := v.(string); ok {
		return s
	}
	return other
}

// One script for each vector, run as a user runs it: the exit codes are the program's own.
func TestTheExitCodeOnEveryVector(t *testing.T) {
	root := vectorsDir(t)
	var scripts []string
	dir := t.TempDir()
	write := func(name string, lines []string, files map[string]string) {
		body := strings.Join(lines, "\n") + "\n"
		for file, content := range files {
			body += "-- " + file + " --\n" + strings.TrimSuffix(content, "\n") + "\n"
		}
		path := filepath.Join(dir, name+".txtar")
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		scripts = append(scripts, path)
	}
	for _, v := range vectors(t) {
		want := expectedOf(t, v)
		verify := fmt.Sprintf("safeconduct quote verify --collateral %s --at %s %s/quote.bin", v, want["verify_at"], v)
		code := 0
		if want["tee_type"].(float64) != 0 {
			code = 1 // a TD is verified and never accepted
		}
		lines := []string{
			"exits 1 " + verify, "stdout 'POLICY_REFUSED'",
			fmt.Sprintf("exits %d %s --policy accept.json --unsigned-policy", code, verify),
			"exits 1 " + verify + " --policy strict.json --unsigned-policy", "stdout 'MEASUREMENT_NOT_ALLOWED|POLICY_REFUSED'",
			"exits 1 " + verify + " --policy simulated.json --unsigned-policy", "stdout 'MODE_MISMATCH'",
			"exits 2 " + verify + " --at 2020-01-01T00:00:00Z --policy accept.json --unsigned-policy", "stdout 'NOT AUTHENTIC'",
			"exits 2 " + verify + " --at 2040-01-01T00:00:00Z", "exits 3 " + verify + " --policy accept.json",
		}
		accept := string(acceptingPolicy(t, want))
		write(filepath.Base(v), lines, map[string]string{
			"accept.json": accept, "simulated.json": strings.Replace(accept, `"intel"`, `"simulated"`, 1),
			"strict.json": `{"schema": "safeconduct/policy/v1", "policy_svn": 1, "mode": "intel", "enclaves": [], "tcb": {}, "platforms": [], "integrity": {}}`,
		})
	}
	negative, err := filepath.Glob(filepath.Join(root, "quotes-negative", "*"))
	if err != nil || len(negative) == 0 {
		t.Fatalf("no negative vectors: %v", err)
	}
	first := vectors(t)[0]
	at := expectedOf(t, first)["verify_at"]
	for _, q := range negative {
		write("negative-"+filepath.Base(q), []string{
			fmt.Sprintf("exits 2 safeconduct quote verify --collateral %s --at %s %s", first, at, q), "stdout 'NOT AUTHENTIC'",
			"! stdout mrenclave",
		}, nil)
	}
	roots, err := filepath.Glob(filepath.Join(root, "roots-negative", "*"))
	if err != nil || len(roots) == 0 {
		t.Fatalf("no negative roots: %v", err)
	}
	for _, r := range roots {
		der, err := os.ReadFile(r)
		if err != nil {
			t.Fatal(err)
		}
		write("root-"+filepath.Base(r), []string{
			fmt.Sprintf("exits 2 safeconduct quote verify --collateral %s --at %s --root root.pem %s/quote.bin", first, at, first),
			"stdout 'pinned root'", "stdout SIMULATED",
		}, map[string]string{"root.pem": certificatePEM(der)})
	}
	write("root-intel", []string{ // Intel's own root, named, is no simulation
		fmt.Sprintf("exits 1 safeconduct quote verify --collateral %s --at %s --root %s/intel_sgx_root_ca.pem %s/quote.bin", first, at, root,
			first), "! stdout SIMULATED",
	}, nil)
	testscript.Run(t, testscript.Params{Files: scripts, Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits}})
}

// exits runs a program that must end with the code that is its first argument.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
