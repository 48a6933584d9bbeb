package helper

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/services/vtpm"
)

// Command is the command line of safeconduct-swtpm.
func Command() *cobra.Command {
	o := Options{StateKey: CallersKey}
	var level slog.LevelVar
	c := &cobra.Command{
		Use:   "safeconduct-swtpm --instance UUID --ctrl PATH --tpmstate DIR [flags] [-- swtpm arguments]",
		Short: "Run swtpm so that the state of its vTPM leaves this host encrypted by the node's enclave, or not at all",
		Long: `Run swtpm behind a proxy on its control channel. QEMU connects to --ctrl as it would to swtpm's own control socket.

When QEMU saves or restores the vTPM's state, each blob crosses the node service's enclave, under the session that is armed for the VM. Without one
the state is refused, and the VM runs on: also for snapshots and for suspending to a file.

A failed restore is recoverable only with QEMU's return-path capability on. The control channel does not show it: whoever arms the session
states it, and the node service refuses without.`,
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				return fmt.Errorf("unexpected argument %q: swtpm's own arguments come after --", args[0])
			}
			o.Extra = args
			ctx, stop := signal.NotifyContext(c.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return Run(ctx, o, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &level})))
		},
	}
	f := c.Flags()
	f.StringVar(&o.Node, "node", "unix:///run/safeconduct/node.sock", "gRPC target of the node service's local socket")
	f.StringVar(&o.Instance, "instance", "", "UUID of the VM")
	f.StringVar(&o.Ctrl, "ctrl", "", "control socket that QEMU connects to; made with mode 0600")
	f.StringVar(&o.TPMState, "tpmstate", "", "swtpm's state directory")
	f.StringVar(&o.SWTPM, "swtpm", "/usr/bin/swtpm", "the real swtpm")
	f.DurationVar(&o.NodeTimeout, "node-timeout", vtpm.DefaultTimeout, "bound on one blob's way through the node service; the VM stands still meanwhile")
	f.Var(&o.StateKey, "state-key", "whose key the state at rest is under: the caller's, such as --key after --, or one of the node's enclave")
	f.TextVar(&level, "log-level", &level, "DEBUG, INFO, WARN or ERROR")
	return c
}
