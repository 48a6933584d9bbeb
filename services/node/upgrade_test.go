package node

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// traffic migrates a VM over and over from one node to the other. While maintenance is even, nothing may be refused.
type traffic struct {
	from, to    *testNode
	vm          string
	maintenance *atomic.Int64
	tries, done atomic.Int64
}

// once makes one whole migration, of a vTPM with both of its blobs.
func (tr *traffic) once(ctx context.Context, n int64) (err error) {
	for _, at := range []*testNode{tr.from, tr.to} {
		detach, err := attach(at.crypto(), tr.vm)
		if err != nil {
			return err
		}
		defer detach()
	}
	s, err := tr.from.establishAttempt(ctx, &v1.EstablishRequest{InstanceId: tr.vm, PeerHost: tr.to.name, Role: v1.Role_ROLE_SOURCE})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // as nova-compute does; a session that has ended, or a node that is away, is no concern here
			_, _ = tr.from.migration().Abort(context.WithoutCancel(ctx), &v1.AbortRequest{SessionId: s.GetSessionId()})
		}
	}()
	if _, err := tr.from.migration().Arm(ctx, &v1.ArmRequest{
		InstanceId: tr.vm, DestinationHost: tr.to.name, MigrationId: fmt.Sprintf("%s-%d", tr.vm, n), ReturnPath: true,
	}); err != nil {
		return err
	}
	for _, kind := range []v1.StateType{v1.StateType_STATE_TYPE_PERMANENT, volatile} {
		state := random(2000)
		ciphertext, err := tr.from.protectVM(tr.vm, kind, state)
		if err != nil {
			return err
		}
		got, err := tr.to.unprotectVM(tr.vm, kind, ciphertext)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, state) {
			return fmt.Errorf("another state came out")
		}
	}
	if _, err := tr.from.migration().Commit(ctx, &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		return err
	}
	tr.done.Add(1)
	return nil
}

// flow migrates until ctx ends, and reports what was refused with no node in maintenance.
func (tr *traffic) flow(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		before := tr.maintenance.Load()
		err := tr.once(ctx, tr.tries.Add(1))
		quiet := before%2 == 0 && tr.maintenance.Load() == before
		if err != nil && ctx.Err() == nil && quiet {
			t.Errorf("%s to %s is refused while both nodes run: %v", tr.from.name, tr.to.name, err)
			return
		}
	}
}

// more waits until another migration of each kind has gone through.
func more(t *testing.T, all ...*traffic) {
	t.Helper()
	for _, tr := range all {
		for want := tr.done.Load() + 2; tr.done.Load() < want; {
			if t.Context().Err() != nil || t.Failed() {
				t.Fatalf("%s to %s: no migration goes through", tr.from.name, tr.to.name)
			}
			time.Sleep(5 * time.Millisecond) // a poll of other goroutines' work, which has its own deadline
		}
	}
}

// upgrade starts the node as another enclave.
func (n *testNode) upgrade(t *testing.T, m simulated.Measurement) {
	t.Helper()
	n.stop()
	var err error
	if n.enclave, err = simulated.Open(filepath.Join(n.dir, "platform"), m); err != nil {
		t.Fatal(err)
	}
	n.start(t)
}

func TestARollingUpgradeRefusesNoMigrationBeforeTheWindowCloses(t *testing.T) {
	next := testMeasurement()
	next.MREnclave[0]++
	closes := time.Now().Add(time.Hour).UTC()
	r := newRig(t, func(r *rig, p *policy.Policy) {
		p.Enclaves[0].Name, p.Enclaves[0].NotAfter = "N", closes
		p.Enclaves = append(p.Enclaves, policy.Enclave{Name: "N+1", MREnclave: next.MREnclave[:]})
		for _, n := range []*testNode{r.src, r.dst} {
			n.cfg.Peer.HandshakesPerSecond = 1e6
		}
	})
	secret := []byte("a passphrase of a VM")
	if _, err := v1.NewSecretServiceClient(r.src.conn).Escrow(t.Context(), &v1.EscrowRequest{InstanceId: otherVM, Secret: secret}); err != nil {
		t.Fatal(err)
	}

	var maintenance atomic.Int64
	there := &traffic{from: r.src, to: r.dst, vm: "0c6f1d3e-5b1f-4d62-9b0a-0000000000a1", maintenance: &maintenance}
	back := &traffic{from: r.dst, to: r.src, vm: "0c6f1d3e-5b1f-4d62-9b0a-0000000000b2", maintenance: &maintenance}
	ctx, stop := context.WithCancel(t.Context())
	var flows sync.WaitGroup
	// One migration at a time in each direction; nobody migrates on a node's connection while it is replaced.
	run := func() {
		for _, tr := range []*traffic{there, back} {
			flows.Go(func() { tr.flow(ctx, t) })
		}
	}
	pause := func() { stop(); flows.Wait(); ctx, stop = context.WithCancel(t.Context()) }
	defer func() { stop() }()
	run()
	more(t, there, back) // N to N
	for _, n := range []*testNode{r.dst, r.src} {
		maintenance.Add(1)
		stream, err := n.admin().Drain(t.Context(), &v1.DrainRequest{Deadline: durationpb.New(30 * time.Second)})
		for err == nil { // migrations that have begun end well
			_, err = stream.Recv()
		}
		pause()
		n.upgrade(t, next)
		maintenance.Add(1)
		run()
		more(t, there, back) // N and N+1, then N+1 and N+1
	}
	pause()
	if released, err := v1.NewSecretServiceClient(r.src.conn).ListSecrets(t.Context(), &v1.ListSecretsRequest{InstanceId: otherVM}); err != nil || len(released.GetSecrets()) != 1 {
		t.Errorf("the secret that N sealed: %v, %v", released, err)
	}
	t.Logf("%d migrations there, %d back", there.done.Load(), back.done.Load())

	// The window closes on a node that was forgotten.
	old := slices.Clone(r.policy.Enclaves[0].MREnclave)
	r.dst.upgrade(t, testMeasurement())
	for _, n := range []*testNode{r.src, r.dst} {
		n.skew.Store(int64(time.Until(closes) + time.Minute))
	}
	_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "the forgotten node as destination", err, v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED)
	status, err := r.dst.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil || status.GetOwnRefusal().GetReason() != v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED {
		t.Errorf("the forgotten node (mrenclave %x) does not say so itself: %v, %v", old, status.GetOwnRefusal(), err)
	}
}
