package statekey

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func TestARealTPMCountsOnAndAnOldStateDoesNot(t *testing.T) {
	n, dir, backup := newNode(), t.TempDir(), t.TempDir()
	setup(t, n, dir, "--createek", "--lock-nvram", "--not-overwrite")
	if g, _ := n.latest(t); g == 0 {
		t.Fatal("what swtpm_setup has written is not recorded")
	}
	b := boot(t, opens(t, n, dir))
	if got := b.count(t); got != 1 {
		t.Fatalf("counts %d", got)
	}
	b.stop(t)
	copyState(t, dir, backup)

	setup(t, n, dir, "--reconfigure", "--pcr-banks", "sha256,sha384") // as libvirt does at each start, if it is asked to
	b = boot(t, opens(t, n, dir))
	for want := uint64(2); want < 10; want++ {
		if got := b.count(t); got != want {
			t.Fatalf("counts %d, expected %d", got, want)
		}
	}
	n.await(t, dir) // while the guest runs
	b.stop(t)

	copyState(t, backup, dir)
	refuses(t, "the state of when it counted 1", n, dir, v1.Reason_REASON_STATE_ROLLED_BACK)
	digest, err := Digest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.AcceptState(t.Context(), vm, digest); err != nil {
		t.Fatal(err)
	}
	b = boot(t, opens(t, n, dir))
	if got := b.count(t); got != 2 {
		t.Errorf("accepted: counts %d, expected 2", got)
	}
	b.stop(t)
}

func TestARealStateIsOfNoUseWithoutTheEnclave(t *testing.T) {
	n, dir := newNode(), t.TempDir()
	b := boot(t, opens(t, n, dir))
	b.count(t)
	b.stop(t)
	raw, err := os.ReadFile(filepath.Join(dir, permall))
	if err != nil || len(raw) == 0 {
		t.Fatal(err)
	}
	other := t.TempDir()
	write(t, other, permall, string(raw))
	refuses(t, "a copy on another node", newNode(), other, v1.Reason_REASON_NO_STATE_KEY)
	// Without a key, and with another, swtpm itself refuses.
	for name, args := range map[string][]string{"no key": nil, "another key": {"--key", "fd=0,mode=aes-256-cbc,format=binary"}} {
		c := exec.Command(real(t, "swtpm"), append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + other, "--server", "type=tcp,port=0",
			"--ctrl", "type=unixio,path=" + filepath.Join(other, "c"), "--flags", "not-need-init"}, args...)...)
		c.Stdin = bytes.NewReader(bytes.Repeat([]byte{1}, KeySize))
		out, err := c.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !bytes.Contains(out, []byte("Could not initialize libtpms")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestARealTPMsKeyMovesWithItAndTheSourceCannotOpen(t *testing.T) {
	src, dst, here, there := newNode(), newNode(), t.TempDir(), t.TempDir()
	setup(t, src, here)
	early := t.TempDir()
	copyState(t, here, early)
	b := boot(t, opens(t, src, here))
	b.count(t)
	move(t, src, dst)
	setup(t, dst, there, "--overwrite") // as libvirt does for an incoming VM
	b.stop(t)
	// The blob as SET_STATEBLOB would leave it there: the same file, for the same key opens it.
	d := opens(t, dst, there)
	copyState(t, here, there)
	b = boot(t, d)
	if got := b.count(t); got != 2 {
		t.Errorf("counts %d, expected 2", got)
	}
	commit(t, src, dst)
	refuses(t, "the source", src, here, v1.Reason_REASON_NO_STATE_KEY)
	b.count(t)
	b.stop(t)
	b = boot(t, opens(t, dst, there))
	if got := b.count(t); got != 4 {
		t.Errorf("counts %d, expected 4", got)
	}
	b.stop(t)
	copyState(t, early, there)
	refuses(t, "an old state of the source at the destination", dst, there, v1.Reason_REASON_STATE_NOT_RECORDED)
}

func TestAnAbortedMoveLeavesARealTPMAtTheSource(t *testing.T) {
	src, dst, here, there := newNode(), newNode(), t.TempDir(), t.TempDir()
	b := boot(t, opens(t, src, here))
	b.count(t)
	move(t, src, dst)
	setup(t, dst, there, "--overwrite")
	if err := dst.Discard(t.Context(), session, vm); err != nil {
		t.Fatal(err)
	}
	dst.session = nil
	refuses(t, "what is left at the destination", dst, there, v1.Reason_REASON_NO_STATE_KEY)
	b.count(t)
	b.stop(t)
	b = boot(t, opens(t, src, here))
	if got := b.count(t); got != 3 {
		t.Errorf("counts %d, expected 3", got)
	}
	b.stop(t)
}
