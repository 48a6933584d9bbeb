package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

const (
	instance = "5afec0de-0000-4000-8000-00000000da70"
	// The helper's ciphertext begins with this (crypto/statestream); the bit is flipped well inside its first record.
	streamMagic = "SCST"
	flipSkip    = 200
)

var source *vm.VM // the guest at compute1, from bootGuest to migrate

// guestOn starts a helper (or the bare tap) and a QEMU on a host. incoming is empty at the source.
func (d *demo) guestOn(ctx context.Context, h *host, label, incoming string, protected bool) (*vm.VM, *cluster.Process, error) {
	dir := filepath.Join(h.Dir, label)
	for _, sub := range []string{"state", "tap"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, nil, err
		}
	}
	ctrl := filepath.Join(dir, "ctrl")
	env := []string{"SAFECONDUCT_TAP_DIR=" + filepath.Join(dir, "tap"), "SAFECONDUCT_TAP_SWTPM=" + h.SWTPM}
	tap := filepath.Join(d.demoBin, "tap")
	var p *cluster.Process
	var err error
	if protected {
		p, err = d.start(filepath.Join(dir, "helper.log"), env, filepath.Join(d.bin, "safeconduct-swtpm"),
			"--node", "unix://"+h.Socket, "--instance", instance, "--ctrl", ctrl, "--tpmstate", filepath.Join(dir, "state"), "--swtpm", tap)
	} else {
		p, err = d.start(filepath.Join(dir, "tap.log"), env, tap, "socket", "--tpm2", "--ctrl", "type=unixio,path="+ctrl,
			"--tpmstate", "dir="+filepath.Join(dir, "state"))
	}
	if err != nil {
		return nil, nil, err
	}
	if err := cluster.Until(ctx, "control socket", func() error { _, err := os.Stat(ctrl); return err }); err != nil {
		return nil, nil, err
	}
	guest, err := vm.Start(ctx, vm.Config{Name: label, Dir: dir, Kernel: d.kernel, Initrd: d.initrd, TPMCtrlSocket: ctrl, Incoming: incoming, Netns: h.netns})
	if err != nil {
		return nil, nil, err
	}
	d.started = append(d.started, func() { _ = guest.Kill() })
	return guest, p, guest.SetReturnPath(ctx, true)
}

func (d *demo) bootGuest(ctx context.Context) error {
	title("Booting a Linux guest with a vTPM on compute1 (QEMU under TCG, stock swtpm behind safeconduct-swtpm)")
	var err error
	if source, _, err = d.guestOn(ctx, d.nodes["compute1"], "guest", "", true); err != nil {
		return err
	}
	t, err := source.WaitTick(ctx, 3)
	if err != nil {
		return err
	}
	say("guest: tick %d, NV counter %d, PCR 23 %s..., unsealed secret (SHA-256) %s...", t.N, t.NV, t.PCR[:16], t.Unseal[:16])
	return nil
}

// runsOn says whether the guest goes on ticking, without error, at the source.
func runsOn(ctx context.Context) error {
	ticks, err := source.Ticks()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := source.WaitTick(ctx, ticks[len(ticks)-1].N+2); err != nil {
		return fmt.Errorf("the guest does not go on at the source: %w", err)
	}
	if ticks, err = source.Ticks(); err != nil {
		return err
	}
	return vm.CheckTicks(ticks)
}

// refusedAs checks a refusal's reason and that the guest runs on, and puts both on record.
func (d *demo) refusedAs(ctx context.Context, scene string, err error, reason v1.Reason) error {
	if err == nil {
		return fmt.Errorf("%s: was not refused", scene)
	}
	r := rpcerror.Refusal(err)
	say("refused: %s", r.Message)
	say("   what to do: %s", r.RemedyText())
	if r.Reason != reason {
		return fmt.Errorf("%s: refused for %s, not %s", scene, refusal.Name(r.Reason), refusal.Name(reason))
	}
	if err := runsOn(ctx); err != nil {
		return fmt.Errorf("%s: %w", scene, err)
	}
	say("   the guest runs on at compute1")
	d.report.Refusals = append(d.report.Refusals, refused{
		Scene: scene, Reason: refusal.Name(r.Reason), Item: r.Item, Found: r.Found, Expected: r.Expected, GuestOK: true,
	})
	return nil
}

// establish calls the source's node service as nova-compute would, and reports the steps as they end.
func (d *demo) establish(ctx context.Context, progress func(*v1.StepReport)) (*v1.Session, error) {
	rpc, err := d.nodes["compute1"].Migrations().Establish(ctx, &v1.EstablishRequest{InstanceId: instance, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE})
	if err != nil {
		return nil, err
	}
	for {
		event, err := rpc.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("establish ended without a session")
		}
		if err != nil {
			return nil, err
		}
		if event.GetStep() != nil && progress != nil {
			progress(event.GetStep())
		}
		if event.GetSession() != nil {
			return event.GetSession(), nil
		}
	}
}

func (d *demo) refuseMeasurement(ctx context.Context) error {
	title("Refusal 1: compute2 runs an enclave of another measurement")
	other := filepath.Join(d.dir, "safeconductd-other")
	if err := cluster.CopyExecutable(filepath.Join(d.bin, "safeconductd"), other, []byte("one byte more is another enclave")); err != nil {
		return err
	}
	if err := d.cluster.StartNode(ctx, d.nodes["compute2"].Host, other); err != nil {
		return err
	}
	_, err := d.establish(ctx, nil)
	if err := d.refusedAs(ctx, "destination enclave of another measurement", err, v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED); err != nil {
		return err
	}
	return d.cluster.StartNode(ctx, d.nodes["compute2"].Host, "")
}

func (d *demo) refuseIntegrity(ctx context.Context) error {
	title("Refusal 2: compute2's swtpm is not the one of the reference values")
	h := d.nodes["compute2"]
	if err := cluster.CopyExecutable(cluster.RealSWTPM, h.SWTPM, []byte("changed")); err != nil {
		return err
	}
	_, err := d.establish(ctx, nil)
	if err := d.refusedAs(ctx, "destination swtpm differs from its reference value", err, v1.Reason_REASON_INTEGRITY_MISMATCH); err != nil {
		return err
	}
	if item := d.report.Refusals[len(d.report.Refusals)-1].Item; item != "vmm/swtpm" {
		return fmt.Errorf("the refusal names %q, not vmm/swtpm", item)
	}
	return cluster.CopyExecutable(cluster.RealSWTPM, h.SWTPM, nil)
}

// migration is one attempt to move the guest, through a relay that records it.
type migration struct {
	dst    *vm.VM
	helper *cluster.Process
	result *vm.Migration
}

func (d *demo) attempt(ctx context.Context, src *vm.VM, label string, protected bool, mutator vm.Mutator) (*migration, error) {
	return d.attemptWith(ctx, src, label, protected, mutator, func(*migration) {})
}

// attemptWith is attempt, with a look at the destination before the migration starts.
func (d *demo) attemptWith(ctx context.Context, src *vm.VM, label string, protected bool, mutator vm.Mutator, ready func(*migration)) (*migration, error) {
	h := d.nodes["compute2"]
	in, relayed := "unix:"+filepath.Join(h.Dir, label+".in"), "unix:"+filepath.Join(d.dir, label+".mig")
	from := d.nodes["compute1"]
	if h.netns != "" { // over the wire between the namespaces; the relay stands at its source end
		d.ports++
		in, relayed = fmt.Sprintf("tcp:%s:%d", h.ip, 49152+d.ports), fmt.Sprintf("tcp:%s:%d", from.ip, 49152+d.ports)
	}
	m := new(migration)
	var err error
	if m.dst, m.helper, err = d.guestOn(ctx, h, label, in, protected); err != nil {
		return nil, err
	}
	ready(m)
	relay := &vm.Relay{Listen: relayed, Forward: in, Capture: filepath.Join(d.dir, label+".capture"), Mutator: mutator,
		ListenNetns: from.netns, ForwardNetns: from.netns}
	if err := relay.Start(ctx); err != nil {
		return nil, err
	}
	if err := src.Migrate(ctx, relayed); err != nil {
		return nil, errors.Join(err, relay.Close())
	}
	m.result, err = src.WaitMigration(ctx)
	_ = relay.Close() // a connection that broke is what some scenes are about
	return m, err
}

// drop ends what a failed attempt left at the destination.
func (m *migration) drop() {
	_ = m.dst.Kill()
	m.helper.Stop()
}

func (d *demo) refuseUnarmed(ctx context.Context) error {
	title("Refusal 3: QEMU is told to migrate, and there is no armed session")
	m, err := d.attempt(ctx, source, "unarmed", true, nil)
	if err != nil {
		return err
	}
	defer m.drop()
	if m.result.Status != "failed" {
		return fmt.Errorf("the migration %s", m.result.Status)
	}
	reason := d.lastHelperRefusal("NO_ARMED_SESSION")
	return d.refusedAs(ctx, "no armed session", reason, v1.Reason_REASON_NO_ARMED_SESSION)
}

// lastHelperRefusal looks for a reason in the log of the source's helper.
func (d *demo) lastHelperRefusal(reason string) error {
	raw, err := os.ReadFile(filepath.Join(d.nodes["compute1"].Dir, "guest", "helper.log"))
	if err != nil {
		return err
	}
	if !strings.Contains(string(raw), reason) {
		return fmt.Errorf("the helper's log does not say %s", reason)
	}
	return refusal.New(v1.Reason(v1.Reason_value["REASON_"+reason]), "the helper's log says %s, and QEMU's migration failed", reason)
}

func (d *demo) arm(ctx context.Context, id string) error {
	_, err := d.nodes["compute1"].Migrations().Arm(ctx, &v1.ArmRequest{InstanceId: instance, DestinationHost: "compute2", MigrationId: id, ReturnPath: true})
	return err
}

func (d *demo) refuseFlippedBit(ctx context.Context) error {
	title("Refusal 4: one bit of the ciphertext is flipped on the wire")
	session, err := d.establish(ctx, nil)
	if err != nil {
		return err
	}
	if err := d.arm(ctx, "demo-flipped"); err != nil {
		return err
	}
	flip := vm.FlipBitAfter([]byte(streamMagic), flipSkip)
	m, err := d.attempt(ctx, source, "flipped", true, flip)
	if err != nil {
		return err
	}
	defer m.drop()
	if !flip.Flipped() || m.result.Status != "failed" {
		return fmt.Errorf("bit flipped: %v; the migration %s", flip.Flipped(), m.result.Status)
	}
	got, err := d.nodes["compute2"].Migrations().Get(ctx, &v1.GetRequest{SessionId: session.GetSessionId()})
	if err != nil {
		return err
	}
	// The destination's session ended by itself; the source's is ended as nova-compute would end it.
	if _, err := d.nodes["compute1"].Migrations().Abort(ctx, &v1.AbortRequest{SessionId: session.GetSessionId(), Reason: "the migration failed"}); err != nil {
		return err
	}
	var why error
	if r := got.GetSession().GetRefusal(); r != nil {
		why = refusal.FromProto(r)
	}
	return d.refusedAs(ctx, "flipped bit in the ciphertext", why, v1.Reason_REASON_CIPHERTEXT_INVALID)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (d *demo) migrate(ctx context.Context) error {
	title("The migration")
	if err := d.escrow(ctx); err != nil {
		return err
	}
	capture, err := d.startCapture(ctx, "moved", true)
	if err != nil {
		return err
	}
	session, err := d.establish(ctx, func(s *v1.StepReport) {
		name := strings.TrimPrefix(s.GetStep().String(), "STEP_")
		d.report.Steps = append(d.report.Steps, step{name, ms(s.GetElapsed().AsDuration())})
		say("%-20s %8.2f ms", name, ms(s.GetElapsed().AsDuration()))
	})
	if err != nil {
		return err
	}
	a, p := session.GetPeerAttested(), session.GetPeerAppraised()
	d.report.SessionID, d.report.MigrationID = hex.EncodeToString(session.GetSessionId()), "demo-1"
	d.report.Attested = map[string]any{
		"host": a.GetHost(), "mode": a.GetMode().String(), "mrenclave": hex.EncodeToString(a.GetMrenclave()), "tcb_status": a.GetTcbStatus(),
		"tcb_evaluation_data_number": a.GetTcbEvaluationDataNumber(), "platform_id": hex.EncodeToString(a.GetPlatformId()), "root": a.GetRoot(),
	}
	d.report.Appraised = map[string]any{"matched": p.GetMatched(), "unjudged": p.GetUnjudged(), "tpm_quote_verified": p.GetTpmQuoteVerified(), "items": p.GetItems()}
	say("attested:  %s, mrenclave %x..., TCB %s, %s, under %q", a.GetHost(), a.GetMrenclave()[:8], a.GetTcbStatus(), a.GetMode(), a.GetRoot())
	shown := slices.DeleteFunc(slices.Clone(p.GetItems()), func(item string) bool { return strings.Contains(item, "/lib/") })
	say("appraised: %d items match (%s, and %d shared libraries), TPM quote verified: %v", p.GetMatched(), strings.Join(shown, ", "),
		len(p.GetItems())-len(shown), p.GetTpmQuoteVerified())
	say("session:   %s", d.report.SessionID)
	if err := d.release(ctx, session); err != nil {
		return err
	}
	begun := time.Now()
	if err := d.arm(ctx, d.report.MigrationID); err != nil {
		return err
	}
	d.report.ArmMS = ms(time.Since(begun))
	say("%-20s %8.2f ms  (both nodes bound to migration %q)", "ARM", d.report.ArmMS, d.report.MigrationID)
	m, err := d.move(ctx, source, "moved", true, capture)
	if err != nil {
		return err
	}
	d.report.DowntimeMS, d.report.TotalMS, d.report.RAMBytes = m.result.Downtime.Milliseconds(), m.result.Total.Milliseconds(), m.result.RAMBytes
	done, err := d.nodes["compute1"].Migrations().Commit(ctx, &v1.CommitRequest{SessionId: session.GetSessionId()})
	if err != nil {
		return err
	}
	for _, b := range done.GetSession().GetBlobs() {
		name := strings.ToLower(strings.TrimPrefix(b.GetType().String(), "STATE_TYPE_"))
		d.report.Blobs = append(d.report.Blobs, blob{name, b.GetPlaintextBytes(), b.GetCiphertextBytes(), ms(b.GetElapsed().AsDuration())})
		say("protected: %-9s %6d bytes -> %6d bytes, %.3f ms in the enclave", name, b.GetPlaintextBytes(), b.GetCiphertextBytes(), ms(b.GetElapsed().AsDuration()))
	}
	say("QEMU:      completed in %d ms, downtime %d ms, %d bytes of RAM; session %s", d.report.TotalMS, d.report.DowntimeMS, d.report.RAMBytes,
		done.GetSession().GetState())
	if err := d.tunnelled(ctx); err != nil {
		return err
	}
	if d.wire, err = capture.end(ctx); err != nil {
		return err
	}
	if err := d.moved(ctx); err != nil {
		return err
	}
	if err := d.receipt(ctx); err != nil {
		return err
	}
	if err := d.afterwards(ctx, session); err != nil {
		return err
	}
	return d.checkGuest(ctx, m.dst)
}

// afterwards checks that nothing of the session survived its end.
func (d *demo) afterwards(ctx context.Context, s *v1.Session) error {
	for name, h := range d.nodes {
		got, err := h.Migrations().Get(ctx, &v1.GetRequest{SessionId: s.GetSessionId()})
		if err != nil {
			return err
		}
		if got.GetSession().GetState() != v1.SessionState_SESSION_STATE_COMMITTED {
			return fmt.Errorf("the session is %v on %s", got.GetSession().GetState(), name)
		}
	}
	err := d.arm(ctx, "demo-2")
	if err == nil {
		return errors.New("the ended session can be armed again")
	}
	if rpcerror.Refusal(err).Reason != v1.Reason_REASON_NO_SESSION {
		return fmt.Errorf("the ended session can be armed again: %w", err)
	}
	return nil
}

func (d *demo) checkGuest(ctx context.Context, dst *vm.VM) error {
	before, err := source.Ticks()
	if err != nil {
		return err
	}
	last := before[len(before)-1].N
	if _, err := dst.WaitTick(ctx, last+4); err != nil {
		return err
	}
	all, err := vm.TicksAcross(source, dst)
	if err != nil {
		return err
	}
	if err := vm.CheckTicks(all); err != nil {
		return fmt.Errorf("the guest's vTPM did not go on: %w", err)
	}
	first, end := all[0], all[len(all)-1]
	d.report.Guest = guestReport{
		Ticks: len(all), AtSource: len(before), Destination: len(all) - len(before), FirstNV: first.NV, LastNV: end.NV,
		LastPCR: end.PCR, SecretSHA: end.Unseal, WentOn: true,
	}
	say("guest:     %d ticks without a gap, %d of them on compute2: NV counter %d..%d, PCR 23 the chain of all, same secret unsealed each time",
		len(all), len(all)-len(before), first.NV, end.NV)
	return nil
}
