package sgx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
)

func TestPolicyKeysAreThoseThatTheExecutableWasBuiltFor(t *testing.T) {
	keys := []byte("-----BEGIN PUBLIC KEY-----\n")
	sum := sha256.Sum256(keys)
	digest := hex.EncodeToString(sum[:])
	huge := make([]byte, MaxPolicyKeys+1)
	hugeSum := sha256.Sum256(huge)
	for name, tc := range map[string]struct {
		content []byte
		digest  string
		says    string
	}{
		"the keys":                        {keys, digest, ""},
		"another file":                    {append([]byte("x"), keys...), digest, "found SHA-256"},
		"an empty file":                   {[]byte{}, digest, "found SHA-256"},
		"no file":                         {nil, digest, "sign again"},
		"a build without digest":          {keys, "", "built without their digest"},
		"a digest that is cut":            {keys, digest[2:], "built without their digest"},
		"a digest that is no hex":         {keys, strings.Repeat("x", 64), "built without their digest"},
		"a file too large, of any digest": {huge, hex.EncodeToString(hugeSum[:]), "more than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			if tc.content != nil {
				root["safeconduct/policy-keys.pem"] = &fstest.MapFile{Data: tc.content}
			}
			got, err := readPolicyKeys(root, tc.digest)
			if tc.says == "" {
				if err != nil || string(got) != string(keys) {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			if got != nil || !errors.Is(err, ErrPolicyKeys) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %d bytes, %v, want ErrPolicyKeys that says %q", len(got), err, tc.says)
			}
		})
	}
	if _, err := PolicyKeys(); !errors.Is(err, ErrPolicyKeys) {
		t.Errorf("a test binary has policy keys: %v", err)
	}
}
