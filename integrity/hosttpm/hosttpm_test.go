package hosttpm

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is a response of a TPM that consists of a header only.
func answer(code tpm2.TPMRC) []byte {
	out := binary.BigEndian.AppendUint16(nil, 0x8001)
	out = binary.BigEndian.AppendUint32(out, headerSize)
	return binary.BigEndian.AppendUint32(out, uint32(code))
}

// scripted serves one connection after the other, and answers each command with what respond returns; nil: not at all.
func scripted(t *testing.T, respond func() []byte) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return scriptedOn(t, "unix", filepath.Join(dir, "s"), respond)
}

func scriptedOn(t *testing.T, network, address string, respond func() []byte) *TPM {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, maxResponse)
			for {
				if _, err := c.Read(buf); err != nil {
					break
				}
				response := respond()
				if _, err := c.Write(response); err != nil || len(response) == 1 { // one byte: hang up after it
					break
				}
			}
			c.Close()
		}
	}()
	return open(t, network+":"+listener.Addr().String())
}

func TestATPMIsReachedOverTCP(t *testing.T) {
	tpm := scriptedOn(t, "tcp", "127.0.0.1:0", func() []byte { return answer(tpm2.TPMRCInitialize) })
	if _, err := tpm.AKPublic(t.Context()); !errors.Is(err, tpm2.TPMRCInitialize) {
		t.Errorf("got %v, want TPM_RC_INITIALIZE", err)
	}
}

func TestABusyTPMIsAskedAgain(t *testing.T) {
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		t.Run(code.Error()[:12], func(t *testing.T) {
			asked := 0
			tpm := scripted(t, func() []byte {
				if asked++; asked <= 3 {
					return answer(code)
				}
				return answer(tpm2.TPMRCInitialize)
			})
			var waited []time.Duration
			tpm.wait = func(_ context.Context, d time.Duration) error {
				waited = append(waited, d)
				return nil
			}
			// The fourth answer is an error of the TPM's own, which is passed on.
			if _, err := tpm.AKPublic(t.Context()); !errors.Is(err, tpm2.TPMRCInitialize) {
				t.Errorf("got %v, want TPM_RC_INITIALIZE", err)
			}
			if len(waited) != 3 || waited[0] != firstWait || waited[2] != 4*firstWait {
				t.Errorf("waited %v", waited)
			}
		})
	}
}

func TestATPMThatStaysBusyIsGivenUp(t *testing.T) {
	asked := 0
	tpm := scripted(t, func() []byte { asked++; return answer(tpm2.TPMRCRetry) })
	var total time.Duration
	tpm.wait = func(_ context.Context, d time.Duration) error { total += d; return nil }
	if _, err := tpm.AKPublic(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	if asked != busyAttempts || total >= OperationTimeout {
		t.Errorf("asked %d times over %v", asked, total)
	}
}

func TestWaitingForABusyTPMEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tpm := scripted(t, func() []byte { cancel(); return answer(tpm2.TPMRCRetry) })
	if _, err := tpm.AKPublic(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
}

func TestAPauseEndsWithTheContextOrItsTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if err := sleep(ctx, time.Nanosecond); err != nil {
		t.Error(err)
	}
	cancel()
	if err := sleep(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
	c := &channel{ctx: ctx, conn: &pipe{answer(tpm2.TPMRCRetry)}, stream: true, wait: sleep}
	if _, err := c.Send(make([]byte, headerSize)); !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want ErrBusy because of a cancelled context", err)
	}
}

func TestASilentTPMIsGivenUpWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tpm := scripted(t, func() []byte { cancel(); return nil })
	if _, err := tpm.AKPublic(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
}

func TestWhatDoesNotSpeakAsATPMIsRefused(t *testing.T) {
	header := func(size uint32) []byte {
		h := answer(0)
		binary.BigEndian.PutUint32(h[2:], size)
		return h
	}
	for name, tc := range map[string]struct {
		response []byte
		want     error
	}{
		"a size below the header's":   {header(9), ErrProtocol},
		"a size above a TPM's buffer": {header(maxResponse + 1), ErrProtocol},
		"a size of 4 GiB":             {header(1<<32 - 1), ErrProtocol},
		"an end inside the header":    {[]byte{0x80}, ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			tpm := scripted(t, func() []byte { return tc.response })
			if _, err := tpm.Quote(t.Context(), [32]byte{}, []int{0}); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// pipe is a connection that has its answer ready.
type pipe struct {
	response []byte
}

func (p *pipe) Write(b []byte) (int, error) { return len(b), nil }
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.response) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.response)
	p.response = p.response[n:]
	return n, nil
}
func (p *pipe) Close() error                { return nil }
func (p *pipe) SetDeadline(time.Time) error { return nil }

func TestAResponseThatIsCutShortIsRefusedOnASocketAndOnADevice(t *testing.T) {
	response := append(answer(0), 1, 2, 3)
	binary.BigEndian.PutUint32(response[2:], 20)
	for stream, want := range map[bool]error{true: ErrUnreachable, false: ErrProtocol} {
		c := &channel{ctx: t.Context(), conn: &pipe{response}, stream: stream, wait: sleep}
		if _, err := c.Send(make([]byte, headerSize)); !errors.Is(err, want) {
			t.Errorf("stream %v: got %v, want %v", stream, err, want)
		}
	}
	short := &channel{ctx: t.Context(), conn: &pipe{answer(0)[:9]}, wait: sleep}
	if _, err := short.Send(make([]byte, headerSize)); !errors.Is(err, ErrProtocol) {
		t.Errorf("nine bytes of a device: got %v, want ErrProtocol", err)
	}
	whole := &channel{ctx: t.Context(), conn: &pipe{answer(0)}, wait: sleep}
	if got, err := whole.Send(make([]byte, headerSize)); err != nil || len(got) != headerSize {
		t.Errorf("a whole response of a device: %x, %v", got, err)
	}
}

func TestAnAddressOfAnUnknownFormIsRefused(t *testing.T) {
	for _, address := range []string{
		"", "/dev/tpmrm0", "device:", "device:tpmrm0", "unix:", "unix:relative", "tcp:", "tcp:host", "tcp::2321", "tcp:host:", "http://host", "mssim:host:2321",
	} {
		if _, err := Open(address); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: got %v, want ErrAddress", address, err)
		}
	}
	for _, address := range []string{"device:/dev/tpmrm0", "unix:/run/tpm.sock", "tcp:localhost:2321", "tcp:[::1]:2321"} {
		if _, err := Open(address); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestATPMThatIsNotThereIsUnreachable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		address string
		want    error
	}{
		"no such device":               {"device:/nonexistent", ErrUnreachable},
		"a file for a device":          {"device:" + file, ErrUnreachable},
		"a device that ends":           {"device:/dev/null", ErrUnreachable},
		"a device that answers zeroes": {"device:/dev/zero", ErrProtocol},
		"no such socket":               {"unix:/nonexistent", ErrUnreachable},
		"a file for a socket":          {"unix:" + file, ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := open(t, tc.address).AKPublic(t.Context()); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestPCRsThatCannotBeQuotedAreRefusedBeforeTheTPMIsAsked(t *testing.T) {
	tpm := open(t, "unix:/nonexistent")
	for name, pcrs := range map[string][]int{"none": nil, "negative": {-1}, "beyond the last": {24}, "twice the same": {3, 0, 3}} {
		if _, err := tpm.Quote(t.Context(), [32]byte{}, pcrs); !errors.Is(err, ErrPCRSelection) {
			t.Errorf("%s: got %v, want ErrPCRSelection", name, err)
		}
	}
}

// canned answers every command with the same response.
type canned []byte

func (c canned) Send([]byte) ([]byte, error) { return c, nil }

func TestPCRsThatTheTPMDoesNotHaveAreAnError(t *testing.T) {
	read := func(out tpm2.TPMLPCRSelection, values ...tpm2.TPM2BDigest) canned {
		body := binary.BigEndian.AppendUint32(nil, 1) // update counter
		body = append(body, tpm2.Marshal(out)...)
		body = append(body, tpm2.Marshal(tpm2.TPMLDigest{Digests: values})...)
		h := answer(0)
		binary.BigEndian.PutUint32(h[2:], uint32(headerSize+len(body)))
		return append(h, body...)
	}
	value := tpm2.TPM2BDigest{Buffer: make([]byte, 32)}
	for name, tc := range map[string]struct {
		response canned
		want     error
	}{
		"no SHA-256 bank":     {read(tpm2.TPMLPCRSelection{}), ErrPCRSelection},
		"the PCR left out":    {read(selection(nil)), ErrPCRSelection},
		"another PCR":         {read(selection([]int{4}), value), ErrProtocol},
		"a value missing":     {read(selection([]int{3})), ErrProtocol},
		"one value too many":  {read(selection([]int{3}), value, value), ErrProtocol},
		"more than asked for": {read(selection([]int{3, 4}), value, value), ErrProtocol},
	} {
		if got, err := readPCRs(tc.response, []int{3}); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v and %v, want %v", name, got, err, tc.want)
		}
	}
}
