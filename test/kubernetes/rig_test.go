package kubernetes

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"

	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/measure"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
	"github.com/safeconduct/safeconduct/test/kubernetes/cluster"
)

// uid is the chart's user.
const uid = 64061

// rig is what the steps share.
type rig struct {
	*cluster.Cluster
	// source is the repository, tools the directory of helm, and scratch one of ours.
	source, tools, scratch string
	// measurements of the two builds, a and b.
	measurements map[string][32]byte
	values       string
}

// images makes both builds' images and has each node's containerd import them.
func (r *rig) images(ctx context.Context, t *testing.T) {
	t.Helper()
	r.measurements = map[string][32]byte{}
	for _, tag := range []string{"a", "b"} {
		bin := filepath.Join(r.scratch, "bin-"+tag)
		must(t, os.MkdirAll(bin, 0o755))
		all, err := os.ReadDir(filepath.Join(r.source, "build", "bin"))
		must(t, err)
		for _, e := range all {
			raw, err := os.ReadFile(filepath.Join(r.source, "build", "bin", e.Name()))
			must(t, err)
			if tag == "b" { // an ELF file runs the same with bytes behind its end, and measures otherwise
				raw = append(raw, '\n')
			}
			must(t, os.WriteFile(filepath.Join(bin, e.Name()), raw, 0o755))
		}
		out := filepath.Join(r.scratch, "images-"+tag)
		run(ctx, t, "go", "-C", filepath.Join(r.source, "deploy", "images"), "run", ".", "--bin", bin, "--out", out, "--tag", tag,
			"--repository", "safeconduct.test", "--licence", filepath.Join(r.source, "LICENSE"))
		r.measurements[tag], err = simulated.MeasureExecutable(filepath.Join(bin, "safeconductd"))
		must(t, err)
	}
	img, err := tarball.ImageFromPath(filepath.Join(r.scratch, "images-a", "host.tar"), nil)
	must(t, err)
	c, err := img.ConfigFile()
	must(t, err)
	config := c.Config
	config.Cmd = []string{"pause"}
	img, err = mutate.Config(img, config)
	must(t, err)
	ref, err := name.NewTag("safeconduct.test/pause:1")
	must(t, err)
	must(t, tarball.WriteToFile(filepath.Join(r.scratch, "images-a", "pause.tar"), ref, img))
}

func (r *rig) importImages(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, n := range r.Nodes {
		for _, tag := range []string{"a", "b"} {
			files, err := filepath.Glob(filepath.Join(r.scratch, "images-"+tag, "*.tar"))
			must(t, err)
			for _, f := range files {
				_, err := r.Ctr(ctx, n, "images", "import", f)
				must(t, err)
			}
		}
	}
}

// prepare makes the nodes' simulated processors and the policy that accepts both builds on them, and writes the chart's values.
func (r *rig) prepare(ctx context.Context, t *testing.T) {
	t.Helper()
	dir := filepath.Join(r.scratch, "authority")
	authority, err := simulated.CreateAuthority(dir, simulated.AuthorityOptions{})
	must(t, err)
	p := policy.Policy{Schema: policy.Schema, SVN: 1, Mode: tee.ModeSimulated, ExportedKeys: []string{policy.ExportTunnel}}
	for _, tag := range []string{"a", "b"} {
		m := r.measurements[tag]
		p.Enclaves = append(p.Enclaves, policy.Enclave{Name: "build " + tag, MREnclave: m[:]})
	}
	items := []measure.Item{
		{Name: "kernel/cmdline", Kind: measure.KindKernelCommandLine},
		{Name: "vmm/swtpm", Kind: measure.KindProgram, Path: "/usr/bin/swtpm"},
	}
	var nodes []map[string]any
	for i, n := range r.Nodes {
		ppid := [16]byte{0: byte(i + 1), 15: 0x5c}
		state := filepath.Join(n.Lib, "safeconduct")
		must(t, os.MkdirAll(state, 0o700))
		must(t, authority.CreatePlatform(filepath.Join(state, "platform"), simulated.PlatformOptions{PPID: ppid}))
		must(t, filepath.WalkDir(state, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Chown(p, uid, uid)
		}))
		id := handshake.PlatformID(ppid, nil)
		p.Platforms = append(p.Platforms, policy.Platform{Host: n.Name, PlatformID: id[:]})
		nodes = append(nodes, map[string]any{"host": n.Name, "address": n.Address})
	}
	p.Integrity = *references(ctx, t, items)
	raw, err := json.Marshal(p)
	must(t, err)
	public, signer, err := ed25519.GenerateKey(nil)
	must(t, err)
	envelope, err := policy.Sign(raw, signer)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	collateral := map[string]string{}
	for _, f := range []string{"tcb_info.json", "qe_identity.json", "pck_crl.der", "root_ca_crl.der", "tcb_signing_chain.pem"} {
		raw, err := os.ReadFile(filepath.Join(dir, f))
		must(t, err)
		collateral[f] = string(raw)
		if strings.HasSuffix(f, ".der") {
			collateral[f] = base64.StdEncoding.EncodeToString(raw)
		}
	}
	root, err := os.ReadFile(filepath.Join(dir, simulated.RootFile))
	must(t, err)
	values := map[string]any{
		"mode": "simulated", "nodes": nodes,
		"images": map[string]any{"pull_policy": "Never", "tags": map[string]any{"safeconduct": "safeconduct.test/node:a", "host": "safeconduct.test/host:a"}},
		"conf": map[string]any{
			"safeconductd": map[string]any{
				"peer":       map[string]any{"handshakes_per_second": 1000},
				"collateral": map[string]any{"dir": "/etc/safeconduct/collateral"},
				"integrity": map[string]any{"items": []map[string]any{
					{"name": "kernel/cmdline", "kind": "kernel-command-line"}, {"name": "vmm/swtpm", "kind": "program", "path": "/usr/bin/swtpm"}}},
			},
			"policy":    map[string]any{"envelope": string(envelope), "keys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
			"simulated": map[string]any{"root": string(root)}, "collateral": collateral,
		},
		"sgx":    map[string]any{"rehearse": true},
		"helper": map[string]any{"enabled": true, "settings": map[string]any{"node_timeout": "400ms"}},
		"tunnel": map[string]any{"enabled": true},
		"pod": map[string]any{"lifecycle": map[string]any{"termination_grace_period": 60, "drain_deadline": 30},
			"probes": map[string]any{"readiness": map[string]any{"period": 1}}},
	}
	raw, err = json.MarshalIndent(values, "", "  ")
	must(t, err)
	r.values = filepath.Join(r.scratch, "values.json")
	must(t, os.WriteFile(r.values, raw, 0o600))
}

// references are this machine's, as it is: both nodes are on it.
func references(ctx context.Context, t *testing.T, items []measure.Item) *appraise.ReferenceValues {
	t.Helper()
	m, err := measure.New(measure.Config{Items: items})
	must(t, err)
	entries, err := m.Measure(ctx)
	must(t, err)
	raw, err := hostlog.Build("any", time.Now(), entries, nil)
	must(t, err)
	log, err := hostlog.Parse(raw)
	must(t, err)
	refs, err := appraise.Generate(log)
	must(t, err)
	no := false
	refs.TPM.Required = &no
	return refs
}

// dial is a client of a node's service, by its socket on the host.
func dial(t *testing.T, n *cluster.Node) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.Run, "safeconduct", "node.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (r *rig) helm(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.Tool(ctx, filepath.Join(r.tools, "helm"), append(args, "-n", "openstack")...)
	must(t, err)
	return out
}

func (r *rig) kubectl(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.Kubectl(ctx, append([]string{"-n", "openstack"}, args...)...)
	must(t, err)
	return out
}

// pod is the name of a node's pod.
func (r *rig) pod(ctx context.Context, t *testing.T, n *cluster.Node) string {
	t.Helper()
	out := r.kubectl(ctx, t, "get", "pods", "-l", "application=safeconduct,component=compute", "--field-selector", "spec.nodeName="+n.Name, "-o", "json")
	var pods corev1.PodList
	must(t, json.Unmarshal([]byte(out), &pods))
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			return p.Name
		}
	}
	t.Fatalf("%s has no pod, but for those that are ending: %d", n.Name, len(pods.Items))
	return ""
}

// process is the pid, on this machine, of a program in a node's containers.
func process(n *cluster.Node, program string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.Init()))
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		net, err := os.Readlink(filepath.Join(p, "ns", "net"))
		if err != nil || net != own {
			continue
		}
		if exe, err := os.Readlink(filepath.Join(p, "exe")); err == nil && exe == program {
			var pid int
			_, err := fmt.Sscanf(filepath.Base(p), "%d", &pid)
			return pid, err
		}
	}
	return 0, fmt.Errorf("%s does not run on %s", program, n.Name)
}

func run(ctx context.Context, t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := cluster.Run(ctx, name, args...)
	must(t, err)
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
