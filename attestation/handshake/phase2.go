package handshake

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha512"
	"io"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/transcript"
)

// exchange is one integrity exchange under way. A session has at most one; a new M1 begins a new one.
type exchange struct {
	nonce1, nonce2, nonce3, nonce4 []byte
	logS, logD                     [48]byte // SHA-384 of the exact bytes
	awaits                         int      // number of the message that must come next
	appraised                      *v1.Appraised
	kept                           keptLog
	attachments                    map[string][]byte // of this host's log
	pull                           *pull             // D's appraisal of log_S, while it waits for pieces
	fetched                        int
}

func (s *Session) nonce() ([]byte, error) {
	n := make([]byte, nonceSize)
	_, err := io.ReadFull(s.node.Rand, n)
	return n, err
}

// exchangeOver runs M1 to M4 over the handshake's stream.
func (s *Session) exchangeOver(ctx context.Context, stream Stream) error {
	if s.Role == v1.Role_ROLE_SOURCE {
		send := func(_ context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
			if err := stream.Send(&v1.Frame{Body: &v1.Frame_Sealed{Sealed: m}}); err != nil {
				return nil, lost("phase 2", err)
			}
			return receiveSealed(stream)
		}
		return s.ask(ctx, send)
	}
	for s.PeerAppraised() == nil {
		sealed, err := receiveSealed(stream)
		if err != nil {
			return err
		}
		answer, err := s.Answer(sealed, func(p *v1.ChannelPayload) (*v1.ChannelPayload, error) {
			return s.AnswerExchange(ctx, p)
		})
		if answer != nil {
			if err := stream.Send(&v1.Frame{Body: &v1.Frame_Sealed{Sealed: answer}}); err != nil {
				return lost("phase 2", err)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ask is the source's side of M1 to M4, whatever carries the messages.
func (s *Session) ask(ctx context.Context, send Sender) error {
	m1, err := s.m1()
	if err != nil {
		return err
	}
	m2, err := s.Request(ctx, send, m1)
	if err != nil {
		return err
	}
	m3, err := s.answerM2(ctx, m2, s.fetcher(ctx, send))
	if err != nil {
		return err
	}
	answer, err := s.Request(ctx, send, m3)
	for err == nil && answer.GetAttachmentWanted() != nil {
		var piece *v1.ChannelPayload
		if piece, err = s.piece(4, answer.GetAttachmentWanted()); err == nil {
			answer, err = s.Request(ctx, send, piece)
		}
	}
	if err != nil {
		return err
	}
	return s.checkM4(answer)
}

func receiveSealed(stream Stream) (*v1.SealedMessage, error) {
	frame, err := receive(stream, "phase 2")
	if err != nil {
		return nil, err
	}
	if frame.GetSealed() == nil {
		return nil, violation("%s in phase 2", frameName(frame))
	}
	return frame.GetSealed(), nil
}

// AnswerExchange answers M1 with M2 and M3 with M4, on the destination. Between them it hands out pieces of its own log's attachments, and asks
// for pieces of the source's before it answers M4.
func (s *Session) AnswerExchange(ctx context.Context, p *v1.ChannelPayload) (*v1.ChannelPayload, error) {
	switch {
	case p.GetM1() != nil:
		return s.answerM1(ctx, p.GetM1())
	case p.GetM3() != nil:
		return s.answerM3(ctx, p.GetM3())
	case p.GetAttachmentRequest() != nil:
		return s.piece(3, p.GetAttachmentRequest())
	case p.GetAttachmentPiece() != nil:
		return s.answerPiece(p.GetAttachmentPiece())
	}
	return nil, violation("%s is no message of the integrity exchange", payloadName(p))
}

func payloadName(p *v1.ChannelPayload) string {
	m := p.ProtoReflect()
	if field := m.WhichOneof(m.Descriptor().Oneofs().Get(0)); field != nil {
		return string(field.Name())
	}
	return "empty"
}

// begin replaces any exchange under way.
func (s *Session) begin(e *exchange) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return s.over()
	}
	if s.exchange != nil {
		s.exchange.pull.stop()
	}
	s.exchange = e
	return nil
}

// expecting returns the exchange under way if number is the message that must come next.
func (s *Session) expecting(number int) (*exchange, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return nil, s.over()
	}
	if s.exchange == nil || s.exchange.awaits != number {
		return nil, violation("M%d out of turn", number)
	}
	return s.exchange, nil
}

// m1 makes M1: Request_meas(S), nonce1. Source.
func (s *Session) m1() (*v1.ChannelPayload, error) {
	nonce, err := s.nonce()
	if err != nil {
		return nil, err
	}
	if err := s.begin(&exchange{nonce1: nonce, awaits: 2}); err != nil {
		return nil, err
	}
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_M1{M1: &v1.MeasurementRequest{Nonce1: nonce}}}, nil
}

// answerM1 makes M2: Sign_D(log_D), Request_meas(D), nonce1, nonce2. Destination.
func (s *Session) answerM1(ctx context.Context, m1 *v1.MeasurementRequest) (*v1.ChannelPayload, error) {
	if s.Role != v1.Role_ROLE_DESTINATION || len(m1.GetNonce1()) != nonceSize {
		return nil, violation("M1 is malformed or reflected")
	}
	nonce2, err := s.nonce()
	if err != nil {
		return nil, err
	}
	e := &exchange{nonce1: m1.GetNonce1(), nonce2: nonce2, awaits: 3}
	var signed *v1.SignedLog
	if e.logD, signed, err = s.signedLog(ctx, e, m1.GetNonce1()); err != nil {
		return nil, err
	}
	if err := s.begin(e); err != nil {
		return nil, err
	}
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_M2{M2: &v1.DestinationLog{
		Log: signed, Nonce1: m1.GetNonce1(), Nonce2: nonce2,
	}}}, nil
}

// answerM2 appraises the destination and makes M3: Sign_S(log_S), Request_mig, nonce2, nonce3. Source.
func (s *Session) answerM2(ctx context.Context, p *v1.ChannelPayload, fetch Fetch) (*v1.ChannelPayload, error) {
	m2 := p.GetM2()
	e, err := s.expecting(2)
	if err != nil {
		return nil, err
	}
	if m2 == nil || !bytes.Equal(m2.GetNonce1(), e.nonce1) || len(m2.GetNonce2()) != nonceSize {
		return nil, violation("M2 is malformed or does not answer our M1")
	}
	if e.logD, err = s.appraiseLog(ctx, e, m2.GetLog(), e.nonce1, fetch); err != nil {
		return nil, err
	}
	if e.nonce3, err = s.nonce(); err != nil {
		return nil, err
	}
	var signed *v1.SignedLog
	if e.logS, signed, err = s.signedLog(ctx, e, m2.GetNonce2()); err != nil {
		return nil, err
	}
	e.nonce2, e.awaits = m2.GetNonce2(), 4
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_M3{M3: &v1.SourceLog{
		Log: signed, Nonce2: e.nonce2, Nonce3: e.nonce3,
	}}}, nil
}

// answerM3 appraises the source and makes M4: Measure_comp, nonce3, nonce4. Destination.
func (s *Session) answerM3(ctx context.Context, m3 *v1.SourceLog) (*v1.ChannelPayload, error) {
	e, err := s.expecting(3)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(m3.GetNonce2(), e.nonce2) || len(m3.GetNonce3()) != nonceSize {
		return nil, violation("M3 is malformed or does not answer our M2")
	}
	e.nonce3, e.awaits = m3.GetNonce3(), awaitsPiece
	appraisal := newPull(e, func(fetch Fetch) (err error) {
		// The appraisal outlives this call when it waits for a piece.
		e.logS, err = s.appraiseLog(context.WithoutCancel(ctx), e, m3.GetLog(), e.nonce2, fetch)
		return err
	})
	s.mu.Lock()
	e.pull = appraisal // Destroy reads it
	s.mu.Unlock()
	return s.goOn(e, nil)
}

// answerPiece hands a piece of the source's log to the appraisal that waits for it.
func (s *Session) answerPiece(piece *v1.AttachmentPiece) (*v1.ChannelPayload, error) {
	e, err := s.expecting(awaitsPiece)
	if err != nil {
		return nil, err
	}
	return s.goOn(e, piece)
}

// goOn lets the appraisal of the source's log run until it wants a piece or ends, and then makes M4.
func (s *Session) goOn(e *exchange, piece *v1.AttachmentPiece) (*v1.ChannelPayload, error) {
	wanted, err := e.pull.next(piece)
	if err != nil {
		return nil, err
	}
	if wanted != nil {
		return &v1.ChannelPayload{Body: &v1.ChannelPayload_AttachmentWanted{AttachmentWanted: wanted}}, nil
	}
	if e.nonce4, err = s.nonce(); err != nil {
		return nil, err
	}
	s.finish(e)
	if err := s.renewKeys(); err != nil {
		return nil, err
	}
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_M4{M4: &v1.Comparison{Nonce3: e.nonce3, Nonce4: e.nonce4}}}, nil
}

// checkM4 ends the exchange at the source.
func (s *Session) checkM4(p *v1.ChannelPayload) error {
	m4 := p.GetM4()
	e, err := s.expecting(4)
	if err != nil {
		return err
	}
	if m4 == nil || !bytes.Equal(m4.GetNonce3(), e.nonce3) || len(m4.GetNonce4()) != nonceSize {
		return violation("M4 is malformed or does not answer our M3")
	}
	e.nonce4 = m4.GetNonce4()
	s.finish(e)
	return nil
}

// finish records the outcome and fixes th3, which binds both logs.
func (s *Session) finish(e *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.th3 = transcript.H384("safeconduct/v1/th3", s.th2[:], e.logS[:], e.logD[:], e.nonce1, e.nonce2, e.nonce3, e.nonce4)
	s.appraised, s.kept, s.at, s.exchange = e.appraised, e.kept, s.node.Now(), nil
	s.facts.LogS, s.facts.LogD = e.logS, e.logD
	s.facts.Nonce1, s.facts.Nonce2, s.facts.Nonce3, s.facts.Nonce4 = e.nonce1, e.nonce2, e.nonce3, e.nonce4
}

// renewKeys derives keys anew on the destination when an exchange renews one that keys were derived from already.
func (s *Session) renewKeys() error {
	s.mu.Lock()
	derived := s.keys != nil
	s.mu.Unlock()
	if !derived {
		return nil
	}
	return s.deriveKeys()
}

// signedLog measures this host for the peer's nonce and signs the log's exact bytes.
func (s *Session) signedLog(ctx context.Context, e *exchange, nonce []byte) ([48]byte, *v1.SignedLog, error) {
	whole, err := s.node.Logs.Log(ctx, Qualifying(s.Role, s.th2, nonce))
	if err != nil {
		return [48]byte{}, nil, err
	}
	log := whole.Raw
	e.attachments = whole.Attachments
	if len(log) > maxLog {
		return [48]byte{}, nil, refusal.New(v1.Reason_REASON_MEASUREMENT_FAILED, "this host's log has %d bytes, more than %d", len(log), maxLog)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return [48]byte{}, nil, s.over()
	}
	signature := ed25519.Sign(s.signKey, logTranscript(s.Role, s.th2, nonce, log))
	return sha512.Sum384(log), &v1.SignedLog{Log: log, Signature: signature}, nil
}

// appraiseLog checks the signature of the peer's enclave over its log, then the log.
func (s *Session) appraiseLog(ctx context.Context, e *exchange, signed *v1.SignedLog, nonce []byte, fetch Fetch) (digest [48]byte, err error) {
	role, log := other(s.Role), signed.GetLog()
	if len(log) > maxLog || len(signed.GetSignature()) != signatureLen {
		return digest, violation("the peer's log is malformed")
	}
	if !ed25519.Verify(s.peerSign, logTranscript(role, s.th2, nonce, log), signed.GetSignature()) {
		return digest, violation("the peer's log is not signed by its enclave for this exchange")
	}
	kept := keptLog{qualifying: Qualifying(role, s.th2, nonce), at: s.node.Now()}
	s.mu.Lock()
	claim := &LogClaim{
		Raw: log, Qualifying: kept.qualifying, Host: s.PeerHost(), Platform: s.peerPlatform, Peer: s.peer, At: kept.at, Fetch: fetch,
		Previous: s.kept.next,
	}
	s.mu.Unlock()
	e.appraised, err = s.node.Reference.AppraiseLog(ctx, claim)
	if err != nil {
		return digest, err
	}
	kept.next = claim.Next
	if len(log) <= maxKeptLog {
		kept.raw = log
	}
	e.kept = kept
	return sha512.Sum384(log), nil
}

func marshal(p *v1.ChannelPayload) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(p)
}
