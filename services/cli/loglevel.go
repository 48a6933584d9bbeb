package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func logLevelCommand(a *app) *cobra.Command {
	levels := []string{"debug", "info", "warn", "error"}
	return &cobra.Command{
		Use: "loglevel [LEVEL]", Short: "Say or change the level of the node service's log", Args: cobra.MaximumNArgs(1),
		Long: `Say or change the level of the node service's diagnostic log: debug, info, warn or error. It holds until the service ends; log.level of the
configuration is what it starts with. The audit log has no levels.`,
		ValidArgsFunction: cobra.FixedCompletions(levels, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &v1.SetLogLevelRequest{}
			if len(args) > 0 {
				req.Level = args[0]
			}
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.SetLogLevelResponse, error) {
				return v1.NewAdminServiceClient(c).SetLogLevel(ctx, req)
			})
			if err != nil {
				return err
			}
			v := struct {
				Level    string `json:"level"`
				Previous string `json:"previous"`
			}{answer.GetLevel(), answer.GetPrevious()}
			return a.show(v, func(s *sheet) { s.line("%s%s", v.Level, when(v.Level != v.Previous, ", was "+v.Previous)) })
		},
	}
}
