// Command guest is PID 1 of the test VM. It owns some state of every kind that a vTPM has, uses all of it at every tick, and says what it found
// on the console, so that a migration which loses, forks or resets any of it shows:
//
//	SC boot kernel=6.1.0 uptime=1.20
//	SC tick=N nv=C pcr=HEX unseal=HEX held=HEX
//
// nv is an NV counter, incremented once a tick (permanent state). pcr is PCR 23, extended at each tick with SHA-256 of the tick number as 8 bytes,
// big-endian, from reset (volatile state). unseal is SHA-256 of a random secret, from a sealed object that is loaded anew at each tick; held is
// the same from an object that stays loaded since the start (volatile state, with a key of the permanent state above it). What fails is in the
// line as err=..., and the guest goes on.
//
// A guest that has no TPM says only that it runs, at each tick:
//
//	SC alive=N
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// period between two ticks: short enough that some fall into any migration, long enough that the guest is idle most of the time.
const period = 300 * time.Millisecond

func main() {
	console, err := mountAll()
	if err != nil {
		console = os.Stderr
	} else {
		err = run(console)
	}
	// What cannot be written to the console cannot be said at all.
	_, _ = fmt.Fprintln(console, "SC err="+word(err))
	for { // if PID 1 returned, the kernel would panic and hide why
		time.Sleep(time.Hour)
	}
}

// run provisions the TPM and ticks for as long as the console takes it.
func run(console io.Writer) error {
	if _, err := fmt.Fprintf(console, "SC boot kernel=%s uptime=%s\n", first("/proc/sys/kernel/osrelease"), first("/proc/uptime")); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/tpm0"); os.IsNotExist(err) {
		return alive(console)
	}
	dev, err := linuxtpm.Open("/dev/tpm0")
	if err != nil {
		return err
	}
	v, err := provision(dev)
	if err != nil {
		return err
	}
	ticker := time.NewTicker(period)
	for n := uint64(1); ; n++ {
		if _, err := fmt.Fprintln(console, v.tick(n)); err != nil {
			return err
		}
		<-ticker.C
	}
}

// alive is run for a guest without a TPM.
func alive(console io.Writer) error {
	ticker := time.NewTicker(period)
	for n := uint64(1); ; n++ {
		if _, err := fmt.Fprintf(console, "SC alive=%d\n", n); err != nil {
			return err
		}
		<-ticker.C
	}
}

// mountAll gives the guest /dev, /proc and /sys, and returns the console.
func mountAll() (*os.File, error) {
	for _, m := range []struct{ kind, path string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return nil, err
		}
		if err := syscall.Mount(m.kind, m.path, m.kind, 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return nil, fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	return os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
}

// first is the first word of a file.
func first(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return "unknown"
	}
	return strings.Fields(string(b) + " unknown")[0]
}

// word makes an error one word of the line.
func word(err error) string { return strings.Join(strings.Fields(err.Error()), "_") }
