package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// preflight asks both nodes whether a migration would be accepted, before anything is asked for.
func (d *demo) preflight(ctx context.Context) error {
	title("Preflight, both ways: the whole handshake, and no session afterwards")
	for _, way := range [][2]string{{"compute1", "compute2"}, {"compute2", "compute1"}} {
		got, err := v1.NewAttestationServiceClient(d.nodes[way[0]].Conn).Preflight(ctx, &v1.PreflightRequest{PeerHost: way[1]})
		if err != nil {
			return err
		}
		if !got.GetAccepted() {
			return fmt.Errorf("%s would refuse %s: %s", way[0], way[1], got.GetRefusal().GetMessage())
		}
		say("%s accepts %s, %.1f ms", way[0], way[1], ms(got.GetElapsed().AsDuration()))
	}
	return nil
}

// secretOfVM stands for the passphrase that nova-compute gives libvirt for a vTPM's state at rest.
const secretOfVM = "the passphrase of the vTPM's state at rest"

// escrow hands the VM's secret to the source's enclave, as nova-compute does when it spawns the VM.
func (d *demo) escrow(ctx context.Context) error {
	_, err := v1.NewSecretServiceClient(d.nodes["compute1"].Conn).Escrow(ctx, &v1.EscrowRequest{InstanceId: instance, Secret: []byte(secretOfVM)})
	return err
}

// release takes the secret at the destination, once, as nova-compute does before it prepares the VM.
func (d *demo) release(ctx context.Context, s *v1.Session) error {
	client := v1.NewSecretServiceClient(d.nodes["compute2"].Conn)
	got, err := client.Release(ctx, &v1.ReleaseRequest{InstanceId: instance, SessionId: s.GetSessionId()})
	if err != nil {
		return err
	}
	if !bytes.Equal(got.GetSecret(), []byte(secretOfVM)) {
		return errors.New("another secret came out at the destination")
	}
	if _, err := client.Release(ctx, &v1.ReleaseRequest{InstanceId: instance, SessionId: s.GetSessionId()}); err == nil {
		return errors.New("the secret was released twice")
	}
	say("secret:    went from enclave to enclave, released once at compute2")
	return nil
}

// moved checks that the secret is with the VM and nowhere else.
func (d *demo) moved(ctx context.Context) error {
	for name, want := range map[string]int{"compute1": 0, "compute2": 1} {
		got, err := v1.NewSecretServiceClient(d.nodes[name].Conn).ListSecrets(ctx, &v1.ListSecretsRequest{InstanceId: instance})
		if err != nil {
			return err
		}
		if n := len(got.GetSecrets()); n != want {
			return fmt.Errorf("%s has %d secrets of the VM, expected %d", name, n, want)
		}
	}
	say("secret:    sealed at compute2, forgotten at compute1")
	return nil
}
