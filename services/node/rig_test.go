package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
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
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

const vmID = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

// rig is two whole node services in one process, on real sockets, with simulated enclaves and one measured file each.
type rig struct {
	dir       string
	src, dst  *testNode
	policy    *policy.Policy
	authority *simulated.Authority
	signer    ed25519.PrivateKey
}

type testNode struct {
	name, dir, address, file string
	cfg                      *config.Config
	enclave                  *simulated.Platform
	root                     RootOfTrust
	conn                     *grpc.ClientConn
	stop                     func()
	// wrap, if set, stands between the node and its enclave.
	wrap func(tee.Enclave) tee.Enclave
	// detach ends the test's being the helper of vmID.
	detach func()
	// skew is added to the node's clock.
	skew atomic.Int64
}

func (n *testNode) admin() v1.AdminServiceClient { return v1.NewAdminServiceClient(n.conn) }
func (n *testNode) attestation() v1.AttestationServiceClient {
	return v1.NewAttestationServiceClient(n.conn)
}
func (n *testNode) now() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) }

func (n *testNode) migration() v1.MigrationServiceClient { return v1.NewMigrationServiceClient(n.conn) }
func (n *testNode) crypto() v1.CryptoServiceClient       { return v1.NewCryptoServiceClient(n.conn) }

// change alters what a rig is built from, before its nodes start.
type change func(r *rig, p *policy.Policy)

func newRig(t testing.TB, changes ...change) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc-node-") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	authority, err := simulated.CreateAuthority(filepath.Join(dir, "authority"), simulated.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pin, err := dcap.PinPEM(authority.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: dir, authority: authority}
	public, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	r.signer = signer
	keys, err := policy.ParseKeys(publicPEM(t, public))
	if err != nil {
		t.Fatal(err)
	}
	p := &policy.Policy{Schema: policy.Schema, SVN: 1, Mode: tee.ModeSimulated}
	p.Integrity = appraise.ReferenceValues{Files: map[string]appraise.File{}, TPM: appraise.TPM{Required: new(bool)}}
	measurement := testMeasurement()
	p.Enclaves = []policy.Enclave{{MREnclave: measurement.MREnclave[:]}}
	for i, dst := range []**testNode{&r.src, &r.dst} {
		n := &testNode{name: []string{"compute1", "compute2"}[i], root: RootOfTrust{Mode: v1.Mode_MODE_SIMULATED, Pin: pin, PolicyKeys: keys}}
		n.dir = filepath.Join(dir, n.name)
		ppid := [16]byte{byte(i + 1)}
		if err := authority.CreatePlatform(filepath.Join(n.dir, "platform"), simulated.PlatformOptions{PPID: ppid}); err != nil {
			t.Fatal(err)
		}
		if n.enclave, err = simulated.Open(filepath.Join(n.dir, "platform"), measurement); err != nil {
			t.Fatal(err)
		}
		n.address = "unix:" + filepath.Join(n.dir, "p") // a port that was free a moment ago may be somebody else's by now
		n.file = filepath.Join(n.dir, "qemu")
		if err := os.WriteFile(n.file, []byte("a VMM"), 0o600); err != nil {
			t.Fatal(err)
		}
		id := handshake.PlatformID(ppid, nil)
		p.Platforms = append(p.Platforms, policy.Platform{Host: n.name, PlatformID: id[:]})
		*dst = n
	}
	digest := appraise.Digest(sha256.Sum256([]byte("a VMM")))
	p.Integrity.Files["vmm/qemu"] = appraise.File{SHA256: []appraise.Digest{digest}}
	for _, n := range []*testNode{r.src, r.dst} {
		n.cfg = r.config(n)
	}
	for _, c := range changes {
		c(r, p)
	}
	r.policy = p
	r.writePolicy(t)
	r.src.start(t)
	r.dst.start(t)
	return r
}

func publicPEM(t testing.TB, key ed25519.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// writePolicy puts the rig's policy where both nodes read it.
func (r *rig) writePolicy(t testing.TB) {
	t.Helper()
	raw, err := json.Marshal(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = policy.Sign(raw, r.signer); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "policy.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func testMeasurement() simulated.Measurement {
	return simulated.Measurement{MREnclave: [32]byte{1}, MRSigner: simulated.SignerOf("test"), ISVProdID: 1, ISVSVN: 1}
}

func (r *rig) config(n *testNode) *config.Config {
	other := r.src
	if n == r.src {
		other = r.dst
	}
	return &config.Config{
		Mode: tee.ModeSimulated, Host: n.name, StateDir: filepath.Join(n.dir, "state"),
		Local:      config.Local{Socket: filepath.Join(n.dir, "s")},
		Peer:       config.Peer{Listen: n.address, MaxHandshakes: 8},
		Policy:     config.Policy{File: filepath.Join(r.dir, "policy.json")},
		Collateral: config.Collateral{Dir: filepath.Join(r.dir, "authority")},
		Integrity:  config.Integrity{Root: "/", Items: []config.Item{{Name: "vmm/qemu", Kind: "file", Path: n.file}}},
		Peers:      []config.PeerEntry{{Host: other.name, Address: other.address}},
	}
}

func (n *testNode) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		var enclave tee.Enclave = n.enclave
		if n.wrap != nil {
			enclave = n.wrap(enclave)
		}
		done <- run(ctx, n.cfg, enclave, n.root, discardLog(), n.now)
	}()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		})
	}
	var err error
	if n.conn, err = grpc.NewClient("unix://"+n.cfg.Local.Socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	conn := n.conn
	t.Cleanup(func() { conn.Close(); n.stop() })
	n.await(t)
	n.detach = n.attach(t, vmID)
}

// await waits until the node service answers.
func (n *testNode) await(t testing.TB) {
	t.Helper()
	for range 2000 { // the first connection would otherwise be refused, and gRPC then waits a second
		if _, err := os.Stat(n.cfg.Local.Socket); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	wait, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	if _, err := healthpb.NewHealthClient(n.conn).Check(wait, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%s does not answer: %v", n.name, err)
	}
}

func (n *testNode) establish(ctx context.Context, peer string, role v1.Role) (*v1.Session, error) {
	return n.establishAttempt(ctx, &v1.EstablishRequest{InstanceId: vmID, PeerHost: peer, Role: role})
}

func (n *testNode) establishAttempt(ctx context.Context, req *v1.EstablishRequest) (*v1.Session, error) {
	rpc, err := n.migration().Establish(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		event, err := rpc.Recv()
		if err != nil {
			return nil, err
		}
		if event.GetSession() != nil {
			return event.GetSession(), nil
		}
	}
}

func (r *rig) armed(t testing.TB, migration string) *v1.Session {
	t.Helper()
	s, err := r.src.establish(context.Background(), "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.arm(migration); err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *testNode) arm(migration string) (*v1.ArmResponse, error) {
	return n.migration().Arm(context.Background(), &v1.ArmRequest{InstanceId: vmID, DestinationHost: "compute2", MigrationId: migration, ReturnPath: true})
}

// attach makes the test's connection the VM's helper, until it is detached or the node ends.
func (n *testNode) attach(t testing.TB, instance string) (detach func()) {
	t.Helper()
	cancel, err := attach(n.crypto(), instance)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return func() {
		cancel()
		for { // a cancelled stream ends here before it ends at the node
			status, err := n.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
			if err != nil || !slices.Contains(status.GetAttachedInstances(), instance) {
				return
			}
		}
	}
}

func attach(client v1.CryptoServiceClient, instance string) (detach func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := client.Attach(ctx, &v1.AttachRequest{InstanceId: instance})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return func() {
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
	}, nil
}

func (n *testNode) protect(kind v1.StateType, plaintext []byte) ([]byte, error) {
	return n.protectVM(vmID, kind, plaintext)
}

func (n *testNode) protectVM(vm string, kind v1.StateType, plaintext []byte) ([]byte, error) {
	rpc, err := n.crypto().ProtectState(context.Background())
	if err != nil {
		return nil, err
	}
	// A refusal shows in Recv: errors of Send only say that the stream has ended.
	_ = rpc.Send(&v1.ProtectStateRequest{Body: &v1.ProtectStateRequest_Header{Header: &v1.StateHeader{InstanceId: vm, Type: kind, Data: plaintext}}})
	_ = rpc.CloseSend()
	return collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
}

func (n *testNode) unprotect(kind v1.StateType, ciphertext []byte) ([]byte, error) {
	return n.unprotectVM(vmID, kind, ciphertext)
}

func (n *testNode) unprotectVM(vm string, kind v1.StateType, ciphertext []byte) ([]byte, error) {
	rpc, err := n.crypto().UnprotectState(context.Background())
	if err != nil {
		return nil, err
	}
	_ = rpc.Send(&v1.UnprotectStateRequest{Body: &v1.UnprotectStateRequest_Header{Header: &v1.StateHeader{InstanceId: vm, Type: kind, Data: ciphertext}}})
	_ = rpc.CloseSend()
	return collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
}

func collect(recv func() ([]byte, bool, error)) ([]byte, error) {
	var out []byte
	for {
		data, done, err := recv()
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		out = append(out, data...)
		if done {
			return out, nil
		}
	}
}

func discardLog() *Log {
	return &Log{slog.New(slog.NewTextHandler(io.Discard, nil)), new(slog.LevelVar)}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("in vain waited for: %s", what)
		case <-tick.C:
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// peerClient is a stranger who has reached the node's peer port.
func (n *testNode) peerClient(t *testing.T) v1.PeerServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return v1.NewPeerServiceClient(conn)
}
