package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// childEnv names the file from which a process of this test binary becomes a node service of its own.
const childEnv = "SAFECONDUCT_TEST_NODE"

type childNode struct {
	Config         *config.Config
	Platform, Root string
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
	fail(Run(ctx, c.Config, enclave, RootOfTrust{Mode: v1.Mode_MODE_SIMULATED, Pin: pin}, slog.New(slog.NewTextHandler(io.Discard, nil))))
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
	raw, err := json.Marshal(childNode{r.dst.cfg, filepath.Join(r.dst.dir, "platform"), filepath.Join(r.dir, "authority", simulated.RootFile)})
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

// BenchmarkBlob10KiB is one blob of 10 KiB through the node's unix socket. A session serves a blob type once, so each needs its own,
// which is not counted.
func BenchmarkBlob10KiB(b *testing.B) {
	for _, direction := range []string{"protect", "unprotect"} {
		b.Run(direction, func(b *testing.B) {
			r := benchRig(b, true)
			plaintext := random(10 << 10)
			b.SetBytes(int64(len(plaintext)))
			for i := 0; i < b.N; i++ {
				b.StopTimer()
				s := r.armed(b, fmt.Sprintf("%s-%d-%d", direction, b.N, i))
				if direction == "protect" {
					b.StartTimer()
				}
				ciphertext, err := r.src.protect(volatile, plaintext)
				if direction == "unprotect" && err == nil {
					b.StartTimer()
					_, err = r.dst.unprotect(volatile, ciphertext)
				}
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.src.migration().Abort(context.Background(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
