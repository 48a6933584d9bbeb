// Package channel is the record layer of the messages M1 to M4 of the handshake and of the control messages after it
// (docs/protocol.md, "Phase 2"): AES-256-GCM with one key a direction, in strict order, each message once.
//
//	nonce = 32 zero bits || 64-bit counter, big-endian
//	AAD   = context (48 bytes) || counter (8 bytes, big-endian) || direction ("S->D" or "D->S")
//
// The counter is the number of the message in its direction, from 0. A key belongs to one channel, hence to one session and one direction: no
// nonce is used twice under it. The caller must never make two channels of the same keys; package keyschedule hands them out once.
//
// A message that does not open changes nothing: an attacker who injects one cannot desynchronise the two ends. It is the caller that must
// count and report ErrNotAuthentic, for it never happens by accident.
//
// Requests that travel over calls which may be tried again after a lost answer are sent again as the same bytes, never sealed again: the
// caller keeps what Seal returned. The receiver's Open then says ErrReplay, and only for a message that is authentic, so that the caller
// can answer with the answer that it kept. Open reveals nothing of the message a second time.
//
// Non-goals: no fragmentation, no retransmission, no rekeying (a session is short) and no padding: lengths are visible.
package channel

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// Sizes in bytes, and limits.
const (
	KeySize     = 32
	ContextSize = 48
	// Overhead is what Seal adds to a plaintext: the tag.
	Overhead = 16
	// MaxPlaintext is the longest message.
	MaxPlaintext = 16 << 20
	// MaxMessages is how many messages a direction carries in the life of a channel.
	MaxMessages = 1 << 32
	// MaxTotal is how many bytes of plaintext a direction carries in the life of a channel: 2^35 blocks of AES, at which
	// an attacker's advantage over an ideal cipher is below 2^-57 (squared blocks over 2^128).
	MaxTotal = 1 << 39
)

// Errors. Each names one reason; test with errors.Is.
var (
	// ErrKey: a key has the wrong size, is all zero, or both directions have the same.
	ErrKey = errors.New("invalid channel key")
	// ErrNotAuthentic: the message was altered or cut, or is of another session, direction or number. To be reported.
	ErrNotAuthentic = errors.New("message is not authentic")
	// ErrReflected: the message is one that this end has sent.
	ErrReflected = errors.New("message is our own, reflected")
	// ErrReplay: the message is authentic and was opened before.
	ErrReplay = errors.New("message was opened before")
	// ErrGap: the message is authentic and not yet due: one before it was dropped, or overtaken.
	ErrGap = errors.New("message is ahead of its turn")
	// ErrTooLong: the message is longer than MaxPlaintext.
	ErrTooLong = errors.New("message is too long")
	// ErrExhausted: the direction has carried MaxMessages or MaxTotal.
	ErrExhausted = errors.New("channel is exhausted")
	// ErrWiped: the keys are destroyed.
	ErrWiped = errors.New("channel is wiped")
)

// Channel is one end of a channel. It is safe for concurrent use; the order in which concurrent calls of Seal get their numbers is
// the order in which the other end must Open.
type Channel struct {
	mu         sync.Mutex
	context    [ContextSize]byte
	send, recv half
}

// half is one direction.
type half struct {
	// Behind a function, because fmt, given an unlucky verb, follows pointers into the expanded key. Nil: wiped.
	aead      func() cipher.AEAD
	direction string
	next      uint64 // number of the next message
	total     uint64 // bytes of plaintext so far
}

// New makes one end: the source's if source is true, the destination's otherwise. keyS protects what the source sends, keyD what the
// destination sends; the caller wipes them. Error: ErrKey.
func New(source bool, keyS, keyD []byte, context [ContextSize]byte) (*Channel, error) {
	if subtle.ConstantTimeCompare(keyS, keyD) == 1 {
		return nil, fmt.Errorf("%w: both directions have the same", ErrKey)
	}
	toD, err := newAEAD(keyS)
	if err != nil {
		return nil, fmt.Errorf("%w of the source", err)
	}
	toS, err := newAEAD(keyD)
	if err != nil {
		return nil, fmt.Errorf("%w of the destination", err)
	}
	c := &Channel{context: context, send: half{aead: toD, direction: "S->D"}, recv: half{aead: toS, direction: "D->S"}}
	if !source {
		c.send, c.recv = c.recv, c.send
	}
	return c, nil
}

func newAEAD(key []byte) (func() cipher.AEAD, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrKey, len(key), KeySize)
	}
	if bytes.Equal(key, make([]byte, KeySize)) {
		return nil, fmt.Errorf("%w: all zero", ErrKey)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return func() cipher.AEAD { return aead }, nil
}

// Seal encrypts the next message of this end. It returns its number, from 0, and len(plaintext) + Overhead bytes. Errors: ErrTooLong,
// ErrExhausted, ErrWiped.
func (c *Channel) Seal(plaintext []byte) (counter uint64, ciphertext []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.send
	switch {
	case h.aead == nil:
		return 0, nil, ErrWiped
	case len(plaintext) > MaxPlaintext:
		return 0, nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrTooLong, len(plaintext), MaxPlaintext)
	case h.next >= MaxMessages, h.total+uint64(len(plaintext)) > MaxTotal:
		return 0, nil, fmt.Errorf("%w: %d messages, %d bytes sent", ErrExhausted, h.next, h.total)
	}
	counter = h.next
	ciphertext = h.aead().Seal(nil, nonce(counter), plaintext, c.aad(h, counter))
	h.next++
	h.total += uint64(len(plaintext))
	return counter, ciphertext, nil
}

// Open decrypts the message with the given number, which must be the next one of the other end. On error nothing changes and the due message
// still opens. Errors: ErrNotAuthentic, ErrReflected, ErrReplay, ErrGap, ErrTooLong, ErrExhausted, ErrWiped.
func (c *Channel) Open(counter uint64, ciphertext []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.recv
	switch {
	case h.aead == nil:
		return nil, ErrWiped
	case len(ciphertext) > MaxPlaintext+Overhead:
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrTooLong, len(ciphertext), MaxPlaintext+Overhead)
	case counter >= MaxMessages:
		return nil, fmt.Errorf("%w: message %d", ErrExhausted, counter)
	}
	// Authenticity comes first: what a message is called (a replay, a gap) may be acted on, so only the peer can cause it.
	plaintext, err := h.aead().Open(nil, nonce(counter), ciphertext, c.aad(h, counter))
	if err != nil {
		return nil, c.notAuthentic(counter, ciphertext)
	}
	if counter != h.next {
		clear(plaintext)
		kind := ErrGap
		if counter < h.next {
			kind = ErrReplay
		}
		return nil, fmt.Errorf("%w: found number %d, expected %d", kind, counter, h.next)
	}
	h.next++
	h.total += uint64(len(plaintext))
	return plaintext, nil
}

// notAuthentic tells a reflection from the rest, by trying the message as one of ours. What comes out is our own plaintext and goes
// nowhere.
func (c *Channel) notAuthentic(counter uint64, ciphertext []byte) error {
	own, err := c.send.aead().Open(nil, nonce(counter), ciphertext, c.aad(&c.send, counter))
	if err != nil {
		return fmt.Errorf("%w: number %d, %d bytes", ErrNotAuthentic, counter, len(ciphertext))
	}
	clear(own)
	return fmt.Errorf("%w: number %d", ErrReflected, counter)
}

func nonce(counter uint64) []byte {
	n := make([]byte, 12)
	binary.BigEndian.PutUint64(n[4:], counter)
	return n
}

func (c *Channel) aad(h *half, counter uint64) []byte {
	a := make([]byte, 0, ContextSize+8+4)
	a = append(a, c.context[:]...)
	a = binary.BigEndian.AppendUint64(a, counter)
	return append(a, h.direction...)
}

// Wipe drops the keys of both directions. The expanded AES keys are crypto/aes's: they are garbage from here on, and not
// overwritten. It may be called again.
func (c *Channel) Wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send.aead, c.recv.aead = nil, nil
}
