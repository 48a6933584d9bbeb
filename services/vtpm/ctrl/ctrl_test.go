package ctrl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// words encodes 32-bit words, big-endian.
func words(w ...uint32) []byte {
	var b []byte
	for _, x := range w {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}

// wireCase is one command as it looks on the wire.
type wireCase struct {
	name           string
	command        Command
	request, reply []byte
}

func wireCases() []wireCase {
	cat := func(head []byte, tail string) []byte { return append(head, tail...) }
	return []wireCase{
		{"GET_CAPABILITY has no body and answers 8 bytes", GetCapability, words(1), words(0, 0xffff)},
		{"INIT carries flags and answers 4 bytes", Init, words(2, 1), words(0)},
		{"SHUTDOWN answers 4 bytes", Shutdown, words(3), words(0)},
		{"GET_TPMESTABLISHED answers 8 bytes", GetTPMEstablished, words(4), words(0, 0x01000000)},
		{"SET_LOCALITY carries a padded byte", SetLocality, words(5, 0x02000000), words(0)},
		{"HASH_START answers 4 bytes", HashStart, words(6), words(0)},
		{"HASH_DATA carries a length and data", HashData, cat(words(7, 3), "abc"), words(0)},
		{"HASH_END answers 4 bytes", HashEnd, words(8), words(0)},
		{"CANCEL_TPM_CMD answers 4 bytes", CancelTPMCmd, words(9), words(0)},
		{"STORE_VOLATILE answers 4 bytes", StoreVolatile, words(10), words(0)},
		{"RESET_TPMESTABLISHED carries a padded byte", ResetTPMEstablished, words(11, 0x03000000), words(0)},
		{"GET_STATEBLOB answers a header and the blob", GetStateBlob, words(12, 1, 2, 0), cat(words(0, 1, 4, 4), "blob")},
		{"GET_STATEBLOB answers a header alone where there is no blob", GetStateBlob, words(12, 1, 3, 0), words(0x800, 0, 0, 0)},
		{"SET_STATEBLOB carries a header and the blob", SetStateBlob, cat(words(13, 0, 1, 4), "blob"), words(0)},
		{"SET_STATEBLOB may carry nothing", SetStateBlob, words(13, 0, 1, 0), words(0)},
		{"STOP answers 4 bytes", Stop, words(14), words(0)},
		{"GET_CONFIG answers 8 bytes", GetConfig, words(15), words(0, 1)},
		{"SET_BUFFERSIZE answers 16 bytes", SetBufferSize, words(17, 0), words(0, 4096, 2808, 4096)},
		{"GET_INFO carries 16 bytes and answers a text", GetInfo, words(18, 0, 1, 0, 0), cat(words(0, 2, 2), "{}")},
		{"LOCK_STORAGE carries retries", LockStorage, words(19, 3), words(0)},
	}
}

// pair returns two connected sockets.
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
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

func TestEveryCommandKeepsItsBytes(t *testing.T) {
	for _, c := range wireCases() {
		t.Run(c.name, func(t *testing.T) {
			req, err := readRequest(bytes.NewReader(c.request))
			if err != nil {
				t.Fatal(err)
			}
			if req.Command != c.command {
				t.Errorf("command is %v, expected %v", req.Command, c.command)
			}
			if got, err := req.encode(); err != nil || !bytes.Equal(got, c.request) {
				t.Errorf("request becomes %x (%v), expected %x", got, err, c.request)
			}
			reply, err := readReply(bytes.NewReader(c.reply), c.command)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := reply.encode(c.command); err != nil || !bytes.Equal(got, c.reply) {
				t.Errorf("reply becomes %x (%v), expected %x", got, err, c.reply)
			}
			if strings.HasPrefix(c.command.String(), "command") {
				t.Errorf("%d has no name", uint32(c.command))
			}
		})
	}
}

func TestAnErrorIsPaddedToTheLengthThatQEMUReads(t *testing.T) {
	for _, c := range wireCases() {
		reply, err := readReply(bytes.NewReader(words(9)), c.command)
		if err != nil {
			t.Fatalf("%v: swtpm's bare error: %v", c.command, err)
		}
		shape, err := layoutOf(c.command)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, shape.reply)
		want[3] = 9
		if got, err := reply.encode(c.command); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: error becomes %x (%v), expected %x", c.command, got, err, want)
		}
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	request := func(b []byte) error { _, err := readRequest(bytes.NewReader(b)); return err }
	reply := func(c Command, b []byte) error { _, err := readReply(bytes.NewReader(b), c); return err }
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"a command of which the length is not known", request(words(20)), ErrUnknownCommand},
		{"command 0", request(words(0)), ErrUnknownCommand},
		{"an end inside the command", request([]byte{0, 0}), ErrTruncated},
		{"an end inside the body", request(words(12, 1)), ErrTruncated},
		{"an end inside the blob", request(append(words(13, 0, 1, 4), "bl"...)), ErrTruncated},
		{"a blob longer than 8 MiB", request(words(13, 0, 1, MaxBlob+1)), ErrTooLong},
		{"a blob of 4 GiB less one", request(words(13, 0, 1, 0xffffffff)), ErrTooLong},
		{"a hash longer than 1 MiB", request(words(7, MaxHash+1)), ErrTooLong},
		{"nothing at all", request(nil), io.EOF},
		{"a reply to a command that does not exist", reply(99, words(0)), ErrUnknownCommand},
		{"a reply that ends inside its result", reply(Init, []byte{0}), ErrTruncated},
		{"no reply", reply(Init, nil), ErrTruncated},
		{"a success without its body", reply(SetBufferSize, words(0)), ErrTruncated},
		{"a reply that ends inside its body", reply(SetBufferSize, words(9, 1)), ErrTruncated},
		{"a reply that ends inside its blob", reply(GetStateBlob, append(words(0, 0, 4, 4), "bl"...)), ErrTruncated},
		{"a blob in pieces", reply(GetStateBlob, append(words(0, 0, 8, 4), "blob"...)), ErrMalformed},
		{"an error that brings a blob", reply(GetStateBlob, append(words(0x800, 0, 4, 4), "blob"...)), ErrMalformed},
		{"a reply with a blob longer than 8 MiB", reply(GetStateBlob, words(0, 0, MaxBlob+1, MaxBlob+1)), ErrTooLong},
		{"an information text longer than 64 KiB", reply(GetInfo, words(0, MaxInfo+1, MaxInfo+1)), ErrTooLong},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, expected %v", c.name, c.got, c.want)
		}
	}
}

func TestMessagesThatAreNotSent(t *testing.T) {
	encode := func(r *Request) error { _, err := r.encode(); return err }
	encodeReply := func(c Command, r *Reply) error { _, err := r.encode(c); return err }
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"an unknown command", encode(&Request{Command: 20}), ErrUnknownCommand},
		{"a body of the wrong size", encode(&Request{Command: Init}), ErrMalformed},
		{"data where none belongs", encode(&Request{Command: Stop, Data: []byte{1}}), ErrTooLong},
		{"a blob longer than 8 MiB", encode(&Request{Command: SetStateBlob, Body: words(0, 1, 0), Data: make([]byte, MaxBlob+1)}), ErrTooLong},
		{"a reply to an unknown command", encodeReply(20, &Reply{}), ErrUnknownCommand},
		{"a reply body of the wrong size", encodeReply(SetBufferSize, &Reply{Body: words(1)}), ErrMalformed},
		{"a reply with data where none belongs", encodeReply(Stop, &Reply{Data: []byte{1}}), ErrTooLong},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, expected %v", c.name, c.got, c.want)
		}
	}
}

func TestADescriptorTravelsWithItsCommand(t *testing.T) {
	near, far := pair(t)
	from, to := NewConn(near, time.Minute), NewConn(far, time.Minute)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := from.WriteRequest(&Request{Command: SetDataFD, File: w}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	req, err := to.ReadRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := req.File.WriteString("through"); err != nil {
		t.Fatal(err)
	}
	req.File.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("read %q (%v) from the pipe whose other end was sent", got, err)
	}
}

func TestSendingADescriptorLeavesItsFlagsAlone(t *testing.T) {
	near, far := pair(t)
	data, other := pair(t)
	_ = other
	f, err := data.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nonblocking := func() bool {
		var flags uintptr
		raw, err := data.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { flags, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0) }); err != nil {
			t.Fatal(err)
		}
		return flags&syscall.O_NONBLOCK != 0
	}
	before := nonblocking()
	if err := NewConn(near, time.Minute).WriteRequest(&Request{Command: SetDataFD, File: f}); err != nil {
		t.Fatal(err)
	}
	req, err := NewConn(far, time.Minute).ReadRequest()
	if err != nil {
		t.Fatal(err)
	}
	defer req.File.Close()
	if !before || !nonblocking() {
		t.Errorf("O_NONBLOCK of QEMU's socket: before %v, after %v, expected true both times", before, nonblocking())
	}
}

func TestWrongDescriptorsAreRefusedAndClosed(t *testing.T) {
	for _, c := range []struct {
		name    string
		command Command
		fds     int
	}{
		{"SET_DATAFD without one", SetDataFD, 0},
		{"SET_DATAFD with two", SetDataFD, 2},
		{"SET_DATAFD with more than the kernel hands over", SetDataFD, 9},
		{"STOP with one", Stop, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := pair(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var oob []byte
			if c.fds > 0 {
				fds := make([]int, c.fds)
				for i := range fds {
					fds[i] = int(w.Fd())
				}
				oob = syscall.UnixRights(fds...)
			}
			if _, _, err := near.WriteMsgUnix(words(uint32(c.command)), oob, nil); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if _, err := NewConn(far, time.Minute).ReadRequest(); !errors.Is(err, ErrDescriptors) {
				t.Errorf("%v, expected %v", err, ErrDescriptors)
			}
			// Every copy of the writing end is closed again: the pipe is at its end.
			if _, err := io.ReadAll(r); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestACommandThatStopsHalfWayIsGivenUp(t *testing.T) {
	near, far := pair(t)
	if _, err := near.Write(words(12)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewConn(far, time.Millisecond).ReadRequest(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, expected %v", err, os.ErrDeadlineExceeded)
	}
	if _, err := NewConn(far, time.Millisecond).ReadReply(Init); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a reply that does not come: %v, expected %v", err, os.ErrDeadlineExceeded)
	}
}

func FuzzReadRequest(f *testing.F) {
	for _, c := range wireCases() {
		f.Add(c.request)
	}
	f.Add(words(13, 0, 1, 0xffffffff))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := readRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		got, err := req.encode()
		if err != nil || !bytes.HasPrefix(b, got) {
			t.Errorf("%x became %x (%v)", b, got, err)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	for _, c := range wireCases() {
		f.Add(uint32(c.command), c.reply)
	}
	f.Add(uint32(GetStateBlob), words(9))
	f.Fuzz(func(t *testing.T, command uint32, b []byte) {
		reply, err := readReply(bytes.NewReader(b), Command(command))
		if err != nil {
			return
		}
		got, err := reply.encode(Command(command))
		if err != nil {
			t.Fatalf("%x cannot be sent on: %v", b, err)
		}
		if len(reply.Body) == 0 {
			got = got[:4] // the padding of a bare error
		}
		if !bytes.HasPrefix(b, got) {
			t.Errorf("%x became %x", b, got)
		}
	})
}
