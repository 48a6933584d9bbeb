package image

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Dial connects to the node service of this host. The caller closes what it returns.
type Dial func(context.Context) (v1.CryptoServiceClient, io.Closer, error)

// Command is the command group "image".
func Command(dial Dial) *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Encrypt a VM's file for a migration's destination, and decrypt it there",
		Long: `Encrypt a VM's file for a migration's destination, and decrypt it there.

Both need an armed session of the VM. What breaks off goes on where it stopped when the same command is run again.
Stop whatever writes to the file first.`,
	}
	c.AddCommand(
		transferCommand(dial, "protect", "Encrypt IN into OUT, at the source", Protect),
		transferCommand(dial, "unprotect", "Decrypt IN, which protect made, into OUT, at the destination", Unprotect))
	return c
}

func transferCommand(dial Dial, name, short string, run func(context.Context, v1.CryptoServiceClient, Options) error) *cobra.Command {
	var opts Options
	var quiet bool
	c := &cobra.Command{
		Use: name + " --instance UUID --name NAME IN OUT", Short: short, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.In, opts.Out = args[0], args[1]
			if !quiet {
				opts.Progress = func(done, all int64) {
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d of %d bytes\n", opts.Name, done, all)
				}
			}
			client, conn, err := dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing was buffered
			return run(cmd.Context(), client, opts)
		},
	}
	f := c.Flags()
	f.StringVar(&opts.Instance, "instance", "", "UUID of the VM")
	f.StringVar(&opts.Name, "name", "", "name of the file, the same on both sides")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not print progress")
	if name == "protect" {
		f.Int64Var(&opts.Part, "part-size", DefaultPart, "bytes of one part: what is done again after a break")
	}
	for _, required := range []string{"instance", "name"} {
		_ = c.MarkFlagRequired(required) // the flag is there
	}
	return c
}
