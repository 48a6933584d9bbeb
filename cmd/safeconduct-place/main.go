// Command safeconduct-place puts on a Kubernetes node what the chart's pods need there, and takes it away.
package main

import (
	"fmt"
	"os"

	"github.com/safeconduct/safeconduct/services/place"
)

func main() {
	if err := place.Command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconduct-place:", err)
		os.Exit(1)
	}
}
