package handshake

import (
	"io"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// pipeEnd is one end of an in-memory Stream.
type pipeEnd struct {
	in   <-chan *v1.Frame
	out  chan<- *v1.Frame
	done <-chan struct{}
}

// Pipe returns two connected streams. Frames are copied through their wire form. Closing done ends both.
func Pipe(done <-chan struct{}) (a, b Stream) {
	ab, ba := make(chan *v1.Frame, 8), make(chan *v1.Frame, 8)
	return &pipeEnd{in: ba, out: ab, done: done}, &pipeEnd{in: ab, out: ba, done: done}
}

func (p *pipeEnd) Send(f *v1.Frame) error {
	raw, err := proto.Marshal(f)
	if err != nil {
		return err
	}
	fresh := new(v1.Frame)
	if err := proto.Unmarshal(raw, fresh); err != nil {
		return err
	}
	select {
	case p.out <- fresh:
		return nil
	case <-p.done:
		return io.ErrClosedPipe
	}
}

func (p *pipeEnd) Recv() (*v1.Frame, error) {
	select {
	case f := <-p.in:
		return f, nil
	case <-p.done:
		return nil, io.EOF
	}
}
