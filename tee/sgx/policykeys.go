package sgx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// PolicyKeysPath is where the keys whose signature makes a policy count are in the enclave: embedded by "ego sign" (the "files" of
// deploy/enclave/enclave.json), and so part of MRENCLAVE.
const PolicyKeysPath = "/safeconduct/policy-keys.pem"

// MaxPolicyKeys bounds that file, in bytes.
const MaxPolicyKeys = 64 << 10

// ErrPolicyKeys means that the keys are not there, or are not those that this executable was built for.
var ErrPolicyKeys = errors.New("policy keys not usable")

// policyKeysDigest is SHA-256 of the file, in lower-case hex. Only the linker sets it (-X, in deploy/enclave/build.sh).
//
// A path alone is no proof that a file is the measured one: the file system of an EGo enclave is writable, and before main runs EGo lets a
// MarbleRun coordinator that the host names write any file in it. Open refuses to run after that; the digest, which is part of the measured
// executable, makes sure without relying on what EGo does first.
var policyKeysDigest string

// PolicyKeys returns the public keys that sign policies, in PEM, from PolicyKeysPath. Error: ErrPolicyKeys.
func PolicyKeys() ([]byte, error) { return readPolicyKeys(os.DirFS("/"), policyKeysDigest) }

func readPolicyKeys(root fs.FS, digest string) ([]byte, error) {
	want, err := hex.DecodeString(digest)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("%w: this executable was built without their digest: build it with deploy/enclave/build.sh", ErrPolicyKeys)
	}
	f, err := root.Open(strings.TrimPrefix(PolicyKeysPath, "/"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w: name the file in \"files\" of enclave.json and sign again", ErrPolicyKeys, err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, MaxPolicyKeys+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicyKeys, err)
	}
	if len(raw) > MaxPolicyKeys {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrPolicyKeys, PolicyKeysPath, MaxPolicyKeys)
	}
	if found := sha256.Sum256(raw); found != [sha256.Size]byte(want) {
		return nil, fmt.Errorf("%w: %s: found SHA-256 %x, expected %x", ErrPolicyKeys, PolicyKeysPath, found, want)
	}
	return raw, nil
}
