package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hosttpm"
	service "github.com/safeconduct/safeconduct/services/node"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// cloud is two whole node services with simulated enclaves.
type cloud struct {
	dir, policyFile string
	policy          policy.Policy
	signer          ed25519.PrivateKey
	root            service.RootOfTrust
	authority       *simulated.Authority
	nodes           [2]*cloudNode
}

type cloudNode struct {
	host, dir, socket, address, vmm, tpm string
	ended                                chan error
}

// newCloud starts them; tpms are the addresses of their TPMs, from the first node on.
func newCloud(t *testing.T, tpms ...string) *cloud {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc-cloud-") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cloud{dir: dir, policyFile: filepath.Join(dir, "policy.json")}
	if c.authority, err = simulated.CreateAuthority(filepath.Join(dir, "authority"), simulated.AuthorityOptions{}); err != nil {
		t.Fatal(err)
	}
	pin, err := dcap.PinPEM(c.authority.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	public, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := policy.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	c.signer, c.root = signer, service.RootOfTrust{Mode: v1.Mode_MODE_SIMULATED, Pin: pin, PolicyKeys: keys}
	m := measurementOf()
	c.policy = policy.Policy{Schema: policy.Schema, SVN: 1, Mode: tee.ModeSimulated, Enclaves: []policy.Enclave{{MREnclave: m.MREnclave[:]}}}
	c.policy.Integrity = appraise.ReferenceValues{
		Files: map[string]appraise.File{"vmm/qemu": {SHA256: []appraise.Digest{sha256.Sum256([]byte("a VMM"))}}},
		TPM:   appraise.TPM{Required: new(bool)},
	}
	for i, host := range []string{"compute1", "compute2"} {
		address := ""
		if i < len(tpms) {
			address = tpms[i]
		}
		c.nodes[i] = c.prepare(t, host, [16]byte{byte(i + 1)}, address)
	}
	c.writePolicy(t)
	for i, n := range c.nodes {
		c.start(t, n, c.nodes[1-i], m)
	}
	return c
}

func (c *cloud) prepare(t *testing.T, host string, ppid [16]byte, tpmAddress string) *cloudNode {
	t.Helper()
	n := &cloudNode{host: host, tpm: tpmAddress, dir: filepath.Join(c.dir, host), ended: make(chan error, 1)}
	n.socket, n.vmm = filepath.Join(n.dir, "s"), filepath.Join(n.dir, "qemu")
	if err := c.authority.CreatePlatform(filepath.Join(n.dir, "platform"), simulated.PlatformOptions{PPID: ppid}); err != nil {
		t.Fatal(err)
	}
	put(t, n.dir, "qemu", []byte("a VMM"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = l.Addr().String()
	l.Close()
	var ak []byte
	if tpmAddress != "" {
		tpm, err := hosttpm.Open(tpmAddress)
		if err != nil {
			t.Fatal(err)
		}
		if ak, err = tpm.AKPublic(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	id := handshake.PlatformID(ppid, ak)
	c.policy.Platforms = append(c.policy.Platforms, policy.Platform{Host: host, PlatformID: id[:], TPMKey: ak})
	return n
}

func (c *cloud) writePolicy(t *testing.T) {
	t.Helper()
	raw, err := json.Marshal(c.policy)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = policy.Sign(raw, c.signer); err != nil {
		t.Fatal(err)
	}
	put(t, c.dir, "policy.json", raw)
}

func (c *cloud) start(t *testing.T, n, peer *cloudNode, m simulated.Measurement) {
	t.Helper()
	enclave, err := simulated.Open(filepath.Join(n.dir, "platform"), m)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{
		Mode: tee.ModeSimulated, Host: n.host, StateDir: filepath.Join(n.dir, "state"), Local: config.Local{Socket: n.socket},
		Peer: config.Peer{Listen: n.address, MaxHandshakes: 8}, Policy: config.Policy{File: c.policyFile},
		Collateral: config.Collateral{Dir: filepath.Join(c.dir, "authority")},
		Integrity:  config.Integrity{Root: "/", Items: []config.Item{{Name: "vmm/qemu", Kind: "file", Path: n.vmm}}, TPM: n.tpm},
		Peers:      []config.PeerEntry{{Host: peer.host, Address: peer.address}},
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		n.ended <- service.Run(ctx, cfg, enclave, c.root, &service.Log{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Level: new(slog.LevelVar)})
	}()
	t.Cleanup(func() {
		cancel()
		if err, running := <-n.ended; running && err != nil {
			t.Errorf("%s: %v", n.host, err)
		}
	})
	conn, err := grpc.NewClient("unix://"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wait, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if _, err := healthpb.NewHealthClient(conn).Check(wait, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%s does not answer: %v", n.host, err)
	}
}

// The commands against what they are for, not against a fake: two node services that attest each other.
func TestTheCommandsAgainstTwoNodes(t *testing.T) {
	c := newCloud(t)
	on := func(i int, args ...string) result {
		return run(t, append([]string{"--socket", c.nodes[i].socket}, args...)...)
	}
	says := func(r result, code int, all ...string) {
		t.Helper()
		r.exits(t, code)
		for _, s := range all {
			if !strings.Contains(r.out+r.err, s) {
				t.Errorf("no %q in\n%s%s", s, r.out, r.err)
			}
		}
	}
	says(on(0, "attest"), ExitOK, "ACCEPTED", "SIMULATED", "compute1 is platform")
	says(on(0, "attest", "--peer", c.nodes[1].address, "--host", "compute2"), ExitOK, "compute2 is platform")
	says(on(0, "attest", "--peer", c.nodes[1].address, "--host", "compute1"), ExitRefused, "PLATFORM_NOT_ENROLLED")
	says(on(0, "preflight", "compute2"), ExitOK, "ok      integrity exchange", "ok      key derivation", "compute2 on compute1: accepted")
	says(on(1, "preflight", "compute1", "--role", "destination"), ExitOK, "ACCEPTED")
	says(on(0, "preflight", "compute9"), ExitRefused, "UNKNOWN_PEER")
	says(on(0, "migrations", "list", "--all"), ExitOK, "no sessions")
	says(on(0, "secrets", "list"), ExitOK, "no secrets")
	says(on(0, "status"), ExitOK, "accepts this node", "svn 1")

	says(on(0, "wait", "--timeout", "5s"), ExitOK)

	// A policy is tried on the hosts as they are, before it is in force.
	log := filepath.Join(c.dir, "compute2.log")
	if err := os.WriteFile(log, []byte(on(1, "integrity", "measure", "-o", "json").out), 0o600); err != nil {
		t.Fatal(err)
	}
	says(on(0, "policy", "test", c.policyFile, log), ExitOK, "ok       compute2", "0 of 1 hosts are refused")
	stricter := c.policy
	stricter.Platforms = stricter.Platforms[:1]
	stricter.Integrity.Files = map[string]appraise.File{"vmm/qemu": {SHA256: []appraise.Digest{sha256.Sum256([]byte("a later VMM"))}}}
	raw, err := json.Marshal(stricter)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c.dir, "stricter.json", raw)
	says(on(0, "policy", "test", filepath.Join(c.dir, "stricter.json"), log), ExitRefused, "REFUSED  compute2", "no entry for this host", "vmm/qemu: found")
	says(on(0, "policy", "diff", c.policyFile, filepath.Join(c.dir, "stricter.json")), ExitRefused, "- accepts less platforms[compute2]", "refuse the new one",
		"+ accepts more integrity.files.vmm/qemu.sha256")

	// A host that changed is refused by both nodes, each by its own words: the one that judges says why, the other only that.
	put(t, c.nodes[1].dir, "qemu", []byte("another VMM"))
	says(on(0, "preflight", "compute2"), ExitRefused, "INTEGRITY_MISMATCH", "vmm/qemu", "compute1 on compute2: refused")
	says(on(1, "preflight", "compute1"), ExitRefused, "PEER_REFUSED", "compute1 on compute2: refused")
	says(on(1, "status"), ExitRefused, "REFUSES this node", "INTEGRITY_MISMATCH")
	put(t, c.nodes[1].dir, "qemu", []byte("a VMM"))

	// Another policy, then an older one.
	c.policy.SVN, c.policy.Enclaves = 5, nil
	c.writePolicy(t)
	says(on(0, "reload"), ExitOK, "changed: svn 5")
	says(on(0, "attest"), ExitRefused, "MEASUREMENT_NOT_ALLOWED")
	says(on(0, "preflight", "compute2"), ExitRefused, "MEASUREMENT_NOT_ALLOWED")
	c.policy.SVN = 4
	c.writePolicy(t)
	says(on(0, "reload"), ExitRefused, "POLICY_ROLLED_BACK", "do:")

	says(on(1, "drain", "--deadline", "1s"), ExitOK, "drained")
	if err := <-c.nodes[1].ended; err != nil {
		t.Error(err)
	}
	close(c.nodes[1].ended)
	says(on(1, "status"), ExitUnreachable, "do:")
	says(on(0, "preflight", "compute2"), ExitUnreachable, "UNREACHABLE")
}
