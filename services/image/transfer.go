package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// Protect encrypts opts.In into the container opts.Out under the VM's armed outgoing session. When an earlier run was of a session that is over,
// it begins anew.
func Protect(ctx context.Context, client v1.CryptoServiceClient, opts Options) error {
	if opts.Part <= 0 {
		opts.Part = DefaultPart
	}
	t, err := open(opts)
	if err != nil {
		return err
	}
	err = t.protect(ctx, client)
	return errors.Join(err, t.close())
}

func (t *transfer) protect(ctx context.Context, client v1.CryptoServiceClient) error {
	restarted := false
	for !t.at.Done {
		err := t.protectPart(ctx, client)
		// A session that does not know the earlier parts is another one.
		if errors.Is(err, refusal.Because(v1.Reason_REASON_WRONG_STATE)) && t.at.Plain > 0 && !restarted {
			restarted = true
			if err = t.restart(); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
	}
	return t.finish()
}

func (t *transfer) protectPart(ctx context.Context, client v1.CryptoServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := t.at
	if at.Written == 0 {
		if _, err := t.out.WriteAt([]byte(magic), 0); err != nil {
			return err
		}
		at.Written = int64(len(magic))
	}
	length := min(t.opts.Part, at.Size-at.Read)
	f := frame{offset: uint64(at.Plain), last: at.Read+length == at.Size}
	rpc, err := client.ProtectImage(ctx)
	if err != nil {
		return rpcerror.Refusal(err)
	}
	call := exchange{
		send: func(h *v1.ImageHeader, data []byte) error {
			if h != nil {
				return rpc.Send(&v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Header{Header: h}})
			}
			return rpc.Send(&v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Data{Data: data}})
		},
		closeSend: rpc.CloseSend,
		recv:      func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err },
	}
	out := io.NewOffsetWriter(t.out, at.Written+frameSize)
	header := &v1.ImageHeader{InstanceId: t.opts.Instance, Name: t.opts.Name, Offset: f.offset, Last: f.last}
	if f.length, err = call.run(ctx, header, io.NewSectionReader(t.in, at.Read, length), out); err != nil {
		return explain(t.opts.Name, f, err)
	}
	if _, err := t.out.WriteAt(f.encode(), at.Written); err != nil {
		return err
	}
	at.Written += frameSize + f.length
	at.Read += length
	at.Plain, at.Done = at.Read, f.last
	t.at = at
	return t.save()
}

// Unprotect decrypts the container opts.In into opts.Out under the VM's armed incoming session.
func Unprotect(ctx context.Context, client v1.CryptoServiceClient, opts Options) error {
	t, err := open(opts)
	if err != nil {
		return err
	}
	err = t.unprotect(ctx, client)
	return errors.Join(err, t.close())
}

func (t *transfer) unprotect(ctx context.Context, client v1.CryptoServiceClient) error {
	if t.at.Read == 0 {
		head := make([]byte, len(magic))
		if _, err := t.in.ReadAt(head, 0); err != nil || string(head) != magic {
			return fmt.Errorf("%w: %s does not begin with %q", ErrContainer, t.opts.In, magic)
		}
		t.at.Read = int64(len(magic))
	}
	for !t.at.Done {
		if err := t.unprotectPart(ctx, client); err != nil {
			return err
		}
	}
	if t.at.Read != t.at.Size {
		return fmt.Errorf("%w: %d bytes follow its last part", ErrContainer, t.at.Size-t.at.Read)
	}
	return t.finish()
}

func (t *transfer) unprotectPart(ctx context.Context, client v1.CryptoServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := t.at
	f, err := readFrame(t.in, at.Read, at.Size)
	if err != nil {
		return err
	}
	if f.offset != uint64(at.Plain) {
		return fmt.Errorf("%w: the part at byte %d is of offset %d, expected %d", ErrContainer, at.Read, f.offset, at.Plain)
	}
	rpc, err := client.UnprotectImage(ctx)
	if err != nil {
		return rpcerror.Refusal(err)
	}
	call := exchange{
		send: func(h *v1.ImageHeader, data []byte) error {
			if h != nil {
				return rpc.Send(&v1.UnprotectImageRequest{Body: &v1.UnprotectImageRequest_Header{Header: h}})
			}
			return rpc.Send(&v1.UnprotectImageRequest{Body: &v1.UnprotectImageRequest_Data{Data: data}})
		},
		closeSend: rpc.CloseSend,
		recv:      func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err },
	}
	header := &v1.ImageHeader{InstanceId: t.opts.Instance, Name: t.opts.Name, Offset: f.offset, Last: f.last}
	in := io.NewSectionReader(t.in, at.Read+frameSize, f.length)
	plain, err := call.run(ctx, header, in, io.NewOffsetWriter(t.out, at.Written))
	if err != nil {
		return explain(t.opts.Name, f, err)
	}
	at.Read += frameSize + f.length
	at.Written += plain
	at.Plain, at.Done = at.Written, f.last
	t.at = at
	return t.save()
}

// explain makes a refusal of the node service one again and says which part it was.
func explain(name string, f frame, err error) error {
	if r, ok := rpcerror.Typed(err); ok {
		err = r
	}
	return fmt.Errorf("image %s, part at %d: %w", name, f.offset, err)
}
