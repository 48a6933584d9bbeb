package hosttpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// headerSize is that of a response: tag, size, response code.
	headerSize = 10
	// maxResponse is the size of a TPM's buffer, in bytes.
	maxResponse = 4096
	// busyAttempts, firstWait and longestWait bound how a busy TPM is asked again: for about 9 seconds.
	busyAttempts = 24
	firstWait    = 5 * time.Millisecond
	longestWait  = 500 * time.Millisecond
)

// conn is what a device and a socket have in common.
type conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// session connects and runs use with the TPM to itself.
func (t *TPM) session(ctx context.Context, use func(transport.TPM) error) error {
	ctx, cancel := context.WithTimeout(ctx, OperationTimeout)
	defer cancel()
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the tpm: %w", context.Cause(ctx))
	}
	c, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	// A deadline in the past wakes a blocked read or write. A device without deadlines is bounded by the kernel's driver.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return use(&channel{ctx: ctx, conn: c, stream: t.network != "device", wait: t.wait})
}

func (t *TPM) connect(ctx context.Context) (conn, error) {
	if t.network == "device" {
		f, err := os.OpenFile(t.path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		info, err := f.Stat()
		if err != nil || info.Mode()&os.ModeCharDevice == 0 {
			_ = f.Close()
			return nil, fmt.Errorf("%w: %s is not a character device", ErrUnreachable, t.path)
		}
		return f, nil
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, t.network, t.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return c, nil
}

// channel is a transport.TPM over one connection. It serves one command at a time.
type channel struct {
	ctx context.Context
	conn
	stream bool
	wait   func(context.Context, time.Duration) error
}

// Send sends a command and returns the response. A TPM that is busy is asked again; any other response code is for the caller.
func (c *channel) Send(command []byte) ([]byte, error) {
	pause := firstWait
	for range busyAttempts {
		response, err := c.exchange(command)
		if err != nil {
			if c.ctx.Err() != nil {
				return nil, fmt.Errorf("talking to the tpm: %w", context.Cause(c.ctx))
			}
			return nil, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
		default:
			return response, nil
		}
		if err := c.wait(c.ctx, pause); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		pause = min(2*pause, longestWait)
	}
	return nil, fmt.Errorf("%w: %d times in a row", ErrBusy, busyAttempts)
}

// exchange writes one command and reads one response.
func (c *channel) exchange(command []byte) ([]byte, error) {
	if _, err := c.Write(command); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	buf := make([]byte, maxResponse)
	var n int
	var err error
	if c.stream {
		n, err = io.ReadFull(c.conn, buf[:headerSize])
	} else {
		// A device gives the whole response to one read, and may drop what the read had no room for.
		n, err = c.Read(buf)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if n < headerSize {
		return nil, fmt.Errorf("%w: found %d bytes, expected a header of %d", ErrProtocol, n, headerSize)
	}
	size := binary.BigEndian.Uint32(buf[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("%w: found a response of %d bytes, expected %d to %d", ErrProtocol, size, headerSize, maxResponse)
	}
	if c.stream {
		m, err := io.ReadFull(c.conn, buf[headerSize:size])
		if n += m; err != nil {
			return nil, fmt.Errorf("%w: after %d bytes of a response of %d: %w", ErrUnreachable, n, size, err)
		}
	}
	if n != int(size) {
		return nil, fmt.Errorf("%w: found %d bytes of a response of %d", ErrProtocol, n, size)
	}
	return buf[:size], nil
}

// sleep waits for d or the end of the context.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
