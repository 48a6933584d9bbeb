// Command migrationbench measures what the tunnel costs: in one run, and on the memory of one guest, it migrates by plain TCP, a plain unix socket, QEMU's own
// TLS (a pre-shared key, its default cipher and AES-128-GCM), plain relays that stand where the tunnels do, and the tunnel with one, two and four connections.
// The ways take turns in several rounds, for the machine is never quiet. `make bench-migration` runs it and writes build/bench-migration.{json,md}.
//
// The guest is booted once, in memory that was filled with random bytes; each migration goes to a new QEMU, which is told not to run, and then the
// guest goes on where it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	var b bench
	flag.StringVar(&b.bin, "bin", "build/bin", "directory of safeconductd and safeconduct-tunnel")
	flag.StringVar(&b.guest, "guest", "build/demo/bin/guest", "the guest's init")
	flag.StringVar(&b.out, "out", "build", "directory of bench-migration.json and bench-migration.md")
	flag.IntVar(&b.memory, "memory", 1024, "the guest's memory, in MiB")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each way is measured")
	flag.StringVar(&b.only, "only", "", "measure only the ways whose names match this regular expression")
	relayFrom := flag.String("relay-from", "", "be a plain relay: listen here (unix:PATH or tcp:HOST:PORT)")
	relayTo := flag.String("relay-to", "", "and connect there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	var err error
	if *relayFrom != "" {
		err = plainRelay(ctx, *relayFrom, *relayTo)
	} else {
		err = b.run(ctx)
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "migrationbench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "sc-bench-"); err != nil {
		return err
	}
	defer func() {
		b.stopAll()
		if err == nil {
			_ = os.RemoveAll(b.dir) // leftovers of a run that held are of no use
		} else {
			err = fmt.Errorf("%w\nlogs: %s", err, b.dir)
		}
	}()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	ways, err := b.ways()
	if err != nil {
		return err
	}
	fmt.Printf("%d MiB of random memory, %d rounds, %d CPUs, mode simulated\n", b.memory, b.rounds, b.cpus())
	if _, err := b.measure(ctx, ways[0]); err != nil { // the first one has QEMU look at every page for the first time
		return err
	}
	for round := range b.rounds {
		for i := range ways {
			w := ways[(i+round)%len(ways)] // none is always behind the same other
			m, err := b.measure(ctx, w)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Printf("  round %d  %-28s %6.0f MiB/s\n", round+1, w.name, m.Throughput)
			b.results = append(b.results, m)
		}
	}
	table := b.table(ways)
	fmt.Print("\n", table)
	return errors.Join(
		os.WriteFile(filepath.Join(b.out, "bench-migration.md"), []byte(table), 0o644),
		b.writeJSON(filepath.Join(b.out, "bench-migration.json")),
	)
}
