package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/vm"
)

// killer is a Mutator that changes nothing and kills something the moment the first ciphertext passes: the destination has all of the guest's
// memory by then, and not yet its vTPM.
type killer struct {
	once sync.Once
	kill func()
}

func (k *killer) Mutate(_ int64, piece []byte) []byte {
	if bytes.Contains(piece, []byte(streamMagic)) {
		k.once.Do(k.kill)
	}
	return piece
}

func (k *killer) Final() []byte { return nil }

// faults kills each part of the destination in the middle of a migration; the guest must run on at the source each time.
func (d *demo) faults(ctx context.Context) error {
	h := d.nodes["compute2"]
	for i, victim := range []string{"node service", "helper", "QEMU"} {
		title("Fault: the destination's " + victim + " is killed while the vTPM's state arrives")
		session, err := d.establish(ctx, nil)
		if err != nil {
			return err
		}
		if err := d.arm(ctx, fmt.Sprintf("fault-%d", i)); err != nil {
			return err
		}
		k := &killer{}
		m, err := d.attemptWith(ctx, source, fmt.Sprintf("fault%d", i), true, k, func(m *migration) {
			k.kill = map[string]func(){"node service": h.Daemon.Kill, "helper": m.helper.Kill, "QEMU": func() { _ = m.dst.Kill() }}[victim]
		})
		if err != nil {
			return err
		}
		m.drop()
		if m.result.Status != "failed" {
			return fmt.Errorf("%s killed: the migration %s", victim, m.result.Status)
		}
		if err := runsOn(ctx); err != nil {
			return fmt.Errorf("%s killed: %w", victim, err)
		}
		say("the migration failed (%s), and the guest runs on at compute1", m.result.ErrorDesc)
		if err := d.endFault(ctx, session, victim == "node service"); err != nil {
			return err
		}
	}
	return nil
}

var _ vm.Mutator = (*killer)(nil)

// endFault does what nova-compute does after a failed migration, and what an operator does with a dead node service.
func (d *demo) endFault(ctx context.Context, session *v1.Session, restart bool) error {
	if restart {
		if err := d.cluster.StartNode(ctx, d.nodes["compute2"].Host, ""); err != nil {
			return err
		}
	}
	_, err := d.nodes["compute1"].Migrations().Abort(ctx, &v1.AbortRequest{SessionId: session.GetSessionId(), Reason: "the migration failed"})
	return err
}
