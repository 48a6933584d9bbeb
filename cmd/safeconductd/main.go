//go:build !sgx

// Command safeconductd is the node service. This is the simulated build, which protects nothing; the production build has the tag sgx.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/node"
	"github.com/safeconduct/safeconduct/services/simulate"
)

func main() {
	c := node.Command(node.OpenSimulated)
	c.AddCommand(simulate.Command())
	if err := c.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconductd:", err)
		os.Exit(1)
	}
}
