package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// waitPause is between two questions to a node service that does not serve yet.
const waitPause = 200 * time.Millisecond

func waitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "wait", Short: "Wait until the node service is ready", Args: cobra.NoArgs,
		Long: `Wait until the node service is ready: it answers, and it has attested itself to itself under its own policy. --timeout bounds the wait.

Exit code 0: ready. 4: it does not answer, or is not ready, in time; safeconduct status says why.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.limit(cmd.Context())
			defer cancel()
			n, err := a.connect()
			if err != nil {
				return err
			}
			defer n.Close() //nolint:errcheck // nothing was buffered
			for {
				last := serving(ctx, n.conn)
				if last == nil {
					return nil
				}
				timer := time.NewTimer(waitPause)
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
					return &failure{err: fmt.Errorf("not ready in %v: %w", a.timeout, n.explain(last)), code: ExitUnreachable,
						do: "safeconduct status says what is wrong; safeconductd's log has the rest"}
				}
			}
		},
	}
}

var errNotServing = errors.New("the node service answers and is not ready")

// serving is nil if the node service says that it serves.
func serving(ctx context.Context, conn *grpc.ClientConn) error {
	conn.ResetConnectBackoff()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err == nil && answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		err = errNotServing
	}
	return err
}
