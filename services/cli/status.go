package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/audit"
)

func statusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say what this node is, and whether its own policy accepts it", Args: cobra.NoArgs,
		Long: `Say what this node is, what it runs under, and whether its own policy accepts it, as its peers' would.

The exit code is 1 if it does not: peers refuse such a node.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.GetStatusResponse, error) {
				return v1.NewAdminServiceClient(c).GetStatus(ctx, &v1.GetStatusRequest{})
			})
			if err != nil {
				return err
			}
			v := viewStatus(answer)
			if err := a.show(v, v.print); err != nil || v.Accepted {
				return err
			}
			return ended{ExitRefused}
		},
	}
}

// statusView is what status prints.
type statusView struct {
	Host                string        `json:"host"`
	Mode                string        `json:"mode"`
	Warning             string        `json:"warning,omitempty"`
	Version             string        `json:"version"`
	StartedAt           string        `json:"started_at"`
	PlatformID          string        `json:"platform_id"`
	PolicySVN           uint64        `json:"policy_svn"`
	PolicyDigest        string        `json:"policy_sha256"`
	PolicySigners       []string      `json:"policy_signers"`
	Accepted            bool          `json:"accepted_by_own_policy"`
	Refusal             *refusalView  `json:"refusal,omitempty"`
	Attested            *attestedView `json:"attested,omitempty"`
	OpenSessions        uint32        `json:"open_sessions"`
	Attached            []string      `json:"attached_instances"`
	Draining            bool          `json:"draining"`
	CollateralExpiresAt string        `json:"collateral_expires_at,omitempty"`
	AuditHead           string        `json:"audit_head,omitempty"`
}

func viewStatus(r *v1.GetStatusResponse) *statusView {
	v := &statusView{
		Host: r.GetHost(), Mode: modeName(r.GetMode()), Version: r.GetVersion(), StartedAt: stamp(r.GetStartedAt()),
		PlatformID: hexOf(r.GetPlatformId()),
		PolicySVN:  r.GetPolicySvn(), PolicyDigest: hexOf(r.GetPolicyDigest()), PolicySigners: append([]string{}, r.GetPolicySigners()...),
		Accepted: r.GetAcceptedByOwnPolicy(), Refusal: viewRefusal(r.GetOwnRefusal()), Attested: viewAttested(r.GetAttested()),
		OpenSessions: r.GetOpenSessions(), Draining: r.GetDraining(), CollateralExpiresAt: stamp(r.GetCollateralExpiresAt()),
		Attached: append([]string{}, r.GetAttachedInstances()...),
	}
	if len(r.GetAuditDigest()) == len(audit.Digest{}) {
		v.AuditHead = audit.Head{Sequence: r.GetAuditSequence(), Digest: audit.Digest(r.GetAuditDigest())}.String()
	}
	if r.GetMode() != v1.Mode_MODE_INTEL {
		v.Warning = modeLine(v.Mode)
	}
	return v
}

func (v *statusView) print(s *sheet) {
	s.field("host", v.Host)
	s.field("mode", modeLine(v.Mode))
	s.field("own policy", map[bool]string{true: "accepts this node", false: "REFUSES this node: peers with this policy will too"}[v.Accepted])
	s.line("%-14s %d%s", "sessions", v.OpenSessions, when(v.Draining, ", DRAINING: no new ones"))
	s.line("%-14s %d VMs with a vTPM behind the helper", "helpers", len(v.Attached))
	s.line("%-14s %s, since %s", "safeconductd", v.Version, orElse(v.StartedAt, "an unknown time"))
	s.line("%-14s svn %d, sha256:%s", "policy", v.PolicySVN, v.PolicyDigest)
	s.field("signed by", orElse(strings.Join(v.PolicySigners, ", "), "nobody"))
	s.field("platform", v.PlatformID)
	if a := v.Attested; a != nil {
		s.field("mrenclave", a.MREnclave)
		s.line("%-14s %s; advisories %s; fmspc %s", "tcb", a.ConvergedStatus, orElse(strings.Join(a.AdvisoryIDs, ", "), "none"), a.FMSPC)
		s.field("root", a.Root)
	}
	s.field("collateral", when(v.CollateralExpiresAt != "", "expires "+v.CollateralExpiresAt))
	s.field("audit head", v.AuditHead)
	if r := v.Refusal; r != nil {
		s.blank()
		s.line("%s: %s", r.Reason, r.Message)
		s.field("item", r.Item)
		s.field("found", r.Found)
		s.field("expected", r.Expected)
		s.field("do", r.Do)
	}
}

func reloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Have the node read policy and collateral again", Args: cobra.NoArgs,
		Long: `Have the node read policy and collateral again. A policy that is not valid, or older than the last one, is refused and the one in
force stays. Open sessions whose peer is no longer accepted are aborted at both ends; their VMs stay on the source.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ReloadResponse, error) {
				return v1.NewAdminServiceClient(c).Reload(ctx, &v1.ReloadRequest{})
			})
			if err != nil {
				return err
			}
			v := &reloadView{
				PolicySVN: answer.GetPolicySvn(), PolicyDigest: hexOf(answer.GetPolicyDigest()), PolicyChanged: answer.GetPolicyChanged(),
				CollateralChanged: answer.GetCollateralChanged(), Aborted: viewSessions(answer.GetAborted()),
			}
			return a.show(v, v.print)
		},
	}
}

// reloadView is what reload prints.
type reloadView struct {
	PolicySVN         uint64        `json:"policy_svn"`
	PolicyDigest      string        `json:"policy_sha256"`
	PolicyChanged     bool          `json:"policy_changed"`
	CollateralChanged bool          `json:"collateral_changed"`
	Aborted           []sessionView `json:"aborted"`
}

func (v *reloadView) print(s *sheet) {
	changed := map[bool]string{true: "changed", false: "unchanged"}
	s.line("%-14s %s: svn %d, sha256:%s", "policy", changed[v.PolicyChanged], v.PolicySVN, v.PolicyDigest)
	s.field("collateral", changed[v.CollateralChanged])
	aborted(s, v.Aborted)
}

// aborted prints the sessions that a command has ended.
func aborted(s *sheet, all []sessionView) {
	if len(all) == 0 {
		s.field("aborted", "no sessions")
		return
	}
	s.field("aborted", fmt.Sprintf("%d sessions; their VMs stay on the source", len(all)))
	s.blank()
	sessionRows(s, all)
}
