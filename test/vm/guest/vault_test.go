package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/safeconduct/safeconduct/test/vm"
)

// realTPM starts a swtpm that is ready for commands.
func realTPM(t *testing.T) transport.TPM {
	t.Helper()
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed: no TPM to try the guest with")
	}
	dir, err := os.MkdirTemp("", "vault")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "tpm")
	c := exec.Command(swtpm, "socket", "--tpm2", "--server", "type=unixio,path="+path, "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) { // a poll of another process
		conn, err := net.Dial("unix", path)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return transport.FromReadWriter(conn)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestTheGuestsTicksAreThoseOfOneTPM(t *testing.T) {
	v, err := provision(realTPM(t))
	if err != nil {
		t.Fatal(err)
	}
	var console strings.Builder
	for n := uint64(1); n <= 10; n++ {
		console.WriteString(v.tick(n) + "\n")
	}
	ticks := vm.ParseTicks([]byte(console.String()))
	if len(ticks) != 10 {
		t.Fatalf("%d ticks of 10 in %s", len(ticks), console.String())
	}
	if err := vm.CheckTicks(ticks); err != nil {
		t.Error(err)
	}
}

func TestTheCounterGoesOnWhenTheGuestStartsAgain(t *testing.T) {
	tpm := realTPM(t)
	var ticks []vm.Tick
	for range 2 {
		v, err := provision(tpm)
		if err != nil {
			t.Fatal(err)
		}
		ticks = append(ticks, vm.ParseTicks([]byte(v.tick(1)+"\n"))...)
		for _, handle := range []tpm2.TPMHandle{v.held.Handle, v.parent.Handle} { // as the platform's reset does
			if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(tpm); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ticks) != 2 || ticks[1].NV != ticks[0].NV+1 {
		t.Errorf("found %+v, expected the second start to go on with the counter of the first", ticks)
	}
}

type deadTPM struct{}

func (deadTPM) Send([]byte) ([]byte, error) { return nil, io.ErrClosedPipe }

func TestWhatFailsIsInTheLine(t *testing.T) {
	v, err := provision(realTPM(t))
	if err != nil {
		t.Fatal(err)
	}
	v.tpm = deadTPM{}
	line := v.tick(7)
	ticks := vm.ParseTicks([]byte(line + "\n"))
	if len(ticks) != 1 || ticks[0].N != 7 {
		t.Fatalf("%q is not a tick", line)
	}
	for _, what := range []string{"increment:", "extend:", "nvread:", "pcrread:", "unseal:", "held:"} {
		if !strings.Contains(ticks[0].Err, what) {
			t.Errorf("%q does not say that %s failed", ticks[0].Err, what)
		}
	}
	if _, err := provision(deadTPM{}); err == nil {
		t.Error("a dead TPM is provisioned")
	}
}
