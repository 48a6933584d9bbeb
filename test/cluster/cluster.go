// Package cluster runs the node services that the demo and the end-to-end suites migrate between: each with a simulated processor, a host TPM (a
// swtpm of its own) and a swtpm binary of its own to measure, under one signed policy that is generated from the hosts as they are.
//
// Non-goals: virtual machines (package vm), anything of SGX.
package cluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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
)

// RealSWTPM is Debian's swtpm.
const RealSWTPM = "/usr/bin/swtpm"

// Cluster is a set of nodes under one policy.
type Cluster struct {
	// Bin is the directory of safeconductd and safeconduct-swtpm.
	Bin string
	// Dir holds everything; short, for unix sockets.
	Dir   string
	Hosts []*Host
	// EditPolicy, if set, changes the generated policy before it is signed.
	EditPolicy func(*policy.Policy)
	// Measurement of the enclave that the policy accepts, and the policy's size; set by Prepare.
	Measurement  [32]byte
	References   *appraise.ReferenceValues
	processes    []*Process
	nodesStarted int
	policy       policy.Policy
	signer       ed25519.PrivateKey
}

// Host is one compute node.
type Host struct {
	Name string
	// Peer is the address of its peer port.
	Peer string
	// Socket is its local socket; empty means node.sock in Dir. Outside of the host's mount namespace it may have another path, Reach.
	Socket, Reach string
	// Enter turns a command into one that runs on the host, in its namespaces; nil: here.
	Enter func(args []string) []string
	// EnterForks: the command that Enter makes is the parent of the one it runs.
	EnterForks bool
	// Root is where the host's file system is seen from here; empty: "/". All paths of the host are below it.
	Root string
	// SWTPM is the swtpm that is measured; empty means a copy in Dir. QEMU likewise; empty: the one in PATH.
	SWTPM, QEMU string
	// Helper is the helper that is measured; empty means the one in Bin.
	Helper string
	// Config is YAML that is added to the node service's configuration.
	Config string
	// LocalConfig is YAML that is added to its section "local", indented by two spaces.
	LocalConfig string
	// TunnelAddress is where the host's tunnel listens; empty for a host without one. TunnelDir is where its sockets are; empty means a directory in
	// Dir.
	TunnelAddress, TunnelDir string
	// TunnelConfig is the file of its configuration; empty means one in Dir. TunnelAs are a command and its arguments that run it as another user.
	TunnelConfig string
	TunnelAs     []string

	// Dir is the host's own directory, TPM the socket of its TPM; set by Prepare.
	Dir, TPM string
	// Conn is a client of the running node service, which Daemon is.
	Conn   *grpc.ClientConn
	Daemon *Process
	// Tunnel is the host's running tunnel.
	Tunnel *Process
	ppid   [16]byte
}

// Migrations is a client of the host's MigrationService.
func (h *Host) Migrations() v1.MigrationServiceClient { return v1.NewMigrationServiceClient(h.Conn) }

// Host returns the host of a name.
func (c *Cluster) Host(name string) *Host {
	for _, h := range c.Hosts {
		if h.Name == name {
			return h
		}
	}
	panic("there is no host " + name)
}

// Close ends every process of the cluster, the last first.
func (c *Cluster) Close() {
	for _, h := range c.Hosts {
		if h.Conn != nil {
			_ = h.Conn.Close() // only of a client that is done with
		}
	}
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].Stop()
	}
}

// Prepare makes the hosts' platforms and TPMs, measures the hosts, and signs the policy that accepts them as they are.
func (c *Cluster) Prepare(ctx context.Context) error {
	authority, err := simulated.CreateAuthority(c.path("authority"), simulated.AuthorityOptions{})
	if err != nil {
		return err
	}
	for i, h := range c.Hosts {
		h.Dir, h.ppid = c.path(h.Name), [16]byte{0: byte(i + 1), 15: 0x5c}
		if err := c.prepare(ctx, authority, h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return c.writePolicy(ctx)
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// PolicyFile is the signed policy.
func (c *Cluster) PolicyFile() string { return c.path("policy.json") }

// PolicyKeys is the file of the keys that may sign it.
func (c *Cluster) PolicyKeys() string { return c.path("policy-keys.pem") }

// Root is the file of the simulated root certificate.
func (c *Cluster) Root() string { return c.path("authority", simulated.RootFile) }

// prepare gives a host its simulated processor, its TPM and a swtpm binary of its own.
func (c *Cluster) prepare(ctx context.Context, authority *simulated.Authority, h *Host) error {
	if err := os.MkdirAll(filepath.Join(h.Dir, "hosttpm"), 0o700); err != nil {
		return err
	}
	if err := authority.CreatePlatform(filepath.Join(h.Dir, "platform"), simulated.PlatformOptions{PPID: h.ppid}); err != nil {
		return err
	}
	if h.Socket == "" {
		h.Socket = filepath.Join(h.Dir, "node.sock")
	}
	if h.Reach == "" {
		h.Reach = h.Socket
	}
	if h.SWTPM == "" {
		h.SWTPM = filepath.Join(h.Dir, "swtpm")
		if err := CopyExecutable(RealSWTPM, h.SWTPM, nil); err != nil {
			return err
		}
	}
	if h.Helper == "" {
		h.Helper = filepath.Join(c.Bin, "safeconduct-swtpm")
	}
	if h.QEMU == "" {
		var err error
		if h.QEMU, err = exec.LookPath("qemu-system-x86_64"); err != nil {
			return err
		}
	}
	h.TPM = filepath.Join(h.Dir, "tpm.sock")
	tpm, err := Start(filepath.Join(h.Dir, "hosttpm.log"), nil, RealSWTPM, "socket", "--tpm2", "--server", "type=unixio,path="+h.TPM,
		"--ctrl", "type=unixio,path="+h.TPM+".ctrl", "--tpmstate", "dir="+filepath.Join(h.Dir, "hosttpm"), "--flags", "not-need-init,startup-clear")
	if err != nil {
		return err
	}
	c.processes = append(c.processes, tpm)
	return Until(ctx, "host TPM", func() error { _, err := os.Stat(h.TPM); return err })
}

// CopyExecutable copies an executable, with tail appended: an ELF file runs the same with bytes behind its end, and hashes otherwise.
func CopyExecutable(from, to string, tail []byte) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, append(raw, tail...), 0o755)
}

func (c *Cluster) items(h *Host) ([]measure.Item, error) {
	helper, err := filepath.Abs(h.Helper)
	return []measure.Item{
		{Name: "kernel/image", Kind: measure.KindKernelImage},
		{Name: "kernel/modules", Kind: measure.KindKernelModules},
		{Name: "kernel/cmdline", Kind: measure.KindKernelCommandLine},
		{Name: "cpu", Kind: measure.KindCPU},
		{Name: "vmm/qemu", Kind: measure.KindProgram, Path: h.QEMU},
		{Name: "vmm/swtpm", Kind: measure.KindProgram, Path: h.SWTPM},
		{Name: "safeconduct/swtpm-helper", Kind: measure.KindFile, Path: helper},
	}, err
}

// writePolicy measures the hosts while they are golden and writes what is to be accepted.
func (c *Cluster) writePolicy(ctx context.Context) error {
	measurement, err := simulated.MeasureExecutable(filepath.Join(c.Bin, "safeconductd"))
	if err != nil {
		return err
	}
	c.Measurement = measurement
	p := policy.Policy{Schema: policy.Schema, SVN: 1, Mode: tee.ModeSimulated, Enclaves: []policy.Enclave{{Name: "this build", MREnclave: measurement[:]}}}
	for _, h := range c.Hosts {
		own, key, err := c.golden(ctx, h)
		if err != nil {
			return err
		}
		if c.References == nil {
			c.References = own
		} else {
			c.References = appraise.Merge(c.References, own)
		}
		id := handshake.PlatformID(h.ppid, key)
		if h.TunnelAddress != "" {
			p.ExportedKeys = []string{policy.ExportTunnel}
		}
		p.Platforms = append(p.Platforms, policy.Platform{Host: h.Name, PlatformID: id[:], TPMKey: key})
	}
	p.Integrity = *c.References
	if c.EditPolicy != nil {
		c.EditPolicy(&p)
	}
	public, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	c.policy, c.signer = p, signer
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	keys := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(c.PolicyKeys(), keys, 0o600); err != nil {
		return err
	}
	return c.sign(p)
}

// Amend replaces the policy by the next one, which is the generated one with a change. The nodes have it once they reload.
func (c *Cluster) Amend(change func(*policy.Policy)) error {
	c.policy.SVN++
	next := c.policy
	next.Enclaves, next.Platforms = slices.Clone(next.Enclaves), slices.Clone(next.Platforms)
	if change != nil {
		change(&next)
	}
	return c.sign(next)
}

func (c *Cluster) sign(p policy.Policy) error {
	raw, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if raw, err = policy.Sign(raw, c.signer); err != nil {
		return err
	}
	return os.WriteFile(c.PolicyFile(), raw, 0o600)
}

func (c *Cluster) golden(ctx context.Context, h *Host) (*appraise.ReferenceValues, []byte, error) {
	items, err := c.items(h)
	if err != nil {
		return nil, nil, err
	}
	m, err := measure.New(measure.Config{Root: h.Root, Items: items})
	if err != nil {
		return nil, nil, err
	}
	entries, err := m.Measure(ctx)
	if err != nil {
		return nil, nil, err
	}
	tpm, err := hosttpm.Open("unix:" + h.TPM)
	if err != nil {
		return nil, nil, err
	}
	quote, err := tpm.Quote(ctx, [32]byte{1}, []int{0, 1, 2, 3, 4, 5, 6, 7})
	if err != nil {
		return nil, nil, err
	}
	raw, err := hostlog.Build(h.Name, time.Now(), entries, quote)
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

func (c *Cluster) config(h *Host) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "mode: simulated\nhost: %s\nstate_dir: %s/state\nlocal:\n  socket: %s\n%speer:\n  listen: %s\npeers:\n",
		h.Name, h.Dir, h.Socket, h.LocalConfig, h.Peer)
	for _, other := range c.Hosts {
		if other != h {
			fmt.Fprintf(&b, "  - host: %s\n    address: %s\n", other.Name, other.Peer)
		}
	}
	fmt.Fprintf(&b, "policy:\n  file: %s\n  keys: %s\ncollateral:\n  dir: %s\nsimulated:\n  platform: %s/platform\n  root: %s\n",
		c.PolicyFile(), c.PolicyKeys(), c.path("authority"), h.Dir, c.Root())
	fmt.Fprintf(&b, "integrity:\n  tpm: unix:%s\n  items:\n", h.TPM)
	items, err := c.items(h)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		fmt.Fprintf(&b, "    - name: %s\n      kind: %s\n", it.Name, it.Kind)
		if it.Path != "" {
			fmt.Fprintf(&b, "      path: %s\n", it.Path)
		}
	}
	b.WriteString(h.Config)
	return b.Bytes(), nil
}

// StartNode runs a host's node service, in the place of one that runs, and waits until it answers. binary may be another enclave than the policy's;
// empty means the one in Bin.
func (c *Cluster) StartNode(ctx context.Context, h *Host, binary string) error {
	if binary == "" {
		binary = filepath.Join(c.Bin, "safeconductd")
	}
	if h.Daemon != nil {
		h.Daemon.Stop()
		_ = h.Conn.Close() // only of a client that is done with
	}
	file := filepath.Join(h.Dir, "safeconductd.yaml")
	raw, err := c.config(h)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return err
	}
	args := []string{binary, "--config", file}
	if h.Enter != nil {
		args = h.Enter(args)
	}
	c.nodesStarted++
	log := filepath.Join(h.Dir, fmt.Sprintf("node-%03d.log", c.nodesStarted))
	if h.Daemon, err = Start(log, nil, args[0], args[1:]...); err != nil {
		return err
	}
	h.Daemon.forks = h.Enter != nil && h.EnterForks
	c.processes = append(c.processes, h.Daemon)
	if h.Conn, err = grpc.NewClient("unix://"+h.Reach, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	return Until(ctx, h.Name+" does not answer", func() error {
		select {
		case <-h.Daemon.Done():
			return fmt.Errorf("safeconductd ended: %s", lastLine(log))
		default:
		}
		call, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(h.Conn).Check(call, &healthpb.HealthCheckRequest{})
		return err
	})
}

func lastLine(log string) string {
	raw, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return lines[len(lines)-1]
}
