package pccs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	key          = collateral.Key{FMSPC: simulated.DefaultFMSPC(), CA: collateral.PlatformCA}
	processorKey = collateral.Key{FMSPC: simulated.DefaultFMSPC(), CA: collateral.ProcessorCA}
)

// rig is a simulated authority.
type rig struct {
	*simulated.Authority
	dir string
	pin dcap.RootPin
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{dir: filepath.Join(t.TempDir(), "authority")}
	var err error
	if r.Authority, err = simulated.CreateAuthority(r.dir, simulated.AuthorityOptions{}); err != nil {
		t.Fatal(err)
	}
	if r.pin, err = dcap.PinPEM(r.RootPEM()); err != nil {
		t.Fatal(err)
	}
	return r
}

// issue makes a set with the chain of its PCK CA.
func (r *rig) issue(t testing.TB, o simulated.CollateralOptions) *collateral.Collateral {
	t.Helper()
	f, err := r.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	file := "pck_platform_ca.pem"
	if o.CA == simulated.ProcessorCA {
		file = "pck_processor_ca.pem"
	}
	return &collateral.Collateral{
		TCBInfo: f[simulated.TCBInfoFile], QEIdentity: f[simulated.QEIdentityFile], TCBSigningChain: f[simulated.TCBSigningChainFile],
		PCKCRL: f[simulated.PCKCRLFile], RootCACRL: f[simulated.RootCACRLFile],
		PCKCRLIssuerChain: append(read(t, filepath.Join(r.dir, "private", file)), r.RootPEM()...),
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write lays a set out as collateral.LoadDir wants it.
func write(t testing.TB, dir string, c *collateral.Collateral) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		collateral.TCBInfoFile: c.TCBInfo, collateral.QEIdentityFile: c.QEIdentity, collateral.TCBSigningChainFile: c.TCBSigningChain,
		collateral.PCKCRLFile: c.PCKCRL, collateral.RootCACRLFile: c.RootCACRL, collateral.PCKCRLIssuerChainFile: c.PCKCRLIssuerChain,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func library(t testing.TB, entries ...collateral.Entry) *Library {
	t.Helper()
	l, err := NewLibrary(entries)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// entry is a set for the platform CA's platforms.
func entry(c *collateral.Collateral) collateral.Entry {
	return collateral.Entry{Key: key, Fetched: time.Now(), Collateral: c}
}

func is(t testing.TB, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("got error %v, want %v", err, w)
		}
	}
}
