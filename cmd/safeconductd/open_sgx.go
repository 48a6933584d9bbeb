package main

import (
	"fmt"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee"
)

// openSGX is how the production build opens its enclave: mode intel, Intel's root, the measured policy keys, and hardware that open proves.
// Nothing of the configuration, which is the host's, loosens any of it.
func openSGX(open func() (tee.Enclave, error), policyKeys func() ([]byte, error)) node.OpenEnclave {
	return func(cfg *config.Config) (tee.Enclave, node.RootOfTrust, error) {
		if cfg.Mode != tee.ModeIntel {
			return nil, node.RootOfTrust{}, fmt.Errorf("mode: found %q, expected %q: this build of safeconductd runs in SGX enclaves only; "+
				"the simulated build is another executable", cfg.Mode, tee.ModeIntel)
		}
		enclave, err := open()
		if err != nil {
			return nil, node.RootOfTrust{}, err
		}
		if enclave.Mode() != tee.ModeIntel {
			return nil, node.RootOfTrust{}, fmt.Errorf("%w: found an enclave of mode %q, expected %q", tee.ErrNoHardware, enclave.Mode(), tee.ModeIntel)
		}
		raw, err := policyKeys()
		if err != nil {
			return nil, node.RootOfTrust{}, err
		}
		keys, err := policy.ParseKeys(raw)
		if err != nil {
			return nil, node.RootOfTrust{}, err
		}
		return enclave, node.RootOfTrust{Mode: v1.Mode_MODE_INTEL, Pin: dcap.IntelRoot(), PolicyKeys: keys}, nil
	}
}
