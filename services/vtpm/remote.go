package vtpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/services/vtpm/ctrl"
)

const (
	// DefaultTimeout bounds one blob's way through the node service. The VM stands still while it lasts.
	DefaultTimeout = 500 * time.Millisecond
	// chunk is the data of one message, in bytes.
	chunk = 256 << 10
)

// ErrTransfer says that the node service's answer was not a whole blob.
var ErrTransfer = errors.New("incomplete answer of the node service")

// RemoteProtector is the Protector that the node's enclave implements, over CryptoService on the node's unix socket. It is safe for concurrent use.
type RemoteProtector struct {
	instance string
	timeout  time.Duration
	conn     *grpc.ClientConn
	client   v1.CryptoServiceClient

	// life bounds attachments, each of which has a goroutine in streams. turn is held while one is made; lost is closed when the last one has ended.
	life    context.Context
	end     context.CancelFunc
	streams sync.WaitGroup
	turn    chan struct{}
	lost    <-chan struct{}
}

// NewRemoteProtector prepares the connection; nothing is dialled before the first blob, and then the connection is kept. target is a gRPC
// target, such as unix:///run/safeconduct/node.sock; instance the UUID of the VM; timeout bounds one blob, 0 meaning DefaultTimeout.
func NewRemoteProtector(target, instance string, timeout time.Duration, options ...grpc.DialOption) (*RemoteProtector, error) {
	options = append([]grpc.DialOption{
		// The socket's permissions and the caller's uid, which the node reads from the kernel, decide who may call; there is no network.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A node service that has just come back must not be missed for a long back-off.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
	}, options...)
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("node service at %s: %w", target, err)
	}
	r := &RemoteProtector{
		instance: instance, timeout: orDefault(timeout, DefaultTimeout), conn: conn, client: v1.NewCryptoServiceClient(conn), turn: make(chan struct{}, 1),
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close ends the attachment and closes the connection.
func (r *RemoteProtector) Close() error {
	r.end()
	err := r.conn.Close()
	r.streams.Wait()
	return err
}

// Protect implements Protector. A refusal of the node service is a *refusal.Refusal.
func (r *RemoteProtector) Protect(ctx context.Context, t StateType, plaintext []byte) ([]byte, error) {
	ctx, cancel := r.begin(ctx)
	defer cancel()
	if _, err := r.attach(ctx); err != nil {
		return nil, err
	}
	stream, err := r.client.ProtectState(ctx)
	if err != nil {
		return nil, r.explain(err)
	}
	out, err := cross(&blobStream{
		sendHeader: func(first []byte) error {
			return stream.Send(&v1.ProtectStateRequest{Body: &v1.ProtectStateRequest_Header{Header: r.header(t, first)}})
		},
		sendData: func(b []byte) error {
			return stream.Send(&v1.ProtectStateRequest{Body: &v1.ProtectStateRequest_Data{Data: b}})
		},
		closeSend: stream.CloseSend,
		recv: func() ([]byte, bool, error) {
			m, err := stream.Recv()
			return m.GetData(), m.GetDone(), err
		},
	}, plaintext)
	return out, r.explain(err)
}

// Unprotect implements Protector. Nothing is returned unless all of it is authentic.
func (r *RemoteProtector) Unprotect(ctx context.Context, t StateType, ciphertext []byte) ([]byte, error) {
	ctx, cancel := r.begin(ctx)
	defer cancel()
	if _, err := r.attach(ctx); err != nil {
		return nil, err
	}
	stream, err := r.client.UnprotectState(ctx)
	if err != nil {
		return nil, r.explain(err)
	}
	out, err := cross(&blobStream{
		sendHeader: func(first []byte) error {
			return stream.Send(&v1.UnprotectStateRequest{Body: &v1.UnprotectStateRequest_Header{Header: r.header(t, first)}})
		},
		sendData: func(b []byte) error {
			return stream.Send(&v1.UnprotectStateRequest{Body: &v1.UnprotectStateRequest_Data{Data: b}})
		},
		closeSend: stream.CloseSend,
		recv: func() ([]byte, bool, error) {
			m, err := stream.Recv()
			return m.GetData(), m.GetDone(), err
		},
	}, ciphertext)
	return out, r.explain(err)
}

// begin bounds one blob. The call fails at once if nobody listens on the socket: waiting would only hold the VM still.
func (r *RemoteProtector) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	r.conn.ResetConnectBackoff()
	return context.WithTimeout(ctx, r.timeout)
}

func (r *RemoteProtector) header(t StateType, first []byte) *v1.StateHeader {
	return &v1.StateHeader{InstanceId: r.instance, Type: v1.StateType(t), Data: first}
}

// blobStream is what the two calls have in common.
type blobStream struct {
	sendHeader func(first []byte) error
	sendData   func([]byte) error
	closeSend  func() error
	recv       func() (data []byte, done bool, err error)
}

func cross(s *blobStream, in []byte) ([]byte, error) {
	if err := s.sendAll(in); err != nil && !errors.Is(err, io.EOF) {
		return nil, err // io.EOF says that the service has answered already: receive why
	}
	// Room for what encryption may add, once: growing would leave copies behind.
	out := make([]byte, 0, min(2*len(in)+4096, ctrl.MaxBlob))
	for {
		data, done, err := s.recv()
		if err == nil && len(data) > cap(out)-len(out) {
			err = fmt.Errorf("%w: more than %d bytes for %d", ctrl.ErrTooLong, cap(out), len(in))
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: the stream ended before done", ErrTransfer)
		}
		if err != nil {
			clear(out)
			return nil, err
		}
		out = append(out, data...)
		clear(data)
		if !done {
			continue
		}
		if err := s.settle(); err != nil {
			clear(out)
			return nil, err
		}
		return out, nil
	}
}

// settle waits for the call's own end: done is followed by it, and a status that says otherwise wins.
func (s *blobStream) settle() error {
	_, _, err := s.recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return fmt.Errorf("%w: data after done", ErrTransfer)
	default:
		return err
	}
}

func (s *blobStream) sendAll(in []byte) error {
	n := min(len(in), chunk)
	if err := s.sendHeader(in[:n]); err != nil {
		return err
	}
	in = in[n:]
	for len(in) > 0 {
		n := min(len(in), chunk)
		if err := s.sendData(in[:n]); err != nil {
			return err
		}
		in = in[n:]
	}
	return s.closeSend()
}

// explain turns a status with a typed refusal into a *refusal.Refusal, and adds who was asked to any other error.
func (r *RemoteProtector) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		return err
	}
	if refused, ok := rpcerror.Typed(err); ok {
		return refused
	}
	return fmt.Errorf("node service at %s: %w", r.conn.Target(), err)
}
