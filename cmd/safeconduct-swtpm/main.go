// Command safeconduct-swtpm runs swtpm so that the state of its vTPM leaves the host encrypted by the node's enclave, or not at all.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/vtpm/helper"
)

func main() {
	if err := helper.Command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconduct-swtpm:", err)
		os.Exit(1)
	}
}
