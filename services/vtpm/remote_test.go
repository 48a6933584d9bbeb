package vtpm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/services/vtpm/ctrl"
)

const instance = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

// fakeNode is a CryptoService that answers with the blob backwards, by whatever answer does with it.
type fakeNode struct {
	v1.UnimplementedCryptoServiceServer
	headers chan *v1.StateHeader
	largest int // data of one message, in bytes
	// attached gets the instance of each Attach; refuse, if set, is the answer to it.
	attached chan string
	refuse   error
	server   *grpc.Server
	answer   func(in []byte, send func(data []byte, done bool) error) error
}

func (f *fakeNode) cross(recv func() (*v1.StateHeader, []byte, error), send func([]byte, bool) error) error {
	header, _, err := recv()
	if err != nil {
		return err
	}
	f.headers <- header
	in := slices.Clone(header.GetData())
	f.largest = max(f.largest, len(in))
	for {
		_, data, err := recv()
		if errors.Is(err, io.EOF) {
			return f.answer(in, send)
		}
		if err != nil {
			return err
		}
		f.largest = max(f.largest, len(data))
		in = append(in, data...)
	}
}

func (f *fakeNode) Attach(req *v1.AttachRequest, s v1.CryptoService_AttachServer) error {
	if f.refuse != nil {
		return f.refuse
	}
	if f.attached != nil {
		f.attached <- req.GetInstanceId()
	}
	if err := s.Send(&v1.AttachResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (f *fakeNode) ProtectState(s v1.CryptoService_ProtectStateServer) error {
	return f.cross(func() (*v1.StateHeader, []byte, error) {
		m, err := s.Recv()
		return m.GetHeader(), m.GetData(), err
	}, func(data []byte, done bool) error {
		return s.Send(&v1.ProtectStateResponse{Data: data, Done: done})
	})
}

func (f *fakeNode) UnprotectState(s v1.CryptoService_UnprotectStateServer) error {
	return f.cross(func() (*v1.StateHeader, []byte, error) {
		m, err := s.Recv()
		return m.GetHeader(), m.GetData(), err
	}, func(data []byte, done bool) error {
		return s.Send(&v1.UnprotectStateResponse{Data: data, Done: done})
	})
}

// inChunks answers as the node service does.
func inChunks(in []byte, send func([]byte, bool) error) error {
	out := reverse(in)
	for len(out) > 0 {
		n := min(len(out), 100_000)
		if err := send(out[:n], false); err != nil {
			return err
		}
		out = out[n:]
	}
	return send(nil, true)
}

// noSession is the node service's refusal, as it puts it on the wire.
func noSession(t *testing.T) error {
	t.Helper()
	return rpcerror.Status(refusal.New(v1.Reason_REASON_NO_ARMED_SESSION, "there is no armed session").Want("none", "one").Do("arm the session"))
}

// startNode serves f on a unix socket and returns the gRPC target.
func startNode(t *testing.T, f *fakeNode) string {
	t.Helper()
	f.headers = make(chan *v1.StateHeader, 16)
	dir, err := os.MkdirTemp("", "node") // t.TempDir may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "node.sock")
	serveNode(t, f, path)
	return "unix://" + path
}

func serveNode(t *testing.T, f *fakeNode, path string) *grpc.Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	v1.RegisterCryptoServiceServer(s, f)
	f.server = s
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return s
}

func remote(t *testing.T, target string, timeout time.Duration) *RemoteProtector {
	t.Helper()
	r, err := NewRemoteProtector(target, instance, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestABlobCrossesTheNodeInMessages(t *testing.T) {
	for _, size := range []int{1, chunk, chunk + 1, 6188, ctrl.MaxBlob} {
		f := &fakeNode{answer: inChunks}
		r := remote(t, startNode(t, f), time.Minute)
		plain := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		out, err := r.Protect(context.Background(), Volatile, plain)
		if err != nil || !bytes.Equal(out, reverse(plain)) {
			t.Fatalf("%d bytes: %d came back (%v)", size, len(out), err)
		}
		back, err := r.Unprotect(context.Background(), Volatile, out)
		if err != nil || !bytes.Equal(back, plain) {
			t.Fatalf("%d bytes: %d came back (%v)", size, len(back), err)
		}
		if h := <-f.headers; h.GetInstanceId() != instance || h.GetType() != v1.StateType_STATE_TYPE_VOLATILE {
			t.Errorf("header is %v", h)
		}
		if f.largest > chunk {
			t.Errorf("a message had %d bytes, expected %d at most", f.largest, chunk)
		}
	}
}

func TestAnAnswerThatIsNotAWholeBlobIsRefused(t *testing.T) {
	failing := noSession(t)
	for _, c := range []struct {
		name   string
		answer func(in []byte, send func([]byte, bool) error) error
		want   error
	}{
		{"the node has no armed session", func([]byte, func([]byte, bool) error) error { return failing }, refusal.Because(v1.Reason_REASON_NO_ARMED_SESSION)},
		{"the node refuses behind some data", func(_ []byte, send func([]byte, bool) error) error {
			return errors.Join(send([]byte("x"), false), failing)
		}, errAny},
		{"the node refuses behind done", func(_ []byte, send func([]byte, bool) error) error {
			if err := send([]byte("x"), true); err != nil {
				return err
			}
			return failing
		}, refusal.Because(v1.Reason_REASON_NO_ARMED_SESSION)},
		{"the stream ends before done", func(_ []byte, send func([]byte, bool) error) error { return send([]byte("x"), false) }, ErrTransfer},
		{"nothing comes", func([]byte, func([]byte, bool) error) error { return nil }, ErrTransfer},
		{"data follows done", func(in []byte, send func([]byte, bool) error) error {
			return errors.Join(send(in, true), send(in, false))
		}, ErrTransfer},
		{"more comes than a blob may have", func(_ []byte, send func([]byte, bool) error) error {
			for range 9 {
				if err := send(make([]byte, 1<<20), false); err != nil {
					return err
				}
			}
			return send(nil, true)
		}, ctrl.ErrTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := remote(t, startNode(t, &fakeNode{answer: c.answer}), time.Minute)
			out, err := r.Unprotect(context.Background(), Permanent, []byte("ciphertext"))
			if len(out) != 0 && !bytes.Equal(out, make([]byte, len(out))) {
				t.Errorf("%d bytes of a blob that failed are handed out", len(out))
			}
			if err == nil || (!errors.Is(c.want, errAny) && !errors.Is(err, c.want)) {
				t.Errorf("%v, expected %v", err, c.want)
			}
		})
	}
}

// errAny stands for any error.
var errAny = errors.New("any")

func TestARefusalKeepsWhatTheOperatorNeeds(t *testing.T) {
	failing := noSession(t)
	var log bytes.Buffer
	r := newRig(t, &Proxy{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Protector: remote(t, startNode(t, &fakeNode{
			answer: func([]byte, func([]byte, bool) error) error { return failing },
		}), time.Minute),
	})
	r.send(get(Permanent))
	r.atSWTPM(get(Permanent))
	r.answer(blob(0, []byte("the secret state")))
	r.atQEMU(words(9, 0, 0, 0))
	r.relayed(words(1), words(0, 0xffff)) // the VM runs on
	r.qemu.Close()
	if err := r.ended(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NO_ARMED_SESSION: there is no armed session (found none, expected one)", `remedy="arm the session"`, "reason=NO_ARMED_SESSION"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "secret state") {
		t.Errorf("the log has plaintext: %s", log.String())
	}
}

func TestANodeThatDoesNotAnswerHoldsTheVMNoLongerThanTheTimeout(t *testing.T) {
	release := make(chan struct{})
	f := &fakeNode{answer: func([]byte, func([]byte, bool) error) error { <-release; return nil }}
	r := remote(t, startNode(t, f), 50*time.Millisecond)
	defer close(release)
	begun := time.Now()
	if _, err := r.Protect(context.Background(), Permanent, []byte("state")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, expected %v", err, codes.DeadlineExceeded)
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("the VM stood still for %v", d)
	}
}

func TestANodeThatIsDownIsFoundAgainWhenItIsBack(t *testing.T) {
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "node.sock")
	r := remote(t, "unix://"+path, 20*time.Second)
	if _, err := r.Protect(context.Background(), Permanent, []byte("state")); status.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("%v, expected %v at once", err, codes.Unavailable)
	}
	f := &fakeNode{answer: inChunks, headers: make(chan *v1.StateHeader, 100)}
	serveNode(t, f, path)
	// The first call may still meet the failed attempt; which is why back-off is short.
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := r.Protect(context.Background(), Permanent, []byte("state"))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %v", err)
		}
	}
}

func TestATargetThatIsNoneIsRefused(t *testing.T) {
	if r, err := NewRemoteProtector("unix:\x00bad://", instance, 0); err == nil {
		t.Error("accepted", r.Close())
	}
}

// BenchmarkProtect is what the helper adds to a blob's way, without the enclave's own work.
func BenchmarkProtect(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "n")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	s := grpc.NewServer()
	f := &fakeNode{answer: inChunks, headers: make(chan *v1.StateHeader)}
	v1.RegisterCryptoServiceServer(s, f)
	stopped := make(chan struct{})
	go func() { _ = s.Serve(l); close(stopped) }()
	go func() {
		for range f.headers {
		}
	}()
	defer func() { s.Stop(); <-stopped; close(f.headers) }()
	r, err := NewRemoteProtector("unix://"+path, instance, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	state := make([]byte, 9482)
	for b.Loop() {
		if _, err := r.Protect(context.Background(), Volatile, state); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAHelperStaysAttachedOverARestartOfTheNode(t *testing.T) {
	f := &fakeNode{answer: inChunks, attached: make(chan string, 16)}
	target := startNode(t, f)
	path := strings.TrimPrefix(target, "unix://")
	r, err := NewRemoteProtector(target, instance, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan struct{})
	go func() { r.Keep(ctx, slog.New(slog.DiscardHandler)); close(kept) }()
	if got := <-f.attached; got != instance {
		t.Errorf("attached for %q", got)
	}
	f.server.Stop()
	second := &fakeNode{answer: inChunks, attached: make(chan string, 16), headers: make(chan *v1.StateHeader, 16)}
	serveNode(t, second, path)
	if got := <-second.attached; got != instance {
		t.Errorf("attached for %q", got)
	}
	cancel()
	<-kept
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestABlobWaitsForTheAttachmentAndIsRefusedWithoutOne(t *testing.T) {
	f := &fakeNode{answer: inChunks, refuse: rpcerror.Status(refusal.New(v1.Reason_REASON_HELPER_CONFLICT, "another is attached"))}
	r, err := NewRemoteProtector(startNode(t, f), instance, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := r.Protect(t.Context(), Volatile, []byte("x")); !errors.Is(err, refusal.Because(v1.Reason_REASON_HELPER_CONFLICT)) {
		t.Errorf("%v", err)
	}
	if len(f.headers) != 0 {
		t.Error("the blob was sent all the same")
	}
}
