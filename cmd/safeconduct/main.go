// Command safeconduct is the operator's command line.
package main

import (
	"context"
	"os"

	"github.com/safeconduct/safeconduct/services/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Env{}))
}
