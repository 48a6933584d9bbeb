// Package vtpm puts a proxy on swtpm's control channel, between an unmodified QEMU and an unmodified swtpm, so that the state of a vTPM leaves
// the host as ciphertext only.
//
// Every command is relayed as it is, descriptors included, but for the two that carry state. When QEMU saves (GET_STATEBLOB), the blob that
// swtpm answers with is given to a Protector and QEMU gets the ciphertext. When QEMU restores (SET_STATEBLOB), the whole blob is decrypted
// before swtpm hears of it: swtpm drops the connection if a blob stops for 500 ms. The Protector is the node's enclave (RemoteProtector);
// the proxy holds no key.
//
// # What fails, and how
//
//   - Nothing is saved without an armed session for the VM: the Protector refuses, QEMU gets TPM_FAIL, reports "pre-save failed" and the VM runs
//     on. That holds for every kind of save, snapshots and suspending to a file included.
//   - A blob that does not decrypt never reaches swtpm. QEMU fails the migration; the source runs on, provided that QEMU's return-path
//     capability is on. The proxy cannot see that on the control channel: who arms the session states it (ArmRequest.return_path), and the
//     node refuses without it.
//   - swtpm keeps the blobs that it took when a later one fails, in memory, over STOP too (measured with swtpm 0.7.1: the next INIT starts from
//     them; nothing is on disk before it). Only ending swtpm discards them. So after a failed restore the proxy refuses INIT, and any
//     other blob, for as long as it lives: a TPM that is half the old one and half a new one never starts.
//   - swtpm starts with the permanent blob alone and then has reset PCRs (measured). Whoever can cut the volatile blob out of a stream could so
//     make a running guest's TPM forget its measurements. So INIT after a restore is refused unless both blobs were restored.
//
// # Plaintext
//
// Blobs in clear are wiped after use. Copies that the kernel's socket buffers and gRPC's own make while a blob crosses to the enclave are out of
// reach; that is why the process is not dumpable. The host's root, who can read swtpm's memory, is outside of what this package defends
// against (docs/threat-model.md).
//
// Non-goals: the data channel, which QEMU and swtpm share without us; TPM commands; the rest of the migration stream, in which the guest's memory and the
// TPM interface's buffer (tpm-crb: in memory, tpm-tis: in the device's state) hold the last command and its answer, and which the tunnel protects.
package vtpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/vtpm/ctrl"
)

// StateType of a blob; the numbers are swtpm's.
type StateType = ctrl.StateType

// The types of a blob.
const (
	Permanent = ctrl.Permanent
	Volatile  = ctrl.Volatile
	Savestate = ctrl.Savestate
)

// Protector encrypts and decrypts whole blobs of one VM, of 1 byte to ctrl.MaxBlob. It may refuse either. The caller wipes what it passes
// in and what it gets back; an implementation keeps neither.
type Protector interface {
	Protect(ctx context.Context, t StateType, plaintext []byte) (ciphertext []byte, err error)
	Unprotect(ctx context.Context, t StateType, ciphertext []byte) (plaintext []byte, err error)
}

// Bounds on waiting.
const (
	// DefaultPatience is how long QEMU may take over the rest of a command.
	DefaultPatience = 10 * time.Second
	// DefaultReplyTimeout is how long swtpm may take over an answer. The longest is INIT of a new TPM, on a machine under load.
	DefaultReplyTimeout = 30 * time.Second
)

// Errors of the proxy; test with errors.Is. Those of the wire are in package ctrl.
var (
	// ErrSWTPM: the connection to swtpm is no longer usable.
	ErrSWTPM = errors.New("swtpm's control channel failed")
	// ErrRestoreFailed: a restore failed before; swtpm must be ended to discard what it took.
	ErrRestoreFailed = errors.New("an earlier restore failed")
	// ErrIncompleteRestore: a TPM was to start from some of its state.
	ErrIncompleteRestore = errors.New("restore is incomplete")
	// ErrNoProtector: the proxy was given none, so it moves no state.
	ErrNoProtector = errors.New("no protector for vTPM state")
)

// Proxy relays the control channel of one swtpm. The zero value relays everything but state, which it refuses.
type Proxy struct {
	Protector Protector
	// Log gets one line for each blob and each refusal; nil means slog.Default.
	Log *slog.Logger
	// Patience and ReplyTimeout; 0 means the defaults.
	Patience, ReplyTimeout time.Duration
	// OnDataChannel, if set, is called when swtpm has taken QEMU's data channel.
	OnDataChannel func() error

	serving  sync.Mutex
	restored map[StateType]bool // blobs that swtpm took since the last INIT
	broken   error              // why the state that swtpm holds must not be used
}

// Serve relays commands from one control connection of QEMU to swtpm until QEMU hangs up (nil), ctx ends or the channel fails. It closes qemu and
// leaves swtpm open for the next one, unless the error is ErrSWTPM: then swtpm's side is out of step and must be closed. A second call waits for
// the first, as swtpm itself takes one control connection at a time.
func (p *Proxy) Serve(ctx context.Context, qemu, swtpm *net.UnixConn) (err error) {
	p.serving.Lock()
	defer p.serving.Unlock()
	s := &exchange{
		Proxy: p, log: p.Log,
		qemu:  ctrl.NewConn(qemu, orDefault(p.Patience, DefaultPatience)),
		swtpm: ctrl.NewConn(swtpm, orDefault(p.ReplyTimeout, DefaultReplyTimeout)),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	stop := context.AfterFunc(ctx, func() {
		// QEMU gets the answer to a command that is under way: SHUTDOWN itself ends swtpm, and with it the context.
		s.busy.Lock()
		defer s.busy.Unlock()
		_ = qemu.Close()
	})
	defer func() {
		if stop() {
			err = errors.Join(err, qemu.Close())
		}
	}()
	for {
		req, err := s.qemu.ReadRequest()
		switch {
		case ctx.Err() != nil:
			if err == nil && req.File != nil {
				err = req.File.Close()
			}
			return errors.Join(ctx.Err(), ignoreClosed(err))
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("control channel to QEMU: %w", err)
		}
		s.busy.Lock()
		err = s.serve(ctx, req)
		s.busy.Unlock()
		if err != nil {
			return fmt.Errorf("%v: %w", req.Command, err)
		}
	}
}

// ignoreClosed leaves out the errors that come of our own closing, and of QEMU's.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// exchange is one control connection.
type exchange struct {
	*Proxy
	log         *slog.Logger
	qemu, swtpm *ctrl.Conn
	busy        sync.Mutex // held while a command is served
}

func (s *exchange) serve(ctx context.Context, req *ctrl.Request) error {
	if req.File != nil {
		defer func() { _ = req.File.Close() }() // swtpm has its own copy by now
	}
	switch req.Command {
	case ctrl.GetStateBlob:
		return s.save(ctx, req)
	case ctrl.SetStateBlob:
		return s.restore(ctx, req)
	case ctrl.Init:
		return s.start(req)
	default:
		return s.relay(req)
	}
}

// ask sends a command to swtpm and returns its answer. An error is ErrSWTPM: half of the exchange may have happened.
func (s *exchange) ask(req *ctrl.Request) (*ctrl.Reply, error) {
	if err := s.swtpm.WriteRequest(req); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSWTPM, err)
	}
	reply, err := s.swtpm.ReadReply(req.Command)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSWTPM, err)
	}
	return reply, nil
}

// relay passes a command and its answer on as they are, except that an answer that is an error alone is padded to the length that QEMU reads. Where
// a QEMU may read less (ctrl.Command.ErrorIsRead), the connection ends behind such an answer: were the padding taken for the next one, zeros
// would read as success.
func (s *exchange) relay(req *ctrl.Request) error {
	reply, err := s.ask(req)
	if err != nil {
		return err
	}
	if req.Command == ctrl.SetDataFD && reply.Result == ctrl.ResultOK && s.OnDataChannel != nil {
		if err := s.OnDataChannel(); err != nil {
			return err
		}
	}
	if err := s.qemu.WriteReply(req.Command, reply); err != nil {
		return err
	}
	if reply.Result != ctrl.ResultOK && len(reply.Body) == 0 && !req.Command.ErrorIsRead() {
		return fmt.Errorf("swtpm refuses the command: result %#x", reply.Result)
	}
	return nil
}

// refuse answers a command itself.
func (s *exchange) refuse(req *ctrl.Request, result uint32, why error) error {
	fields := []any{"command", req.Command.String(), "why", why}
	if r := new(refusal.Refusal); errors.As(why, &r) {
		fields = append(fields, "reason", refusal.Name(r.Reason), "remedy", r.RemedyText())
	}
	s.log.Warn("control command refused", fields...)
	return s.qemu.WriteReply(req.Command, &ctrl.Reply{Result: result})
}

// start relays INIT, unless it would start a TPM from some of its state.
func (s *exchange) start(req *ctrl.Request) error {
	restoring := req.Word(0)&ctrl.InitDeleteVolatile != 0 || len(s.restored) > 0
	switch {
	case s.broken != nil:
		return s.refuse(req, ctrl.ResultFail, fmt.Errorf("%w: %w", ErrRestoreFailed, s.broken))
	case restoring && (!s.restored[Permanent] || !s.restored[Volatile]):
		s.broken = fmt.Errorf("%w: permanent %v, volatile %v, expected both", ErrIncompleteRestore, s.restored[Permanent], s.restored[Volatile])
		return s.refuse(req, ctrl.ResultFail, s.broken)
	}
	reply, err := s.ask(req)
	if err != nil {
		return err
	}
	if restoring && reply.Result != ctrl.ResultOK {
		s.broken = fmt.Errorf("swtpm did not start from the restored state: result %#x", reply.Result)
	}
	s.restored = nil
	return s.qemu.WriteReply(req.Command, reply)
}
