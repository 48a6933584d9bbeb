package pinned

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/quote"
)

// vectorsDir is where the vectors of real hardware are; they are not part of the project.
func vectorsDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "quotes")); err != nil {
		t.Skipf("the vectors of real hardware are not at %s: set SAFECONDUCT_VECTORS to run this test", dir)
	}
	return dir
}

func TestIntelsOwnCollateralIsAcceptedUnderIntelsRoot(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(vectorsDir(t), "quotes", "*-sgx-*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("found %v, %v", dirs, err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c, err := collateral.LoadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			key, want, chain := describe(t, dir)
			c.PCKCRLIssuerChain = chain // a PCCS gives it; here the quote does
			_, v, err := Checker{Root: dcap.IntelRoot()}.Check(key, c)
			if err != nil {
				t.Fatal(err)
			}
			if v.At(want.VerifyAt) != nil || v.Versions.TCBInfo.Number != want.Number || v.Versions.PCKCRL.Number != 1 || v.Versions.PCKCRL.Issued.IsZero() {
				t.Errorf("got %+v", v)
			}
			key.FMSPC[0]++
			if _, _, err := (Checker{Root: dcap.IntelRoot()}).Check(key, c); !errors.Is(err, ErrOther) {
				t.Errorf("another FMSPC: %v", err)
			}
		})
	}
}

// expected is a part of a vector's expected.json.
type expected struct {
	FMSPC    string    `json:"fmspc"`
	PCKCA    string    `json:"pck_ca"`
	Number   uint64    `json:"tcb_evaluation_data_number"`
	VerifyAt time.Time `json:"verify_at"`
}

// describe reads what a vector is for, what is expected of it, and the chain of its PCK CA.
func describe(t *testing.T, dir string) (collateral.Key, expected, []byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want expected
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	ca := collateral.ProcessorCA
	if strings.Contains(strings.ToLower(want.PCKCA), "platform") {
		ca = collateral.PlatformCA
	}
	key, err := collateral.ParseKey(strings.ToLower(want.FMSPC) + "-" + string(ca))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(filepath.Join(dir, "quote.bin")); err != nil {
		t.Fatal(err)
	}
	q, err := quote.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	var chain bytes.Buffer
	for _, der := range q.CertChain[1:] {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	return key, want, chain.Bytes()
}
