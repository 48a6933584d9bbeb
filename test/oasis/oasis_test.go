// Package oasis holds package dcap against an independent verifier of SGX and TDX quotes, that of oasis-core. It is a module of its own, so
// that what oasis-core needs is not what Safeconduct needs:
//
//	cd test/oasis && go test ./...
//
// Where the two differ by design, the difference is a test too: oasis-core's verifier fetches no CRL and compares no PCEID, takes
// collateral to be valid for a number of days and not until its nextUpdate, and gives no verdict on what it does not accept but the status.
package oasis

import (
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/oasisprotocol/oasis-core/go/common/sgx/pcs"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// theirs is oasis-core's verdict. It keeps its roots and whether debug enclaves are allowed in variables of its package: the tests here do
// not run in parallel.
func theirs(t *testing.T, quote []byte, c *collateral.Collateral, at time.Time, debug bool) error {
	t.Helper()
	if debug {
		pcs.SetAllowDebugEnclaves()
		defer pcs.UnsetAllowDebugEnclaves()
	}
	bundle := pcs.QuoteBundle{Quote: quote, TCB: pcs.TCBBundle{Certificates: c.TCBSigningChain}}
	if err := json.Unmarshal(c.TCBInfo, &bundle.TCB.TCBInfo); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(c.QEIdentity, &bundle.TCB.QEIdentity); err != nil {
		t.Fatal(err)
	}
	_, err := bundle.Verify(&pcs.QuotePolicy{TCBValidityPeriod: 30, TDX: &pcs.TdxQuotePolicy{}}, at)
	return err
}

// agree compares the verdicts. oasis-core looks at the quoting enclave first, then for TDX at the module, which it reports as an enclave too,
// then at the platform; it stops at the first that is not good, and accepts two statuses of the platform.
func agree(t *testing.T, ours *dcap.Result, err error) {
	t.Helper()
	var outdated *pcs.TCBOutOfDateError
	switch {
	case ours.QEStatus != dcap.UpToDate:
		if !errors.As(err, &outdated) || outdated.Kind != pcs.TCBKindEnclave || outdated.Status.String() != string(ours.QEStatus) {
			t.Errorf("ours: the quoting enclave is %s; theirs: %v", ours.QEStatus, err)
		}
	case ours.PlatformStatus == dcap.Unsupported: // a level is found before the module is looked at
		if err == nil || errors.As(err, &outdated) {
			t.Errorf("ours: no level; theirs: %v", err)
		}
	case ours.ModuleStatus != "" && ours.ModuleStatus != dcap.UpToDate:
		if !errors.As(err, &outdated) || outdated.Kind != pcs.TCBKindEnclave || outdated.Status.String() != string(ours.ModuleStatus) {
			t.Errorf("ours: the module is %s; theirs: %v", ours.ModuleStatus, err)
		}
	case ours.PlatformStatus == dcap.UpToDate || ours.PlatformStatus == dcap.SWHardeningNeeded:
		if err != nil {
			t.Errorf("ours: %s; theirs: %v", ours.PlatformStatus, err)
		}
	default:
		if !errors.As(err, &outdated) || outdated.Kind != pcs.TCBKindPlatform || outdated.Status.String() != string(ours.PlatformStatus) {
			t.Errorf("ours: %s; theirs: %v", ours.PlatformStatus, err)
		} else if !slices.Equal(outdated.AdvisoryIDs, ours.AdvisoryIDs) {
			t.Errorf("advisories: ours %v; theirs %v", ours.AdvisoryIDs, outdated.AdvisoryIDs)
		}
	}
}

func TestOasisAgreesOnEveryQuoteOfRealHardware(t *testing.T) {
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	dirs, err := filepath.Glob(filepath.Join(dir, "quotes", "*"))
	if err != nil || len(dirs) == 0 {
		t.Skipf("the vectors of real hardware are not at %s: set SAFECONDUCT_VECTORS to run this test", dir)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c, err := collateral.LoadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			quote, err := os.ReadFile(filepath.Join(dir, "quote.bin"))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(dir, "expected.json"))
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				VerifyAt time.Time `json:"verify_at"`
			}
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			ours, err := dcap.Verifier{Root: dcap.IntelRoot()}.Verify(quote, c, want.VerifyAt)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ours, theirs(t, quote, c, want.VerifyAt, ours.Debug))
		})
	}
}

// rig is a simulated platform whose root oasis-core is made to trust for the length of a test.
type rig struct {
	*simulated.Authority
	platform *simulated.Platform
	verifier dcap.Verifier
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	a, err := simulated.CreateAuthority(filepath.Join(dir, "authority"), simulated.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.CreatePlatform(filepath.Join(dir, "platform"), simulated.PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	r := &rig{Authority: a}
	if r.platform, err = simulated.Open(filepath.Join(dir, "platform"), simulated.Measurement{MREnclave: [32]byte{1}}); err != nil {
		t.Fatal(err)
	}
	if r.verifier.Root, err = dcap.PinPEM(a.RootPEM()); err != nil {
		t.Fatal(err)
	}
	intel := pcs.IntelTrustRoots
	t.Cleanup(func() { pcs.IntelTrustRoots = intel })
	pool := intel.Clone()
	if !pool.AppendCertsFromPEM(a.RootPEM()) {
		t.Fatal("no root")
	}
	pcs.IntelTrustRoots = pool
	return r
}

func (r *rig) issue(t *testing.T, opts simulated.CollateralOptions) *collateral.Collateral {
	t.Helper()
	f, err := r.Issue(opts)
	if err != nil {
		t.Fatal(err)
	}
	return &collateral.Collateral{
		TCBInfo: f[simulated.TCBInfoFile], QEIdentity: f[simulated.QEIdentityFile], TCBSigningChain: f[simulated.TCBSigningChainFile],
		PCKCRL: f[simulated.PCKCRLFile], RootCACRL: f[simulated.RootCACRLFile],
	}
}

func TestOasisAgreesOnSimulatedQuotesOfEveryStatus(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	for _, version := range []string{"v3", "v4"} {
		quoteOf := r.platform.Quote
		if version == "v4" {
			quoteOf = r.platform.QuoteV4
		}
		quote, err := quoteOf(t.Context(), [64]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		for _, qe := range []string{"UpToDate", "OutOfDate", "Revoked"} {
			for _, status := range []string{
				"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked",
			} {
				t.Run(version+" "+status+" QE "+qe, func(t *testing.T) {
					c := r.issue(t, simulated.CollateralOptions{
						Levels:   []simulated.TCBLevel{{Date: now, Status: status, Advisories: []string{"A", "B"}}},
						QELevels: []simulated.QELevel{{Date: now, Status: qe}},
					})
					ours, err := r.verifier.Verify(quote, c, now)
					if err != nil {
						t.Fatal(err)
					}
					agree(t, ours, theirs(t, quote, c, now, false))
				})
			}
		}
	}
}

func TestWhatOursRefusesAndOasisDoesNotLookAt(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	quote, err := r.platform.Quote(t.Context(), [64]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts  simulated.CollateralOptions
		check dcap.Check
	}{
		"a revoked PCK":         {simulated.CollateralOptions{RevokedPCKs: []*big.Int{r.platform.PCKSerial()}}, dcap.CheckRevoked},
		"a revoked PCK CA":      {simulated.CollateralOptions{RevokedCAs: []simulated.CA{simulated.PlatformCA}}, dcap.CheckRevoked},
		"a revoked TCB signing": {simulated.CollateralOptions{RevokeTCBSigning: true}, dcap.CheckRevoked},
		"an expired CRL":        {simulated.CollateralOptions{PCKCRLValidity: time.Minute}, dcap.CheckValidity},
		"expired collateral":    {simulated.CollateralOptions{Validity: time.Minute}, dcap.CheckValidity},
		"another PCEID":         {simulated.CollateralOptions{PCEID: [2]byte{1, 0}}, dcap.CheckPlatform},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.issue(t, tc.opts)
			if _, err := r.verifier.Verify(quote, c, now); !errors.Is(err, tc.check) {
				t.Errorf("ours: %v", err)
			}
			if err := theirs(t, quote, c, now, false); err != nil {
				t.Errorf("oasis-core looks at it after all, and this test should say so: %v", err)
			}
		})
	}
}
