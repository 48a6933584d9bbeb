package helper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/services/vtpm"
)

const instance = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

// runAsHelper makes the test binary a helper process, which a test can then kill.
const runAsHelper = "SAFECONDUCT_TEST_RUN_AS_HELPER"

// runAsDropIn makes it the drop-in for swtpm; the value is the directory of the real one.
const runAsDropIn = "SAFECONDUCT_TEST_RUN_AS_DROPIN"

// runAsSetup makes it the drop-in for swtpm_setup; the value is as that of runAsDropIn. withSettings has it read helper.yaml in its working directory;
// without, the node service is not there.
const (
	runAsSetup   = "SAFECONDUCT_TEST_RUN_AS_SETUP"
	withSettings = "SAFECONDUCT_TEST_WITH_SETTINGS"
)

// hardenAndTell makes it a process that hardens itself and says what that changed: the test's own process is not to be changed.
const hardenAndTell = "SAFECONDUCT_TEST_HARDEN"

func TestMain(m *testing.M) {
	if args := os.Getenv(runAsHelper); args != "" {
		c := Command()
		c.SetArgs(strings.Split(args, " "))
		if err := c.Execute(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	for name, run := range map[string]func(context.Context, []string, Settings) error{runAsDropIn: DropIn, runAsSetup: SetupDropIn} {
		if tools := os.Getenv(name); tools != "" {
			os.Exit(runInPlace(run, tools))
		}
	}
	if os.Getenv(hardenAndTell) != "" {
		before, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		err := harden()
		after, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		fmt.Printf("%d %v %d", before, err, after)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runInPlace(run func(context.Context, []string, Settings) error, tools string) int {
	s, err := ReadSettings("helper.yaml") // of the working directory
	if os.Getenv(withSettings) == "" {
		s.Node = "unix:///nonexistent"
	}
	s.Tools = tools
	if err == nil {
		err = run(context.Background(), os.Args[1:], s)
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return 0
}

func TestAHardenedProcessIsNotDumpable(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), hardenAndTell+"=1")
	if out, err := c.Output(); err != nil || string(out) != "1 <nil> 0" {
		t.Errorf("dumpable before, error, dumpable after: %q (%v), expected %q", out, err, "1 <nil> 0")
	}
}

func words(w ...uint32) []byte {
	var b []byte
	for _, x := range w {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}

// swtpm returns the real one.
func swtpm(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed: nothing to run the helper with")
	}
	return path
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "helper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func options(t *testing.T) Options {
	dir := shortDir(t)
	return Options{
		Node: "unix:///nonexistent", Instance: instance, Ctrl: filepath.Join(dir, "ctrl"), TPMState: dir, SWTPM: swtpm(t),
		Extra: []string{"--log", "file=" + filepath.Join(dir, "swtpm.log"), "--pid", "file=" + filepath.Join(dir, "pid")},
	}
}

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(2 * time.Millisecond) // a poll of another process, not a synchronisation
	}
}

// dial connects as QEMU does.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	var conn *net.UnixConn
	until(t, "control socket", func() (ok bool) {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		conn = c
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// exchange sends a command and reads as many bytes as are expected.
func exchange(t *testing.T, c *net.UnixConn, request, want []byte) {
	t.Helper()
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	expect(t, c, request, want)
}

// capable has swtpm answer GET_CAPABILITY: 0.7 has bits 0 to 15, 0.10 one more.
func capable(t *testing.T, c *net.UnixConn) {
	t.Helper()
	if _, err := c.Write(words(1)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[:4], words(0)) || !bytes.Equal(got[6:], []byte{0xff, 0xff}) {
		t.Fatalf("GET_CAPABILITY answers %x (%v)", got, err)
	}
}

func expect(t *testing.T, c *net.UnixConn, request, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("command %x answers %x (%v), expected %x", request[:4], got, err, want)
	}
}

// startTPM does what QEMU and firmware do at the start of a VM, and returns the guest's end of the data channel.
func startTPM(t *testing.T, c *net.UnixConn) *net.UnixConn {
	t.Helper()
	data := dataChannel(t, c)
	exchange(t, c, words(2, 0), words(0))
	guest(t, data, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0}) // TPM2_Startup(CLEAR)
	return data
}

func dataChannel(t *testing.T, c *net.UnixConn) *net.UnixConn {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.WriteMsgUnix(words(16), syscall.UnixRights(fds[1]), nil); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fds[1])
	expect(t, c, words(16), words(0))
	f := os.NewFile(uintptr(fds[0]), "data")
	defer f.Close()
	data, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	if err := data.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return data.(*net.UnixConn)
}

// guest runs a TPM command, which must succeed, and returns the answer.
func guest(t *testing.T, data *net.UnixConn, command []byte) []byte {
	t.Helper()
	if _, err := data.Write(command); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, err := data.Read(answer)
	if err != nil || n < 10 || !bytes.Equal(answer[6:10], words(0)) {
		t.Fatalf("TPM answers %x (%v), expected success", answer[:n], err)
	}
	return answer[:n]
}

// TPM commands (TPM 2.0 Library, Part 3).
var (
	getRandom = []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 4}
	// readPCR reads PCR 23 of the SHA-256 bank; extendPCR extends it with 32 zeros.
	readPCR   = []byte{0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x80}
	extendPCR = append([]byte{
		0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 23, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0b,
	}, make([]byte, 32)...)
)

func getBlob(t *testing.T, c *net.UnixConn, which uint32) []byte {
	t.Helper()
	if _, err := c.Write(words(12, 1, which, 0)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(c, head); err != nil || !bytes.Equal(head[:4], words(0)) {
		t.Fatalf("blob %d: header %x (%v)", which, head, err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[12:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// xor is a Protector of the simplest kind.
type xor struct{}

func (xor) Protect(_ context.Context, t vtpm.StateType, b []byte) ([]byte, error) {
	out := []byte{byte(t)}
	for _, x := range b {
		out = append(out, x^0x5a)
	}
	return out, nil
}

func (x xor) Unprotect(_ context.Context, t vtpm.StateType, b []byte) ([]byte, error) {
	if b[0] != byte(t) {
		return nil, errors.New("another blob")
	}
	out, err := x.Protect(context.Background(), t, b[1:])
	return out[1:], err
}

// serving runs a helper in this process and returns its control socket, and what ends it.
func serving(t *testing.T, o Options, p vtpm.Protector) (cancel func(), ended chan error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	go func() { ended <- runWith(ctx, o, p, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(stop)
	return stop, ended
}

func wait(t *testing.T, ended chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the helper does not end")
		return nil
	}
}

func TestTheStateOfARealTPMMovesAsCiphertext(t *testing.T) {
	from, to := options(t), options(t)
	stop, ended := serving(t, from, xor{})
	ctrl := dial(t, from.Ctrl)
	data := startTPM(t, ctrl)
	guest(t, data, extendPCR)
	before := guest(t, data, readPCR)
	perm, vol := getBlob(t, ctrl, 1), getBlob(t, ctrl, 2)
	exchange(t, ctrl, words(12, 1, 3, 0), words(0x800, 0, 0, 0)) // a TPM 2.0 has no savestate
	guest(t, data, getRandom)
	stop()
	if err := wait(t, ended); err != nil {
		t.Fatal(err)
	}

	_, ended = serving(t, to, xor{})
	ctrl = dial(t, to.Ctrl)
	exchange(t, ctrl, words(14), words(0))
	exchange(t, ctrl, append(words(13, 0, 1, uint32(len(perm))), perm...), words(0))
	exchange(t, ctrl, append(words(13, 0, 2, uint32(len(vol))), vol...), words(0))
	exchange(t, ctrl, words(2, 1), words(0))
	if after := guest(t, dataChannel(t, ctrl), readPCR); !bytes.Equal(after, before) {
		t.Errorf("PCR 23 reads %x after the move, %x before", after, before)
	}
	exchange(t, ctrl, words(3), words(0)) // SHUTDOWN
	if err := wait(t, ended); err != nil {
		t.Errorf("swtpm was asked to end: %v, expected no error", err)
	}
}

func TestWithoutANodeTheStateIsRefusedAndTheTPMGoesOn(t *testing.T) {
	o := options(t)
	p, err := vtpm.NewRemoteProtector(o.Node, o.Instance, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	serving(t, o, p)
	ctrl := dial(t, o.Ctrl)
	data := startTPM(t, ctrl)
	exchange(t, ctrl, words(12, 1, 1, 0), words(9, 0, 0, 0))
	guest(t, data, getRandom)
	exchange(t, ctrl, words(12, 1, 2, 0), words(9, 0, 0, 0))
	guest(t, data, getRandom)
}

func TestControlConnectionsFollowEachOther(t *testing.T) {
	o := options(t)
	serving(t, o, xor{})
	for range 3 {
		c := dial(t, o.Ctrl)
		capable(t, c)
		c.Close()
	}
	broken := dial(t, o.Ctrl)
	if _, err := broken.Write(words(99)); err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Read(make([]byte, 1)); err == nil {
		t.Error("an unknown command is answered")
	}
	capable(t, dial(t, o.Ctrl))
}

func TestTheControlSocketIsPrivate(t *testing.T) {
	o := options(t)
	serving(t, o, xor{})
	dial(t, o.Ctrl)
	info, err := os.Stat(o.Ctrl)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), expected 0600", info.Mode(), err)
	}
}

func TestAnEndOfSWTPMEndsTheHelper(t *testing.T) {
	o := options(t)
	_, ended := serving(t, o, xor{})
	dial(t, o.Ctrl)
	if err := syscall.Kill(readPID(t, o), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, ended); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v, expected how swtpm ended", err)
	}
	if _, err := os.Stat(o.Ctrl); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is left behind (%v)", err)
	}
}

func TestTheEndOfTheDataChannelEndsBoth(t *testing.T) {
	o := options(t)
	_, ended := serving(t, o, xor{})
	ctrl := dial(t, o.Ctrl)
	startTPM(t, ctrl).Close()
	if err := wait(t, ended); err != nil {
		t.Errorf("%v, expected no error: QEMU is gone", err)
	}
}

func TestASWTPMThatDoesNotStartIsAnError(t *testing.T) {
	o := options(t)
	o.Extra = []string{"--no-such-option"}
	_, ended := serving(t, o, xor{})
	if err := wait(t, ended); err == nil {
		t.Error("no error")
	}
	o.SWTPM = "/nonexistent/swtpm"
	_, ended = serving(t, o, xor{})
	if err := wait(t, ended); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, expected %v", err, os.ErrNotExist)
	}
}

func readPID(t *testing.T, o Options) (pid int) {
	t.Helper()
	until(t, "swtpm's pid file", func() bool {
		b, err := os.ReadFile(filepath.Join(o.TPMState, "pid"))
		if err != nil || !bytes.HasSuffix(b, []byte("\n")) && len(b) == 0 {
			return false
		}
		pid = 0
		for _, x := range bytes.TrimSpace(b) {
			pid = 10*pid + int(x-'0')
		}
		return pid > 1
	})
	return pid
}

// process starts a helper of its own process.
func process(t *testing.T, o Options) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	args := append([]string{"--node", o.Node, "--instance", o.Instance, "--ctrl", o.Ctrl, "--tpmstate", o.TPMState, "--swtpm", o.SWTPM, "--"}, o.Extra...)
	c.Env = append(os.Environ(), runAsHelper+"="+strings.Join(args, " "))
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

// gone says whether a process has ended; a zombie has.
func gone(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestTheGuestsTPMSurvivesAKilledHelperAndNothingSurvivesTheGuest(t *testing.T) {
	o := options(t)
	c := process(t, o)
	data := startTPM(t, dial(t, o.Ctrl))
	pid := readPID(t, o)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Fatal("the helper was not killed")
	}
	for range 10 {
		guest(t, data, getRandom)
	}
	data.Close() // QEMU is gone
	until(t, "the end of swtpm", func() bool { return gone(pid) })
}

func TestSWTPMDoesNotOutliveAHelperThatHasNoGuest(t *testing.T) {
	o := options(t)
	c := process(t, o)
	capable(t, dial(t, o.Ctrl))
	pid := readPID(t, o)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of swtpm", func() bool { return gone(pid) })
	// The socket that the killed helper left behind is no obstacle.
	process(t, o)
	capable(t, dial(t, o.Ctrl))
}

func TestSIGTERMEndsBothInOrder(t *testing.T) {
	o := options(t)
	c := process(t, o)
	startTPM(t, dial(t, o.Ctrl))
	pid := readPID(t, o)
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("the helper ends with %v, expected status 0", err)
	}
	if !gone(pid) {
		t.Error("swtpm is still there")
	}
	for _, left := range []string{o.Ctrl, filepath.Join(o.TPMState, "pid")} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind (%v)", left, err)
		}
	}
}

func TestPlaintextStaysOutOfCoreFiles(t *testing.T) {
	o := options(t)
	c := process(t, o)
	dial(t, o.Ctrl)
	limits, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Errorf("%q, expected 0", line)
		}
	}
	// swtpm, which holds the plaintext for as long as the guest runs, inherits the limit.
	limits, err = os.ReadFile(filepath.Join("/proc", strconv.Itoa(readPID(t, o)), "limits"))
	if err != nil || !strings.Contains(string(limits), "Max core file size        0") {
		t.Errorf("swtpm's limits (%v): %s", err, limits)
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"no instance", func(o *Options) { o.Instance = "" }, "--instance"},
		{"an instance that is no UUID", func(o *Options) { o.Instance = "vm-1" }, "--instance"},
		{"an instance in upper case", func(o *Options) { o.Instance = strings.ToUpper(o.Instance) }, "--instance"},
		{"no control socket", func(o *Options) { o.Ctrl = "" }, "--ctrl"},
		{"no state directory", func(o *Options) { o.TPMState = "" }, "--tpmstate"},
		{"a state directory that ends in another option", func(o *Options) { o.TPMState = "/a,mode=0777" }, "comma"},
		{"a control channel of the caller's", func(o *Options) { o.Extra = []string{"--ctrl", "x"} }, "--ctrl"},
		{"a key of the caller's beside the enclave's", func(o *Options) { o.StateKey, o.Extra = EnclaveKey, []string{"--key", "fd=3"} }, "--key"},
		{"the same with an equals sign", func(o *Options) { o.Extra = []string{"--ctrl=x"} }, "--ctrl"},
		{"a swtpm that would leave its parent", func(o *Options) { o.Extra = []string{"-d"} }, "-d"},
	} {
		o := Options{Node: "unix:///n", Instance: instance, Ctrl: "/c", TPMState: "/t", SWTPM: "/s"}
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		o.call = nil
		c.change(&o)
		if err := Run(context.Background(), o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected an error about %s", c.name, err, c.want)
		}
	}
}

func TestAnOccupiedControlPathIsRefused(t *testing.T) {
	o := options(t)
	if err := os.WriteFile(o.Ctrl, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, ended := serving(t, o, xor{})
	if err := wait(t, ended); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("%v, expected an error about the file", err)
	}
	os.Remove(o.Ctrl)
	l, err := net.Listen("unix", o.Ctrl)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, ended = serving(t, o, xor{})
	if err := wait(t, ended); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("%v, expected an error about the other process", err)
	}
}
