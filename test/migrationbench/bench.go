package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

const instance = "5afec0de-0000-4000-8000-00000000be4c"

// bench is one run.
type bench struct {
	bin, guest, out string
	memory, rounds  int
	only            string

	dir     string
	stops   []func()
	cluster *cluster.Cluster
	kernel  string
	source  *vm.VM
	runs    int
	results []measured
}

// measured is one migration.
type measured struct {
	Way string `json:"way"`
	// Throughput in MiB of the stream a second, over the whole migration as QEMU counts it.
	Throughput float64 `json:"mib_per_second"`
	Downtime   int64   `json:"downtime_ms"`
	Bytes      uint64  `json:"bytes"`
	// CPU seconds of the two QEMUs and of all processes between them.
	Source      float64 `json:"cpu_seconds_source_qemu"`
	Destination float64 `json:"cpu_seconds_destination_qemu"`
	Between     float64 `json:"cpu_seconds_between"`
}

func (m *measured) cpu() float64 { return m.Source + m.Destination + m.Between }

func (b *bench) cpus() int { return runtime.GOMAXPROCS(0) }

func (b *bench) stopAll() {
	for i := len(b.stops) - 1; i >= 0; i-- {
		b.stops[i]()
	}
}

// setUp starts the two nodes with their tunnels, and the guest.
func (b *bench) setUp(ctx context.Context) (err error) {
	b.cluster = &cluster.Cluster{Bin: b.bin, Dir: b.dir}
	for _, name := range []string{"compute1", "compute2"} {
		h := &cluster.Host{Name: name}
		for _, address := range []*string{&h.Peer, &h.TunnelAddress} {
			if *address, err = freePort(); err != nil {
				return err
			}
		}
		b.cluster.Hosts = append(b.cluster.Hosts, h)
	}
	b.stops = append(b.stops, b.cluster.Close)
	if err := b.cluster.Prepare(ctx); err != nil {
		return err
	}
	for _, h := range b.cluster.Hosts {
		if err := b.cluster.StartNode(ctx, h, ""); err != nil {
			return err
		}
		if err := b.cluster.StartTunnel(ctx, h, ""); err != nil {
			return err
		}
	}
	if b.kernel, err = vm.FindKernel(); err != nil {
		return err
	}
	if err := vm.BuildInitramfs(b.guest, filepath.Join(b.dir, "initrd"), nil); err != nil {
		return err
	}
	return b.boot(ctx)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// boot fills a file with random bytes and boots the guest in it.
func (b *bench) boot(ctx context.Context) error {
	dir, err := os.MkdirTemp("/dev/shm", "sc-bench-")
	if err != nil {
		return err
	}
	b.stops = append(b.stops, func() { _ = os.RemoveAll(dir) })
	ram := filepath.Join(dir, "ram")
	f, err := os.Create(ram)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, int64(b.memory)<<20)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	backend := fmt.Sprintf("memory-backend-file,id=ram0,size=%dM,mem-path=%s,share=off", b.memory, ram)
	if b.source, err = vm.Start(ctx, b.config("source", backend)); err != nil {
		return err
	}
	b.stops = append(b.stops, func() { _ = b.source.Kill() })
	// Without a TPM the guest says so and then does nothing.
	return cluster.Until(ctx, "the guest boots", func() error {
		console, err := os.ReadFile(b.source.Config.Serial)
		if err == nil && !bytes.Contains(console, []byte("SC err=")) {
			err = fmt.Errorf("the console says %q", console)
		}
		return err
	})
}

func (b *bench) config(name, backend string) vm.Config {
	return vm.Config{
		Name: name, Dir: b.dir, Kernel: b.kernel, Initrd: filepath.Join(b.dir, "initrd"), MemoryMiB: b.memory,
		ExtraArgs: []string{"-object", backend, "-machine", "memory-backend=ram0"},
	}
}

// measure migrates the guest once, to a QEMU that is then ended, and has it go on at the source.
func (b *bench) measure(ctx context.Context, w *way) (measured, error) {
	m := measured{Way: w.name}
	b.runs++
	c := b.config(fmt.Sprintf("destination-%d", b.runs), fmt.Sprintf("memory-backend-ram,id=ram0,size=%dM", b.memory))
	c.Incoming = "defer"
	c.ExtraArgs = append(c.ExtraArgs, "-S")
	dst, err := vm.Start(ctx, c)
	if err != nil {
		return m, err
	}
	defer func() { _ = dst.Kill() }()
	for v, server := range map[*vm.VM]bool{b.source: false, dst: true} {
		if err := b.prepare(ctx, v, w, server); err != nil {
			return m, err
		}
	}
	r, err := w.route(ctx, b, w)
	if err != nil {
		return m, err
	}
	defer r.close()
	if err := dst.QMP().Execute(ctx, "migrate-incoming", map[string]any{"uri": r.listen}, nil); err != nil {
		return m, err
	}
	before, err := b.spent(dst, r.between)
	if err != nil {
		return m, err
	}
	if err := b.source.Migrate(ctx, r.connect); err != nil {
		return m, err
	}
	done, err := b.source.WaitMigration(ctx)
	if err != nil {
		return m, err
	}
	if done.Status != "completed" {
		return m, fmt.Errorf("the migration %s: %s; the destination says: %s", done.Status, done.ErrorDesc, dst.Log())
	}
	after, err := b.spent(dst, r.between)
	if err != nil {
		return m, err
	}
	m.Source, m.Destination, m.Between = after[0]-before[0], after[1]-before[1], after[2]-before[2]
	m.Bytes, m.Downtime = done.RAMBytes, done.Downtime.Milliseconds()
	m.Throughput = float64(done.RAMBytes) / (1 << 20) / done.Total.Seconds()
	if r.done != nil {
		if err := r.done(ctx); err != nil {
			return m, err
		}
	}
	return m, b.source.QMP().Execute(ctx, "cont", nil, nil)
}

// prepare gives a QEMU the capabilities and parameters of a way.
func (b *bench) prepare(ctx context.Context, v *vm.VM, w *way, server bool) error {
	for name, on := range map[string]bool{"return-path": true, "multifd": w.connections > 1} {
		if err := v.SetCapability(ctx, name, on); err != nil {
			return err
		}
	}
	parameters := map[string]any{"max-bandwidth": int64(100) << 30, "multifd-channels": max(w.connections, 2), "tls-creds": ""}
	if w.tls != "" {
		parameters["tls-creds"] = "tls-" + w.tls
		if err := b.credentials(ctx, v, w.tls, server); err != nil {
			return err
		}
	}
	return v.SetParameters(ctx, parameters)
}

// ciphers of QEMU's TLS, as GnuTLS's priorities. QEMU adds what a pre-shared key needs.
var ciphers = map[string]string{"default": "NORMAL", "aes128": "NORMAL:-CIPHER-ALL:+AES-128-GCM"}

// credentials gives a QEMU the pre-shared key, once.
func (b *bench) credentials(ctx context.Context, v *vm.VM, cipher string, server bool) error {
	dir := filepath.Join(b.dir, "psk")
	if _, err := os.Stat(dir); err != nil {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "keys.psk"), fmt.Appendf(nil, "qemu:%x\n", key), 0o600)); err != nil {
			return err
		}
	}
	arguments := map[string]any{"qom-type": "tls-creds-psk", "id": "tls-" + cipher, "dir": dir, "priority": ciphers[cipher], "endpoint": "client"}
	if server {
		arguments["endpoint"] = "server"
	}
	err := v.QMP().Execute(ctx, "object-add", arguments, nil)
	if refused := new(vm.QMPError); errors.As(err, &refused) && strings.Contains(refused.Desc, "duplicate") {
		return nil // of an earlier round
	}
	return err
}

// spent is the CPU time so far, in seconds, of the source's QEMU, the destination's and all others.
func (b *bench) spent(dst *vm.VM, between []int) (s [3]float64, err error) {
	for i, pids := range [][]int{{b.source.PID()}, {dst.PID()}, between} {
		for _, pid := range pids {
			seconds, err := cpuSeconds(pid)
			if err != nil {
				return s, err
			}
			s[i] += seconds
		}
	}
	return s, nil
}

// clockTick of /proc/PID/stat: USER_HZ, which is 100 on every architecture that matters here.
const clockTick = 100

func cpuSeconds(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", pid, raw)
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return float64(user+system) / clockTick, err
}

// arm has both nodes ready for a migration through the tunnels, and returns what ends its session.
func (b *bench) arm(ctx context.Context) (commit func(context.Context) error, err error) {
	src := b.cluster.Hosts[0].Migrations()
	rpc, err := src.Establish(ctx, &v1.EstablishRequest{InstanceId: instance, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE})
	if err != nil {
		return nil, err
	}
	var id []byte
	for id == nil {
		event, err := rpc.Recv()
		if err != nil {
			return nil, err
		}
		id = event.GetSession().GetSessionId()
	}
	if _, err := src.Arm(ctx, &v1.ArmRequest{
		InstanceId: instance, DestinationHost: "compute2", MigrationId: fmt.Sprintf("bench-%d", b.runs), ReturnPath: true, WithoutVtpm: true,
	}); err != nil {
		return nil, err
	}
	socket := b.cluster.Hosts[0].TunnelSocket(instance)
	return func(ctx context.Context) error {
		_, err := src.Commit(ctx, &v1.CommitRequest{SessionId: id})
		if err != nil {
			return err
		}
		return cluster.Until(ctx, "the VM's socket goes", func() error {
			if _, err := os.Stat(socket); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
	}, cluster.Until(ctx, "the VM's socket", func() error { _, err := os.Stat(socket); return err })
}

// writeJSON writes every single measurement.
func (b *bench) writeJSON(path string) error {
	raw, err := json.MarshalIndent(map[string]any{"memory_mib": b.memory, "cpus": b.cpus(), "mode": "simulated", "migrations": b.results}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// selected says whether a way is to be measured.
func (b *bench) selected(name string) (bool, error) {
	return regexp.MatchString(b.only, name)
}
