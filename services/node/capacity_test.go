package node

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
)

func unlimited(r *rig, _ *policy.Policy) {
	for _, n := range []*testNode{r.src, r.dst} {
		n.cfg.Peer.HandshakesPerSecond, n.cfg.Sessions.MaxOpen = 1e6, 100_000
	}
}

// armMany arms n sessions of as many VMs from compute1 to compute2.
func (r *rig) armMany(t testing.TB, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		vm := fmt.Sprintf("0c6f1d3e-5b1f-4d62-9b0a-%012x", i)
		req := &v1.EstablishRequest{InstanceId: vm, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE}
		if _, err := r.src.establishAttempt(context.Background(), req); err != nil {
			t.Fatal(err)
		}
		if _, err := r.src.migration().Arm(context.Background(), &v1.ArmRequest{
			InstanceId: vm, DestinationHost: "compute2", MigrationId: fmt.Sprint("m", i), ReturnPath: true, WithoutVtpm: true,
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what the first made unreachable through finalizers and pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Both nodes are in this process, so that a node has half of what is measured.
func TestAThousandSessionsArmedAtOnceFitIn256MiB(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand handshakes take seconds")
	}
	r := newRig(t, unlimited)
	r.armMany(t, 0, 1000)
	if got := heap(); got > 256<<20 {
		t.Errorf("the heap holds %d MiB", got>>20)
	}
}

// BenchmarkArmedSessions prints what one armed session holds on one node.
func BenchmarkArmedSessions(b *testing.B) {
	r := newRig(b, unlimited)
	r.armMany(b, 0, 50) // what is made once
	before := heap()
	next := 50
	for b.Loop() {
		r.armMany(b, next, 1)
		next++
	}
	b.ReportMetric(float64(heap()-before)/float64(next-50)/2, "B/session")
}
