//go:build !sgx || !cgo

package sgx

// Open fails: this build has no way to call the processor. The error is a *HardwareError.
func Open(Options) (*Enclave, error) {
	return nil, &HardwareError{Found: "a build without SGX support", Remedy: "build it with deploy/enclave/build.sh (build tag sgx, and cgo)"}
}
