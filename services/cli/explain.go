package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// explanation is what an operator should know about a reason.
type explanation struct {
	reason v1.Reason
	// means is what has happened, causes what usually leads to it, look where to find out more: commands, files, logs.
	means        string
	causes, look []string
}

// explanations has one for every reason, in the order of their numbers; a test enumerates the enum.
func explanations() []explanation {
	return slices.SortedFunc(slices.Values(slices.Concat(
		explainService(), explainPeers(), explainEvidence(), explainIntegrity(), explainSessions(), explainData(),
	)), func(a, b explanation) int { return int(a.reason - b.reason) })
}

// explanationView is what explain prints.
type explanationView struct {
	Reason   string   `json:"reason"`
	Number   int32    `json:"number"`
	Means    string   `json:"means"`
	Causes   []string `json:"causes"`
	Do       string   `json:"do"`
	Look     []string `json:"look"`
	Metric   string   `json:"metric"`
	ExitCode int      `json:"exit_code"`
}

func (e *explanation) view() *explanationView {
	name := refusal.Name(e.reason)
	return &explanationView{
		Reason: name, Number: int32(e.reason), Means: e.means, Causes: e.causes, Do: refusal.Remedies(e.reason), Look: e.look,
		Metric: fmt.Sprintf("safeconduct_refusals_total{reason=%q}", name), ExitCode: exitOf(e.reason),
	}
}

func explainCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "explain [REASON]", Short: "Say what a reason of a refusal means, and what to do", Args: cobra.MaximumNArgs(1),
		Long: `Say what a reason of a refusal means, what usually causes it, what to do and where to look. Without an argument it lists all reasons.

REASON is a name as refusals print it (TCB_NOT_ACCEPTED), in any case, or its number.`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return reasonNames(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listReasons()
			}
			e, err := findReason(args[0])
			if err != nil {
				return err
			}
			v := e.view()
			return a.show(v, v.print)
		},
	}
}

func (a *app) listReasons() error {
	all := explanations()
	views := make([]*explanationView, 0, len(all))
	for _, e := range all {
		views = append(views, e.view())
	}
	return a.show(struct {
		Reasons []*explanationView `json:"reasons"`
	}{views}, func(s *sheet) {
		for _, v := range views {
			s.line("%-24s %s", v.Reason, v.Means)
		}
	})
}

func (v *explanationView) print(s *sheet) {
	s.line("%s (%d)", v.Reason, v.Number)
	s.line("%s.", v.Means)
	list := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		s.blank()
		s.line("%s", title)
		for _, l := range lines {
			s.line("  %s", l)
		}
	}
	list("Usual causes:", v.Causes)
	list("What to do:", []string{v.Do})
	list("Where to look:", append(slices.Clone(v.Look), "metric "+v.Metric))
}

func reasonNames() []string {
	var names []string
	for _, e := range explanations() {
		names = append(names, refusal.Name(e.reason))
	}
	return names
}

// findReason finds a reason by its name, in any case and with any separator, or by its number.
func findReason(text string) (*explanation, error) {
	all := explanations()
	wanted := strings.TrimPrefix(strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToUpper(text)), "REASON_")
	number, err := strconv.ParseInt(text, 10, 32)
	for i := range all {
		if refusal.Name(all[i].reason) == wanted || (err == nil && int64(all[i].reason) == number) {
			return &all[i], nil
		}
	}
	var near []string
	for _, name := range reasonNames() {
		if sharesWord(name, wanted) {
			near = append(near, name)
		}
	}
	do := "see safeconduct explain for all reasons"
	if len(near) > 0 {
		do = "did you mean " + strings.Join(near, ", ") + "?"
	}
	return nil, advise(errors.New("there is no reason "+strconv.Quote(text)), do)
}

// sharesWord says whether two reasons have a word in common that says something.
func sharesWord(a, b string) bool {
	for word := range strings.SplitSeq(b, "_") {
		if len(word) > 2 && word != "NOT" && slices.Contains(strings.Split(a, "_"), word) {
			return true
		}
	}
	return false
}
