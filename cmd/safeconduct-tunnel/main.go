// Command safeconduct-tunnel carries a migration stream between two hosts, encrypted under the attested session of its VM.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/tunnel"
)

func main() {
	if err := tunnel.Command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconduct-tunnel:", err)
		os.Exit(1)
	}
}
