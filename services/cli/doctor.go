package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/doctor"
)

func doctorCommand(a *app) *cobra.Command {
	h := doctor.Local()
	c := &cobra.Command{
		Use: "doctor", Short: "Look this host over and say what is wrong, and what to do", Args: cobra.NoArgs,
		Long: `Look this host over and say what is wrong, and what to do: configuration, modes of files, clock, SGX, collateral, TPM, IMA, boot log, socket, node
service, callers, helper, libvirt, tunnel, Nova's driver, peers. It changes nothing. Run it as root.

Exit code 0: no problem, though there may be warnings. 1: a problem.`,
	}
	f := c.Flags()
	f.StringVar(&h.Config, "config", h.Config, "the node service's configuration")
	f.StringVar(&h.Root, "root", "", "another root directory, such as a host's that is mounted in a container")
	f.DurationVar(&h.Timeout, "patience", h.Timeout, "how long to wait for each answer")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := within("--patience", h.Timeout, time.Minute); err != nil {
			return err
		}
		v := &doctorView{Findings: h.Examine(cmd.Context())}
		for _, f := range v.Findings {
			switch f.Verdict {
			case doctor.Problem:
				v.Problems++
			case doctor.Warning:
				v.Warnings++
			case doctor.OK, doctor.NotMade:
			}
		}
		if err := a.show(v, v.print); err != nil {
			return err
		}
		if v.Problems > 0 {
			return ended{ExitRefused}
		}
		return nil
	}
	return c
}

type doctorView struct {
	Problems int              `json:"problems"`
	Warnings int              `json:"warnings"`
	Findings []doctor.Finding `json:"findings"`
}

func (v *doctorView) print(s *sheet) {
	for _, f := range v.Findings {
		s.line("%-14s %-9s %s", f.Check, f.Verdict, f.Found)
		if f.Do != "" {
			s.line("%-14s %-9s do: %s", "", "", f.Do)
		}
	}
	s.blank()
	s.line("%d problems, %d warnings", v.Problems, v.Warnings)
}
