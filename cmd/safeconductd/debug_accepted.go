//go:build sgx && insecuredebugenclave

package main

// acceptDebugEnclave makes this a PRE-PRODUCTION build: it also runs in a debug enclave, which keeps nothing from its host.
const acceptDebugEnclave = true
