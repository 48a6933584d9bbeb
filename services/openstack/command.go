package openstack

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/version"
)

// Command is the command line of safeconduct-agent.
func Command() *cobra.Command {
	var file string
	var check bool
	c := &cobra.Command{
		Use:   "safeconduct-agent --config FILE",
		Short: "Tell OpenStack which hosts are attested, preflight its hosts, and end the sessions of migrations that Nova has given up",
		Long: `Tell OpenStack which hosts are attested, preflight its hosts, and end the sessions of migrations that Nova has given up.

One runs on each host, beside the node service (role: node). One may watch the whole cloud and changes nothing (role: central).
It runs until SIGINT or SIGTERM, and then takes its traits back from Placement, unless traits.keep_on_stop says otherwise.`,
		Args: cobra.NoArgs, Version: version.Version, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := ReadConfig(file)
			if err != nil {
				return err
			}
			if check {
				if err := NewCloud(cfg.OpenStack).Check(); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), file+": ok")
				return err
			}
			log, err := newLog(cmd.ErrOrStderr(), cfg.Log)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return Run(ctx, cfg, log)
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "/etc/safeconduct/agent.yaml", "configuration file")
	f.BoolVar(&check, "check", false, "check the configuration and the credentials' files, and exit")
	return c
}

func newLog(w io.Writer, cfg Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options)), nil
	}
	return slog.New(slog.NewJSONHandler(w, options)), nil
}
