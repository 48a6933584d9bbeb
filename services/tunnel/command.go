package tunnel

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/version"
)

// Command is the command line of safeconduct-tunnel.
func Command() *cobra.Command {
	var file string
	var check bool
	c := &cobra.Command{
		Use:   "safeconduct-tunnel --config FILE",
		Short: "Carry whole migration streams between hosts, encrypted under the attested sessions of their VMs",
		Long: `Carry whole migration streams between hosts, encrypted under the attested sessions of their VMs. One runs on each host.

For each VM whose outgoing session is armed there are two sockets in the configured directory, as long as the session: UUID.sock for QEMU's
migration (libvirt: --migrateuri unix://DIR/UUID.sock) and UUID-disks.sock for its storage (--disks-uri unix://DIR/UUID-disks.sock). At the
destination, the incoming QEMU listens on sockets of the same names. The policy's exported_keys must name "tunnel".`,
		Args: cobra.NoArgs, Version: version.Version, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := ReadConfig(file)
			if err != nil || check {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := keepKeysIn(); err != nil {
				return fmt.Errorf("keeping keys out of core dumps: %w", err)
			}
			return Run(ctx, cfg, slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: cfg.LogLevel})))
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "/etc/safeconduct/tunnel.yaml", "configuration file")
	f.BoolVar(&check, "check", false, "check the configuration and exit")
	return c
}
