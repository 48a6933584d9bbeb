package collateral

import (
	"errors"
	"testing"
)

func TestAKeyReadsBackAsItIsWritten(t *testing.T) {
	for _, k := range []Key{{[6]byte{0, 0x60, 0x6a}, PlatformCA}, {[6]byte{'S', 'I', 'M'}, ProcessorCA}} {
		if got, err := ParseKey(k.String()); err != nil || got != k {
			t.Errorf("%v: got %v, %v", k, got, err)
		}
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":              "",
		"no CA":                "00606a000000",
		"an unknown CA":        "00606a000000-root",
		"upper case":           "00606A000000-platform",
		"upper case of the CA": "00606a000000-Platform",
		"too short":            "00606a0000-platform",
		"too long":             "00606a00000000-platform",
		"no hex":               "0060zz000000-platform",
		"a path":               "../00606a000000-platform",
		"something after":      "00606a000000-platform-x",
	} {
		if k, err := ParseKey(s); !errors.Is(err, ErrKey) {
			t.Errorf("%s: got %v, %v", name, k, err)
		}
	}
}
