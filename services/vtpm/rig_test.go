package vtpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// words encodes 32-bit words, big-endian.
func words(w ...uint32) []byte {
	var b []byte
	for _, x := range w {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}

// swap is a Protector that the test may replace while it is in use.
type swap struct {
	mu sync.Mutex
	p  Protector
}

func (s *swap) to(p Protector) { s.mu.Lock(); defer s.mu.Unlock(); s.p = p }

func (s *swap) Protect(ctx context.Context, t StateType, b []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.p.Protect(ctx, t, b)
}

func (s *swap) Unprotect(ctx context.Context, t StateType, b []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.p.Unprotect(ctx, t, b)
}

// reversing is a Protector whose ciphertext is "sealed:" and the plaintext backwards. It keeps the slices that it was given and made, to be read
// when Serve has ended.
type reversing struct {
	protectErr, unprotectErr error
	types                    []StateType
	plain                    [][]byte
}

func reverse(b []byte) []byte {
	out := make([]byte, len(b))
	for i, x := range b {
		out[len(b)-1-i] = x
	}
	return out
}

func (r *reversing) Protect(_ context.Context, t StateType, plaintext []byte) ([]byte, error) {
	r.types = append(r.types, t)
	r.plain = append(r.plain, plaintext)
	if r.protectErr != nil {
		return nil, r.protectErr
	}
	return append([]byte("sealed:"), reverse(plaintext)...), nil
}

func (r *reversing) Unprotect(_ context.Context, t StateType, ciphertext []byte) ([]byte, error) {
	r.types = append(r.types, t)
	sealed, ok := bytes.CutPrefix(ciphertext, []byte("sealed:"))
	if r.unprotectErr != nil || !ok {
		return nil, errors.Join(r.unprotectErr, errors.New("not authentic"))
	}
	out := reverse(sealed)
	r.plain = append(r.plain, out)
	return out, nil
}

// rig plays QEMU and swtpm with a Proxy in between. The test's goroutine is both: it writes as one and reads as the other.
type rig struct {
	t           *testing.T
	proxy       *Proxy
	qemu, swtpm *net.UnixConn // the test's ends
	inner       *net.UnixConn // the proxy's end towards swtpm
	done        chan error
	cancel      context.CancelFunc
}

func newRig(t *testing.T, p *Proxy) *rig {
	t.Helper()
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	r := &rig{t: t, proxy: p}
	r.inner, r.swtpm = pair(t)
	r.connect()
	return r
}

// connect makes QEMU's control connection.
func (r *rig) connect() {
	r.t.Helper()
	var outer *net.UnixConn
	outer, r.qemu = pair(r.t)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan error, 1)
	done := r.done
	go func() { done <- r.proxy.Serve(ctx, outer, r.inner) }()
	r.t.Cleanup(func() { cancel(); _ = r.qemu.Close(); _ = r.swtpm.Close() })
}

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// A test that waits for what does not come fails; it does not hang.
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// send writes a request as QEMU.
func (r *rig) send(b []byte) {
	r.t.Helper()
	if _, err := r.qemu.Write(b); err != nil {
		r.t.Fatalf("QEMU cannot send: %v", err)
	}
}

// atSWTPM reads what swtpm gets, which must be want.
func (r *rig) atSWTPM(want []byte) {
	r.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r.swtpm, got); err != nil || !bytes.Equal(got, want) {
		r.t.Fatalf("swtpm got %.60x (%v), expected %.60x", got, err, want)
	}
}

// answer writes a reply as swtpm, in one piece.
func (r *rig) answer(b []byte) {
	r.t.Helper()
	if _, err := r.swtpm.Write(b); err != nil {
		r.t.Errorf("swtpm cannot answer: %v", err)
	}
}

// atQEMU reads what QEMU gets, which must be want.
func (r *rig) atQEMU(want []byte) {
	r.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r.qemu, got); err != nil || !bytes.Equal(got, want) {
		r.t.Fatalf("QEMU got %.60x (%v), expected %.60x", got, err, want)
	}
}

// relayed is a whole exchange that the proxy passes through.
func (r *rig) relayed(request, reply []byte) {
	r.t.Helper()
	r.send(request)
	r.atSWTPM(request)
	r.answer(reply)
	r.atQEMU(reply)
}

// refused is an exchange that the proxy answers itself. That swtpm heard nothing of it shows in the exchange after it, with which it ends.
func (r *rig) refused(request, reply []byte) {
	r.t.Helper()
	r.send(request)
	r.atQEMU(reply)
	r.relayed(words(1), words(0, 0xffff))
}

// ended waits for Serve to return.
func (r *rig) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatal("Serve does not return")
		return nil
	}
}

func get(t StateType) []byte { return words(12, 1, uint32(t), 0) }

func blob(flags uint32, data []byte) []byte {
	return append(words(0, flags, uint32(len(data)), uint32(len(data))), data...)
}

func set(t StateType, data []byte) []byte {
	return append(words(13, 0, uint32(t), uint32(len(data))), data...)
}

func sealed(plaintext []byte) []byte { return append([]byte("sealed:"), reverse(plaintext)...) }
