package vtpm

import (
	"context"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/vtpm/statekey"
)

// StateKeeper is the node service to statekey, over the connection of the VM's helper. Its caller bounds each call.
func (r *RemoteProtector) StateKeeper() statekey.Keeper { return stateKeeper{r} }

type stateKeeper struct{ r *RemoteProtector }

// OpenState implements statekey.Keeper.
func (k stateKeeper) OpenState(ctx context.Context, digest []byte, follows bool) (statekey.Opened, error) {
	k.r.conn.ResetConnectBackoff()
	got, err := k.r.client.OpenState(ctx, &v1.OpenStateRequest{InstanceId: k.r.instance, Digest: digest, StateFollows: follows})
	if err != nil {
		return statekey.Opened{}, k.r.explain(err)
	}
	return statekey.Opened{Key: got.GetKey(), Generation: got.GetGeneration(), Recorded: got.GetRecorded()}, nil
}

// RecordState implements statekey.Keeper.
func (k stateKeeper) RecordState(ctx context.Context, previous, digest []byte) (uint64, error) {
	k.r.conn.ResetConnectBackoff()
	got, err := k.r.client.RecordState(ctx, &v1.RecordStateRequest{InstanceId: k.r.instance, Previous: previous, Digest: digest})
	return got.GetGeneration(), k.r.explain(err)
}
