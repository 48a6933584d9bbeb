// Package swtpmtest starts a real swtpm that plays a host's TPM in tests. Where swtpm is not installed the test is skipped, and says so.
package swtpmtest

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Start runs a fresh TPM, with its own seeds, until the test ends, and returns its address for hosttpm.Open.
func Start(t testing.TB) string {
	t.Helper()
	binary, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("skipped: swtpm is not installed (Debian: apt install swtpm)")
	}
	// Not t.TempDir: the path of a socket is limited to 107 bytes, and the name of a test may be long.
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	// The socket is made here and handed over: it takes connections from now on, and there is no start-up to wait for.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	listener.SetUnlinkOnClose(false)
	inherited, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inherited.Close() }()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,fd=3", "--ctrl", "type=unixio,path="+socket+controlSuffix, "--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the test's context has ended, and with it swtpm
		_ = cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("swtpm: %s", stderr.Bytes())
		}
	})
	return "unix:" + socket
}

// controlSuffix makes the path of a TPM's control channel from that of its data channel.
const controlSuffix = ".ctrl"

// Reset resets the TPM at address as the loss of power does: its PCRs are as at the start, and its reset counter has moved.
func Reset(t testing.TB, address string) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", address[len("unix:"):]+controlSuffix)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const cmdInit = 2
	if err := binary.Write(c, binary.BigEndian, [2]uint32{cmdInit, 0}); err != nil { // no flags
		t.Fatal(err)
	}
	var result uint32
	if err := binary.Read(c, binary.BigEndian, &result); err != nil || result != 0 {
		t.Fatalf("swtpm's CMD_INIT: result %d, %v", result, err)
	}
	Do(t, address, func(tpm transport.TPM) error {
		_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(tpm)
		return err
	})
}

// Extend extends a PCR of the SHA-256 bank of the TPM at address.
func Extend(t testing.TB, address string, pcr int, digest [32]byte) {
	t.Helper()
	Do(t, address, func(tpm transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(tpm)
		return err
	})
}

// Do runs a command of the test's own on the TPM at address.
func Do(t testing.TB, address string, use func(transport.TPM) error) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", address[len("unix:"):])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := use(transport.FromReadWriter(c)); err != nil {
		t.Fatal(err)
	}
}
