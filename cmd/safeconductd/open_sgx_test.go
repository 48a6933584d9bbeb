package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee"
)

// enclave has a mode and nothing else.
type enclave struct{ mode tee.Mode }

func (e enclave) Mode() tee.Mode { return e.mode }
func (enclave) Quote(context.Context, [tee.ReportDataSize]byte) ([]byte, error) {
	return nil, tee.ErrNoHardware
}
func (enclave) SealKey(context.Context) (tee.SealKey, []byte, error) {
	return tee.SealKey{}, nil, tee.ErrNoHardware
}
func (enclave) RecoverSealKey(context.Context, []byte) (tee.SealKey, error) {
	return tee.SealKey{}, tee.ErrNoHardware
}

func policyKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func TestTheProductionBuildOpensHardwareUnderIntelsRootAndNothingElse(t *testing.T) {
	measured := policyKey(t)
	errNoKeys := errors.New("no such file")
	for name, tc := range map[string]struct {
		mode, enclave tee.Mode
		openErr       error
		keys          []byte
		keysErr       error
		is            error
		says          string
	}{
		"an enclave on hardware":             {mode: tee.ModeIntel, enclave: tee.ModeIntel, keys: measured},
		"a configuration for a simulation":   {mode: tee.ModeSimulated, enclave: tee.ModeIntel, keys: measured, says: `mode: found "simulated", expected "intel"`},
		"a configuration for nothing":        {enclave: tee.ModeIntel, keys: measured, says: `mode: found ""`},
		"no hardware":                        {mode: tee.ModeIntel, openErr: tee.ErrNoHardware, keys: measured, is: tee.ErrNoHardware},
		"an enclave of another mode":         {mode: tee.ModeIntel, enclave: tee.ModeSimulated, keys: measured, is: tee.ErrNoHardware},
		"no measured policy keys":            {mode: tee.ModeIntel, enclave: tee.ModeIntel, keysErr: errNoKeys, is: errNoKeys},
		"measured policy keys that are none": {mode: tee.ModeIntel, enclave: tee.ModeIntel, keys: []byte("x"), is: policy.ErrKeys},
	} {
		t.Run(name, func(t *testing.T) {
			open := func() (tee.Enclave, error) {
				if tc.openErr != nil {
					return nil, tc.openErr
				}
				return enclave{tc.enclave}, nil
			}
			keys := func() ([]byte, error) { return tc.keys, tc.keysErr }
			e, root, err := openSGX(open, keys)(&config.Config{Mode: tc.mode, Policy: config.Policy{Keys: "/of/the/host"}})
			if tc.is == nil && tc.says == "" {
				if err != nil || e == nil || root.Mode != v1.Mode_MODE_INTEL || root.Pin != dcap.IntelRoot() || len(root.PolicyKeys.IDs()) != 1 {
					t.Fatalf("got %v, %+v, %v", e, root, err)
				}
				return
			}
			if e != nil || root.Pin != (node.RootOfTrust{}).Pin || root.PolicyKeys.IDs() != nil {
				t.Errorf("got %v, %+v beside the error", e, root)
			}
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v that says %q", err, tc.is, tc.says)
			}
		})
	}
}
