// Command safeconduct-agent tells OpenStack what the node services find: traits in Placement, preflights, and the end of sessions whose migration ended.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/openstack"
)

func main() {
	if err := openstack.Command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconduct-agent:", err)
		os.Exit(1)
	}
}
