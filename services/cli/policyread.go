package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/policy"
)

func policyVerifyCommand(a *app) *cobra.Command {
	var keys string
	c := &cobra.Command{
		Use: "verify --keys PEM POLICY", Short: "Check who signed a policy, and that nodes will take it", Args: cobra.ExactArgs(1),
		Long: `Check that a policy is signed by a trusted key and valid, exactly as a node does when it loads it. The exit code is 2 if nobody
trusted signed it.`,
		RunE: func(_ *cobra.Command, args []string) error {
			trusted, err := readKeys(keys)
			if err != nil {
				return err
			}
			raw, err := readFile(args[0], policy.MaxEnvelope)
			if err != nil {
				return err
			}
			p, err := policy.Open(raw, trusted)
			if errors.Is(err, policy.ErrUntrusted) || errors.Is(err, policy.ErrBadSignature) {
				return &failure{err: fmt.Errorf("%s: %w", args[0], err), code: ExitNotAuthentic,
					do: "take no policy from whoever gave you this one, until they explain it"}
			}
			if err != nil {
				return advise(fmt.Errorf("%s: %w", args[0], err), "sign a valid policy: safeconduct policy sign")
			}
			v := viewPolicy(p)
			yes := true
			v.Authentic = &yes
			return a.show(v, v.print)
		},
	}
	c.Flags().StringVar(&keys, "keys", "", "public keys in PEM that are trusted: policy.keys of the nodes")
	_ = c.MarkFlagRequired("keys") // the flag is there
	return c
}

func policyShowCommand(a *app) *cobra.Command {
	var document bool
	c := &cobra.Command{
		Use: "show POLICY", Short: "Show what is in a policy, signed or not, without asking who signed it", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := readAnyPolicy(args[0])
			if err != nil {
				return err
			}
			if document {
				_, err := a.Out.Write(p.Raw)
				return err
			}
			v := viewPolicy(p)
			return a.show(v, v.print)
		},
	}
	c.Flags().BoolVar(&document, "document", false, "print the policy document itself, as it was signed")
	return c
}

func policySchemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of policies, for editors and pipelines", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Out.Write(policy.JSONSchema())
			return err
		},
	}
}

func (v *policyView) print(s *sheet) {
	if v.Authentic == nil {
		s.field("signature", "NOT CHECKED: see safeconduct policy verify")
	} else {
		s.field("signed by", strings.Join(v.SignedBy, ", "))
	}
	s.line("%-14s svn %d, sha256:%s", "policy", v.SVN, v.Digest)
	s.field("mode", modeLine(v.Mode))
	s.line("%-14s %d rules for enclaves%s", "accepts", v.Enclaves, when(v.Debug, ", DEBUG enclaves among them"))
	s.line("%-14s %d platforms are enrolled, %d files have reference values", "", v.Platforms, v.Files)
	s.field("tcb", strings.Join(v.Statuses, ", "))
	s.field("tolerates", orElse(strings.Join(v.Tolerated, ", "), "no advisory"))
	s.field("exports", orElse(strings.Join(v.Exported, ", "), "no keys"))
}
