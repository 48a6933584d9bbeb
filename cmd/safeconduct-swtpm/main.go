// Command safeconduct-swtpm runs swtpm so that a vTPM's state leaves the host as ciphertext only. Under the names swtpm and swtpm_setup it takes their
// own command lines, and so their place under libvirt.
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
	inPlaceOf := map[string]func(context.Context, []string, helper.Settings) error{"swtpm": helper.DropIn, "swtpm_setup": helper.SetupDropIn}
	run, ok := inPlaceOf[filepath.Base(os.Args[0])]
	if !ok {
		return helper.Command().Execute()
	}
	settings, err := helper.ReadSettings(helper.SettingsFile)
	if err != nil {
		return err
	}
	return run(context.Background(), os.Args[1:], settings)
}
