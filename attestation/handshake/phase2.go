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
	for range 2 {
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
	if s.PeerAppraised() == nil {
		return violation("phase 2 ended without the source's log")
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
	m3, err := s.answerM2(ctx, m2)
	if err != nil {
		return err
	}
	m4, err := s.Request(ctx, send, m3)
	if err != nil {
		return err
	}
	return s.checkM4(m4)
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

// AnswerExchange answers M1 with M2 and M3 with M4, on the destination.
func (s *Session) AnswerExchange(ctx context.Context, p *v1.ChannelPayload) (*v1.ChannelPayload, error) {
	switch {
	case p.GetM1() != nil:
		return s.answerM1(ctx, p.GetM1())
	case p.GetM3() != nil:
		return s.answerM3(ctx, p.GetM3())
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
	log, signed, err := s.signedLog(ctx, m1.GetNonce1())
	if err != nil {
		return nil, err
	}
	e := &exchange{nonce1: m1.GetNonce1(), nonce2: nonce2, logD: log, awaits: 3}
	if err := s.begin(e); err != nil {
		return nil, err
	}
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_M2{M2: &v1.DestinationLog{
		Log: signed, Nonce1: m1.GetNonce1(), Nonce2: nonce2,
	}}}, nil
}

// answerM2 appraises the destination and makes M3: Sign_S(log_S), Request_mig, nonce2, nonce3. Source.
func (s *Session) answerM2(ctx context.Context, p *v1.ChannelPayload) (*v1.ChannelPayload, error) {
	m2 := p.GetM2()
	e, err := s.expecting(2)
	if err != nil {
		return nil, err
	}
	if m2 == nil || !bytes.Equal(m2.GetNonce1(), e.nonce1) || len(m2.GetNonce2()) != nonceSize {
		return nil, violation("M2 is malformed or does not answer our M1")
	}
	if e.logD, err = s.appraiseLog(ctx, e, m2.GetLog(), e.nonce1); err != nil {
		return nil, err
	}
	if e.nonce3, err = s.nonce(); err != nil {
		return nil, err
	}
	var signed *v1.SignedLog
	if e.logS, signed, err = s.signedLog(ctx, m2.GetNonce2()); err != nil {
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
	if e.logS, err = s.appraiseLog(ctx, e, m3.GetLog(), e.nonce2); err != nil {
		return nil, err
	}
	if e.nonce4, err = s.nonce(); err != nil {
		return nil, err
	}
	e.nonce3 = m3.GetNonce3()
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
func (s *Session) signedLog(ctx context.Context, nonce []byte) ([48]byte, *v1.SignedLog, error) {
	log, err := s.node.Logs.Log(ctx, Qualifying(s.Role, s.th2, nonce))
	if err != nil {
		return [48]byte{}, nil, err
	}
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
func (s *Session) appraiseLog(ctx context.Context, e *exchange, signed *v1.SignedLog, nonce []byte) (digest [48]byte, err error) {
	role, log := other(s.Role), signed.GetLog()
	if len(log) > maxLog || len(signed.GetSignature()) != signatureLen {
		return digest, violation("the peer's log is malformed")
	}
	if !ed25519.Verify(s.peerSign, logTranscript(role, s.th2, nonce, log), signed.GetSignature()) {
		return digest, violation("the peer's log is not signed by its enclave for this exchange")
	}
	kept := keptLog{qualifying: Qualifying(role, s.th2, nonce), at: s.node.Now()}
	e.appraised, err = s.node.Reference.AppraiseLog(ctx, log, kept.qualifying, s.PeerHost(), s.peerPlatform, s.peerNow(), kept.at)
	if err != nil {
		return digest, err
	}
	if len(log) <= maxKeptLog {
		kept.raw = log
	}
	e.kept = kept
	return sha512.Sum384(log), nil
}

func marshal(p *v1.ChannelPayload) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(p)
}
