package cli

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// quoteRig is a simulated platform, its collateral, a quote, and a policy that accepts it.
type quoteRig struct {
	dir, collateral, root, quote, keys string
	authority                          *simulated.Authority
	platform                           *simulated.Platform
	policy                             policy.Policy
	signer                             ed25519.PrivateKey
}

func put(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newQuoteRig(t *testing.T, m simulated.Measurement) *quoteRig {
	t.Helper()
	dir := t.TempDir()
	r := &quoteRig{dir: dir, collateral: filepath.Join(dir, "authority")}
	r.root = filepath.Join(r.collateral, simulated.RootFile)
	var err error
	issued := noon.Add(-time.Hour)
	if r.authority, err = simulated.CreateAuthority(r.collateral, simulated.AuthorityOptions{At: issued}); err != nil {
		t.Fatal(err)
	}
	ppid := [16]byte{7}
	if err := r.authority.CreatePlatform(filepath.Join(dir, "platform"), simulated.PlatformOptions{PPID: ppid, At: issued}); err != nil {
		t.Fatal(err)
	}
	if r.platform, err = simulated.Open(filepath.Join(dir, "platform"), m); err != nil {
		t.Fatal(err)
	}
	if err := r.authority.WriteCollateral(r.collateral, simulated.CollateralOptions{At: issued}); err != nil {
		t.Fatal(err)
	}
	raw, err := r.platform.Quote(t.Context(), [64]byte{0xda, 0x7a})
	if err != nil {
		t.Fatal(err)
	}
	r.quote = put(t, dir, "quote.bin", raw)
	id := handshake.PlatformID(ppid, nil)
	r.policy = policy.Policy{Schema: policy.Schema, SVN: 3, Mode: tee.ModeSimulated, Enclaves: []policy.Enclave{{MREnclave: m.MREnclave[:]}},
		Platforms: []policy.Platform{{Host: "compute1", PlatformID: id[:]}}}
	public, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	r.signer, r.keys = signer, put(t, dir, "keys.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return r
}

// signed writes the policy, changed, in an envelope.
func (r *quoteRig) signed(t *testing.T, change func(*policy.Policy)) string {
	t.Helper()
	p := r.policy
	if change != nil {
		change(&p)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := policy.Sign(raw, r.signer)
	if err != nil {
		t.Fatal(err)
	}
	return put(t, r.dir, "policy.json", envelope)
}

func (r *quoteRig) verify(t *testing.T, args ...string) (result, map[string]any) {
	t.Helper()
	base := []string{"quote", "verify", "--collateral", r.collateral, "--root", r.root, "-o", "json", r.quote}
	got := run(t, append(base, args...)...)
	return got, decode[map[string]any](t, got.out)
}

func measurementOf() simulated.Measurement {
	return simulated.Measurement{MREnclave: [32]byte{0xee}, MRSigner: [32]byte{0x55}, ISVProdID: 1, ISVSVN: 2}
}

func TestAQuoteIsAcceptedOnlyByAPolicyThatSaysSo(t *testing.T) {
	r := newQuoteRig(t, measurementOf())
	bound := hex.EncodeToString(append([]byte{0xda, 0x7a}, make([]byte, 62)...))
	for name, c := range map[string]struct {
		change func(*policy.Policy)
		args   []string
		code   int
		reason string
	}{
		"by its measurement":             {nil, nil, ExitOK, ""},
		"as the enrolled host":           {nil, []string{"--host", "compute1"}, ExitOK, ""},
		"bound to the report data":       {nil, []string{"--report-data", bound}, ExitOK, ""},
		"not as another host":            {nil, []string{"--host", "compute2"}, ExitRefused, "PLATFORM_NOT_ENROLLED"},
		"not bound to something else":    {nil, []string{"--report-data", strings.Repeat("00", 64)}, ExitRefused, "QUOTE_NOT_BOUND"},
		"not by a policy of no enclaves": {func(p *policy.Policy) { p.Enclaves = nil }, nil, ExitRefused, "MEASUREMENT_NOT_ALLOWED"},
		"not by a policy for Intel":      {func(p *policy.Policy) { p.Mode = tee.ModeIntel }, nil, ExitRefused, "MODE_MISMATCH"},
		"not by a policy of a later TCB": {func(p *policy.Policy) { p.TCB.MinEvaluationDataNumber = 99 }, nil, ExitRefused,
			"COLLATERAL_INVALID"},
		"not by a policy of later CRLs": {func(p *policy.Policy) { p.TCB.MinPCKCRLNumber, p.TCB.MinRootCACRLNumber = 9, 9 }, nil,
			ExitRefused, "COLLATERAL_INVALID"},
		"not by a policy of another TCB": {func(p *policy.Policy) { p.TCB.Statuses = []string{"OutOfDate"} }, nil, ExitRefused,
			"TCB_NOT_ACCEPTED"},
		"not when it is judged too late":  {nil, []string{"--at", "2099-01-01T00:00:00Z"}, ExitNotAuthentic, ""},
		"not when it is judged too early": {nil, []string{"--at", "2026-11-23T10:59:59Z"}, ExitNotAuthentic, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, doc := r.verify(t, append(c.args, "--policy", r.signed(t, c.change), "--policy-keys", r.keys)...)
			got.exits(t, c.code)
			if c.reason != "" && !strings.Contains(got.out, `"reason": "`+c.reason+`"`) {
				t.Errorf("no %s in %s", c.reason, got.out)
			}
			if doc["accepted"] != (c.code == ExitOK) || doc["mode"] != "simulated" || !strings.HasPrefix(text(doc["warning"], ""), "SIMULATED") {
				t.Errorf("accepted %v, mode %v, warning %v", doc["accepted"], doc["mode"], doc["warning"])
			}
			if (doc["mrenclave"] == nil) != (c.code == ExitNotAuthentic) {
				t.Errorf("mrenclave %v: a quote that is not authentic has no facts", doc["mrenclave"])
			}
		})
	}
}

func TestEveryWayToGiveAPolicyBadlyIsAUsageError(t *testing.T) {
	r := newQuoteRig(t, measurementOf())
	signed := r.signed(t, nil)
	bare, err := json.Marshal(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := put(t, r.dir, "bare.json", bare)
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"a signed policy with its keys":          {[]string{"--policy", signed, "--policy-keys", r.keys}, ExitOK},
		"a bare policy, said to be one":          {[]string{"--policy", unsigned, "--unsigned-policy"}, ExitOK},
		"a bare policy where a signed is due":    {[]string{"--policy", unsigned, "--policy-keys", r.keys}, ExitUsage},
		"a signed policy said to be bare":        {[]string{"--policy", signed, "--unsigned-policy"}, ExitUsage},
		"a policy without a word on signatures":  {[]string{"--policy", signed}, ExitUsage},
		"keys without a policy":                  {[]string{"--policy-keys", r.keys}, ExitUsage},
		"--unsigned-policy without a policy":     {[]string{"--unsigned-policy"}, ExitUsage},
		"both keys and --unsigned-policy":        {[]string{"--policy", signed, "--policy-keys", r.keys, "--unsigned-policy"}, ExitUsage},
		"keys that are no keys":                  {[]string{"--policy", signed, "--policy-keys", r.root}, ExitUsage},
		"a policy that is not there":             {[]string{"--policy", signed + ".absent", "--policy-keys", r.keys}, ExitUsage},
		"report data of the wrong length":        {[]string{"--report-data", "abcd"}, ExitUsage},
		"report data that is no hex":             {[]string{"--report-data", strings.Repeat("zz", 64)}, ExitUsage},
		"a root that is no certificate":          {[]string{"--root", r.keys}, ExitUsage},
		"no policy at all, which accepts nobody": {nil, ExitRefused},
	} {
		if got, _ := r.verify(t, c.args...); got.code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s", name, got.code, c.code, got.err)
		}
	}
}

func TestAQuoteOfNoKnownRootIsNotAuthentic(t *testing.T) {
	r := newQuoteRig(t, measurementOf())
	signed := r.signed(t, nil)
	got := run(t, "quote", "verify", "--collateral", r.collateral, "--policy", signed, "--policy-keys", r.keys, r.quote).exits(t,
		ExitNotAuthentic)
	if !strings.Contains(got.out, "pinned root") || strings.Contains(got.out, "SIMULATED:") {
		t.Errorf("got %s", got.out)
	}
}

func TestARevokedPlatformIsNotAuthentic(t *testing.T) {
	r := newQuoteRig(t, measurementOf())
	if err := r.authority.WriteCollateral(r.collateral, simulated.CollateralOptions{At: noon.Add(-time.Hour),
		RevokedPCKs: []*big.Int{r.platform.PCKSerial()}}); err != nil {
		t.Fatal(err)
	}
	got, _ := r.verify(t, "--policy", r.signed(t, nil), "--policy-keys", r.keys)
	got.exits(t, ExitNotAuthentic)
	if !strings.Contains(got.out, "CERTIFICATE_REVOKED") {
		t.Errorf("got %s", got.out)
	}
}

func TestADebugEnclaveIsShownAsOneAndAcceptedByNameOnly(t *testing.T) {
	m := measurementOf()
	m.Debug = true
	r := newQuoteRig(t, m)
	keys := []string{"--policy-keys", r.keys, "--policy"}
	got, _ := r.verify(t, append(keys, r.signed(t, nil))...)
	got.exits(t, ExitRefused)
	if !strings.Contains(got.out, "DEBUG_ENCLAVE") {
		t.Errorf("got %s", got.out)
	}
	got, doc := r.verify(t, append(keys, r.signed(t, func(p *policy.Policy) {
		p.Enclaves = []policy.Enclave{{MREnclave: m.MREnclave[:],
			Debug: true}}
	}))...)
	got.exits(t, ExitOK)
	if doc["debug"] != true {
		t.Errorf("debug %v", doc["debug"])
	}
	table := run(t, "quote", "verify", "--collateral", r.collateral, "--root", r.root, r.quote).exits(t, ExitRefused)
	if !strings.Contains(table.out, "debug          YES") {
		t.Errorf("got %s", table.out)
	}
}

func TestAnOversizedQuoteIsNotRead(t *testing.T) {
	r := newQuoteRig(t, measurementOf())
	r.quote = put(t, r.dir, "large.bin", make([]byte, 1<<20))
	got, _ := r.verify(t)
	if got.exits(t, ExitUsage); !strings.Contains(got.err, "more than 65536 bytes") {
		t.Errorf("got %s", got.err)
	}
}
