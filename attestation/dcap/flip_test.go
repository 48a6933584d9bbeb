package dcap

import (
	"bytes"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// Every byte of a valid quote and of each file of collateral, one bit of it flipped, makes the quote refused. No byte is irrelevant: what
// signatures and hashes do not cover, the strict encodings of package quote and parseDocument do. (What may change takes more than a flip:
// the line ends of PEM, its last one missing, and s to n-s in a signature.) Which bit is flipped goes by the byte's place, so that over the
// length of an artefact every bit is tried. Under the race detector and with -short, every 17th byte.
func TestEveryFlippedByteIsRefused(t *testing.T) {
	stride := 1
	if raceEnabled || testing.Short() {
		stride = 17
	}
	r := newRig(t, simulated.PlatformOptions{})
	c := r.issue(t, simulated.CollateralOptions{})
	flipAll(t, "simulated v3", r.verifier, r.quote(t, 3), c, now, stride)
	flipQuote(t, "simulated v4", r.verifier, r.quote(t, 4), c, now, stride)
}

func TestEveryFlippedByteOfRealEvidenceIsRefused(t *testing.T) {
	stride := 3 // as many bytes again as of the simulated evidence
	if raceEnabled || testing.Short() {
		stride = 101
	}
	for _, v := range loadVectors(t) {
		switch v.name {
		case "01-sgx-v3-cfg-swhardening", "08-tdx-v4-uptodate":
			flipAll(t, v.name, intel(), v.quote, v.collateral, v.want.VerifyAt, stride)
		}
	}
}

func flipAll(t *testing.T, name string, v Verifier, q []byte, c *collateral.Collateral, at time.Time, stride int) {
	t.Helper()
	flipQuote(t, name, v, q, c, at, stride)
	for file, field := range map[string]func(*collateral.Collateral) *[]byte{
		collateral.TCBInfoFile:         func(c *collateral.Collateral) *[]byte { return &c.TCBInfo },
		collateral.QEIdentityFile:      func(c *collateral.Collateral) *[]byte { return &c.QEIdentity },
		collateral.TCBSigningChainFile: func(c *collateral.Collateral) *[]byte { return &c.TCBSigningChain },
		collateral.PCKCRLFile:          func(c *collateral.Collateral) *[]byte { return &c.PCKCRL },
		collateral.RootCACRLFile:       func(c *collateral.Collateral) *[]byte { return &c.RootCACRL },
	} {
		flip(t, name+"/"+file, *field(c), stride, func(changed []byte) error {
			other := *c
			*field(&other) = changed
			_, err := v.Verify(q, &other, at)
			return err
		})
	}
}

func flipQuote(t *testing.T, name string, v Verifier, q []byte, c *collateral.Collateral, at time.Time, stride int) {
	t.Helper()
	checked, err := v.CheckCollateral(c)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, name+"/quote.bin", q, stride, func(changed []byte) error {
		_, err := checked.Verify(changed, at)
		return err
	})
}

func flip(t *testing.T, name string, original []byte, stride int, verify func([]byte) error) {
	t.Helper()
	if err := verify(original); err != nil {
		t.Fatalf("%s: refused as it is: %v", name, err)
	}
	changed := bytes.Clone(original)
	for i := 0; i < len(original); i += stride {
		bit := byte(1) << ((i / stride) % 8)
		changed[i] ^= bit
		if err := verify(changed); err == nil {
			t.Errorf("%s: byte %d may have bit %#02x flipped (in %q)", name, i, bit, original[max(i-20, 0):min(i+20, len(original))])
		}
		changed[i] ^= bit
	}
	for _, n := range []int{0, 1, len(original) / 2, len(original) - 2} {
		if verify(original[:n]) == nil {
			t.Errorf("%s: accepted when cut to %d bytes of %d", name, n, len(original))
		}
	}
	if verify(append(bytes.Clone(original), 0)) == nil {
		t.Errorf("%s: accepted with a zero after it", name)
	}
}
