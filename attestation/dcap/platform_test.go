package dcap

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func TestThePlatformOfAQuoteIsTheOneItVerifiesFor(t *testing.T) {
	for version := 3; version <= 4; version++ {
		r := newRig(t, simulated.PlatformOptions{})
		key, err := PlatformOf(r.quote(t, version))
		if want := (collateral.Key{FMSPC: simulated.DefaultFMSPC(), CA: collateral.PlatformCA}); err != nil || key != want {
			t.Errorf("version %d: %v, %v; want %v", version, key, err, want)
		}
	}
	for _, v := range loadVectors(t) {
		key, err := PlatformOf(v.quote)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		got, err := intel().Verify(v.quote, v.collateral, v.want.VerifyAt)
		if err != nil {
			continue // judged elsewhere
		}
		if hex.EncodeToString(key.FMSPC[:]) != got.FMSPC || !strings.Contains(strings.ToLower(got.PCKCA), string(key.CA)) {
			t.Errorf("%s: %v, verified as %s by %s", v.name, key, got.FMSPC, got.PCKCA)
		}
	}
}

func TestWhatHasNoPlatform(t *testing.T) {
	for name, raw := range map[string][]byte{"nothing": nil, "no quote": []byte("quote"), "zeros": make([]byte, 5000)} {
		if key, err := PlatformOf(raw); err == nil {
			t.Errorf("%s: %v", name, key)
		}
	}
}
