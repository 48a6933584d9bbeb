// Package simulate is what the simulated build of safeconductd has beside the service: commands that make the test root and the platforms which a
// simulation runs on. The production build does not have them.
//
// What they make protects nothing: whoever reads the files is the processor.
package simulate

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

const warning = "SIMULATED: what this makes plays Intel and its processors in tests; it protects nothing"

// validHost is a host's name as a policy has it.
var validHost = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

// Command is "safeconductd simulate".
func Command() *cobra.Command {
	c := &cobra.Command{
		Use: "simulate", Short: "Make the test root and the platforms of a simulation, which protects nothing", Args: cobra.NoArgs,
		Long: `Make the test root and the platforms of a simulation. The production build does not have this command.

docs/simulated.md has two nodes by hand. Nothing is overwritten.`,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.ErrOrStderr(), warning)
			return err
		},
	}
	c.AddCommand(authority(), platform(), collateral(), measurement())
	return c
}

func authority() *cobra.Command {
	return &cobra.Command{
		Use: "authority DIR", Short: "Make a test root: its certificate, collateral, and private keys below DIR/private", Args: cobra.ExactArgs(1),
		Long: `Make a test root that plays Intel: root_ca.pem (simulated.root of every node), collateral (collateral.dir of every node) that is valid for 30 days, and
below DIR/private the keys that certify platforms. Keep those off the nodes.`,
		RunE: func(_ *cobra.Command, args []string) error {
			_, err := simulated.CreateAuthority(args[0], simulated.AuthorityOptions{})
			return explain(err)
		},
	}
}

func platform() *cobra.Command {
	var from, host string
	c := &cobra.Command{
		Use: "platform DIR --authority DIR --host HOST", Short: "Make a simulated processor, and print its element of a policy's platforms", Args: cobra.ExactArgs(1),
		Long: `Make a simulated processor in DIR (simulated.platform of one node, and of one only), certified by a test root. What is printed is the element of the
policy's "platforms" that lets it stand for HOST.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !validHost.MatchString(host) {
				return fmt.Errorf("--host is %q, expected the node's name, as in its configuration", host)
			}
			a, err := simulated.OpenAuthority(from)
			if err != nil {
				return fmt.Errorf("--authority: %w; safeconductd simulate authority makes one", err)
			}
			var ppid [16]byte
			_, _ = rand.Read(ppid[:]) // never fails: it would end the process
			if err := a.CreatePlatform(args[0], simulated.PlatformOptions{PPID: ppid}); err != nil {
				return explain(err)
			}
			id := handshake.PlatformID(ppid, nil)
			raw, err := json.Marshal(policy.Platform{Host: host, PlatformID: id[:]})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", raw)
			return err
		},
	}
	c.Flags().StringVar(&from, "authority", "", "directory of the test root")
	c.Flags().StringVar(&host, "host", "", "name of the node that is to run on it")
	for _, f := range []string{"authority", "host"} {
		_ = c.MarkFlagRequired(f) // it exists
	}
	return c
}

func collateral() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use: "collateral DIR --authority DIR", Short: "Issue collateral for another 30 days, in the place of what is in DIR", Args: cobra.ExactArgs(1),
		Long: "Issue collateral for another 30 days, in the place of what is in DIR. Then safeconduct reload on each node.",
		RunE: func(_ *cobra.Command, args []string) error {
			a, err := simulated.OpenAuthority(from)
			if err != nil {
				return fmt.Errorf("--authority: %w; safeconductd simulate authority makes one", err)
			}
			// Each issue has a higher number than the last, as Intel's has: nodes take no older list in a newer one's place.
			return a.WriteCollateral(args[0], simulated.CollateralOptions{CRLNumber: time.Now().Unix()})
		},
	}
	c.Flags().StringVar(&from, "authority", "", "directory of the test root")
	_ = c.MarkFlagRequired("authority") // it exists
	return c
}

func measurement() *cobra.Command {
	return &cobra.Command{
		Use: "measurement [EXECUTABLE]", Short: "Print the simulated MRENCLAVE of this executable, or of another", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := simulated.MeasureExecutable(append(args, "/proc/self/exe")[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hex.EncodeToString(m[:]))
			return err
		},
	}
}

// explain says what to do about a file that is there.
func explain(err error) error {
	if errors.Is(err, simulated.ErrExists) {
		return fmt.Errorf("%w: nothing is overwritten; give another directory, or move it away", err)
	}
	return err
}
