package handshake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func established(t *testing.T) *pair {
	t.Helper()
	p := newPair()
	p.run(t, v1.Role_ROLE_SOURCE, nil)
	if p.errS != nil || p.errD != nil {
		t.Fatal(p.errS, p.errD)
	}
	return p
}

// wire lets the source talk to the destination, whose answers handle makes.
func (p *pair) wire(handle func(*v1.ChannelPayload) (*v1.ChannelPayload, error)) Sender {
	return func(_ context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
		answer, err := p.d.Answer(proto.Clone(m).(*v1.SealedMessage), handle)
		if answer != nil {
			return answer, nil
		}
		return nil, err
	}
}

func echoArm(p *v1.ChannelPayload) (*v1.ChannelPayload, error) {
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_Armed{Armed: &v1.ArmedPayload{MigrationId: p.GetArm().GetMigrationId()}}}, nil
}

func armPayload(id string) *v1.ChannelPayload {
	return &v1.ChannelPayload{Body: &v1.ChannelPayload_Arm{Arm: &v1.ArmPayload{MigrationId: id}}}
}

func TestARequestWhoseAnswerWasLostIsAnsweredOnce(t *testing.T) {
	p := established(t)
	calls := 0
	count := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) { calls++; return echoArm(m) }
	send := p.wire(count)
	lossy := func(ctx context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
		_, _ = send(ctx, m)
		return nil, errors.New("the answer was lost")
	}
	if _, err := p.s.Request(t.Context(), lossy, armPayload("m1")); err == nil {
		t.Fatal("a lost answer is no error")
	}
	answer, err := p.s.Request(t.Context(), send, armPayload("m1"))
	if err != nil || answer.GetArmed().GetMigrationId() != "m1" {
		t.Fatalf("the retry: %v, %v", answer, err)
	}
	if calls != 1 {
		t.Errorf("the destination acted %d times", calls)
	}
	if _, err := p.s.Request(t.Context(), send, armPayload("m2")); err != nil || calls != 2 {
		t.Errorf("the next request: %v, %d calls", err, calls)
	}
}

func TestAReplayedRequestIsNeverActedOnAgain(t *testing.T) {
	p := established(t)
	var old *v1.SealedMessage
	calls := 0
	count := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) { calls++; return echoArm(m) }
	spy := func(ctx context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
		if old == nil {
			old = proto.Clone(m).(*v1.SealedMessage)
		}
		return p.wire(count)(ctx, m)
	}
	for _, id := range []string{"m1", "m2"} {
		if _, err := p.s.Request(t.Context(), spy, armPayload(id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.d.Answer(old, count); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) {
		t.Errorf("a replay of the first request: %v", err)
	}
	if calls != 2 {
		t.Errorf("acted %d times", calls)
	}
}

func TestARefusalTravelsToAnAppraisedPeer(t *testing.T) {
	p := established(t)
	no := func(*v1.ChannelPayload) (*v1.ChannelPayload, error) {
		return nil, refusal.New(v1.Reason_REASON_ALREADY_USED, "local detail")
	}
	_, err := p.s.Request(t.Context(), p.wire(no), armPayload("m1"))
	if !errors.Is(err, refusal.Because(v1.Reason_REASON_ALREADY_USED)) {
		t.Errorf("got %v", err)
	}
}

func TestTheDestinationNeverAsks(t *testing.T) {
	p := established(t)
	if _, err := p.d.Request(t.Context(), p.wire(echoArm), armPayload("m1")); err == nil {
		t.Error("the destination sent a request")
	}
	if _, err := p.s.Answer(&v1.SealedMessage{}, echoArm); err == nil {
		t.Error("the source answered one")
	}
}

func TestARenewedExchangeGivesBothSidesNewKeys(t *testing.T) {
	p := established(t)
	before, err := p.s.StateKey()
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) { return p.d.AnswerExchange(t.Context(), m) }
	if err := p.s.Renew(t.Context(), p.wire(exchange)); err != nil {
		t.Fatal(err)
	}
	ks, errS := p.s.StateKey()
	kd, errD := p.d.StateKey()
	if errS != nil || errD != nil || !ks.Equal(kd) || ks.Equal(before) {
		t.Errorf("after renewal: %v %v, same %v, unchanged %v", errS, errD, ks.Equal(kd), ks.Equal(before))
	}
	if p.src.logsAppraised != 2 || p.dst.logsAppraised != 2 {
		t.Errorf("logs appraised %d and %d times", p.src.logsAppraised, p.dst.logsAppraised)
	}
}

func TestAnAppraiserIsToldWhatItSawBefore(t *testing.T) {
	var seen []any
	p := newPair()
	p.src.appraise = func(c *LogClaim) error {
		seen = append(seen, c.Previous)
		c.Next = len(seen)
		return nil
	}
	p.run(t, v1.Role_ROLE_SOURCE, nil)
	exchange := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) { return p.d.AnswerExchange(t.Context(), m) }
	for range 2 {
		if err := p.s.Renew(t.Context(), p.wire(exchange)); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 || seen[0] != nil || seen[1] != 1 || seen[2] != 2 {
		t.Errorf("saw %v", seen)
	}
}

func TestARenewalCanRefuse(t *testing.T) {
	p := established(t)
	p.dst.refuseLog = refusal.New(v1.Reason_REASON_INTEGRITY_MISMATCH, "a module changed")
	exchange := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) { return p.d.AnswerExchange(t.Context(), m) }
	if err := p.s.Renew(t.Context(), p.wire(exchange)); !errors.Is(err, refusal.Because(v1.Reason_REASON_INTEGRITY_MISMATCH)) {
		t.Errorf("got %v", err)
	}
}

func TestExchangeMessagesOutOfTurnAreRefused(t *testing.T) {
	p := established(t)
	n := make([]byte, nonceSize)
	for name, m := range map[string]*v1.ChannelPayload{
		"M3 without M1":         {Body: &v1.ChannelPayload_M3{M3: &v1.SourceLog{Log: &v1.SignedLog{}, Nonce2: n, Nonce3: n}}},
		"M2 at the destination": {Body: &v1.ChannelPayload_M2{M2: &v1.DestinationLog{}}},
		"a short nonce":         {Body: &v1.ChannelPayload_M1{M1: &v1.MeasurementRequest{Nonce1: n[:31]}}},
	} {
		if _, err := p.d.AnswerExchange(t.Context(), m); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := p.s.AnswerExchange(t.Context(), &v1.ChannelPayload{Body: &v1.ChannelPayload_M1{M1: &v1.MeasurementRequest{Nonce1: n}}}); err == nil {
		t.Error("the source answers a reflected M1")
	}
}

func TestALogSignedForAnotherExchangeIsRefused(t *testing.T) {
	p, q := established(t), established(t)
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce)
	_, signed, err := q.d.signedLog(t.Context(), &exchange{}, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.s.appraiseLog(t.Context(), &exchange{}, signed, nonce, nil); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) {
		t.Errorf("another session's log: %v", err)
	}
	if _, err := q.s.appraiseLog(t.Context(), &exchange{}, signed, make([]byte, nonceSize), nil); err == nil {
		t.Error("another exchange's log is accepted")
	}
	if _, err := q.s.appraiseLog(t.Context(), &exchange{}, signed, nonce, nil); err != nil {
		t.Errorf("the exchange's own log: %v", err)
	}
}

func TestNothingWorksAfterDestroy(t *testing.T) {
	p := established(t)
	p.s.Destroy()
	p.s.Destroy()
	if _, err := p.s.StateKey(); !errors.Is(err, refusal.Because(v1.Reason_REASON_WRONG_STATE)) {
		t.Errorf("StateKey: %v", err)
	}
	if _, err := p.s.Request(t.Context(), p.wire(echoArm), armPayload("m")); err == nil {
		t.Error("Request works")
	}
	if err := p.s.deriveKeys(); err == nil {
		t.Error("keys are derived")
	}
	p.d.Destroy()
	if _, err := p.d.Answer(&v1.SealedMessage{Ciphertext: []byte("x")}, echoArm); err == nil {
		t.Error("Answer works")
	}
}

func TestAnAnswerThatEndsTheSessionIsStillSealed(t *testing.T) {
	p := established(t)
	end := func(m *v1.ChannelPayload) (*v1.ChannelPayload, error) {
		p.d.Destroy()
		return echoArm(m)
	}
	answer, err := p.s.Request(t.Context(), p.wire(end), armPayload("m"))
	if err != nil || answer.GetArmed().GetMigrationId() != "m" {
		t.Fatalf("got %v, %v", answer, err)
	}
	if _, err := p.s.Request(t.Context(), p.wire(end), armPayload("n")); err == nil {
		t.Error("the destroyed side answers again")
	}
}

func FuzzFrame(f *testing.F) {
	seed, _ := proto.Marshal(&v1.Frame{Body: &v1.Frame_Open{Open: &v1.Open{Suite: Suite, InstanceId: instance}}})
	f.Add(seed)
	f.Add([]byte{})
	n := newNode(&fake{host: "compute2"})
	f.Fuzz(func(t *testing.T, raw []byte) {
		frame := new(v1.Frame)
		if proto.Unmarshal(raw, frame) != nil {
			return
		}
		o, err := n.ReceiveOpen(&mirror{queue: []*v1.Frame{frame}})
		if err == nil && (o.PeerHost == n.Host || !IsInstanceID(o.Intent.Instance)) {
			t.Errorf("admitted %+v", o)
		}
		if h := frame.GetHello(); h != nil && checkHello(h, true) == nil && len(h.GetEvidence()) > maxEvidence {
			t.Error("an oversized hello passes")
		}
	})
}

func TestASessionDoesNotPrintItsKeys(t *testing.T) {
	p := established(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, p.s); got != fmt.Sprintf("session %x", p.s.ID) {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
