package handshake

import (
	"bytes"
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/keyschedule"
)

// receive reads one frame, refuses what the protocol has no place for, and turns the peer's refusal into an error.
func receive(stream Stream, what string) (*v1.Frame, error) {
	frame, err := stream.Recv()
	if err != nil {
		return nil, lost(what, err)
	}
	if frame == nil || frame.GetBody() == nil || hasUnknown(frame) {
		return nil, violation("%s is empty or has fields that this version does not know", what)
	}
	if r := frame.GetRefused(); r != nil {
		return nil, &peerRefusal{refusal.New(r.GetReason(), "the peer refused at %s", what)}
	}
	return frame, nil
}

// peerRefusal marks a refusal as the peer's word, so that it is not sent back to it.
type peerRefusal struct{ *refusal.Refusal }

func (p *peerRefusal) Unwrap() error { return p.Refusal }

func refusedByPeer(err error) bool {
	var p *peerRefusal
	return errors.As(err, &p)
}

// hasUnknown looks for unknown fields in a frame and the message inside it.
func hasUnknown(frame *v1.Frame) bool {
	if len(frame.ProtoReflect().GetUnknown()) > 0 {
		return true
	}
	for _, m := range []proto.Message{
		frame.GetOpen(), frame.GetHello(), frame.GetSourceEvidence(), frame.GetDestinationSeal(), frame.GetConfirm(),
		frame.GetSealed(), frame.GetRefused(),
	} {
		if r := m.ProtoReflect(); r.IsValid() && len(r.GetUnknown()) > 0 {
			return true
		}
	}
	return false
}

func frameName(frame *v1.Frame) string {
	m := frame.ProtoReflect()
	if field := m.WhichOneof(m.Descriptor().Oneofs().Get(0)); field != nil {
		return string(field.Name())
	}
	return "empty"
}

// checkOpen checks form: what is well-formed here can be hashed and printed safely.
func checkOpen(o *v1.Open) error {
	bad := func(field string) error { return violation("open: %s is malformed", field) }
	switch {
	case len(o.GetSuite()) > 128:
		return bad("suite")
	case len(o.GetAttemptId()) != attemptSize || bytes.Equal(o.GetAttemptId(), make([]byte, attemptSize)):
		return bad("attempt_id")
	case !IsInstanceID(o.GetInstanceId()):
		return bad("instance_id")
	case !isHost(o.GetSourceHost()):
		return bad("source_host")
	case !isHost(o.GetDestinationHost()):
		return bad("destination_host")
	case o.GetDiallerRole() != v1.Role_ROLE_SOURCE && o.GetDiallerRole() != v1.Role_ROLE_DESTINATION:
		return bad("dialler_role")
	case o.GetSourceHost() == o.GetDestinationHost():
		return refusal.New(v1.Reason_REASON_SAME_NODE, "source and destination are both %s", o.GetSourceHost())
	}
	return nil
}

// IsInstanceID says whether s is a UUID in canonical lower case. One VM has one spelling: sessions are found by it.
func IsInstanceID(s string) bool {
	if len(s) != maxInstance {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !strings.ContainsRune("0123456789abcdef", rune(c)) {
				return false
			}
		}
	}
	return true
}

func isHost(s string) bool {
	if s == "" || len(s) > maxHost {
		return false
	}
	for _, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if digit := '0' <= c && c <= '9'; !letter && !digit && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// checkHello checks sizes. Message 2 alone carries evidence.
func checkHello(h *v1.Hello, second bool) error {
	bad := func(field string) error { return violation("hello: %s is malformed", field) }
	switch {
	case len(h.GetPlatformId()) != digestSize:
		return bad("platform_id")
	case len(h.GetPolicyDigest()) != digestSize:
		return bad("policy_digest")
	case len(h.GetNonce()) != nonceSize:
		return bad("nonce")
	case len(h.GetKemPublic()) != keyschedule.KEMPublicSize:
		return bad("kem_public")
	case second && (len(h.GetEvidence()) == 0 || len(h.GetEvidence()) > maxEvidence):
		return bad("evidence")
	case second && len(h.GetSignPublic()) != signPublic:
		return bad("sign_public")
	case !second && (len(h.GetEvidence()) != 0 || len(h.GetSignPublic()) != 0):
		return violation("hello: message 1 carries evidence")
	}
	return nil
}

// unmarshalStrict parses one channel payload; unknown fields at any depth are refused.
func unmarshalStrict(raw []byte) (*v1.ChannelPayload, error) {
	p := new(v1.ChannelPayload)
	if err := proto.Unmarshal(raw, p); err != nil {
		return nil, violation("channel payload: %w", err)
	}
	known, err := proto.MarshalOptions{}.Marshal(withoutUnknown(p))
	if err != nil || len(known) != len(raw) || p.GetBody() == nil {
		return nil, violation("channel payload: empty, or with fields that this version does not know")
	}
	return p, nil
}

func withoutUnknown(p *v1.ChannelPayload) proto.Message {
	clean := new(v1.ChannelPayload)
	proto.Merge(clean, p)
	clean.ProtoReflect().SetUnknown(nil)
	return clean
}
