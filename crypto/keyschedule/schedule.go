// Package keyschedule derives every key of a migration session from what the two enclaves said to each other. It implements
// docs/protocol.md, "Phase 1" and "Phase 2", and the table in docs/keys.md:
//
//	seed_S, seed_D   32 random bytes each, sealed to the peer's KEM key           SealSeed, OpenSeed
//	PRK            = HKDF-Extract(SHA-384, salt = th2, ikm = seed_S || seed_D)    New
//	phase key      = HKDF-Expand(PRK, "safeconduct/v1/" purpose || th2, 32)       confirm-S, confirm-D, channel-S, channel-D
//	confirm(role)  = HMAC-SHA-384(key of confirm-role, th2)                       Confirm, CheckConfirm
//	transfer key   = HKDF-Expand(PRK, "safeconduct/v1/" purpose || th3, 32)       Finish: state, image, secret, stream, close, exporter
//
// th2 binds the phase 1 of this session, th3 the integrity logs of both hosts: keys of the transfer do not exist before both were seen. No
// key serves two purposes. The order of the protocol is enforced: no channel before the peer's confirmation was checked, no key of
// the transfer before there is a channel.
//
// What wiping can do: the bytes that this package holds are cleared. Copies that Go's runtime made (a moved stack), that HMAC
// and AES key expansion hold, and that crypto/hpke keeps inside its private key become garbage and are overwritten only when their memory is
// used again. In an enclave that memory is encrypted and the host cannot read it; the wiping limits what a later flaw in the enclave could
// reveal.
//
// Non-goals: it computes no transcript (package transcript does, its caller says over what), knows no message and stores nothing.
package keyschedule

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha512"
	"errors"
	"fmt"
	"sync"

	"github.com/safeconduct/safeconduct/crypto/channel"
)

// ConfirmSize is the size of a key confirmation in bytes.
const ConfirmSize = sha512.Size384

const labelPrefix = "safeconduct/v1/"

// Role of a node in the migration. The zero value is neither.
type Role uint8

// The roles.
const (
	Source      Role = 1
	Destination Role = 2
)

// Errors of the schedule's order.
var (
	// ErrNotConfirmed: the peer's key confirmation was not checked, or did not match.
	ErrNotConfirmed = errors.New("the peer has not confirmed its keys")
	// ErrChannelTaken: the channel was made already. A second one would repeat the nonces of the first.
	ErrChannelTaken = errors.New("the channel of this session exists already")
	// ErrNoChannel: keys of the transfer were asked for before the channel over which phase 2 runs.
	ErrNoChannel = errors.New("there was no channel yet")
)

type prk [sha512.Size384]byte

// Schedule is the key schedule of one session. It is safe for concurrent use.
type Schedule struct {
	th2 [48]byte

	mu sync.Mutex
	// The PRK is behind a function for the reason given at Secret. Nil: wiped.
	prk                  func() *prk
	confirmS, confirmD   *Secret
	channelS, channelD   *Secret
	sawS, sawD, channels bool
}

// New extracts the PRK and derives the keys of phase 1's end. It copies what it needs: the caller wipes the seeds. Error: ErrWiped, for a
// seed without bytes.
func New(th2 [48]byte, seedS, seedD *Secret) (*Schedule, error) {
	if seedS.Bytes() == nil || seedD.Bytes() == nil {
		return nil, fmt.Errorf("seed: %w", ErrWiped)
	}
	ikm := make([]byte, 0, 2*SecretSize)
	ikm = append(append(ikm, seedS.Bytes()...), seedD.Bytes()...)
	defer clear(ikm)
	extracted, err := hkdf.Extract(sha512.New384, ikm, th2[:])
	if err != nil {
		return nil, fmt.Errorf("extracting the PRK: %w", err)
	}
	defer clear(extracted)
	p := prk(extracted)
	s := &Schedule{th2: th2, prk: func() *prk { return &p }}
	for purpose, key := range map[string]**Secret{
		"confirm-S": &s.confirmS, "confirm-D": &s.confirmD, "channel-S": &s.channelS, "channel-D": &s.channelD,
	} {
		if *key, err = expand(p[:], purpose, th2[:]); err != nil {
			s.Wipe()
			return nil, err
		}
	}
	return s, nil
}

// expand derives the key of one purpose. The context has a fixed length and ends the info, so that purpose and context cannot
// run into each other.
func expand(key []byte, purpose string, context []byte) (*Secret, error) {
	out, err := hkdf.Expand(sha512.New384, key, labelPrefix+purpose+string(context), SecretSize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of %s: %w", purpose, err)
	}
	defer clear(out)
	return SecretFrom(out)
}

// Confirm returns the key confirmation of role, ConfirmSize bytes, or nil if role is none or the schedule is wiped.
func (s *Schedule) Confirm(role Role) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confirm(role)
}

func (s *Schedule) confirm(role Role) []byte {
	var key []byte
	switch role {
	case Source:
		key = s.confirmS.Bytes()
	case Destination:
		key = s.confirmD.Bytes()
	}
	if key == nil {
		return nil
	}
	mac := hmac.New(sha512.New384, key)
	mac.Write(s.th2[:])
	return mac.Sum(nil)
}

// CheckConfirm says, in constant time, whether tag is the key confirmation of role, the peer's. Channel needs it to have succeeded.
func (s *Schedule) CheckConfirm(role Role, tag []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := s.confirm(role)
	if want == nil || !hmac.Equal(want, tag) {
		return false
	}
	switch role {
	case Source:
		s.sawS = true
	case Destination:
		s.sawD = true
	}
	return true
}

// Channel makes the record layer of M1 to M4 and of the control messages, once. source says whether this node is the source; context is
// the hash ctx of docs/protocol.md. The confirmation of the other role must have been checked. The schedule forgets the channel's
// keys. Errors: ErrNotConfirmed, ErrChannelTaken, ErrWiped.
func (s *Schedule) Channel(source bool, context [48]byte) (*channel.Channel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.prk == nil:
		return nil, ErrWiped
	case s.channels:
		return nil, ErrChannelTaken
	case source && !s.sawD, !source && !s.sawS:
		return nil, ErrNotConfirmed
	}
	ch, err := channel.New(source, s.channelS.Bytes(), s.channelD.Bytes(), context)
	if err != nil {
		return nil, err
	}
	s.channels = true
	s.channelS.Wipe()
	s.channelD.Wipe()
	return ch, nil
}

// Finish derives the keys of the transfer. th3 binds the integrity logs of both hosts and the nonces of M1 to M4. When the integrity
// exchange is renewed it is called again with the new th3 and gives unrelated keys; the same th3 gives the same keys. Errors:
// ErrNoChannel, ErrWiped.
func (s *Schedule) Finish(th3 [48]byte) (*Keys, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.prk == nil:
		return nil, ErrWiped
	case !s.channels:
		return nil, ErrNoChannel
	}
	return deriveKeys(s.prk()[:], th3)
}

// Wipe destroys what the schedule holds. Keys that Finish returned and the channel have a Wipe of their own. It may be called
// again.
func (s *Schedule) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prk != nil {
		clear(s.prk()[:])
		s.prk = nil
	}
	for _, key := range []*Secret{s.confirmS, s.confirmD, s.channelS, s.channelD} {
		key.Wipe()
	}
}
