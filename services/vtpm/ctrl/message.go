package ctrl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Request is one command.
type Request struct {
	Command Command
	// Body is the fixed part after the command. Its last word is the length of Data where the command carries data; writing sets it.
	Body []byte
	// Data of HASH_DATA and SET_STATEBLOB.
	Data []byte
	// File travels with SET_DATAFD and with nothing else. Who holds the request closes it.
	File *os.File
}

// Word returns the i-th 32-bit word of the body, 0 if there is none.
func (r *Request) Word(i int) uint32 {
	if len(r.Body) < 4*(i+1) {
		return 0
	}
	return binary.BigEndian.Uint32(r.Body[4*i:])
}

// StateType of GET_STATEBLOB and SET_STATEBLOB.
func (r *Request) StateType() StateType { return StateType(r.Word(1)) }

// Reply is the answer to one command.
type Reply struct {
	Result uint32
	// Body is the fixed part after the result; empty in an error of which swtpm sent the result alone. Writing pads it.
	Body []byte
	// Data of GET_STATEBLOB and GET_INFO. Writing sets the length fields to it.
	Data []byte
}

// readRequest reads one command from r. io.EOF means that the channel ended between two commands.
func readRequest(r io.Reader) (*Request, error) {
	var word [4]byte
	if n, err := io.ReadFull(r, word[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, inside("a command", err)
	}
	req := &Request{Command: Command(binary.BigEndian.Uint32(word[:]))}
	shape, err := layoutOf(req.Command)
	if err != nil {
		return nil, err
	}
	req.Body = make([]byte, shape.request)
	if _, err := io.ReadFull(r, req.Body); err != nil {
		return nil, inside(req.Command.String(), err)
	}
	if shape.maxData == 0 {
		return req, nil
	}
	req.Data, err = readData(r, req.Command, req.Body, shape.maxData)
	return req, err
}

// readReply reads the answer to c. r must return a reply's fixed part whole, or nothing but its result: so does a unix socket to swtpm, which
// writes either in one piece.
func readReply(r io.Reader, c Command) (*Reply, error) {
	shape, err := layoutOf(c)
	if err != nil {
		return nil, err
	}
	fixed := make([]byte, shape.reply)
	n, err := io.ReadAtLeast(r, fixed, 4)
	if err != nil {
		return nil, inside("the reply to "+c.String(), err)
	}
	reply := &Reply{Result: binary.BigEndian.Uint32(fixed)}
	if n == 4 && reply.Result != ResultOK {
		return reply, nil // swtpm says no more than the result when it refuses a command
	}
	if _, err := io.ReadFull(r, fixed[n:]); err != nil {
		return nil, inside("the reply to "+c.String(), err)
	}
	reply.Body = fixed[4:]
	if shape.maxAnswer == 0 {
		return reply, nil
	}
	length, total := lastWord(fixed), binary.BigEndian.Uint32(fixed[len(fixed)-8:])
	if length != total {
		return nil, fmt.Errorf("%w: reply to %v has %d bytes of a total of %d, expected all of them", ErrMalformed, c, length, total)
	}
	if reply.Result != ResultOK && length != 0 {
		return nil, fmt.Errorf("%w: reply to %v has result %#x and %d bytes, expected none", ErrMalformed, c, reply.Result, length)
	}
	reply.Data, err = readData(r, c, fixed, shape.maxAnswer)
	return reply, err
}

// readData reads as many bytes as the last word of fixed says.
func readData(r io.Reader, c Command, fixed []byte, limit int) ([]byte, error) {
	length := lastWord(fixed)
	if int64(length) > int64(limit) {
		return nil, fmt.Errorf("%w: %v has %d bytes, expected %d at most", ErrTooLong, c, length, limit)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(r, data); err != nil {
		clear(data)
		return nil, inside(fmt.Sprintf("the %d bytes of %v", length, c), err)
	}
	return data, nil
}

func lastWord(b []byte) uint32 { return binary.BigEndian.Uint32(b[len(b)-4:]) }

// inside gives an end of the channel in the middle of a message its own error.
func inside(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: in %s", ErrTruncated, what)
	}
	return fmt.Errorf("reading %s: %w", what, err)
}

// encode returns the bytes of the request. The caller wipes them if Data is secret.
func (r *Request) encode() ([]byte, error) {
	shape, err := layoutOf(r.Command)
	if err != nil {
		return nil, err
	}
	if len(r.Body) != shape.request {
		return nil, fmt.Errorf("%w: %v with a body of %d bytes, expected %d", ErrMalformed, r.Command, len(r.Body), shape.request)
	}
	if len(r.Data) > shape.maxData {
		return nil, fmt.Errorf("%w: %v has %d bytes, expected %d at most", ErrTooLong, r.Command, len(r.Data), shape.maxData)
	}
	b := make([]byte, 0, 4+len(r.Body)+len(r.Data))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Command))
	b = append(b, r.Body...)
	if shape.maxData > 0 {
		binary.BigEndian.PutUint32(b[len(b)-4:], uint32(len(r.Data)))
	}
	return append(b, r.Data...), nil
}

// encode returns the bytes of the reply to c: the fixed part always whole, whatever the result.
func (r *Reply) encode(c Command) ([]byte, error) {
	shape, err := layoutOf(c)
	if err != nil {
		return nil, err
	}
	if len(r.Body) != 0 && len(r.Body) != shape.reply-4 {
		return nil, fmt.Errorf("%w: reply to %v with a body of %d bytes, expected %d", ErrMalformed, c, len(r.Body), shape.reply-4)
	}
	if len(r.Data) > shape.maxAnswer {
		return nil, fmt.Errorf("%w: reply to %v has %d bytes, expected %d at most", ErrTooLong, c, len(r.Data), shape.maxAnswer)
	}
	b := make([]byte, shape.reply, shape.reply+len(r.Data))
	binary.BigEndian.PutUint32(b, r.Result)
	copy(b[4:], r.Body)
	if shape.maxAnswer > 0 {
		binary.BigEndian.PutUint32(b[len(b)-8:], uint32(len(r.Data)))
		binary.BigEndian.PutUint32(b[len(b)-4:], uint32(len(r.Data)))
	}
	return append(b, r.Data...), nil
}
