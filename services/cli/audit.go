package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/audit"
)

// defaultAudit is where a node's audit log is unless its configuration says otherwise.
const defaultAudit = "/var/lib/safeconduct/audit"

func auditCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "The log of every request that matters"}
	c.AddCommand(auditVerifyCommand(a))
	return c
}

func auditVerifyCommand(a *app) *cobra.Command {
	var head string
	var node bool
	c := &cobra.Command{
		Use: "verify [DIR]", Short: "Verify that nothing in an audit log was changed, left out or put in", Args: cobra.MaximumNArgs(1),
		Long: `Verify that nothing in an audit log was changed, left out or put in: every record is chained to the one before. DIR is audit.dir of the node service,
` + defaultAudit + ` by default.

The chain alone does not show that its end was cut off, or that all of it was written anew by somebody who may write the directory. For that give
the head: --node asks the running node service, whose enclave keeps it sealed, and --head takes one that was noted before, as this command and
safeconduct status print it. A host that has put back an old log with the sealed head of its time is found only by a head that was noted elsewhere.

The exit code is 2 if the log is not what the node wrote.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := defaultAudit
			if len(args) > 0 {
				dir = args[0]
			}
			anchor, err := a.auditHead(cmd.Context(), head, node)
			if err != nil {
				return err
			}
			report, err := audit.Verify(dir, anchor)
			damage, damaged := errors.AsType[*audit.Damage](err)
			if err != nil && !damaged {
				if errors.Is(err, fs.ErrNotExist) {
					return advise(err, "name the directory of audit.dir")
				}
				return advise(err, "run it as a user who may read the log")
			}
			v := viewAudit(dir, report, damage, anchor)
			if err := a.show(v, v.print); err != nil || v.Intact {
				return err
			}
			return ended{ExitNotAuthentic}
		},
	}
	c.Flags().StringVar(&head, "head", "", "a head that was noted before, SEQUENCE:DIGEST, which the log must hold")
	c.Flags().BoolVar(&node, "node", false, "ask the running node service for its head, which the log must hold")
	c.MarkFlagsMutuallyExclusive("head", "node")
	return c
}

// auditHead is the head that a log is held to, or nil.
func (a *app) auditHead(ctx context.Context, head string, node bool) (*audit.Head, error) {
	if head != "" {
		h, err := audit.ParseHead(head)
		return &h, advise(err, "copy the head as safeconduct audit verify prints it")
	}
	if !node {
		return nil, nil
	}
	status, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.GetStatusResponse, error) {
		return v1.NewAdminServiceClient(c).GetStatus(ctx, &v1.GetStatusRequest{})
	})
	if err != nil {
		return nil, err
	}
	if len(status.GetAuditDigest()) != len(audit.Digest{}) {
		return nil, advise(errors.New("the node service tells no head of an audit log"), "it is of an older release; give --head instead")
	}
	return &audit.Head{Sequence: status.GetAuditSequence(), Digest: audit.Digest(status.GetAuditDigest())}, nil
}

// auditView is what audit verify prints.
type auditView struct {
	Intact  bool   `json:"intact"`
	Dir     string `json:"dir"`
	Files   int    `json:"files"`
	Records uint64 `json:"records"`
	First   uint64 `json:"first"`
	Head    string `json:"head"`
	// Anchored: the log holds the head that it was held to, so that its end was not cut off before it.
	Anchored bool   `json:"anchored"`
	Against  string `json:"against,omitempty"`
	Lost     uint64 `json:"lost"`
	Partial  bool   `json:"partial_last_line"`
	Damage   string `json:"damage,omitempty"`
}

func viewAudit(dir string, r *audit.Report, damage *audit.Damage, anchor *audit.Head) *auditView {
	v := &auditView{
		Intact: damage == nil, Dir: dir, Files: r.Files, Records: r.Records, First: r.First, Head: r.Head.String(), Anchored: r.Anchored, Lost: r.Lost, Partial: r.Partial,
	}
	if damage != nil {
		v.Damage = damage.Error()
	}
	if anchor != nil {
		v.Against = anchor.String()
	}
	return v
}

func (v *auditView) print(s *sheet) {
	s.line("%s  %s", map[bool]string{true: "INTACT", false: "DAMAGED"}[v.Intact], v.Dir)
	s.field("damage", v.Damage)
	s.line("%-14s %d in %d files, from %d%s", "records", v.Records, v.Files, v.First, when(!v.Intact, ", read up to the damage"))
	s.field("head", v.Head)
	switch {
	case !v.Intact:
		s.field("do", "keep the directory as it is, and the node's sealed files: it is evidence")
	case v.Anchored:
		s.field("end", "nothing is missing up to record "+v.Against)
	default:
		s.field("end", "not checked: whether the end was cut off shows only with --node or --head")
	}
	if v.Lost > 0 {
		s.field("lost", fmt.Sprintf("%d records that the node could not write, and says so", v.Lost))
	}
	if v.Partial {
		s.field("last line", "cut short, as by a power cut; the node drops it when it starts")
	}
}
