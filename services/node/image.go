package node

import (
	"context"
	"errors"
	"io"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/keyschedule"
	"github.com/safeconduct/safeconduct/crypto/statestream"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// maxImageName bounds the name of an image, in bytes.
const maxImageName = 255

// imageStream is what the two directions have in common.
type imageStream struct {
	ctx  context.Context
	recv func() (*v1.ImageHeader, []byte, error)
	send func(data []byte, done bool) error
}

// ProtectImage implements CryptoService.
func (c *cryptoServer) ProtectImage(rpc v1.CryptoService_ProtectImageServer) error {
	return c.part(v1.Role_ROLE_SOURCE, &imageStream{
		ctx:  rpc.Context(),
		recv: func() (*v1.ImageHeader, []byte, error) { m, err := rpc.Recv(); return m.GetHeader(), m.GetData(), err },
		send: func(data []byte, done bool) error { return rpc.Send(&v1.ProtectImageResponse{Data: data, Done: done}) },
	}, protectPart)
}

// UnprotectImage implements CryptoService. What it returns is authentic as it comes, and a part of the file until it says done.
func (c *cryptoServer) UnprotectImage(rpc v1.CryptoService_UnprotectImageServer) error {
	return c.part(v1.Role_ROLE_DESTINATION, &imageStream{
		ctx:  rpc.Context(),
		recv: func() (*v1.ImageHeader, []byte, error) { m, err := rpc.Recv(); return m.GetHeader(), m.GetData(), err },
		send: func(data []byte, done bool) error {
			return rpc.Send(&v1.UnprotectImageResponse{Data: data, Done: done})
		},
	}, unprotectPart)
}

// transformPart copies one part from in to out, encrypting or decrypting it in constant memory, and returns the bytes of plaintext.
type transformPart func(key *keyschedule.Secret, head statestream.Header, in io.Reader, out io.Writer) (uint64, error)

// part takes one part of an image across the enclave. A part that fails may be tried again: unlike a blob of state, an image is not what QEMU
// waits for with the VM stopped.
func (c *cryptoServer) part(role v1.Role, stream *imageStream, transform transformPart) error {
	header, _, err := stream.recv()
	if err != nil {
		return refusal.New(v1.Reason_REASON_INVALID_REQUEST, "the stream ended before its header: %w", err)
	}
	if err := checkImage(header); err != nil {
		return err
	}
	if !c.blobs.TryAcquire(1) {
		return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "too many blobs are crossing")
	}
	defer c.blobs.Release(1)
	part := session.Part{Name: header.GetName(), Offset: header.GetOffset(), Last: header.GetLast()}
	s, err := c.table.BeginPart(header.GetInstanceId(), role, part)
	if err != nil {
		return err
	}
	length, err := c.partIn(s, part, stream, transform)
	if err := s.EndPart(part, length, err); err != nil {
		c.log.Warn("a part of an image did not cross", "session", s.Record().ID.String(), "image", part.Name, "offset", part.Offset, "why", err)
		return err
	}
	c.metrics.Crossed(role, metrics.KindImage, length)
	c.log.Info("part of an image crossed", "session", s.Record().ID.String(), "image", part.Name, "offset", part.Offset, "bytes", length, "last", part.Last)
	if err := stream.send(nil, true); err != nil {
		return refusal.New(v1.Reason_REASON_ABORTED, "the helper broke off: %w", err)
	}
	return nil
}

func checkImage(h *v1.ImageHeader) error {
	if err := checkInstance(h.GetInstanceId()); err != nil {
		return err
	}
	if h.GetName() == "" || len(h.GetName()) > maxImageName {
		return invalid("name", "the name has %d characters, not 1 to %d", len(h.GetName()), maxImageName)
	}
	for _, b := range []byte(h.GetName()) {
		if b < '!' || b > '~' {
			return invalid("name", "name %q has characters that are not printable ASCII", h.GetName())
		}
	}
	if h.GetOffset() > uint64(statestream.KindImage.MaxPlaintext()) {
		return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "an image of more than %d bytes", statestream.KindImage.MaxPlaintext()).On("offset")
	}
	return nil
}

func (c *cryptoServer) partIn(s *session.Session, part session.Part, stream *imageStream, transform transformPart) (uint64, error) {
	hs, err := c.standing(stream.ctx, s)
	if err != nil {
		return 0, err
	}
	key, err := hs.ImageKey(part.Name, part.Offset, part.Last)
	if err != nil {
		return 0, err
	}
	defer key.Wipe()
	head := statestream.Header{Kind: statestream.KindImage, Session: hs.ID, Direction: statestream.SourceToDestination}
	return transform(key, head, &messageReader{stream: stream, over: s.Context()}, &messageWriter{stream: stream})
}

// messageReader reads the data of a stream's messages.
type messageReader struct {
	stream *imageStream
	over   context.Context
	rest   []byte
}

func (r *messageReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.over.Err() != nil {
			return 0, context.Cause(r.over)
		}
		header, data, err := r.stream.recv()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		case err != nil:
			return 0, refusal.New(v1.Reason_REASON_ABORTED, "the helper broke off: %w", err)
		case header != nil:
			return 0, refusal.New(v1.Reason_REASON_INVALID_REQUEST, "a second header in one stream")
		case len(data) > maxBlobChunk:
			return 0, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "a message of more than %d bytes", maxBlobChunk)
		}
		r.rest = data
	}
	n := copy(p, r.rest)
	clear(r.rest[:n])
	r.rest = r.rest[n:]
	return n, nil
}

// messageWriter sends what is written as messages.
type messageWriter struct{ stream *imageStream }

func (w *messageWriter) Write(p []byte) (int, error) {
	// gRPC has marshalled the message when Send returns, so the caller's buffer is free again.
	if err := w.stream.send(p, false); err != nil {
		return 0, refusal.New(v1.Reason_REASON_ABORTED, "the helper broke off: %w", err)
	}
	return len(p), nil
}

func protectPart(key *keyschedule.Secret, head statestream.Header, in io.Reader, out io.Writer) (uint64, error) {
	w, err := statestream.NewWriter(out, key.Bytes(), head)
	if err != nil {
		return 0, err
	}
	defer w.Abort()
	buf := make([]byte, sendChunk)
	defer clear(buf)
	n, err := io.CopyBuffer(onlyWriter{w}, in, buf)
	if err != nil {
		return 0, err
	}
	return uint64(n), w.Close()
}

func unprotectPart(key *keyschedule.Secret, want statestream.Header, in io.Reader, out io.Writer) (uint64, error) {
	r, err := statestream.NewReader(in, key.Bytes(), want)
	if err != nil {
		return 0, partRefusal(err)
	}
	buf := make([]byte, sendChunk)
	defer clear(buf)
	n, err := io.CopyBuffer(out, onlyReader{r}, buf)
	if err != nil {
		return 0, partRefusal(err)
	}
	return uint64(n), nil
}

// partRefusal keeps a refusal of the transport and names a failure of the record stream.
func partRefusal(err error) error {
	var r *refusal.Refusal
	if errors.As(err, &r) {
		return r
	}
	return streamRefusal(err)
}

// onlyReader and onlyWriter hide what io.CopyBuffer would use in place of the buffer that is wiped.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
