package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// Bounds of a drain, as AdminService has them.
const (
	defaultDrain = 180 * time.Second
	maxDrain     = time.Hour
)

// drainEvent is one line of drain.
type drainEvent struct {
	OpenSessions uint32        `json:"open_sessions"`
	Drained      bool          `json:"drained"`
	Aborted      []sessionView `json:"aborted"`
}

func (e *drainEvent) print(s *sheet) {
	if !e.Drained {
		s.line("draining: %d sessions are open", e.OpenSessions)
		return
	}
	s.line("drained: the node service stops")
	aborted(s, e.Aborted)
}

func drainCommand(a *app) *cobra.Command {
	var deadline time.Duration
	c := &cobra.Command{
		Use: "drain", Short: "Take the node down: no new sessions, wait for the open ones, stop", Args: cobra.NoArgs,
		Long: `Take the node down: no new sessions, wait for the open ones, abort those left at the deadline, stop the node service.

Peers see DRAINING and Nova chooses other hosts. Interrupting this command does not undo it: the node drains on. With -o json, each
progress is an object on a line of its own.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := within("--deadline", deadline, maxDrain); err != nil {
				return err
			}
			done := false
			err := follow(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (grpc.ServerStreamingClient[v1.DrainResponse], error) {
				return v1.NewAdminServiceClient(c).Drain(ctx, &v1.DrainRequest{Deadline: durationpb.New(deadline)})
			}, func(r *v1.DrainResponse) error {
				done = r.GetDrained()
				e := drainEvent{OpenSessions: r.GetOpenSessions(), Drained: done, Aborted: viewSessions(r.GetAborted())}
				return a.event(e, e.print)
			})
			if err != nil || done {
				return err
			}
			return &failure{err: errors.New("the drain was not followed to its end"), code: ExitUnreachable,
				do: "the node drains on; see safeconduct status, or whether safeconductd still runs"}
		},
	}
	c.Flags().DurationVar(&deadline, "deadline", defaultDrain, "how long the open sessions get, at most 1h")
	return c
}
