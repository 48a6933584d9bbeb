package node

import (
	"bytes"
	"context"
	"errors"
	"io"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/keyschedule"
	"github.com/safeconduct/safeconduct/crypto/statestream"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// Bounds of one blob, in bytes. swtpm's largest state is well under 1 MiB.
const (
	maxBlob      = 8 << 20
	maxBlobChunk = 1 << 20
	sendChunk    = 256 << 10
)

// cryptoServer implements CryptoService, for the QEMU-side helpers.
type cryptoServer struct {
	v1.UnimplementedCryptoServiceServer
	*node
}

// blobStream is what the two directions have in common: a header and data in, data and done out.
type blobStream struct {
	ctx  context.Context
	recv func() (*v1.StateHeader, []byte, error)
	send func(data []byte, done bool) error
}

// ProtectState implements CryptoService.
func (c *cryptoServer) ProtectState(rpc v1.CryptoService_ProtectStateServer) error {
	return c.cross(v1.Role_ROLE_SOURCE, &blobStream{
		ctx: rpc.Context(),
		recv: func() (*v1.StateHeader, []byte, error) {
			m, err := rpc.Recv()
			return m.GetHeader(), m.GetData(), err
		},
		send: func(data []byte, done bool) error { return rpc.Send(&v1.ProtectStateResponse{Data: data, Done: done}) },
	}, protect)
}

// UnprotectState implements CryptoService. Nothing leaves before all of it is authentic.
func (c *cryptoServer) UnprotectState(rpc v1.CryptoService_UnprotectStateServer) error {
	return c.cross(v1.Role_ROLE_DESTINATION, &blobStream{
		ctx: rpc.Context(),
		recv: func() (*v1.StateHeader, []byte, error) {
			m, err := rpc.Recv()
			return m.GetHeader(), m.GetData(), err
		},
		send: func(data []byte, done bool) error {
			return rpc.Send(&v1.UnprotectStateResponse{Data: data, Done: done})
		},
	}, unprotect)
}

// cross takes one blob across the enclave under the live session of its VM. A blob that fails ends the session: it serves one attempt.
func (c *cryptoServer) cross(role v1.Role, stream *blobStream, transform blobTransform) error {
	header, _, err := stream.recv()
	if err != nil {
		return refusal.New(v1.Reason_REASON_INVALID_REQUEST, "the stream ended before its header: %w", err)
	}
	if err := checkInstance(header.GetInstanceId()); err != nil {
		return err
	}
	if t := header.GetType(); t < v1.StateType_STATE_TYPE_PERMANENT || t > v1.StateType_STATE_TYPE_SAVESTATE {
		return invalid("type", "there is no blob type %d", t)
	}
	if !c.blobs.TryAcquire(1) {
		return refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "too many blobs are crossing")
	}
	defer c.blobs.Release(1)
	helper, err := c.helpers.of(stream.ctx, header.GetInstanceId())
	if err != nil {
		return err
	}
	s, err := c.table.BeginBlob(header.GetInstanceId(), role, header.GetType())
	if errors.Is(err, refusal.Because(v1.Reason_REASON_NO_ARMED_SESSION)) {
		return c.keepHere(helper, role, header, stream, err)
	}
	if err != nil {
		return err
	}
	if err := c.crossIn(s, header, stream, transform); err != nil {
		c.log.Warn("a blob did not cross; the session ends", "session", s.Record().ID.String(), "blob", session.BlobName(header.GetType()), "why", err)
		c.abort(stream.ctx, s, refusal.From(err))
		return err
	}
	return nil
}

// keepHere serves a blob that no session is for: saved on this node, or restored on it. none is the refusal if it is neither.
func (c *cryptoServer) keepHere(helper *attachment, role v1.Role, header *v1.StateHeader, stream *blobStream, none error) error {
	if c.localSave() != v1.LocalSave_LOCAL_SAVE_SEAL {
		return none
	}
	in, err := stream.readAll(header.GetData(), maxBlob)
	defer clear(in)
	if err != nil {
		return err
	}
	if role == v1.Role_ROLE_DESTINATION && !isLocalSave(in) {
		return none
	}
	out, err := c.crossLocally(stream.ctx, helper, role, header, in)
	defer clear(out)
	if err != nil {
		return err
	}
	c.log.Info("a vTPM's state is kept on this node: no session is for it", "instance", header.GetInstanceId(), "blob", session.BlobName(header.GetType()),
		"restored", role == v1.Role_ROLE_DESTINATION, "bytes", len(in))
	return stream.writeAll(out)
}

func (c *cryptoServer) crossIn(s *session.Session, header *v1.StateHeader, stream *blobStream, transform blobTransform) error {
	kind := header.GetType()
	most := int64(maxBlob)
	if s.Record().Role == v1.Role_ROLE_DESTINATION {
		most = statestream.SealedSize(maxBlob)
	}
	in, err := stream.readAll(header.GetData(), int(most))
	defer clear(in)
	if err != nil {
		return err
	}
	hs, err := c.standing(stream.ctx, s)
	if err != nil {
		return err
	}
	if s.Record().Role == v1.Role_ROLE_DESTINATION && kind == v1.StateType_STATE_TYPE_PERMANENT {
		if err := c.keyed(stream.ctx, hs, header.GetInstanceId()); err != nil {
			return err
		}
	}
	key, err := hs.StateKey()
	if err != nil {
		return err
	}
	defer key.Wipe()
	begun := c.now()
	head := statestream.Header{Kind: statestream.KindState, Session: hs.ID, Type: byte(kind), Direction: statestream.SourceToDestination}
	out, err := transform(key, head, in)
	defer clear(out)
	c.metrics.Phase(blobPhase(s.Record().Role), c.now().Sub(begun), err)
	if err != nil {
		return err
	}
	report := &v1.BlobReport{Type: kind, PlaintextBytes: uint64(len(in)), CiphertextBytes: uint64(len(out)), Elapsed: durationpb.New(c.now().Sub(begun))}
	if s.Record().Role == v1.Role_ROLE_DESTINATION {
		report.PlaintextBytes, report.CiphertextBytes = report.CiphertextBytes, report.PlaintextBytes
	}
	if err := s.EndBlob(report); err != nil {
		return err
	}
	c.metrics.Crossed(s.Record().Role, metrics.KindState, report.GetPlaintextBytes())
	c.log.Info("blob crossed", "session", s.Record().ID.String(), "blob", session.BlobName(kind),
		"plaintext_bytes", report.GetPlaintextBytes(), "ciphertext_bytes", report.GetCiphertextBytes())
	return stream.writeAll(out)
}

func blobPhase(role v1.Role) metrics.Phase {
	if role == v1.Role_ROLE_DESTINATION {
		return metrics.PhaseUnprotect
	}
	return metrics.PhaseProtect
}

// readAll reads the blob, which begins with first, to the caller's half-close.
func (b *blobStream) readAll(first []byte, most int) ([]byte, error) {
	buf := make([]byte, 0, max(16<<10, len(first)))
	for data := first; ; {
		if len(data) > maxBlobChunk || len(buf)+len(data) > most {
			return buf, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "a blob of more than %d bytes", most)
		}
		if len(buf)+len(data) > cap(buf) {
			grown := append(make([]byte, 0, 2*cap(buf)+len(data)), buf...)
			clear(buf) // leave no copy behind
			buf = grown
		}
		buf = append(buf, data...)
		header, next, err := b.recv()
		switch {
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return buf, refusal.New(v1.Reason_REASON_ABORTED, "the helper broke off: %w", err)
		case header != nil:
			return buf, refusal.New(v1.Reason_REASON_INVALID_REQUEST, "a second header in one stream")
		}
		data = next
	}
}

func (b *blobStream) writeAll(out []byte) error {
	for done := false; !done; {
		n := min(len(out), sendChunk)
		done = n == len(out)
		if err := b.send(out[:n], done); err != nil {
			return refusal.New(v1.Reason_REASON_ABORTED, "the helper broke off: %w", err)
		}
		out = out[n:]
	}
	return nil
}

type blobTransform func(key *keyschedule.Secret, head statestream.Header, in []byte) ([]byte, error)

func protect(key *keyschedule.Secret, head statestream.Header, plaintext []byte) ([]byte, error) {
	// A blob of a few KiB in a segment of its own size: the VM waits, and a buffer of 64 KiB costs more than the cipher.
	head.SegmentSize = min(max(statestream.MinSegment, (len(plaintext)+1023)&^1023), statestream.DefaultSegment)
	var out bytes.Buffer
	out.Grow(int(statestream.SealedSize(int64(len(plaintext)))))
	w, err := statestream.NewWriter(&out, key.Bytes(), head)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func unprotect(key *keyschedule.Secret, want statestream.Header, ciphertext []byte) ([]byte, error) {
	r, err := statestream.NewReader(bytes.NewReader(ciphertext), key.Bytes(), want)
	if err != nil {
		return nil, streamRefusal(err)
	}
	plaintext := bytes.NewBuffer(make([]byte, 0, len(ciphertext)))
	if _, err := io.Copy(plaintext, r); err != nil {
		clear(plaintext.Bytes())
		return nil, streamRefusal(err)
	}
	return plaintext.Bytes(), nil
}

// streamRefusal gives a failure of the record stream its reason.
func streamRefusal(err error) error {
	if errors.Is(err, statestream.ErrTruncated) {
		return refusal.New(v1.Reason_REASON_CIPHERTEXT_TRUNCATED, "the blob ends before its end record: %w", err)
	}
	return refusal.New(v1.Reason_REASON_CIPHERTEXT_INVALID, "the blob is not authentic under this session: %w", err)
}
