package cli

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/endorsement"
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

// maxRoots bounds a file of TPM makers' certificate authorities, in bytes: it may name them all.
const maxRoots = 1 << 20

// enrolment is one element of a policy's "platforms", and what it was read from.
type enrolment struct {
	policy.Platform
	mode v1.Mode
	tpm  *v1.EndorseResponse
	// maker is what the endorsement certificate says; nil if no roots were given to believe it by.
	maker *endorsement.Statement
}

// MarshalJSON gives the element of "platforms" alone: it is to be put into a policy.
func (e *enrolment) MarshalJSON() ([]byte, error) { return json.Marshal(e.Platform) }

func (e *enrolment) print(s *sheet) {
	s.field("host", e.Host)
	s.field("mode", modeLine(modeName(e.mode)))
	s.field("platform id", hexOf(e.PlatformID))
	s.field("tpm key", orElse(hexOf(e.TPMKey), "none: this host has no TPM"))
	if len(e.TPMKey) > 0 {
		s.field("in the tpm of", e.endorsed())
	}
	s.blank()
	s.line("Put the output of \"safeconduct enroll -o json\" into \"platforms\" of the policy, once you know that this is the host and its TPM:")
	s.line("whoever enrols decides which machine may answer under this name.")
}

// endorsed says which TPM the attestation key was shown to be in.
func (e *enrolment) endorsed() string {
	switch key := sha256.Sum256(e.tpm.GetEkPublic()); {
	case e.maker != nil:
		return fmt.Sprintf("endorsement key sha256:%x, certified by %s under %s", key, e.maker.Issuer, e.maker.Root)
	case len(e.tpm.GetEkCertificate()) > 0:
		return fmt.Sprintf("endorsement key sha256:%x; its certificate was not checked (give --ek-roots)", key)
	default:
		return fmt.Sprintf("endorsement key sha256:%x; this TPM has no certificate of it", key)
	}
}

func enrollCommand(a *app) *cobra.Command {
	var roots string
	c := &cobra.Command{
		Use: "enroll [--ek-roots FILE]", Short: "Show this host's platform as an element of a policy's \"platforms\"", Args: cobra.NoArgs,
		Long: `Show this host's platform as an element of a policy's "platforms": its name, the id that its processor and its TPM make, and the TPM's attestation key. Run it on the
host itself, in a state that you trust. From then on no other machine, and no other machine's TPM, can answer under this host's name.

The node service has challenged the TPM (credential activation), so that the attestation key is in the same TPM as the endorsement key that is shown. With --ek-roots,
the TPM makers' certificate authorities in PEM, the endorsement key's certificate must lead to one of them: the key is then in a TPM of that maker, not in software.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := ask(cmd.Context(), a, readEnrolment)
			if err != nil {
				return err
			}
			if roots != "" {
				if e.maker, err = believe(e.tpm, roots, a.Now()); err != nil {
					return err
				}
			}
			return a.show(e, e.print)
		},
	}
	c.Flags().StringVar(&roots, "ek-roots", "", "certificate authorities of TPM makers in PEM; the endorsement key's certificate must lead to one of them")
	return c
}

func readEnrolment(ctx context.Context, c *grpc.ClientConn) (*enrolment, error) {
	status, err := v1.NewAdminServiceClient(c).GetStatus(ctx, &v1.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	tpm, err := v1.NewIntegrityServiceClient(c).Endorse(ctx, &v1.EndorseRequest{})
	if err != nil {
		return nil, err
	}
	return &enrolment{mode: status.GetMode(), tpm: tpm, Platform: policy.Platform{
		Host: status.GetHost(), PlatformID: status.GetPlatformId(), TPMKey: tpm.GetAkPublic(),
	}}, nil
}

// believe refuses an endorsement key whose certificate does not lead to the roots in a file.
func believe(tpm *v1.EndorseResponse, file string, now time.Time) (*endorsement.Statement, error) {
	raw, err := readFile(file, maxRoots)
	if err != nil {
		return nil, err
	}
	roots, err := endorsement.Roots(raw)
	if err != nil {
		return nil, fmt.Errorf("--ek-roots %s: %w", file, err)
	}
	if len(tpm.GetAkPublic()) == 0 {
		return nil, advise(errors.New("this host has no TPM in the node service's configuration"), "name it under integrity.tpm, or leave --ek-roots out")
	}
	s, err := endorsement.Verify(tpm.GetEkPublic(), tpm.GetEkCertificate(), tpm.GetEkChain(), roots, now)
	if err == nil {
		return s, nil
	}
	do := "do not enrol this machine before you know why"
	switch {
	case errors.Is(err, endorsement.ErrNone):
		do = "compare the endorsement key with the maker's record by hand, and leave --ek-roots out"
	case errors.Is(err, endorsement.ErrUntrusted):
		do = "add the maker's root, and the intermediates that the TPM does not store, to " + file + "; if they are there, do not enrol this machine"
	}
	return nil, &failure{err: err, do: do, code: ExitNotAuthentic}
}
