package node

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee/simulated"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// childEnv names the file from which a process of this test binary becomes a node service of its own.
const childEnv = "SAFECONDUCT_TEST_NODE"

type childNode struct {
	Config         *config.Config
	Platform, Root string
	PolicyKeys     []byte
}

// runChild is the destination's node service in a process of its own.
func runChild(file string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	raw, err := os.ReadFile(file)
	fail(err)
	var c childNode
	fail(json.Unmarshal(raw, &c))
	enclave, err := simulated.Open(c.Platform, testMeasurement())
	fail(err)
	pem, err := os.ReadFile(c.Root)
	fail(err)
	pin, err := dcap.PinPEM(pem)
	fail(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	keys, err := policy.ParseKeys(c.PolicyKeys)
	fail(err)
	fail(Run(ctx, c.Config, enclave, RootOfTrust{Mode: v1.Mode_MODE_SIMULATED, Pin: pin, PolicyKeys: keys}, &Log{slog.New(slog.NewTextHandler(io.Discard, nil)), new(slog.LevelVar)}))
}

// benchRig has the destination in a process of its own. Handshakes are not limited.
func benchRig(b *testing.B, unix bool) *rig {
	r := newRig(b, func(r *rig, _ *policy.Policy) {
		for _, n := range []*testNode{r.src, r.dst} {
			n.cfg.Peer.HandshakesPerSecond = 1e6
			if unix {
				n.cfg.Peer.Listen = "unix:" + filepath.Join(n.dir, "peer")
			}
		}
		if unix {
			r.src.cfg.Peers[0].Address, r.dst.cfg.Peers[0].Address = r.dst.cfg.Peer.Listen, r.src.cfg.Peer.Listen
		}
	})
	r.dst.stop() // its place is taken by a process
	raw, err := json.Marshal(childNode{r.dst.cfg, filepath.Join(r.dst.dir, "platform"), filepath.Join(r.dir, "authority", simulated.RootFile), publicPEM(b, r.signer.Public().(ed25519.PublicKey))})
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(r.dir, "child.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), childEnv+"="+file), os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	r.dst.await(b)
	return r
}

// BenchmarkHandshake is Establish, both phases, between two processes.
func BenchmarkHandshake(b *testing.B) {
	for name, unix := range map[string]bool{"tcp": false, "unix": true} {
		b.Run(name, func(b *testing.B) {
			r := benchRig(b, unix)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.src.establish(context.Background(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBlob10KiB is one blob of 10 KiB through the node's unix socket, and beside it an empty call through the same socket, which is what
// gRPC itself costs. A session serves a blob type once, so each needs its own, which is not counted: p50 and p99 are of the calls alone.
func BenchmarkBlob10KiB(b *testing.B) {
	for _, what := range []string{"protect", "unprotect", "empty-call"} {
		b.Run(what, func(b *testing.B) {
			r := benchRig(b, true)
			plaintext := random(10 << 10)
			var took []time.Duration
			timed := func(f func() error) {
				begun := time.Now()
				err := f()
				took = append(took, time.Since(begun))
				if err != nil {
					b.Fatal(err)
				}
			}
			for i := 0; b.Loop(); i++ {
				s := r.armed(b, fmt.Sprintf("%s-%d-%d", what, b.N, i))
				var ciphertext []byte
				protect := func() (err error) { ciphertext, err = r.src.protect(volatile, plaintext); return err }
				switch what {
				case "protect":
					timed(protect)
				case "unprotect":
					if err := protect(); err != nil {
						b.Fatal(err)
					}
					timed(func() error { _, err := r.dst.unprotect(volatile, ciphertext); return err })
				default:
					timed(func() error {
						_, err := healthpb.NewHealthClient(r.dst.conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
						return err
					})
				}
				if _, err := r.src.migration().Abort(context.Background(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
					b.Fatal(err)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(0, "ns/op") // it would count the sessions
		})
	}
}
