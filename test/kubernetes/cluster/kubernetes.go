package cluster

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const token = "a-token-of-this-test"

func (c *Cluster) path(name string) string { return filepath.Join(c.Dir, name) }

func (c *Cluster) bin(name string) string { return filepath.Join(c.Bin, name) }

// Kubeconfig of the administrator, for programs on a node.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// StartKubernetes starts the control plane and both kubelets, and waits until the nodes are ready.
func (c *Cluster) StartKubernetes(ctx context.Context) error {
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := c.startKubelet(ctx, n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return Until(ctx, 3*time.Minute, "nodes are not ready", func() error {
		for _, n := range c.Nodes {
			out, err := c.Kubectl(ctx, "get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err != nil || out != "True" {
				return fmt.Errorf("%s: %q %w", n.Name, out, err)
			}
		}
		return nil
	})
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pki := c.path("pki")
	files := map[string]string{
		c.path("sa.key"): string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		c.path("tokens"): token + `,admin,admin,"system:masters"` + "\n",
		c.Kubeconfig(): fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s:443", certificate-authority: %s}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, serviceIP, filepath.Join(pki, "apiserver.crt"), token),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	first := c.Nodes[0]
	if err := c.Spawn(first, "etcd", "etcd", "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--listen-client-urls", "http://127.0.0.1:2379",
		"--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380"); err != nil {
		return err
	}
	if err := c.Spawn(first, "apiserver", c.bin("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--secure-port=443", "--bind-address=0.0.0.0",
		"--advertise-address="+first.Address, "--service-cluster-ip-range=10.96.0.0/16", "--cert-dir="+pki, "--token-auth-file="+c.path("tokens"),
		"--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.path("sa.key"),
		"--service-account-signing-key-file="+c.path("sa.key"), "--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP"); err != nil {
		return err
	}
	if err := Until(ctx, 2*time.Minute, "the API server is not ready", func() error { _, err := c.Kubectl(ctx, "get", "--raw", "/readyz"); return err }); err != nil {
		return err
	}
	if err := c.Spawn(first, "controller-manager", c.bin("kube-controller-manager"), "--kubeconfig="+c.Kubeconfig(), "--leader-elect=false",
		"--service-account-private-key-file="+c.path("sa.key"), "--root-ca-file="+filepath.Join(pki, "apiserver.crt"), "--use-service-account-credentials=false",
		"--node-monitor-grace-period=120s"); err != nil {
		return err
	}
	return c.Spawn(first, "scheduler", c.bin("kube-scheduler"), "--kubeconfig="+c.Kubeconfig(), "--leader-elect=false")
}

func (c *Cluster) startKubelet(ctx context.Context, n *Node) error {
	files := map[string]string{
		filepath.Join(n.Dir, "containerd.toml"): fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "safeconduct.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  disable_cgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`, n.Dir),
		filepath.Join(n.Dir, "cni", "10-test.conflist"): `{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "cni0",
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}`,
		filepath.Join(n.Dir, "kubelet.yaml"): `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
# Without cgroups of its own, kubelet 1.34 may panic where it thinks that a pod was resized.
featureGates: {InPlacePodVerticalScaling: false}
cgroupRoot: /scos-k8s
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
resolvConf: ""
clusterDomain: cluster.local
syncFrequency: 5s
configMapAndSecretChangeDetectionStrategy: Watch
evictionHard: {memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`,
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := c.Spawn(n, "containerd", "containerd", "--config", filepath.Join(n.Dir, "containerd.toml")); err != nil {
		return err
	}
	if err := Until(ctx, time.Minute, "containerd", func() error { _, err := c.Ctr(ctx, n, "version"); return err }); err != nil {
		return err
	}
	return c.Spawn(n, "kubelet", c.bin("kubelet"), "--config="+filepath.Join(n.Dir, "kubelet.yaml"), "--kubeconfig="+c.Kubeconfig(),
		"--hostname-override="+n.Name, "--node-ip="+n.Address, "--root-dir=/var/lib/kubelet")
}

// Ctr runs containerd's client on a node.
func (c *Cluster) Ctr(ctx context.Context, n *Node, args ...string) (string, error) {
	full := n.Enter(append([]string{"ctr", "-n", "k8s.io"}, args...)...)
	return Run(ctx, full[0], full[1:]...)
}

// Kubectl runs kubectl beside the API server, as administrator.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.Tool(ctx, c.bin("kubectl"), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
}

// Tool runs a program on the first node, whose network reaches the API server.
func (c *Cluster) Tool(ctx context.Context, program string, args ...string) (string, error) {
	full := c.Nodes[0].Enter(append([]string{"env", "HOME=" + c.Dir, "KUBECONFIG=" + c.Kubeconfig(), program}, args...)...)
	out, err := Run(ctx, full[0], full[1:]...)
	if err != nil {
		return out, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), strings.Join(full[:8], " ")))
	}
	return out, nil
}
