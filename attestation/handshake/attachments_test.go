package handshake

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// readAll fetches a whole attachment.
func readAll(fetch Fetch, name string) ([]byte, error) {
	var all []byte
	for {
		piece, err := fetch(name, uint64(len(all)))
		if err != nil || len(piece) == 0 {
			return all, err
		}
		all = append(all, piece...)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestAttachmentsOfBothLogsReachTheirAppraisers(t *testing.T) {
	for _, dialler := range []v1.Role{v1.Role_ROLE_SOURCE, v1.Role_ROLE_DESTINATION} {
		p := newPair()
		p.src.attachments = map[string][]byte{"ima": randomBytes(3*maxPiece + 17), "boot": randomBytes(100)}
		p.dst.attachments = map[string][]byte{"ima": randomBytes(2 * maxPiece), "boot": nil}
		wants := func(theirs *fake) func(c *LogClaim) error {
			return func(c *LogClaim) error {
				for name, content := range theirs.attachments {
					if got, err := readAll(c.Fetch, name); err != nil || !bytes.Equal(got, content) {
						t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
					}
				}
				return nil
			}
		}
		p.src.appraise, p.dst.appraise = wants(p.dst), wants(p.src)
		p.run(t, dialler, nil)
		if p.errS != nil || p.errD != nil {
			t.Fatal(p.errS, p.errD)
		}
		// And again, over unary calls, each with a context of its own.
		send := func(ctx context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			return p.d.Answer(proto.Clone(m).(*v1.SealedMessage), func(c *v1.ChannelPayload) (*v1.ChannelPayload, error) { return p.d.AnswerExchange(ctx, c) })
		}
		if err := p.s.Renew(t.Context(), send); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnAppraisalThatRefusesAfterAPieceEndsBothSides(t *testing.T) {
	no := refusal.New(v1.Reason_REASON_INTEGRITY_MISMATCH, "an entry")
	refuse := func(c *LogClaim) error {
		if _, err := c.Fetch("ima", 0); err != nil {
			return err
		}
		return no
	}
	for _, side := range []string{"source", "destination"} {
		p := newPair()
		p.src.attachments = map[string][]byte{"ima": randomBytes(10)}
		p.dst.attachments = p.src.attachments
		if side == "source" {
			p.src.appraise = refuse
		} else {
			p.dst.appraise = refuse
		}
		p.run(t, v1.Role_ROLE_SOURCE, nil)
		if p.errS == nil || p.errD == nil || !errors.Is(errors.Join(p.errS, p.errD), no) {
			t.Errorf("%s refuses: %v; %v", side, p.errS, p.errD)
		}
	}
}

func TestWhatAPeerMayNotAskForOrSend(t *testing.T) {
	t.Run("an attachment that there is not", func(t *testing.T) {
		for _, side := range []string{"source", "destination"} {
			p := newPair()
			ask := func(c *LogClaim) error { _, err := c.Fetch("/etc/shadow", 0); return err }
			if side == "source" {
				p.src.appraise = ask
			} else {
				p.dst.appraise = ask
			}
			p.run(t, v1.Role_ROLE_SOURCE, nil)
			if p.errS == nil || p.errD == nil {
				t.Errorf("%s asks: %v; %v", side, p.errS, p.errD)
			}
		}
	})
	t.Run("more than an exchange may fetch", func(t *testing.T) {
		p := newPair()
		p.dst.attachments = map[string][]byte{"ima": randomBytes(maxPiece)}
		p.src.appraise = func(c *LogClaim) error {
			for range maxFetched/maxPiece + 1 {
				if _, err := c.Fetch("ima", 0); err != nil {
					return err
				}
			}
			return nil
		}
		p.run(t, v1.Role_ROLE_SOURCE, nil)
		if !errors.Is(p.errS, refusal.Because(v1.Reason_REASON_LIMIT_EXCEEDED)) {
			t.Errorf("got %v", p.errS)
		}
	})
	e := new(exchange)
	want := &v1.AttachmentRequest{Name: "ima", Offset: 5}
	for name, piece := range map[string]*v1.AttachmentPiece{
		"nothing":      nil,
		"another name": {Name: "boot", Offset: 5},
		"elsewhere":    {Name: "ima", Offset: 6},
		"too much":     {Name: "ima", Offset: 5, Data: make([]byte, maxPiece+1)},
	} {
		if _, err := e.accept(want, piece); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := established(t)
	for name, m := range map[string]*v1.ChannelPayload{
		"a piece that nobody asked for": {Body: &v1.ChannelPayload_AttachmentPiece{AttachmentPiece: &v1.AttachmentPiece{Name: "ima"}}},
		"a request outside an exchange": {Body: &v1.ChannelPayload_AttachmentRequest{AttachmentRequest: &v1.AttachmentRequest{Name: "ima"}}},
	} {
		if _, err := p.d.AnswerExchange(t.Context(), m); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAnAppraisalThatWaitsEndsWithItsSession leaves D's appraisal waiting for a piece that never comes.
func TestAnAppraisalThatWaitsEndsWithItsSession(t *testing.T) {
	for name, end := range map[string]func(p *pair) error{
		"destroyed": func(p *pair) error { p.d.Destroy(); return nil },
		"a new exchange": func(p *pair) error {
			_, err := p.d.AnswerExchange(t.Context(), &v1.ChannelPayload{Body: &v1.ChannelPayload_M1{M1: &v1.MeasurementRequest{Nonce1: randomBytes(nonceSize)}}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := established(t)
			ended := make(chan error, 1)
			p.dst.appraise = func(c *LogClaim) error {
				_, err := c.Fetch("ima", 0)
				ended <- err
				return err
			}
			calls := 0
			err := p.s.Renew(t.Context(), func(_ context.Context, m *v1.SealedMessage) (*v1.SealedMessage, error) {
				answer, err := p.d.Answer(m, func(c *v1.ChannelPayload) (*v1.ChannelPayload, error) { return p.d.AnswerExchange(t.Context(), c) })
				if calls++; calls == 2 { // M1 was the first, M3 the second: the answer, which asks for a piece, is lost
					return nil, errors.New("the line is dead")
				}
				return answer, err
			})
			if err == nil {
				t.Fatal("the renewal went well")
			}
			if err := end(p); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, errStopped) {
					t.Errorf("the appraisal ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the appraisal still waits")
			}
		})
	}
}
