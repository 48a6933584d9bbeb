package ctrl

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// maxRights is how many descriptors one recvmsg may bring before the kernel drops the rest (which is then noticed).
const maxRights = 4

// Conn is one end of a control channel. It is used by one goroutine at a time; Close may be called by any.
type Conn struct {
	sock     *net.UnixConn
	patience time.Duration
}

// NewConn takes over sock. patience bounds how long the rest of a message may take once it has begun, and how long a reply may take to begin.
func NewConn(sock *net.UnixConn, patience time.Duration) *Conn {
	return &Conn{sock: sock, patience: patience}
}

// Close ends the channel.
func (c *Conn) Close() error { return c.sock.Close() }

// ReadRequest waits, for as long as it takes, for the next command, then reads it. io.EOF means that the other side hung up between two commands.
func (c *Conn) ReadRequest() (*Request, error) {
	if err := c.sock.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	src := &receiver{sock: c.sock, patience: c.patience}
	req, err := readRequest(src)
	if err == nil {
		err = src.take(req)
	}
	if err != nil {
		return nil, errors.Join(err, src.close())
	}
	return req, nil
}

// ReadReply reads the answer to command. A descriptor in it is an error.
func (c *Conn) ReadReply(command Command) (*Reply, error) {
	if err := c.sock.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return nil, err
	}
	src := &receiver{sock: c.sock, begun: true}
	reply, err := readReply(src, command)
	if err == nil && len(src.files) > 0 {
		err = fmt.Errorf("%w: %d with a reply, expected none", ErrDescriptors, len(src.files))
	}
	if err != nil {
		return nil, errors.Join(err, src.close())
	}
	return reply, nil
}

// WriteRequest sends a command with its descriptor in one sendmsg: swtpm takes descriptors from its first recvmsg only. What it copied of the
// data is wiped.
func (c *Conn) WriteRequest(r *Request) error {
	if (r.File != nil) != (r.Command == SetDataFD) {
		return fmt.Errorf("%w: %v with file %v", ErrDescriptors, r.Command, r.File != nil)
	}
	b, err := r.encode()
	if err != nil {
		return err
	}
	defer clear(b)
	if r.File == nil {
		return c.send(b, nil)
	}
	// Not File.Fd: that would put the descriptor into blocking mode, for QEMU as well, whose socket it is.
	raw, err := r.File.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = c.send(b, syscall.UnixRights(int(fd))) }); err != nil {
		return err
	}
	return sent
}

// WriteReply sends the answer to command.
func (c *Conn) WriteReply(command Command, r *Reply) error {
	b, err := r.encode(command)
	if err != nil {
		return err
	}
	return c.send(b, nil)
}

func (c *Conn) send(b, rights []byte) error {
	if err := c.sock.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
		return err
	}
	n, _, err := c.sock.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.sock.Write(b[n:]) // a blob larger than the socket's buffer
	}
	return err
}

// receiver reads one message and keeps the descriptors that come with it.
type receiver struct {
	sock     *net.UnixConn
	patience time.Duration
	begun    bool
	files    []*os.File
}

// Read implements io.Reader.
func (r *receiver) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	oob := make([]byte, syscall.CmsgSpace(4*maxRights))
	n, oobn, flags, _, err := r.sock.ReadMsgUnix(p, oob)
	if err != nil {
		return n, err
	}
	if err := r.keep(oob[:oobn]); err != nil {
		return n, err
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return n, fmt.Errorf("%w: more than %d at once", ErrDescriptors, maxRights)
	}
	if n == 0 {
		return 0, io.EOF
	}
	if !r.begun {
		r.begun = true
		return n, r.sock.SetReadDeadline(time.Now().Add(r.patience))
	}
	return n, nil
}

func (r *receiver) keep(oob []byte) error {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "data channel"))
		}
	}
	return nil
}

// take hands the descriptor over to the request that it belongs to.
func (r *receiver) take(req *Request) error {
	want := 0
	if req.Command == SetDataFD {
		want = 1
	}
	if len(r.files) != want {
		return fmt.Errorf("%w: %d with %v, expected %d", ErrDescriptors, len(r.files), req.Command, want)
	}
	if want == 1 {
		req.File, r.files = r.files[0], nil
	}
	return nil
}

func (r *receiver) close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
