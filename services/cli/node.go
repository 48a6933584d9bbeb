package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// maxMessage bounds an answer of the node service, in bytes: some 4,000 sessions with all that was found out about their peers.
const maxMessage = 64 << 20

// node is the node service of this host.
type node struct {
	conn   *grpc.ClientConn
	socket string
	mu     sync.Mutex
	failed error // why the socket was not opened, the last time
}

// connect prepares a connection; the first call makes it.
func (a *app) connect() (*node, error) {
	n := &node{socket: strings.TrimPrefix(strings.TrimPrefix(a.socket, "unix:"), "//")}
	if n.socket == "" {
		return nil, advise(errors.New("--socket is empty"), "give the path of safeconductd's local.socket")
	}
	var err error
	n.conn, err = grpc.NewClient("passthrough:///"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(n.dial), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	return n, err
}

func (n *node) dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err
	return conn, err
}

// Close ends the connection.
func (n *node) Close() error { return n.conn.Close() }

// explain turns the failure of a call that never reached the service into what an operator can act on.
func (n *node) explain(err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && n.failed != nil && status.Code(err) == codes.Unavailable {
		return dialProblem(n.socket, n.failed)
	}
	return err
}

// ask makes one call with the global timeout.
func ask[R any](ctx context.Context, a *app, call func(context.Context, *grpc.ClientConn) (R, error)) (R, error) {
	n, err := a.connect()
	if err != nil {
		var none R
		return none, err
	}
	defer n.Close() //nolint:errcheck // nothing was buffered
	ctx, cancel := a.limit(ctx)
	defer cancel()
	response, err := call(ctx, n.conn)
	return response, n.explain(err)
}

// limit applies --timeout; 0 waits for ever.
func (a *app) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout)
}

// follow reads a stream to its end. It ends well when the stream does, or when the caller has had enough.
func follow[R any](ctx context.Context, a *app, open func(context.Context, *grpc.ClientConn) (grpc.ServerStreamingClient[R], error),
	each func(*R) error) error {
	n, err := a.connect()
	if err != nil {
		return err
	}
	defer n.Close() //nolint:errcheck // nothing was buffered
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(inner, n.conn)
	for err == nil {
		var event *R
		if event, err = stream.Recv(); err == nil {
			err = each(event)
		}
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return n.explain(err)
}

// crypto implements image.Dial: transfers take as long as their file.
func (a *app) crypto(context.Context) (v1.CryptoServiceClient, io.Closer, error) {
	n, err := a.connect()
	if err != nil {
		return nil, nil, err
	}
	return v1.NewCryptoServiceClient(n.conn), n, nil
}

// within checks a duration that a flag gave.
func within(flag string, d, most time.Duration) error {
	if d < 0 || d > most {
		return advise(fmt.Errorf("%s is %v, not between 0 and %v", flag, d, most), "give a duration such as 90s or 5m")
	}
	return nil
}
