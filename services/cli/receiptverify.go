package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/tee"
)

// maxRoot bounds a root certificate in a file, in bytes.
const maxRoot = 64 << 10

func receiptVerifyCommand(a *app) *cobra.Command {
	var file, keys, root string
	c := &cobra.Command{
		Use: "verify --policy FILE --policy-keys PEM RECEIPT", Short: "Verify an exported receipt offline, by a policy and the roots alone", Args: cobra.ExactArgs(1),
		Long: `Verify an exported receipt offline, by a policy and the roots alone: both quotes with the collateral in it, that they bind the keys which signed the record, every transcript
hash, and both enclaves and platforms by the policy. Every check is listed. The exit code is 0 only if all passed. A receipt of one signature says whose it is:
it is that side's word alone.`,
		RunE: func(_ *cobra.Command, args []string) error {
			trusted, err := readKeys(keys)
			if err != nil {
				return err
			}
			raw, err := readFile(file, policy.MaxEnvelope)
			if err != nil {
				return err
			}
			p, err := policy.Open(raw, trusted)
			if err != nil {
				return &failure{err: wrapPath(file, err), code: ExitNotAuthentic, do: "give the signed policy, and the keys that the operator signs with"}
			}
			roots := map[tee.Mode]dcap.RootPin{tee.ModeIntel: dcap.IntelRoot()}
			if root != "" {
				pem, err := readFile(root, maxRoot)
				if err != nil {
					return err
				}
				pin, err := dcap.PinPEM(pem)
				if err != nil {
					return advise(wrapPath(root, err), "give the test root of the simulation, in PEM")
				}
				roots[tee.ModeSimulated] = pin
			}
			export, err := readFile(args[0], receipt.MaxExport)
			if err != nil {
				return err
			}
			report, err := receipt.Verifier{Roots: roots, Policy: p}.Verify(export)
			if err != nil {
				return &failure{err: wrapPath(args[0], err), code: ExitNotAuthentic, do: "export it again: safeconduct receipt export"}
			}
			if err := a.show(report, func(s *sheet) { printReport(s, report) }); err != nil {
				return err
			}
			if !report.Accepted {
				return ended{ExitRefused}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&file, "policy", "", "the signed policy by which both sides are judged")
	f.StringVar(&keys, "policy-keys", "", "public keys in PEM whose signature makes a policy count")
	f.StringVar(&root, "simulated-root", "", "test root of a simulation, in PEM: without it no simulated receipt is accepted")
	for _, name := range []string{"policy", "policy-keys"} {
		_ = c.MarkFlagRequired(name) // the flag is there
	}
	return c
}

func printRecord(s *sheet, rec *receipt.Record) {
	s.field("mode", modeLine(rec.Mode))
	s.field("instance", rec.InstanceID)
	s.field("migration", rec.MigrationID)
	s.line("%-14s %s to %s", "hosts", rec.Source.Host, rec.Destination.Host)
	outcome := rec.Outcome.Result
	if rec.Outcome.Reason != "" {
		outcome += " (" + rec.Outcome.Reason + ")"
	}
	s.line("%-14s %s, %s", "outcome", outcome, stampTime(rec.Times.Concluded))
	for _, b := range rec.State {
		s.line("%-14s %s, %d bytes as %d", "state", b.Type, b.PlaintextBytes, b.CiphertextBytes)
	}
	s.line("%-14s %d", "secrets", rec.Secrets)
}

func printReport(s *sheet, r *receipt.Report) {
	verdict := "ACCEPTED"
	if !r.Accepted {
		verdict = "REFUSED"
	}
	s.line("%s  receipt %x, signed by %s", verdict, []byte(r.ID), r.SignedBy)
	if r.Record != nil {
		printRecord(s, r.Record)
	}
	s.line("%-14s source %t, destination %t", "same policy", r.SourcePolicy, r.DestinationPolicy)
	s.blank()
	rows := make([][]string, 0, len(r.Checks))
	for _, c := range r.Checks {
		outcome := "passed"
		if !c.Passed {
			outcome = "FAILED"
		}
		found := c.Found
		if c.Expected != "" {
			found = fmt.Sprintf("%s (expected %s)", c.Found, c.Expected)
		}
		rows = append(rows, []string{string(c.Name), outcome, found})
	}
	s.rows([]string{"CHECK", "OUTCOME", "FOUND"}, rows)
}
