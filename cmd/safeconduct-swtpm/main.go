// Command safeconduct-swtpm runs swtpm so that a vTPM's state leaves the host as ciphertext only. Under the name swtpm it takes swtpm's own command
// line, and so its place under libvirt.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/safeconduct/safeconduct/services/vtpm/helper"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "safeconduct-swtpm:", err)
		os.Exit(1)
	}
}

func run() error {
	if filepath.Base(os.Args[0]) != "swtpm" {
		return helper.Command().Execute()
	}
	settings, err := helper.ReadSettings(helper.SettingsFile)
	if err != nil {
		return err
	}
	return helper.DropIn(context.Background(), os.Args[1:], settings)
}
