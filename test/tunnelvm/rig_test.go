package tunnelvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

const instance = "7d0a2a34-9c1e-4b7e-8a53-51ec6f0f5b16"

// rig is two nodes with their tunnels, a man in the middle, and a guest at the source.
type rig struct {
	t       *testing.T
	ctx     context.Context
	dir     string
	cluster *cluster.Cluster
	kernel  string
	between *mitm
	source  *vm.VM
	serial  int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getenv("SAFECONDUCT_E2E") != "1" {
		t.Skip("needs QEMU, swtpm and a Debian cloud kernel: set SAFECONDUCT_E2E=1")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "sc-tun-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ctx: ctx, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("kept:", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	bin := filepath.Join(dir, "bin")
	r.must(os.Mkdir(bin, 0o755))
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin+"/", "../vm/guest",
		"../../cmd/safeconductd", "../../cmd/safeconduct-swtpm", "../../cmd/safeconduct-tunnel")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r.kernel, err = vm.FindKernel(); err != nil {
		t.Fatal(err)
	}
	r.must(vm.BuildInitramfs(filepath.Join(bin, "guest"), r.path("initrd"), nil))
	r.cluster = &cluster.Cluster{Bin: bin, Dir: dir}
	t.Cleanup(r.cluster.Close)
	for _, name := range []string{"compute1", "compute2"} {
		r.cluster.Hosts = append(r.cluster.Hosts, &cluster.Host{Name: name, Peer: freePort(t), TunnelAddress: freePort(t)})
	}
	r.must(r.cluster.Prepare(ctx))
	r.between = newMITM(t, r.cluster.Hosts[1].TunnelAddress)
	for i, h := range r.cluster.Hosts {
		r.must(r.cluster.StartNode(ctx, h, ""))
		r.must(r.cluster.StartTunnel(ctx, h, []string{r.between.address(), ""}[i]))
	}
	r.source = r.guest("source", r.cluster.Hosts[0], "")
	if _, err := r.source.WaitTick(ctx, 3); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// guest starts a helper and a QEMU on a host. One that waits for a migration does not run when it has come: whoever manages it says so, as libvirt.
func (r *rig) guest(name string, h *cluster.Host, incoming string) *vm.VM {
	r.t.Helper()
	ctrl, state := filepath.Join(h.Dir, name+".ctrl"), filepath.Join(h.Dir, name+".tpm")
	r.must(os.Mkdir(state, 0o700))
	p, err := cluster.Start(filepath.Join(h.Dir, name+".helper.log"), nil, filepath.Join(r.cluster.Bin, "safeconduct-swtpm"),
		"--node", "unix://"+h.Socket, "--instance", instance, "--ctrl", ctrl, "--tpmstate", state, "--swtpm", h.SWTPM)
	r.must(err)
	r.t.Cleanup(p.Stop)
	r.must(cluster.Until(r.ctx, "control socket", func() error { _, err := os.Stat(ctrl); return err }))
	c := vm.Config{Name: name, Dir: h.Dir, Kernel: r.kernel, Initrd: r.path("initrd"), TPMCtrlSocket: ctrl, Incoming: incoming}
	if incoming != "" {
		c.ExtraArgs = []string{"-S"}
	}
	v, err := vm.Start(r.ctx, c)
	r.must(err)
	r.t.Cleanup(func() { _ = v.Kill(); p.Stop() })
	r.must(v.SetReturnPath(r.ctx, true))
	return v
}

// attempt is one migration under a session of its own.
type attempt struct {
	*rig
	session     *v1.Session
	destination *vm.VM
}

// arm makes a session ready, and a QEMU that waits at the destination.
func (r *rig) arm(connections int) *attempt {
	r.t.Helper()
	r.serial++
	src := r.cluster.Hosts[0].Migrations()
	rpc, err := src.Establish(r.ctx, &v1.EstablishRequest{InstanceId: instance, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE})
	r.must(err)
	a := &attempt{rig: r}
	for a.session == nil {
		event, err := rpc.Recv()
		r.must(err)
		a.session = event.GetSession()
	}
	_, err = src.Arm(r.ctx, &v1.ArmRequest{InstanceId: instance, DestinationHost: "compute2", MigrationId: fmt.Sprint("m", r.serial), ReturnPath: true})
	r.must(err)
	a.destination = r.guest(fmt.Sprint("destination-", r.serial), r.cluster.Hosts[1], "defer")
	for _, v := range []*vm.VM{r.source, a.destination} {
		r.must(v.SetCapability(r.ctx, "multifd", connections > 1))
		r.must(v.SetParameters(r.ctx, map[string]any{"multifd-channels": max(connections, 2), "max-bandwidth": 10 << 30}))
	}
	uri := "unix:" + r.cluster.Hosts[1].TunnelSocket(instance)
	r.must(a.destination.QMP().Execute(r.ctx, "migrate-incoming", map[string]any{"uri": uri}, nil))
	socket := r.cluster.Hosts[0].TunnelSocket(instance)
	r.must(cluster.Until(r.ctx, "the VM's socket", func() error { _, err := os.Stat(socket); return err }))
	return a
}

func (a *attempt) start() {
	a.t.Helper()
	a.must(a.source.Migrate(a.ctx, "unix:"+a.cluster.Hosts[0].TunnelSocket(instance)))
}

// wait returns how the migration ended.
func (a *attempt) wait() *vm.Migration {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	m, err := a.source.WaitMigration(ctx)
	a.must(err)
	return m
}

// stayed checks that the migration failed, ends the session as nova-compute would, and checks that the guest goes on at the source with its TPM.
func (a *attempt) stayed() {
	a.t.Helper()
	a.failed()
	a.abort()
	a.runsOn()
}

// failed checks that the migration failed, and ends what is at the destination, as libvirt does.
func (a *attempt) failed() {
	a.t.Helper()
	if m := a.wait(); m.Status != "failed" {
		a.t.Fatalf("the migration %s", m.Status)
	}
	_ = a.destination.Kill()
}

// runsOn checks that the guest goes on at the source, and that nothing of the attempt is left in the tunnel.
func (a *attempt) runsOn() {
	a.t.Helper()
	a.must(a.source.WaitStatus(a.ctx, "running"))
	a.goesOn(a.source)
	if ticks, err := a.destination.Ticks(); err == nil && len(ticks) > 0 {
		a.t.Errorf("the guest ticked at the destination too: %+v", ticks)
	}
	a.silent()
}

func (a *attempt) abort() {
	a.t.Helper()
	_, err := a.cluster.Hosts[0].Migrations().Abort(a.ctx, &v1.AbortRequest{SessionId: a.session.GetSessionId(), Reason: "the migration failed"})
	a.must(err)
}

// silent waits until the source's tunnel has taken the VM's socket away.
func (a *attempt) silent() {
	a.t.Helper()
	socket := a.cluster.Hosts[0].TunnelSocket(instance)
	a.must(cluster.Until(a.ctx, "the VM's socket goes", func() error {
		if _, err := os.Stat(socket); err == nil {
			return errors.New("it is there")
		}
		return nil
	}))
}

// goesOn checks that a guest ticks on, with the TPM it had.
func (r *rig) goesOn(v *vm.VM) {
	r.t.Helper()
	before, err := r.source.Ticks()
	r.must(err)
	if _, err := v.WaitTick(r.ctx, before[len(before)-1].N+2); err != nil {
		r.t.Fatal(err)
	}
	all, err := v.Ticks()
	if v != r.source {
		all, err = vm.TicksAcross(r.source, v)
	}
	r.must(err)
	r.must(vm.CheckTicks(all))
}

// moved checks that the migration succeeded, has the guest run at the destination, and commits.
func (a *attempt) moved() {
	a.t.Helper()
	if m := a.wait(); m.Status != "completed" {
		a.t.Fatalf("the migration %s: %s; the destination says: %s", m.Status, m.ErrorDesc, a.destination.Log())
	}
	a.must(a.destination.QMP().Execute(a.ctx, "cont", nil, nil))
	_, err := a.cluster.Hosts[0].Migrations().Commit(a.ctx, &v1.CommitRequest{SessionId: a.session.GetSessionId()})
	a.must(err)
	a.goesOn(a.destination)
	if s, err := a.source.QueryStatus(a.ctx); err != nil || s == "running" {
		a.t.Errorf("the guest is %q at the source too (%v)", s, err)
	}
}
