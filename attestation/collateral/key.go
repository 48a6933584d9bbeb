package collateral

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// CA is one of the two authorities of Intel's that certify PCKs, spelled as the PCS API's parameter "ca". Each has its own CRL.
type CA string

// The CAs: multi-package platforms are certified by the first, single-package processors by the second.
const (
	PlatformCA  CA = "platform"
	ProcessorCA CA = "processor"
)

// Key names the kind of platform that collateral is for: the processor model (FMSPC, of the PCK certificate's extension) and the CA that
// certified its PCK.
type Key struct {
	FMSPC [6]byte
	CA    CA
}

// ErrKey says that something is no Key.
var ErrKey = errors.New("not a kind of platform")

// String is the FMSPC in lower-case hex, a hyphen and the CA: 00606a000000-platform.
func (k Key) String() string { return hex.EncodeToString(k.FMSPC[:]) + "-" + string(k.CA) }

// ParseKey reads what String makes, and nothing else. Error: ErrKey.
func ParseKey(s string) (Key, error) {
	fmspc, ca, _ := strings.Cut(s, "-")
	raw, err := hex.DecodeString(fmspc)
	k := Key{CA: CA(ca)}
	if err == nil && copy(k.FMSPC[:], raw) == len(k.FMSPC) && k.Valid() == nil && k.String() == s {
		return k, nil
	}
	return Key{}, fmt.Errorf("%w: found %.80q, expected FMSPC-CA such as 00606a000000-platform", ErrKey, s)
}

// Valid says whether the CA is one of the two. Error: ErrKey.
func (k Key) Valid() error {
	if k.CA != PlatformCA && k.CA != ProcessorCA {
		return fmt.Errorf("%w: found CA %.40q, expected %q or %q", ErrKey, string(k.CA), string(PlatformCA), string(ProcessorCA))
	}
	return nil
}
