package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// stateList is what secrets states prints.
type stateList struct {
	States []stateView `json:"states"`
}

// stateView is one vTPM's state at rest under a key of the enclave.
type stateView struct {
	InstanceID string `json:"instance_id"`
	Generation uint64 `json:"generation"`
	Digest     string `json:"digest,omitempty"`
	RecordedAt string `json:"recorded_at,omitempty"`
	// Incoming: the key came with a session and waits for its commit.
	Incoming bool         `json:"incoming"`
	Refused  *refusedView `json:"refused,omitempty"`
}

type refusedView struct {
	Digest     string `json:"digest"`
	At         string `json:"at"`
	Reason     string `json:"reason"`
	Generation uint64 `json:"generation,omitempty"`
}

func (a *app) states(ctx context.Context, instance string) (stateList, error) {
	answer, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ListStatesResponse, error) {
		return v1.NewAdminServiceClient(c).ListStates(ctx, &v1.ListStatesRequest{InstanceId: instance})
	})
	out := stateList{States: make([]stateView, 0, len(answer.GetStates()))}
	for _, x := range answer.GetStates() {
		v := stateView{InstanceID: x.GetInstanceId(), Generation: x.GetGeneration(), Digest: hexOf(x.GetDigest()), RecordedAt: stamp(x.GetRecordedAt()),
			Incoming: x.GetIncoming()}
		if len(x.GetRefusedDigest()) > 0 {
			v.Refused = &refusedView{Digest: hexOf(x.GetRefusedDigest()), At: stamp(x.GetRefusedAt()), Reason: refusal.Name(x.GetRefusedReason()),
				Generation: x.GetRefusedGeneration()}
		}
		out.States = append(out.States, v)
	}
	return out, err
}

func secretsStatesCommand(a *app) *cobra.Command {
	var instance string
	c := &cobra.Command{
		Use: "states", Short: "List the vTPM states at rest that are under a key of the enclave", Args: cobra.NoArgs,
		Long: `List the vTPM states at rest that are under a key of this node's enclave: which generation was recorded last, and which state was refused since.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := a.states(cmd.Context(), instance)
			if err != nil {
				return err
			}
			return a.show(out, out.print)
		},
	}
	c.Flags().StringVar(&instance, "instance", "", "only that of the VM with this UUID")
	return c
}

func (l *stateList) print(s *sheet) {
	if len(l.States) == 0 {
		s.line("no states")
		return
	}
	rows := make([][]string, 0, len(l.States))
	for _, v := range l.States {
		rows = append(rows, []string{v.InstanceID, strconv.FormatUint(v.Generation, 10), v.RecordedAt, v.standing()})
	}
	s.rows([]string{"INSTANCE", "GENERATION", "RECORDED", "STATE"}, rows)
}

// standing says in words how it is with a state.
func (v *stateView) standing() string {
	switch {
	case v.Refused != nil && v.Refused.Generation > 0:
		return fmt.Sprintf("refused at %s: %s, generation %d, %s", v.Refused.At, v.Refused.Reason, v.Refused.Generation, v.Refused.Digest)
	case v.Refused != nil:
		return fmt.Sprintf("refused at %s: %s, %s", v.Refused.At, v.Refused.Reason, v.Refused.Digest)
	case v.Incoming:
		return "incoming: its key waits for its migration's commit"
	case v.Generation == 0:
		return "nothing recorded yet"
	default:
		return "recorded"
	}
}

// acceptedState is what secrets accept-state prints.
type acceptedState struct {
	InstanceID string `json:"instance_id"`
	Digest     string `json:"digest"`
	Generation uint64 `json:"generation"`
}

func (r *acceptedState) print(s *sheet) {
	s.field("instance", r.InstanceID)
	s.field("digest", r.Digest)
	s.field("generation", strconv.FormatUint(r.Generation, 10))
}

func secretsAcceptStateCommand(a *app) *cobra.Command {
	var digest string
	c := &cobra.Command{
		Use: "accept-state UUID", Short: "Accept a vTPM's state at rest that was refused", Args: cobra.ExactArgs(1),
		Long: `Accept a vTPM's state at rest that was refused as rolled back or not recorded, and start the VM with it.

A vTPM with an old state repeats what it did: counters go back, and what was sealed to it since, or revoked, is as it was before. Accept one when you know
how it came to be: the host crashed between swtpm's write and its being recorded, or you have restored a backup and mean it. Without --digest the
command says what was refused and changes nothing. What is accepted is in the node's audit log, with the uid of the caller.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := hex.DecodeString(digest)
			if err != nil || digest != "" && len(raw) != sha256.Size {
				return advise(fmt.Errorf("--digest: found %q, expected %d hex digits", digest, 2*sha256.Size), "take it from safeconduct secrets states")
			}
			if digest == "" {
				return a.nameRefused(cmd.Context(), args[0])
			}
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.AcceptStateResponse, error) {
				return v1.NewAdminServiceClient(c).AcceptState(ctx, &v1.AcceptStateRequest{InstanceId: args[0], Digest: raw})
			})
			if err != nil {
				return err
			}
			out := acceptedState{InstanceID: args[0], Digest: hexOf(raw), Generation: answer.GetGeneration()}
			return a.show(out, out.print)
		},
	}
	c.Flags().StringVar(&digest, "digest", "", "digest of the state that was refused, in hex")
	return c
}

// nameRefused is the error of accept-state without a digest: it says which one to name.
func (a *app) nameRefused(ctx context.Context, instance string) error {
	list, err := a.states(ctx, instance)
	if err != nil {
		return err
	}
	for _, v := range list.States {
		if v.Refused != nil {
			return advise(fmt.Errorf("the state of %s was %s", instance, v.standing()),
				fmt.Sprintf("if you mean it: safeconduct secrets accept-state %s --digest %s", instance, v.Refused.Digest))
		}
	}
	return advise(fmt.Errorf("no state of %s was refused on this node", instance), "safeconduct secrets states lists what is recorded")
}
