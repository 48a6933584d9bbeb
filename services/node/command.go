package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// errNoSGX is what a build without SGX says to mode intel. It never falls back to the simulation.
var errNoSGX = errors.New("mode is intel, but this build of safeconductd has no SGX support: it can run in mode simulated only, which protects nothing")

// OpenEnclave opens the enclave that this build runs in, and says under which root its quotes are judged. It refuses a configuration for
// another mode.
type OpenEnclave func(*config.Config) (tee.Enclave, RootOfTrust, error)

// Command is safeconductd's command line. What differs between the production build and the simulation is open.
func Command(open OpenEnclave) *cobra.Command {
	var file, level string
	var check bool
	c := &cobra.Command{
		Use:   "safeconductd",
		Short: "Safeconduct's node service: attests peers and protects vTPM state during live migration",
		Long: `Safeconduct's node service: attests peers and protects vTPM state during live migration.

It runs until SIGINT or SIGTERM. Sessions in flight are then aborted; their VMs are safe on the source.

The environment may replace some keys of the configuration: ` + variables() + `.`,
		Version: version.Version, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return err
			}
			if level != "" {
				cfg.Log.Level = level
			}
			if check {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), file+": ok")
				return err
			}
			log, err := newLog(cmd.ErrOrStderr(), cfg.Log)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			enclave, root, err := open(cfg)
			if err != nil {
				return err
			}
			return Run(ctx, cfg, enclave, root, log)
		},
	}
	c.PersistentFlags().StringVar(&file, "config", "/etc/safeconduct/safeconductd.yaml", "configuration file")
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error; replaces log.level")
	c.Flags().BoolVar(&check, "check", false, "read and validate the configuration file alone, and exit; see config check for all that start-up checks")
	group := &cobra.Command{Use: "config", Short: "Check a configuration, or print one", Args: cobra.NoArgs}
	group.AddCommand(&cobra.Command{
		Use: "check", Short: "Check the configuration and the files that it names, as start-up does", Args: cobra.NoArgs,
		Long: `Check the configuration and the files that it names, exactly as start-up does before it changes anything: the enclave, the signed policy, TLS files,
callers, the sources of collateral and of the host's measurements, tracing. Nothing is written, nothing listens, no peer is called.

In the production build the enclave must be there: run it as the service is run (ego run). --check reads the file alone, anywhere.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return err
			}
			if err := Check(cfg, open); err != nil {
				return fmt.Errorf("configuration %s: %w", file, err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), file+": ok, mode "+string(cfg.Mode))
			return err
		},
	}, &cobra.Command{
		Use: "example", Short: "Print a configuration with every key, commented", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Example)
			return err
		},
	})
	c.AddCommand(group)
	return c
}

// variables lists those of the environment that replace a key.
func variables() string {
	var all []string
	for _, o := range config.Overrides() {
		all = append(all, o.Variable+" ("+o.Key+")")
	}
	return strings.Join(all, ", ")
}

// Log is the diagnostic log, and the level that it has now.
type Log struct {
	*slog.Logger
	Level *slog.LevelVar
}

func newLog(w io.Writer, cfg config.Log) (*Log, error) {
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" {
		return &Log{slog.New(slog.NewTextHandler(w, options)), level}, nil
	}
	return &Log{slog.New(slog.NewJSONHandler(w, options)), level}, nil
}

// simulatedSigner names the signer of simulated enclaves; nothing is signed.
const simulatedSigner = "safeconduct"

// OpenSimulated opens the simulated TEE: measured by its own executable, on the platform that the configuration names.
func OpenSimulated(cfg *config.Config) (tee.Enclave, RootOfTrust, error) {
	if cfg.Mode != tee.ModeSimulated {
		return nil, RootOfTrust{}, errNoSGX
	}
	measurement, err := simulated.MeasureExecutable("/proc/self/exe")
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("simulated measurement: %w", err)
	}
	enclave, err := simulated.Open(cfg.Simulated.Platform, simulated.Measurement{
		MREnclave: measurement, MRSigner: simulated.SignerOf(simulatedSigner), ISVProdID: 1, ISVSVN: 1,
	})
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("simulated.platform: %w", err)
	}
	pem, err := os.ReadFile(cfg.Simulated.Root)
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("simulated.root: %w", err)
	}
	pin, err := dcap.PinPEM(pem)
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("simulated.root: %w", err)
	}
	if pin == dcap.IntelRoot() {
		return nil, RootOfTrust{}, errors.New("simulated.root: this is Intel's production root; a simulation is never judged under it")
	}
	raw, err := os.ReadFile(cfg.Policy.Keys)
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("policy.keys: %w", err)
	}
	keys, err := policy.ParseKeys(raw)
	if err != nil {
		return nil, RootOfTrust{}, fmt.Errorf("policy.keys: %w", err)
	}
	return enclave, RootOfTrust{Mode: v1.Mode_MODE_SIMULATED, Pin: pin, PolicyKeys: keys}, nil
}
