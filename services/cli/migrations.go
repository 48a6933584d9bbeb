package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func migrationsCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "migrations", Short: "See and end the migration sessions of this node"}
	c.AddCommand(migrationsListCommand(a), migrationsShowCommand(a), migrationsWatchCommand(a), migrationsAbortCommand(a))
	return c
}

// sessionList is what lists of sessions print.
type sessionList struct {
	Sessions []sessionView `json:"sessions"`
}

func migrationsListCommand(a *app) *cobra.Command {
	var instance string
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List the open sessions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sessions, err := a.sessions(cmd.Context(), instance, all)
			if err != nil {
				return err
			}
			out := sessionList{viewSessions(sessions)}
			return a.show(out, func(s *sheet) {
				if len(out.Sessions) == 0 {
					s.line("no sessions")
					return
				}
				sessionRows(s, out.Sessions)
			})
		},
	}
	c.Flags().StringVar(&instance, "instance", "", "only those of the VM with this UUID")
	c.Flags().BoolVar(&all, "all", false, "also those that have ended and are still remembered")
	return c
}

func (a *app) sessions(ctx context.Context, instance string, ended bool) ([]*v1.Session, error) {
	answer, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ListResponse, error) {
		return v1.NewMigrationServiceClient(c).List(ctx, &v1.ListRequest{InstanceId: instance, IncludeEnded: ended})
	})
	return answer.GetSessions(), err
}

// Sizes of a session id, in hex digits: all of it, and what is the least of a beginning.
const (
	sessionDigits    = 32
	minSessionDigits = 4
)

// session finds the session that an argument names: its id in hex, or the beginning of it that only one session has.
func (a *app) session(ctx context.Context, arg string) ([]byte, error) {
	arg = strings.ToLower(arg)
	even := arg + when(len(arg)%2 == 1, "0")
	id, err := hex.DecodeString(even)
	if err != nil || len(arg) < minSessionDigits || len(arg) > sessionDigits {
		return nil, advise(fmt.Errorf("%q is no session id: %d hex digits, or the first %d or more of them", arg, sessionDigits,
			minSessionDigits),
			"see safeconduct migrations list --all")
	}
	if len(arg) == sessionDigits {
		return id, nil
	}
	all, err := a.sessions(ctx, "", true)
	if err != nil {
		return nil, err
	}
	var found []byte
	for _, s := range all {
		if !strings.HasPrefix(hexOf(s.GetSessionId()), arg) {
			continue
		}
		if found != nil {
			return nil, advise(fmt.Errorf("%q begins more than one session id", arg), "give more digits; see safeconduct migrations list --all")
		}
		found = s.GetSessionId()
	}
	if found == nil {
		return nil, advise(fmt.Errorf("no session id begins with %q", arg), "see safeconduct migrations list --all")
	}
	return found, nil
}

func migrationsShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show SESSION", Short: "Show all that is known of one session", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := a.session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.GetResponse, error) {
				return v1.NewMigrationServiceClient(c).Get(ctx, &v1.GetRequest{SessionId: id})
			})
			if err != nil {
				return err
			}
			v := viewSession(answer.GetSession())
			return a.show(v, v.print)
		},
	}
}

func migrationsAbortCommand(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "abort SESSION", Short: "End a session on both nodes; its VM stays on the source", Args: cobra.ExactArgs(1),
		Long: `End a session on both nodes and destroy its keys. Its VM stays on the source. A libvirt job that still runs then fails at the restore
of the vTPM and leaves the VM running; to end the job too, abort the migration in Nova.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := a.session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.AbortResponse, error) {
				return v1.NewMigrationServiceClient(c).Abort(ctx, &v1.AbortRequest{SessionId: id, Reason: reason})
			})
			if err != nil {
				return err
			}
			v := viewSession(answer.GetSession())
			return a.show(v, v.print)
		},
	}
	c.Flags().StringVar(&reason, "reason", "aborted by the operator", "for the logs of both nodes; at most 256 bytes are kept")
	return c
}
