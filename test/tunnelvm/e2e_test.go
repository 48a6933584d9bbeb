package tunnelvm

import (
	"bytes"
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
)

// Where an attack strikes. A guest of 128 MiB has about 80 MB to send.
const enough = 40 << 20

var places = []struct {
	name   string
	last   bool
	choose func(record) bool
}{
	{"the first record with data", false, func(r record) bool { return r.index > 0 && r.data() }},
	{"one in the middle", false, func(r record) bool { return r.before > enough && r.data() }},
	{"the last one", true, func(r record) bool { return r.before > enough && r.data() }},
}

func flip(r, _ record) ([][]byte, bool) {
	altered := bytes.Clone(r.raw)
	altered[len(altered)/2] ^= 1
	return [][]byte{altered}, false
}

var deeds = []struct {
	name string
	do   func(r, earlier record) ([][]byte, bool)
}{
	{"is flipped in one bit", flip},
	{"is dropped", func(record, record) ([][]byte, bool) { return nil, false }},
	{"is sent twice", func(r, _ record) ([][]byte, bool) { return [][]byte{r.raw, r.raw}, false }},
	{"is cut short", func(r, _ record) ([][]byte, bool) { return [][]byte{r.raw[:len(r.raw)-5]}, false }},
	{"is cut short and the connection ends", func(r, _ record) ([][]byte, bool) { return [][]byte{r.raw[:len(r.raw)-5]}, true }},
	{"is replaced by the one before it", func(_, earlier record) ([][]byte, bool) { return [][]byte{earlier.raw}, false }},
}

func TestWhateverIsDoneToARecordTheGuestRunsOnAtTheSource(t *testing.T) {
	r := newRig(t)
	for _, place := range places {
		for _, deed := range deeds {
			t.Run(place.name+" "+deed.name, func(t *testing.T) {
				r.t = t
				struck := r.between.set(&attack{last: place.last, choose: place.choose, do: deed.do})
				a := r.arm(1)
				a.start()
				a.stayed()
				wantStruck(t, struck)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// wantStruck checks that an attack was made: one that was not proves nothing.
func wantStruck(t *testing.T, struck <-chan struct{}) {
	t.Helper()
	select {
	case <-struck:
	case <-time.After(30 * time.Second): // it may take longer than its consequences
		t.Error("nothing was done to the records: this test proves nothing")
	}
}

func TestTheWayBackAndTheEndRecord(t *testing.T) {
	r := newRig(t)
	// The destination's QEMU has everything by then, and does not run: whoever manages it has not been told that the migration is complete.
	t.Run("the destination's last word is flipped in one bit", func(t *testing.T) {
		r.t = t
		struck := r.between.set(&attack{back: true, choose: func(r record) bool { return r.index > 0 && r.data() }, do: flip})
		a := r.arm(1)
		a.start()
		a.stayed()
		wantStruck(t, struck)
	})
	// It comes when both QEMUs know that the migration is complete. The tunnel breaks, and the guest runs in one place.
	t.Run("the end record is flipped in one bit", func(t *testing.T) {
		r.t = t
		struck := r.between.set(&attack{choose: func(r record) bool { return r.raw[0] == kindEnd }, do: flip})
		a := r.arm(1)
		a.start()
		a.moved()
		wantStruck(t, struck)
	})
}

func TestEveryConnectionOfMultifdCounts(t *testing.T) {
	r := newRig(t)
	for connection := range 5 { // QEMU's first, and four of multifd
		place := places[1]
		place.choose = func(r record) bool { return r.before > 4<<20 && r.data() }
		if connection == 0 { // it carries little
			place = places[0]
		}
		struck := r.between.set(&attack{connection: connection, choose: place.choose, do: flip})
		a := r.arm(4)
		a.start()
		a.stayed()
		wantStruck(t, struck)
	}
	r.between.set(nil)
	a := r.arm(4)
	a.start()
	a.moved()
}

func TestWhateverDiesTheGuestRunsOnAtTheSource(t *testing.T) {
	r := newRig(t)
	src, dst := r.cluster.Hosts[0], r.cluster.Hosts[1]
	for name, tc := range map[string]struct {
		strike func(*attempt)
		repair func(*attempt)
	}{
		"the source's tunnel is killed": {
			func(*attempt) { src.Tunnel.Kill() },
			func(a *attempt) { a.abort(); a.must(r.cluster.StartTunnel(r.ctx, src, r.between.address())) },
		},
		"the destination's tunnel is killed": {
			func(*attempt) { dst.Tunnel.Kill() },
			func(a *attempt) { a.abort(); a.must(r.cluster.StartTunnel(r.ctx, dst, "")) },
		},
		"the destination's tunnel hangs": {
			func(*attempt) { _ = unix.Kill(dst.Tunnel.PID(), unix.SIGSTOP) },
			func(a *attempt) {
				a.abort()
				dst.Tunnel.Kill()
				a.must(r.cluster.StartTunnel(r.ctx, dst, ""))
			},
		},
		"the session is aborted at the source":      {func(a *attempt) { end(a, src) }, func(*attempt) {}},
		"the session is aborted at the destination": {func(a *attempt) { end(a, dst) }, (*attempt).abort},
		"the source's node service restarts": {
			func(a *attempt) {
				src.Daemon.Kill()
				if err := r.cluster.StartNode(r.ctx, src, ""); err != nil {
					a.t.Error(err)
				}
			}, func(*attempt) {},
		},
		"the destination's QEMU is killed": {func(a *attempt) { _ = a.destination.Kill() }, (*attempt).abort},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			var a *attempt
			struck := r.between.set(&attack{choose: places[1].choose, do: func(r, _ record) ([][]byte, bool) {
				tc.strike(a)
				return [][]byte{r.raw}, false
			}})
			a = r.arm(1)
			// It crosses slowly enough that it is still on its way when the node service is back.
			a.must(a.source.SetParameters(a.ctx, map[string]any{"max-bandwidth": 30 << 20}))
			a.start()
			a.failed()
			wantStruck(t, struck)
			tc.repair(a)
			a.runsOn()
		})
	}
}

// end aborts the session at one host; the other's node service hears of it.
func end(a *attempt, h *cluster.Host) {
	if _, err := h.Migrations().Abort(context.WithoutCancel(a.ctx), &v1.AbortRequest{SessionId: a.session.GetSessionId(), Reason: "a test"}); err != nil {
		a.t.Error(err)
	}
}
