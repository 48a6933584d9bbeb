// Command safeconductd is the node service.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/node"
)

func main() {
	if err := node.Command(node.OpenSimulated).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconductd:", err)
		os.Exit(1)
	}
}
