//go:build sgx && !insecuredebugenclave

package main

// acceptDebugEnclave is compiled in, and so measured: no host can talk a production build into running where its memory can be read.
const acceptDebugEnclave = false
