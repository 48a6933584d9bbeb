package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
)

func (a *app) writeReference(out string, refs *appraise.ReferenceValues) error {
	raw, err := json.MarshalIndent(refs, "", "  ")
	if err != nil {
		return err
	}
	return a.writeNew(out, 0o644, append(raw, '\n'))
}

func generateCommand(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "generate [--out FILE] LOG...", Short: "Make reference values that accept golden hosts as they are", Args: cobra.MinimumNArgs(1),
		Long: `Make reference values that accept golden hosts as they are: from one log each, as "safeconduct integrity measure -o json" prints it. With several hosts the result
accepts what any of them has; an item that not all have is no longer required, and the result says so.`,
		RunE: func(_ *cobra.Command, args []string) error {
			var all *appraise.ReferenceValues
			for _, path := range args {
				log, err := readLog(path)
				if err != nil {
					return err
				}
				refs, err := appraise.Generate(log)
				if err != nil {
					return advise(wrapPath(path, err), "measure the host again")
				}
				if log.GetTpmQuote() == nil {
					refs.TPM.Required = new(bool)
				}
				if all == nil {
					all = refs
				} else {
					all = appraise.Merge(all, refs)
				}
			}
			return a.writeReference(out, all)
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write; standard output by default")
	return c
}

func diffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "diff OLD NEW", Short: "List what new reference values change", Args: cobra.ExactArgs(2),
		Long: "List what new reference values change: policies, signed or bare, or reference values by themselves. The exit code is 0 whether or not they differ.",
		RunE: func(_ *cobra.Command, args []string) error {
			old, err := readReference(args[0])
			if err != nil {
				return err
			}
			next, err := readReference(args[1])
			if err != nil {
				return err
			}
			changes := appraise.Diff(old, next)
			if changes == nil {
				changes = []appraise.Change{}
			}
			return a.show(map[string]any{"changes": changes}, func(s *sheet) {
				if len(changes) == 0 {
					s.line("no difference")
					return
				}
				rows := make([][]string, 0, len(changes))
				for _, c := range changes {
					rows = append(rows, []string{c.Item, c.What, c.Value})
				}
				s.rows([]string{"ITEM", "CHANGE", "VALUE"}, rows)
			})
		},
	}
}

func rollCommand(a *app) *cobra.Command {
	var out, until string
	c := &cobra.Command{
		Use: "roll --until TIME [--out FILE] OLD NEW", Short: "Unite old and new reference values, with an end for the old", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			end, err := time.Parse(time.RFC3339, until)
			if err != nil {
				return advise(fmt.Errorf("--until: %w", err), "give a time such as 2026-12-01T00:00:00Z")
			}
			if !end.After(a.Now()) {
				return advise(fmt.Errorf("--until %s is over", until), "give a time by which every host is upgraded")
			}
			old, err := readReference(args[0])
			if err != nil {
				return err
			}
			next, err := readReference(args[1])
			if err != nil {
				return err
			}
			return a.writeReference(out, appraise.Roll(old, next, end.UTC()))
		},
	}
	c.Flags().StringVar(&until, "until", "", "when the old values are no longer accepted, RFC 3339")
	c.Flags().StringVar(&out, "out", "", "file to write; standard output by default")
	_ = c.MarkFlagRequired("until") // the flag is there
	return c
}

// enrolment is one element of a policy's "platforms", and what it was read from.
type enrolment struct {
	policy.Platform
	mode v1.Mode
}

// MarshalJSON gives the element of "platforms" alone: it is to be put into a policy.
func (e *enrolment) MarshalJSON() ([]byte, error) { return json.Marshal(e.Platform) }

func (e *enrolment) print(s *sheet) {
	s.field("host", e.Host)
	s.field("mode", modeLine(modeName(e.mode)))
	s.field("platform id", hexOf(e.PlatformID))
	s.field("tpm key", orElse(hexOf(e.TPMKey), "none: this host has no TPM"))
	s.blank()
	s.line("Put the output of \"safeconduct enroll -o json\" into \"platforms\" of the policy, once you know that this is the host and its TPM:")
	s.line("whoever enrols decides which machine may answer under this name.")
}

func enrollCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "enroll", Short: "Show this host's platform as an element of a policy's \"platforms\"", Args: cobra.NoArgs,
		Long: `Show this host's platform as an element of a policy's "platforms": its name, the id that its processor and its TPM make, and the TPM's attestation key. Run it on the
host itself, in a state that you trust. From then on no other machine, and no other machine's TPM, can answer under this host's name.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*enrolment, error) {
				status, err := v1.NewAdminServiceClient(c).GetStatus(ctx, &v1.GetStatusRequest{})
				if err != nil {
					return nil, err
				}
				measured, err := v1.NewIntegrityServiceClient(c).Measure(ctx, &v1.MeasureRequest{})
				if err != nil {
					return nil, err
				}
				return &enrolment{mode: status.GetMode(), Platform: policy.Platform{
					Host: status.GetHost(), PlatformID: status.GetPlatformId(), TPMKey: measured.GetLog().GetTpmQuote().GetAkPublic(),
				}}, nil
			})
			if err != nil {
				return err
			}
			return a.show(e, e.print)
		},
	}
}
