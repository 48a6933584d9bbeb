package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func preflightCommand(a *app) *cobra.Command {
	var role string
	c := &cobra.Command{
		Use: "preflight PEER", Short: "Run the whole handshake with a peer, and leave nothing behind", Args: cobra.ExactArgs(1),
		Long: `Run the whole handshake with a peer: both nodes attest and appraise each other and exchange integrity logs, as they would for a
migration. No session is left on either. PEER is a host among peers in safeconductd's configuration.

Run it against every peer after an upgrade, a change of policy or new hardware: it says what a migration would be refused for.`,
		Example: "  safeconduct preflight compute2\n  safeconduct preflight compute2 --role destination -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, ok := map[string]v1.Role{"source": v1.Role_ROLE_SOURCE, "destination": v1.Role_ROLE_DESTINATION}[role]
			if !ok {
				return advise(fmt.Errorf("--role is %q, not source or destination", role), "say which role this node plays")
			}
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.PreflightResponse, error) {
				return v1.NewAttestationServiceClient(c).Preflight(ctx, &v1.PreflightRequest{PeerHost: args[0], Role: wanted})
			})
			if err != nil {
				return err
			}
			r := a.preflightReport(answer, role)
			return r.conclude(a.show(r, r.print))
		},
	}
	c.Flags().StringVar(&role, "role", "source", "role that this node plays: source or destination")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"source", "destination"},
		cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return c
}

// preflightReport is what preflight prints.
type preflightReport struct {
	verdict
	Host     string  `json:"host"`
	PeerHost string  `json:"peer_host"`
	Role     string  `json:"role"`
	Took     float64 `json:"milliseconds"`
	// OfPeer is this node's verdict on the peer; OfThis the peer's on this node, as far as it is known here: accepted, refused or unknown.
	OfPeer    string         `json:"verdict_on_peer"`
	OfThis    string         `json:"verdict_of_peer"`
	Attested  *attestedView  `json:"attested,omitempty"`
	Appraised *appraisedView `json:"appraised,omitempty"`
	EAR       *ear           `json:"ear"`
	elapsed   string
	took      map[string]string
}

// unknown is a verdict that this side cannot know.
const unknown = "unknown"

// steps of the handshake, in order, by their names for people.
func stepNames() []string {
	return []string{"peer attestation", "integrity exchange", "key derivation"}
}

func (a *app) preflightReport(p *v1.PreflightResponse, role string) *preflightReport {
	word := accepted
	if !p.GetAccepted() {
		word = wordOf(p.GetRefusal().GetReason())
	}
	r := &preflightReport{
		Host: p.GetHost(), PeerHost: p.GetPeerHost(), Role: role, Took: millis(p.GetElapsed()), elapsed: took(p.GetElapsed()),
		OfPeer: accepted, OfThis: accepted, took: map[string]string{},
	}
	checks := make([]check, 0, len(stepNames()))
	reached := map[string]*v1.StepReport{}
	var attested *v1.Attested
	for _, step := range p.GetSteps() {
		reached[stepName(step.GetStep())] = step
		if step.GetAttested() != nil {
			attested = step.GetAttested()
		}
		if step.GetAppraised() != nil {
			r.Appraised = viewAppraised(step.GetAppraised())
		}
	}
	told := false
	for _, name := range stepNames() {
		c := stepCheck(name, reached[name])
		told = told || c.Outcome == notPassed
		checks = append(checks, c)
		r.took[name] = took(reached[name].GetElapsed())
	}
	if !p.GetAccepted() && !told { // it ended before or between steps
		checks = append(checks, failing("handshake", p.GetRefusal()))
	}
	r.verdict, r.Attested = newVerdict(p.GetMode(), word, checks), viewAttested(attested)
	r.judgeBoth(p)
	r.EAR = newEAR(a.Now(), nodeBuild, orElse(p.GetPeerHost(), "peer"), r.appraisal(attested, p.GetPeerHost())).until(attested)
	return r
}

// judgeBoth says what each side thinks of the other. The peer says that it refuses, not why.
func (r *preflightReport) judgeBoth(p *v1.PreflightResponse) {
	if p.GetAccepted() {
		return
	}
	switch p.GetRefusal().GetReason() {
	case v1.Reason_REASON_PEER_REFUSED:
		r.OfThis, r.OfPeer = refused, unknown
		if outcomeOf(r.Checks, stepNames()[1]) == passed {
			r.OfPeer = accepted
		}
	case v1.Reason_REASON_PEER_UNAVAILABLE, v1.Reason_REASON_INTERNAL, v1.Reason_REASON_UNKNOWN_PEER, v1.Reason_REASON_LIMIT_EXCEEDED,
		v1.Reason_REASON_DRAINING, v1.Reason_REASON_MEASUREMENT_FAILED, v1.Reason_REASON_QUOTE_FAILED:
		r.OfPeer, r.OfThis = unknown, unknown
	default:
		r.OfPeer, r.OfThis = refused, unknown
	}
}

// appraisal is the peer's part of the EAR: what its evidence showed, and its integrity log.
func (r *preflightReport) appraisal(attested *v1.Attested, peer string) earAppraisal {
	v := r.verdict
	v.Checks = nil
	first, second := r.Checks[0], r.Checks[1]
	switch {
	case attested != nil:
		v.Checks = evidenceChecks(attested, nil, asked{binding: true, host: peer})
	case first.Outcome == notPassed:
		v.Checks = []check{peerEvidence(first)}
	}
	if second.Reason != "PEER_REFUSED" {
		second.Check = checkIntegrity
	}
	v.Checks = append(append(v.Checks, second), r.Checks[2:]...)
	out := appraisalOf(&v, attested, "")
	if r.OfPeer == unknown {
		out.Status = "none" // the peer was not judged to the end
	}
	return out
}

// peerEvidence is the one check of the peer's evidence that a handshake was broken off for.
func peerEvidence(step check) check {
	reason := v1.Reason(v1.Reason_value["REASON_"+step.Reason])
	if exitOf(reason) == ExitNotAuthentic {
		step.Check = checkEvidence
		return step
	}
	for _, row := range evidenceRows(nil, asked{}) {
		if row.fits(&v1.Refusal{Reason: reason, Item: step.Item}) {
			step.Check = row.name
			break
		}
	}
	return step
}

// stepName is the name of a step for people.
func stepName(step v1.Step) string {
	return strings.ReplaceAll(enumName(step.String(), "STEP_"), "_", " ")
}

func stepCheck(name string, step *v1.StepReport) check {
	switch {
	case step == nil:
		return check{Check: name, Outcome: notJudged, Message: "not reached"}
	case step.GetRefusal() != nil:
		c := failing(name, step.GetRefusal())
		c.Took = millis(step.GetElapsed())
		return c
	}
	found := "both enclaves hold the same keys, which are destroyed again"
	if a := step.GetAttested(); a != nil {
		found = fmt.Sprintf("%s, tcb %s", authentic(a), a.GetTcbStatus())
	}
	if p := step.GetAppraised(); p != nil {
		found = appraisedText(p)
	}
	return check{Check: name, Outcome: passed, Found: found, Took: millis(step.GetElapsed())}
}

// print is the report for people.
func (r *preflightReport) print(s *sheet) {
	r.head(s)
	other := map[string]string{"source": "destination", "destination": "source"}[r.Role]
	s.line("%-14s %s (%s) with %s (%s), %s", "handshake", r.Host, r.Role, r.PeerHost, other, r.elapsed)
	say := strings.NewReplacer(unknown, "not known here")
	s.line("%-14s %s on %s: %s; %s on %s: %s", "verdicts", r.Host, r.PeerHost, say.Replace(r.OfPeer), r.PeerHost, r.Host, say.Replace(r.OfThis))
	s.blank()
	for _, c := range r.Checks {
		if t := r.took[c.Check]; t != "" && c.Outcome == passed {
			c.Found += " (" + t + ")"
		}
		c.print(s)
	}
}
