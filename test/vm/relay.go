package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Relay stands where an attacker or an auditor on the network does: it takes the source's migration connection, passes everything on to the
// destination and back, and records what the source sends, as the destination gets it.
type Relay struct {
	// Listen and Forward are "tcp:HOST:PORT" or "unix:PATH", as in QEMU's migration URIs.
	Listen, Forward string
	// ListenNetns and ForwardNetns, if set, are the network namespaces (ip netns) that either belongs to.
	ListenNetns, ForwardNetns string
	// Capture is the file that gets the bytes from source to destination; empty: none.
	Capture string
	// Mutator, if set, may change what goes from source to destination.
	Mutator Mutator

	listener net.Listener
	group    errgroup.Group
	mu       sync.Mutex
	conns    []net.Conn
	closed   bool
}

// Mutator changes the stream. It is called with all that follows offset, in pieces of any size, and returns what is to be sent now; what it holds
// back it returns later, with Final at the latest. The returned slice may be the one it was given.
type Mutator interface {
	Mutate(offset int64, piece []byte) []byte
	// Final returns what is still held back when the source has ended.
	Final() []byte
}

// Start listens. Each connection is relayed until either side ends it.
func (r *Relay) Start(ctx context.Context) error {
	network, address, err := endpoint(r.Listen)
	if err != nil {
		return err
	}
	if err := inNetns(r.ListenNetns, func() (err error) {
		r.listener, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	}); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.group.Go(func() error {
		for {
			source, err := r.listener.Accept()
			if err != nil {
				return ignoreClosed(err)
			}
			r.group.Go(func() error { return r.serve(ctx, source) })
		}
	})
	return nil
}

// Close ends the relay and its connections, waits for them, and returns what went wrong on the way, if anything did.
func (r *Relay) Close() error {
	err := ignoreClosed(r.listener.Close())
	r.mu.Lock()
	r.closed = true
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	return errors.Join(err, r.group.Wait())
}

// own makes Close close conn too.
func (r *Relay) own(conn net.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	r.conns = append(r.conns, conn)
	return nil
}

func (r *Relay) serve(ctx context.Context, source net.Conn) error {
	defer func() { _ = source.Close() }()
	if err := r.own(source); err != nil {
		return ignoreClosed(err)
	}
	network, address, err := endpoint(r.Forward)
	if err != nil {
		return err
	}
	var destination net.Conn
	if err := inNetns(r.ForwardNetns, func() (err error) {
		destination, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	}); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	defer func() { _ = destination.Close() }()
	if err := r.own(destination); err != nil {
		return ignoreClosed(err)
	}
	capture := io.WriteCloser(discard{})
	if r.Capture != "" {
		if capture, err = os.Create(r.Capture); err != nil {
			return err
		}
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(source, destination)
		_ = closeWrite(source)
	}()
	r.forward(io.MultiWriter(capture, destination), source)
	_ = closeWrite(destination)
	<-back
	return capture.Close()
}

// forward copies the stream through the mutator. That a side hangs up is how migrations end, well or not, and no error.
func (r *Relay) forward(to io.Writer, from io.Reader) {
	if r.Mutator == nil {
		_, _ = io.Copy(to, from)
		return
	}
	buf := make([]byte, 256<<10)
	for offset := int64(0); ; {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(r.Mutator.Mutate(offset, buf[:n])); err != nil {
				return
			}
			offset += int64(n)
		}
		if err != nil {
			_, _ = to.Write(r.Mutator.Final())
			return
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// endpoint splits a migration URI.
func endpoint(uri string) (network, address string, err error) {
	network, address, ok := strings.Cut(uri, ":")
	if !ok || (network != "tcp" && network != "unix") || address == "" {
		return "", "", fmt.Errorf("%q is not tcp:HOST:PORT or unix:PATH", uri)
	}
	return network, address, nil
}

// FlipBitAfter returns a Mutator that inverts the lowest bit of one byte: the one skip bytes behind the first occurrence of magic's last byte. It
// holds back no more than magic's length.
func FlipBitAfter(magic []byte, skip int) *BitFlip {
	return &BitFlip{magic: append([]byte(nil), magic...), target: -1, skip: int64(skip)}
}

// BitFlip is the Mutator of FlipBitAfter.
type BitFlip struct {
	magic   []byte
	skip    int64
	held    []byte // not sent yet: could be the beginning of magic
	sent    int64  // offset of held
	target  int64  // offset of the byte to flip, -1 before magic was seen
	mu      sync.Mutex
	flipped bool
}

// Mutate implements Mutator.
func (f *BitFlip) Mutate(_ int64, piece []byte) []byte {
	f.held = append(f.held, piece...)
	keep := 0
	if f.target < 0 {
		if i := bytes.Index(f.held, f.magic); i >= 0 {
			f.target = f.sent + int64(i+len(f.magic)) + f.skip
		} else {
			keep = min(len(f.magic)-1, len(f.held))
		}
	}
	out := append([]byte(nil), f.held[:len(f.held)-keep]...)
	if at := f.target - f.sent; f.target >= 0 && at >= 0 && at < int64(len(out)) {
		out[at] ^= 1
		f.mu.Lock()
		f.flipped = true
		f.mu.Unlock()
	}
	f.held = append(f.held[:0], f.held[len(f.held)-keep:]...)
	f.sent += int64(len(out))
	return out
}

// Final implements Mutator.
func (f *BitFlip) Final() []byte { return f.held }

// Flipped says whether the bit was inverted: an attack that did not happen proves nothing.
func (f *BitFlip) Flipped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flipped
}
