package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func secretsCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "secrets", Short: "See which secrets and states of vTPMs this node's enclave keeps, never what they are"}
	c.AddCommand(secretsListCommand(a), secretsStatesCommand(a), secretsAcceptStateCommand(a))
	return c
}

// secretList is what secrets list prints.
type secretList struct {
	Secrets []secretView `json:"secrets"`
}

type secretView struct {
	InstanceID string `json:"instance_id"`
	SecretID   string `json:"secret_id"`
	EscrowedAt string `json:"escrowed_at,omitempty"`
	// Incoming: it came with a session and waits for its commit.
	Incoming bool `json:"incoming"`
}

func secretsListCommand(a *app) *cobra.Command {
	var instance string
	c := &cobra.Command{
		Use: "list", Short: "List the secrets that are escrowed here", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ListSecretsResponse, error) {
				return v1.NewSecretServiceClient(c).ListSecrets(ctx, &v1.ListSecretsRequest{InstanceId: instance})
			})
			if err != nil {
				return err
			}
			out := secretList{Secrets: make([]secretView, 0, len(answer.GetSecrets()))}
			for _, x := range answer.GetSecrets() {
				out.Secrets = append(out.Secrets, secretView{
					InstanceID: x.GetInstanceId(), SecretID: x.GetSecretId(), EscrowedAt: stamp(x.GetEscrowedAt()), Incoming: x.GetIncoming(),
				})
			}
			return a.show(out, out.print)
		},
	}
	c.Flags().StringVar(&instance, "instance", "", "only those of the VM with this UUID")
	return c
}

func (l *secretList) print(s *sheet) {
	if len(l.Secrets) == 0 {
		s.line("no secrets")
		return
	}
	rows := make([][]string, 0, len(l.Secrets))
	for _, v := range l.Secrets {
		state := map[bool]string{false: "escrowed", true: "incoming: waits for its migration's commit"}[v.Incoming]
		rows = append(rows, []string{v.InstanceID, v.SecretID, v.EscrowedAt, state})
	}
	s.rows([]string{"INSTANCE", "SECRET", "SINCE", "STATE"}, rows)
}
