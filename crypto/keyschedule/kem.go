package keyschedule

import (
	"crypto/hpke"
	"errors"
	"fmt"
	"sync"
)

// Sizes in bytes.
const (
	// KEMPublicSize is an ML-KEM-768 encapsulation key (1184) followed by an X25519 public key (32).
	KEMPublicSize = 1216
	// KEMEncapsulationSize is an ML-KEM-768 ciphertext (1088) followed by an X25519 public key (32).
	KEMEncapsulationSize = 1120
	// SealedSeedSize is what SealSeed returns: the encapsulation, the encrypted seed and its tag (16).
	SealedSeedSize = KEMEncapsulationSize + SecretSize + 16
)

// Errors of the key encapsulation.
var (
	// ErrPublicKey: the peer's public key is malformed or of low order.
	ErrPublicKey = errors.New("invalid KEM public key")
	// ErrSealedSeed: the sealed seed is malformed, altered, or was sealed for another key, session or direction.
	ErrSealedSeed = errors.New("sealed seed does not open")
	// ErrWiped: the key was used or destroyed.
	ErrWiped = errors.New("key is wiped")
)

// The suite is fixed: HPKE (RFC 9180), base mode, with X25519 and ML-KEM-768 combined as X-Wing (draft-ietf-hpke-pq,
// MLKEM768-X25519, identifier 0x647a), HKDF-SHA384 and AES-256-GCM. It holds if either X25519 or ML-KEM does.
func kem() hpke.KEM   { return hpke.MLKEM768X25519() }
func kdf() hpke.KDF   { return hpke.HKDFSHA384() }
func aead() hpke.AEAD { return hpke.AES256GCM() }

// KEMPrivate is the private key to which the peer seals its seed. It is made for one session and opens one seed. It is safe for concurrent use.
type KEMPrivate struct {
	public []byte

	mu sync.Mutex
	// Behind a function for the reason given at Secret. Nil: used or wiped.
	key func() hpke.PrivateKey
}

func newKEM(key hpke.PrivateKey) *KEMPrivate {
	return &KEMPrivate{public: key.PublicKey().Bytes(), key: func() hpke.PrivateKey { return key }}
}

// GenerateKEM makes a key pair from the system's randomness (crypto/hpke takes no other).
func GenerateKEM() (*KEMPrivate, error) {
	key, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generating a KEM key: %w", err)
	}
	return newKEM(key), nil
}

// kemFromSeed expands a key pair from 32 bytes, for test vectors.
func kemFromSeed(seed []byte) (*KEMPrivate, error) {
	key, err := kem().NewPrivateKey(seed)
	if err != nil {
		return nil, err
	}
	return newKEM(key), nil
}

// Public returns a copy of the public key, KEMPublicSize bytes. It outlives Wipe.
func (k *KEMPrivate) Public() []byte { return append([]byte(nil), k.public...) }

// OpenSeed opens the peer's seed. info is what the peer gave to SealSeed: th1 || "S->D" or th1 || "D->S". A key opens once: it
// is wiped whatever the outcome, so that nobody can try ciphertexts on it. Errors: ErrSealedSeed, ErrWiped.
func (k *KEMPrivate) OpenSeed(sealed, info []byte) (*Secret, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key == nil {
		return nil, ErrWiped
	}
	defer k.wipe()
	if len(sealed) != SealedSeedSize {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrSealedSeed, len(sealed), SealedSeedSize)
	}
	seed, err := hpke.Open(k.key(), kdf(), aead(), info, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealedSeed, err)
	}
	defer clear(seed)
	s, err := SecretFrom(seed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealedSeed, err)
	}
	return s, nil
}

// Wipe drops the private key and clears its seed. The expanded key is crypto/hpke's: it is garbage from here on, and not overwritten.
func (k *KEMPrivate) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wipe()
}

func (k *KEMPrivate) wipe() {
	if k.key == nil {
		return
	}
	// crypto/hpke hands out its own slice here, as of Go 1.26; were it a copy, this would be useless but harmless.
	if seed, err := k.key().Bytes(); err == nil {
		clear(seed)
	}
	k.key = nil
}

// SealSeed seals seed to the peer's public key. It is called only once the peer's evidence, which binds that key, was appraised. info = th1
// || "S->D" for the source's seed, th1 || "D->S" for the destination's. It returns SealedSeedSize bytes. Errors: ErrPublicKey,
// ErrWiped.
func SealSeed(peerPublic []byte, seed *Secret, info []byte) ([]byte, error) {
	plain := seed.Bytes()
	if plain == nil {
		return nil, fmt.Errorf("seed: %w", ErrWiped)
	}
	if len(peerPublic) != KEMPublicSize {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrPublicKey, len(peerPublic), KEMPublicSize)
	}
	public, err := kem().NewPublicKey(peerPublic)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPublicKey, err)
	}
	sealed, err := hpke.Seal(public, kdf(), aead(), info, plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPublicKey, err)
	}
	return sealed, nil
}
