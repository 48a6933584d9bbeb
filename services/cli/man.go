package cli

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes manual pages, for packagers. Their date is fixed, so that a build can be repeated.
func manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages into a directory", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			root.DisableAutoGenTag = true
			date := time.Unix(0, 0).UTC()
			err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Safeconduct", Manual: "Safeconduct", Date: &date}, args[0])
			return advise(err, "name a directory that exists and may be written to")
		},
	}
}
