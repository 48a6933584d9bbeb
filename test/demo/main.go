// Command demo is the main job on one machine: a VM with a vTPM migrates between two nodes under mutual attestation, in the simulated mode, and
// the demo proves what it claims. `make demo` runs it; it exits 0 only if everything held.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

func main() {
	var d demo
	flag.StringVar(&d.bin, "bin", "build/bin", "directory of safeconductd, safeconduct-swtpm and safeconduct-tunnel")
	flag.StringVar(&d.demoBin, "demo-bin", "build/demo/bin", "directory of guest and tap")
	flag.StringVar(&d.out, "out", "build/demo", "directory of report.json and the logs")
	flag.BoolVar(&d.withFaults, "faults", false, "also kill each part of the destination in the middle of a migration")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	err := d.run(ctx)
	d.stopAll()
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo FAILED: %v\nlogs: %s\n", err, d.dir)
		os.Exit(1)
	}
	_ = os.RemoveAll(d.dir) // leftovers of a demo that held are of no use
}

// demo holds what the scenes share.
type demo struct {
	bin, demoBin, out string
	dir               string // short, for unix sockets
	started           []stopper
	cluster           *cluster.Cluster
	nodes             map[string]*host
	marker            []byte // in every guest's memory
	via               string // where a relay stands between the tunnels; empty if the wire itself can be captured
	initrd, kernel    string
	withFaults        bool
	prometheus        string    // where it listens, in compute1's network namespace
	ports             int       // migration ports used so far
	wire              []vm.Flow // of the last move
	report            report
}

type stopper func()

func (d *demo) stopAll() {
	for i := len(d.started) - 1; i >= 0; i-- {
		d.started[i]()
	}
}

// report is build/demo/report.json: every figure that was printed.
type report struct {
	Mode         string            `json:"mode"`
	Measurement  map[string]string `json:"mrenclave"`
	Refusals     []refused         `json:"refusals"`
	Steps        []step            `json:"steps"`
	Attested     map[string]any    `json:"peer_attested"`
	Appraised    map[string]any    `json:"peer_appraised"`
	SessionID    string            `json:"session_id"`
	MigrationID  string            `json:"migration_id"`
	ArmMS        float64           `json:"arm_ms"`
	Blobs        []blob            `json:"blobs"`
	DowntimeMS   int64             `json:"downtime_ms"`
	TotalMS      int64             `json:"migration_ms"`
	RAMBytes     uint64            `json:"ram_bytes"`
	Guest        guestReport       `json:"guest"`
	WireBytes    int               `json:"wire_bytes"`
	Protected    []search          `json:"search_protected"`
	Unprotected  []search          `json:"search_unprotected"`
	Queries      int               `json:"prometheus_queries"`
	QuerySeries  int               `json:"prometheus_series"`
	ElapsedS     float64           `json:"elapsed_seconds"`
	EverythingOK bool              `json:"everything_held"`
}

type (
	refused struct {
		Scene    string `json:"scene"`
		Reason   string `json:"reason"`
		Item     string `json:"item,omitempty"`
		Found    string `json:"found,omitempty"`
		Expected string `json:"expected,omitempty"`
		GuestOK  bool   `json:"guest_runs_on_at_source"`
	}
	step struct {
		Name string  `json:"name"`
		MS   float64 `json:"ms"`
	}
	blob struct {
		Type       string  `json:"type"`
		Plaintext  uint64  `json:"plaintext_bytes"`
		Ciphertext uint64  `json:"ciphertext_bytes"`
		MS         float64 `json:"ms"`
	}
	guestReport struct {
		Ticks       int    `json:"ticks"`
		AtSource    int    `json:"ticks_at_source"`
		FirstNV     uint64 `json:"first_counter"`
		LastNV      uint64 `json:"last_counter"`
		LastPCR     string `json:"last_pcr"`
		SecretSHA   string `json:"unsealed_secret_sha256"`
		WentOn      bool   `json:"went_on"`
		Destination int    `json:"ticks_at_destination"`
	}
	search struct {
		What        string `json:"what"`
		Windows     int    `json:"windows"`
		Found       int    `json:"found"`
		HighEntropy int    `json:"high_entropy_windows"`
		HighFound   int    `json:"high_entropy_found"`
	}
)

func (d *demo) run(ctx context.Context) error {
	began := time.Now()
	scenes := []func(context.Context) error{d.setUp, d.watch, d.preflight, d.bootGuest, d.refuseMeasurement, d.refuseIntegrity, d.refuseUnarmed, d.refuseFlippedBit}
	if d.withFaults {
		scenes = append(scenes, d.faults)
	}
	for _, scene := range append(scenes, d.migrate, d.askPrometheus, d.searchProtected, d.searchUnprotected) {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	d.report.ElapsedS, d.report.EverythingOK = time.Since(began).Seconds(), true
	raw, err := json.MarshalIndent(d.report, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(d.out, "report.json")
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	say("\nEverything held. %.0f s. Every figure is in %s.", d.report.ElapsedS, path)
	say("Mode: SIMULATED. The protocol, the verifier and the data path are the real ones; no hardware protected anything here.")
	return nil
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func title(text string) { fmt.Printf("\n== %s\n", text) }
