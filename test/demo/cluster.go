package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/hosttpm"
	"github.com/safeconduct/safeconduct/integrity/measure"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
	"github.com/safeconduct/safeconduct/test/vm"
)

const realSWTPM = "/usr/bin/swtpm"

// host is one compute node of the demo.
type host struct {
	name, dir, peer, swtpm, tpm string
	// netns is the host's network namespace and ip its address there; both empty without root.
	netns, ip string
	ppid      [16]byte
	conn      *grpc.ClientConn
	daemon    *process
}

func (h *host) socket() string                        { return filepath.Join(h.dir, "node.sock") }
func (h *host) migrations() v1.MigrationServiceClient { return v1.NewMigrationServiceClient(h.conn) }

// process is a child that is killed and waited for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (d *demo) start(logFile string, env []string, name string, args ...string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = log, log, append(os.Environ(), env...)
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() {
		_ = p.cmd.Wait() // its end is what counts
		_ = log.Close()
		close(p.done)
	}()
	d.started = append(d.started, p.stop)
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// until polls for a condition of another process.
func until(ctx context.Context, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}

func (d *demo) setUp(ctx context.Context) error {
	title("Setting up two nodes, mode SIMULATED (no SGX hardware; the simulated TEE says so everywhere)")
	var err error
	if d.dir, err = os.MkdirTemp("", "sc-demo-"); err != nil {
		return err
	}
	if d.kernel, err = vm.FindKernel(); err != nil {
		return err
	}
	d.initrd = filepath.Join(d.dir, "initrd")
	if err := vm.BuildInitramfs(filepath.Join(d.demoBin, "guest"), d.initrd); err != nil {
		return err
	}
	authority, err := simulated.CreateAuthority(filepath.Join(d.dir, "authority"), simulated.AuthorityOptions{})
	if err != nil {
		return err
	}
	separate := os.Getuid() == 0
	if separate {
		if err := d.network(ctx); err != nil {
			say("no network namespaces here, so two port sets instead: %v", err)
			separate = false
		}
	}
	d.nodes = map[string]*host{}
	for i, name := range []string{"compute1", "compute2"} {
		h := &host{name: name, dir: filepath.Join(d.dir, name), ppid: [16]byte{0: byte(i + 1), 15: 0x5c}}
		if separate {
			h.netns, h.ip = netnsName(i), fmt.Sprintf("10.203.77.%d", i+1)
		}
		d.nodes[name] = h
		if err := d.prepare(ctx, authority, h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := d.writePolicy(ctx); err != nil {
		return err
	}
	for _, h := range d.nodes {
		if err := d.startNode(ctx, h, filepath.Join(d.bin, "safeconductd")); err != nil {
			return err
		}
		where := "no network namespace of its own (not root)"
		if h.netns != "" {
			where = "network namespace " + h.netns
		}
		say("%s: %s, peer port %s, host TPM: a swtpm of its own", h.name, where, h.peer)
	}
	return nil
}

func netnsName(i int) string { return fmt.Sprintf("sc-demo-%d-%d", os.Getpid(), i+1) }

// network gives the two hosts network namespaces of their own, joined by a wire (veth). They are removed at the end.
func (d *demo) network(ctx context.Context) error {
	a, b := netnsName(0), netnsName(1)
	for _, ns := range []string{a, b} {
		if err := ip(ctx, "netns", "add", ns); err != nil {
			return err
		}
		d.started = append(d.started, func() { _ = ip(context.WithoutCancel(ctx), "netns", "del", ns) })
	}
	if err := ip(ctx, "-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b); err != nil {
		return err
	}
	for i, ns := range []string{a, b} {
		for _, args := range [][]string{
			{"addr", "add", fmt.Sprintf("10.203.77.%d/24", i+1), "dev", "wire"}, {"link", "set", "wire", "up"}, {"link", "set", "lo", "up"},
		} {
			if err := ip(ctx, append([]string{"-n", ns}, args...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}

// prepare gives a host its simulated processor, its TPM, its peer port and a swtpm binary of its own.
func (d *demo) prepare(ctx context.Context, authority *simulated.Authority, h *host) error {
	if err := os.MkdirAll(filepath.Join(h.dir, "hosttpm"), 0o700); err != nil {
		return err
	}
	if err := authority.CreatePlatform(filepath.Join(h.dir, "platform"), simulated.PlatformOptions{PPID: h.ppid}); err != nil {
		return err
	}
	if h.netns != "" {
		h.peer = h.ip + ":7443"
	} else {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		h.peer = l.Addr().String()
		if err := l.Close(); err != nil {
			return err
		}
	}
	h.swtpm = filepath.Join(h.dir, "swtpm")
	if err := copyFile(realSWTPM, h.swtpm, nil); err != nil {
		return err
	}
	h.tpm = filepath.Join(h.dir, "tpm.sock")
	if _, err := d.start(filepath.Join(h.dir, "hosttpm.log"), nil, realSWTPM, "socket", "--tpm2", "--server", "type=unixio,path="+h.tpm,
		"--ctrl", "type=unixio,path="+h.tpm+".ctrl", "--tpmstate", "dir="+filepath.Join(h.dir, "hosttpm"), "--flags", "not-need-init,startup-clear"); err != nil {
		return err
	}
	return until(ctx, "host TPM", func() error { _, err := os.Stat(h.tpm); return err })
}

// copyFile copies an executable, with tail appended: an ELF file runs the same with bytes behind its end, and hashes otherwise.
func copyFile(from, to string, tail []byte) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, append(raw, tail...), 0o755)
}

func (d *demo) items(h *host) []measure.Item {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		qemu = "/usr/bin/qemu-system-x86_64"
	}
	abs := func(p string) string { a, _ := filepath.Abs(p); return a }
	return []measure.Item{
		{Name: "kernel/image", Kind: measure.KindKernelImage},
		{Name: "kernel/modules", Kind: measure.KindKernelModules},
		{Name: "kernel/cmdline", Kind: measure.KindKernelCommandLine},
		{Name: "cpu", Kind: measure.KindCPU},
		{Name: "vmm/qemu", Kind: measure.KindProgram, Path: qemu},
		{Name: "vmm/swtpm", Kind: measure.KindProgram, Path: h.swtpm},
		{Name: "safeconduct/swtpm-helper", Kind: measure.KindFile, Path: abs(filepath.Join(d.bin, "safeconduct-swtpm"))},
	}
}

// writePolicy measures both hosts while they are golden and writes what is to be accepted.
func (d *demo) writePolicy(ctx context.Context) error {
	measurement, err := simulated.MeasureExecutable(filepath.Join(d.bin, "safeconductd"))
	if err != nil {
		return err
	}
	p := policy.Policy{Schema: policy.Schema, SVN: 1, Mode: tee.ModeSimulated, Enclaves: []policy.Enclave{{Name: "this build", MREnclave: measurement[:]}}}
	var refs *appraise.ReferenceValues
	for _, name := range []string{"compute1", "compute2"} {
		h := d.nodes[name]
		own, key, err := d.golden(ctx, h)
		if err != nil {
			return err
		}
		if refs == nil {
			refs = own
		} else {
			refs = appraise.Merge(refs, own)
		}
		id := handshake.PlatformID(h.ppid, key)
		p.Platforms = append(p.Platforms, policy.Platform{Host: h.name, PlatformID: id[:], TPMKey: key})
	}
	p.Integrity = *refs
	raw, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	d.report.Mode, d.report.Measurement = "simulated", map[string]string{"accepted": fmt.Sprintf("%x", measurement)}
	say("policy: one enclave (mrenclave %x...), two platforms, %d file and %d PCR reference values", measurement[:6], len(refs.Files), len(refs.PCRs))
	public, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	if raw, err = policy.Sign(raw, signer); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	keys := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(d.dir, "policy-keys.pem"), keys, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.dir, "policy.json"), raw, 0o600)
}

func (d *demo) golden(ctx context.Context, h *host) (*appraise.ReferenceValues, []byte, error) {
	m, err := measure.New(measure.Config{Items: d.items(h)})
	if err != nil {
		return nil, nil, err
	}
	entries, err := m.Measure(ctx)
	if err != nil {
		return nil, nil, err
	}
	tpm, err := hosttpm.Open("unix:" + h.tpm)
	if err != nil {
		return nil, nil, err
	}
	quote, err := tpm.Quote(ctx, [32]byte{1}, []int{0, 1, 2, 3, 4, 5, 6, 7})
	if err != nil {
		return nil, nil, err
	}
	raw, err := hostlog.Build(h.name, time.Now(), entries, quote)
	if err != nil {
		return nil, nil, err
	}
	log, err := hostlog.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	refs, err := appraise.Generate(log)
	return refs, quote.GetAkPublic(), err
}

func (d *demo) config(h *host) []byte {
	var b bytes.Buffer
	other := d.nodes["compute1"]
	if other == h {
		other = d.nodes["compute2"]
	}
	fmt.Fprintf(&b, "mode: simulated\nhost: %s\nstate_dir: %s/state\nlocal:\n  socket: %s\npeer:\n  listen: %s\npeers:\n  - host: %s\n    address: %s\n",
		h.name, h.dir, h.socket(), h.peer, other.name, other.peer)
	fmt.Fprintf(&b, "policy:\n  file: %s/policy.json\n  keys: %s/policy-keys.pem\ncollateral:\n  dir: %s/authority\nsimulated:\n  platform: %s/platform\n  root: %s/authority/%s\n",
		d.dir, d.dir, d.dir, h.dir, d.dir, simulated.RootFile)
	fmt.Fprintf(&b, "integrity:\n  tpm: unix:%s\n  items:\n", h.tpm)
	for _, it := range d.items(h) {
		fmt.Fprintf(&b, "    - name: %s\n      kind: %s\n", it.Name, it.Kind)
		if it.Path != "" {
			fmt.Fprintf(&b, "      path: %s\n", it.Path)
		}
	}
	return b.Bytes()
}

// startNode runs a node service and waits until it answers. binary may be another enclave than the policy's.
func (d *demo) startNode(ctx context.Context, h *host, binary string) error {
	if h.daemon != nil {
		h.daemon.stop()
		_ = h.conn.Close() // only of a client that is done with
	}
	file := filepath.Join(h.dir, "safeconductd.yaml")
	if err := os.WriteFile(file, d.config(h), 0o600); err != nil {
		return err
	}
	var err error
	args := []string{binary, "--config", file}
	if h.netns != "" {
		args = append([]string{"ip", "netns", "exec", h.netns}, args...)
	}
	if h.daemon, err = d.start(filepath.Join(h.dir, fmt.Sprintf("node-%d.log", len(d.started))), nil, args[0], args[1:]...); err != nil {
		return err
	}
	if h.conn, err = grpc.NewClient("unix://"+h.socket(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	return until(ctx, h.name+" does not answer", func() error {
		select {
		case <-h.daemon.done:
			return fmt.Errorf("safeconductd ended: %s", lastLine(h.dir))
		default:
		}
		call, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(h.conn).Check(call, &healthpb.HealthCheckRequest{})
		return err
	})
}

func lastLine(dir string) string {
	logs, _ := filepath.Glob(filepath.Join(dir, "node-*.log"))
	if len(logs) == 0 {
		return "no log"
	}
	raw, err := os.ReadFile(logs[len(logs)-1])
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(lines[len(lines)-1])
}
