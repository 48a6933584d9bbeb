package vtpm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/safeconduct/safeconduct/services/vtpm/ctrl"
)

// save serves GET_STATEBLOB: the blob leaves as ciphertext or not at all.
func (s *exchange) save(ctx context.Context, req *ctrl.Request) error {
	t := req.StateType()
	if err := checkBlob(t, req.Word(2)); err != nil {
		return s.refuse(req, ctrl.ResultBadParameter, err)
	}
	reply, err := s.ask(req)
	if err != nil {
		return err
	}
	plaintext := reply.Data
	defer clear(plaintext)
	if len(plaintext) == 0 {
		// There is no such blob (a TPM 2.0 has no savestate), or swtpm refused: there is nothing to protect.
		if reply.Result == ctrl.ResultOK {
			s.log.Warn("swtpm has an empty blob; the destination will not start from it", "blob", t.String())
		}
		return s.qemu.WriteReply(req.Command, reply)
	}
	begun := time.Now()
	ciphertext, err := s.protect(ctx, t, plaintext)
	if err != nil {
		return s.refuse(req, ctrl.ResultFail, fmt.Errorf("protecting the %v blob: %w", t, err))
	}
	s.log.Info("vTPM state protected", "blob", t.String(), "plaintext_bytes", len(plaintext), "ciphertext_bytes", len(ciphertext), "elapsed", time.Since(begun))
	return s.qemu.WriteReply(req.Command, &ctrl.Reply{Body: reply.Body, Data: ciphertext})
}

func (s *exchange) protect(ctx context.Context, t StateType, plaintext []byte) ([]byte, error) {
	if s.Protector == nil {
		return nil, ErrNoProtector
	}
	ciphertext, err := s.Protector.Protect(ctx, t, plaintext)
	switch {
	case err != nil:
		return nil, err
	case len(ciphertext) == 0:
		return nil, errors.New("the protector returned nothing")
	case len(ciphertext) > ctrl.MaxBlob:
		return nil, fmt.Errorf("%w: %d bytes of ciphertext, expected %d at most", ctrl.ErrTooLong, len(ciphertext), ctrl.MaxBlob)
	}
	return ciphertext, nil
}

// restore serves SET_STATEBLOB: swtpm gets the whole plaintext in one go, or nothing.
func (s *exchange) restore(ctx context.Context, req *ctrl.Request) error {
	t := req.StateType()
	if err := checkBlob(t, 0); err != nil {
		return s.failRestore(req, ctrl.ResultBadParameter, err)
	}
	if s.broken != nil {
		return s.refuse(req, ctrl.ResultFail, fmt.Errorf("%w: %w", ErrRestoreFailed, s.broken))
	}
	if len(req.Data) == 0 {
		return s.relay(req) // nothing to decrypt, and it does not count as restored
	}
	begun, received := time.Now(), len(req.Data)
	plaintext, err := s.unprotect(ctx, t, req.Data)
	defer clear(plaintext)
	if err != nil {
		return s.failRestore(req, ctrl.ResultFail, fmt.Errorf("unprotecting the %v blob: %w", t, err))
	}
	req.Data = plaintext
	reply, err := s.ask(req)
	if err != nil {
		s.broken = err
		return err
	}
	if reply.Result != ctrl.ResultOK {
		return s.failRestore(req, reply.Result, fmt.Errorf("swtpm refuses the %v blob: result %#x", t, reply.Result))
	}
	if s.restored == nil {
		s.restored = map[StateType]bool{}
	}
	s.restored[t] = true
	s.log.Info("vTPM state restored", "blob", t.String(), "ciphertext_bytes", received, "plaintext_bytes", len(plaintext), "elapsed", time.Since(begun))
	return s.qemu.WriteReply(req.Command, reply)
}

func (s *exchange) unprotect(ctx context.Context, t StateType, ciphertext []byte) ([]byte, error) {
	if s.Protector == nil {
		return nil, ErrNoProtector
	}
	plaintext, err := s.Protector.Unprotect(ctx, t, ciphertext)
	switch {
	case err != nil:
		clear(plaintext)
		return nil, err
	case len(plaintext) == 0:
		return nil, errors.New("the protector returned nothing")
	case len(plaintext) > ctrl.MaxBlob:
		return plaintext, fmt.Errorf("%w: %d bytes of plaintext, expected %d at most", ctrl.ErrTooLong, len(plaintext), ctrl.MaxBlob)
	}
	return plaintext, nil
}

// failRestore refuses a blob, and from here on whatever would start the TPM from what swtpm took before it.
func (s *exchange) failRestore(req *ctrl.Request, result uint32, why error) error {
	s.broken = why
	return s.refuse(req, result, why)
}

// checkBlob refuses what is not one whole blob: neither QEMU nor swtpm deals in pieces on a socket.
func checkBlob(t StateType, offset uint32) error {
	if t < Permanent || t > Savestate {
		return fmt.Errorf("%w: there is no %v", ctrl.ErrMalformed, t)
	}
	if offset != 0 {
		return fmt.Errorf("%w: the %v blob from offset %d, expected all of it", ctrl.ErrMalformed, t, offset)
	}
	return nil
}
