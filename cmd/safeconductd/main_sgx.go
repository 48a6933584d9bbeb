//go:build sgx

// Command safeconductd is the node service. This is the production build: it runs in an SGX enclave on hardware and nowhere else.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/node"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/sgx"
)

func main() {
	open := func() (tee.Enclave, error) {
		enclave, err := sgx.Open(sgx.Options{AcceptDebugEnclaveWhoseMemoryTheHostCanRead: acceptDebugEnclave})
		if err != nil {
			return nil, err // not a nil *sgx.Enclave in an interface
		}
		return enclave, nil
	}
	if err := node.Command(openSGX(open, sgx.PolicyKeys)).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconductd:", err)
		os.Exit(1)
	}
}
