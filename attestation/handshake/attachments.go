package handshake

import (
	"context"
	"errors"
	"iter"
	"sync"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// awaitsPiece is the turn of an exchange in which D's appraisal waits for a piece of S's log.
const awaitsPiece = 34

// piece hands out a piece of an attachment of this host's log, in the given turn of the exchange.
func (s *Session) piece(turn int, want *v1.AttachmentRequest) (*v1.ChannelPayload, error) {
	e, err := s.expecting(turn)
	if err != nil {
		return nil, err
	}
	content, ok := e.attachments[want.GetName()]
	if !ok || want.GetOffset() > uint64(len(content)) {
		return nil, violation("the peer asks for byte %d of an attachment %.40q that this host's log does not have", want.GetOffset(), want.GetName())
	}
	data := content[want.GetOffset():]
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_AttachmentPiece{AttachmentPiece: &v1.AttachmentPiece{
		Name: want.GetName(), Offset: want.GetOffset(), Data: data[:min(len(data), maxPiece)],
	}}}, nil
}

// accept checks that a piece is the one asked for, and within what one exchange may fetch.
func (e *exchange) accept(want *v1.AttachmentRequest, piece *v1.AttachmentPiece) ([]byte, error) {
	data := piece.GetData()
	if piece == nil || piece.GetName() != want.GetName() || piece.GetOffset() != want.GetOffset() || len(data) > maxPiece {
		return nil, violation("the peer sent another piece of its log than was asked for")
	}
	if e.fetched += len(data); e.fetched > maxFetched {
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "the attachments of the peer's log have more than %d bytes", maxFetched)
	}
	return data, nil
}

// fetcher asks D for pieces, on S: each is a request of its own.
func (s *Session) fetcher(ctx context.Context, send Sender) Fetch {
	return func(name string, offset uint64) ([]byte, error) {
		e, err := s.expecting(2)
		if err != nil {
			return nil, err
		}
		want := &v1.AttachmentRequest{Name: name, Offset: offset}
		answer, err := s.Request(ctx, send, &v1.ChannelPayload{Body: &v1.ChannelPayload_AttachmentRequest{AttachmentRequest: want}})
		if err != nil {
			return nil, err
		}
		return e.accept(want, answer.GetAttachmentPiece())
	}
}

// errStopped ends an appraisal whose exchange is over.
var errStopped = errors.New("the exchange is over")

// pull is D's appraisal of S's log. D only answers; so the appraisal runs until it needs a piece, which D's answer then asks for, and goes on when S
// brings it.
type pull struct {
	resume func() (*v1.AttachmentRequest, bool)
	end    func()
	piece  *v1.AttachmentPiece
	err    error

	mu               sync.Mutex
	running, stopped bool
}

func newPull(e *exchange, appraise func(Fetch) error) *pull {
	p := new(pull)
	p.resume, p.end = iter.Pull(func(yield func(*v1.AttachmentRequest) bool) {
		p.err = appraise(func(name string, offset uint64) ([]byte, error) {
			want := &v1.AttachmentRequest{Name: name, Offset: offset}
			if !yield(want) {
				return nil, errStopped
			}
			return e.accept(want, p.piece)
		})
	})
	return p
}

// next lets the appraisal go on with a piece, until it wants another (which is returned) or has ended (nil, or its error).
func (p *pull) next(piece *v1.AttachmentPiece) (*v1.AttachmentRequest, error) {
	if !p.begin() {
		return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "%w", errStopped)
	}
	defer p.done()
	p.piece = piece
	if wanted, more := p.resume(); more {
		return wanted, nil
	}
	return nil, p.err
}

func (p *pull) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.running {
		return false
	}
	p.running = true
	return true
}

func (p *pull) done() {
	p.mu.Lock()
	p.running = false
	stopped := p.stopped
	p.mu.Unlock()
	if stopped {
		p.end()
	}
}

// stop ends the appraisal: at once if it waits for a piece, else when it next does. A nil pull has nothing to stop.
func (p *pull) stop() {
	if p == nil {
		return
	}
	p.mu.Lock()
	idle := !p.stopped && !p.running
	p.stopped = true
	p.mu.Unlock()
	if idle {
		p.end()
	}
}
