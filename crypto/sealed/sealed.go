// Package sealed keeps an enclave's secrets on a disk that the enclave does not trust: the escrowed passphrases of vTPMs, receipts, the record
// of minimum collateral numbers.
//
// A blob is AES-256-GCM under a key that only this enclave's code (or its signer's, as the KeySource decides) on this processor can derive:
//
//	blob   = header || AES-256-GCM(plaintext), AAD = header         every integer big-endian
//	header = "SCSEALED" || version (1) || mode, kind, name (each: length (1) || bytes) || generation (8)
//	         || length (2) || key info || salt (32)
//	key, nonce = HKDF(SHA-384, ikm = seal key, salt, info = "safeconduct/v1/sealed" || length (1) || mode || length (1) || kind, 32 + 12)
//
// The salt is random, so that each blob has a key of its own and there is no bound on the number of blobs. The name is in the header: a
// blob put in another's place is refused (ErrWrongBlob). The mode is in the header and in the key: what a simulation sealed is
// never opened by hardware, nor the reverse, and the refusal (ErrMode) comes before a key is asked for.
//
// What the host can do all the same: delete blobs, and put back an old one. Within the life of a Store, the old one is noticed
// (ErrRollback), a deleted one too. After a restart it is not: the hardware gives an enclave no memory of its own. So a sealed
// secret that was deleted is out of reach of the enclave's callers, not of a host that kept the file and can start the same enclave again
// and ask it: what then still guards it is the enclave's own policy of release. A 128-bit seal key (SGX) bounds the strength to 128 bits.
//
// Non-goals: no rollback protection across restarts, no sharing of a directory between processes, no hiding of names or lengths.
package sealed

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"fmt"
)

// The modes that a KeySource can have.
const (
	ModeIntel     = "intel"
	ModeSimulated = "simulated"
)

const (
	keyLabel = "safeconduct/v1/sealed"
	// minSealKey is what SGX gives (EGETKEY: 128 bits).
	minSealKey = 16
)

// KeySource derives seal keys. tee implements it. An implementation treats keyInfo as what it is, bytes from an untrusted disk.
type KeySource interface {
	// Mode is ModeIntel or ModeSimulated, and never changes.
	Mode() string
	// SealKey returns the current seal key, 16 bytes or more, and what RecoverSealKey needs in order to derive it again, MaxKeyInfo
	// bytes at most. The caller clears the key.
	SealKey(ctx context.Context) (key, keyInfo []byte, err error)
	// RecoverSealKey returns the seal key that keyInfo stands for. The caller clears it.
	RecoverSealKey(ctx context.Context, keyInfo []byte) (key []byte, err error)
}

// Seal encrypts plaintext as generation (from 1) of id. Errors: ErrID, ErrMode, ErrTooLong, ErrSealKey, and those of keys.
func Seal(ctx context.Context, keys KeySource, id ID, generation uint64, plaintext []byte) ([]byte, error) {
	var salt [saltSize]byte
	rand.Read(salt[:]) // never fails: it would end the process
	return seal(ctx, keys, id, generation, plaintext, salt)
}

func seal(ctx context.Context, keys KeySource, id ID, generation uint64, plaintext []byte, salt [saltSize]byte) ([]byte, error) {
	mode := keys.Mode()
	if err := checkMode(mode); err != nil {
		return nil, err
	}
	if err := id.check(); err != nil {
		return nil, err
	}
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrTooLong, len(plaintext), MaxPlaintext)
	}
	if generation == 0 {
		return nil, fmt.Errorf("%w: generation 0", ErrMalformed)
	}
	sealKey, keyInfo, err := keys.SealKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	defer clear(sealKey)
	if len(keyInfo) > MaxKeyInfo {
		return nil, fmt.Errorf("%w: its key info has %d bytes, expected at most %d", ErrSealKey, len(keyInfo), MaxKeyInfo)
	}
	aead, nonce, err := derive(sealKey, mode, id.Kind, salt)
	if err != nil {
		return nil, err
	}
	b := &blob{mode: mode, id: id, generation: generation, keyInfo: keyInfo, salt: salt}
	header := b.encodeHeader()
	out := make([]byte, 0, len(header)+len(plaintext)+tagSize)
	out = append(out, header...)
	return aead.Seal(out, nonce, plaintext, header), nil
}

// Open decrypts a blob that must be id's and returns its plaintext and generation. Errors: ErrID, ErrMalformed, ErrVersion, ErrMode,
// ErrWrongBlob, ErrSealKey, ErrNotAuthentic, and those of keys.
func Open(ctx context.Context, keys KeySource, id ID, raw []byte) (plaintext []byte, generation uint64, err error) {
	mode := keys.Mode()
	if err := checkMode(mode); err != nil {
		return nil, 0, err
	}
	if err := id.check(); err != nil {
		return nil, 0, err
	}
	b, err := parse(raw)
	if err != nil {
		return nil, 0, err
	}
	if b.mode != mode {
		return nil, 0, fmt.Errorf("%w: found %s, expected %s", ErrMode, b.mode, mode)
	}
	if b.id != id {
		return nil, 0, fmt.Errorf("%w: found %v, expected %v", ErrWrongBlob, b.id, id)
	}
	sealKey, err := keys.RecoverSealKey(ctx, b.keyInfo)
	if err != nil {
		return nil, 0, fmt.Errorf("seal key: %w", err)
	}
	defer clear(sealKey)
	aead, nonce, err := derive(sealKey, mode, id.Kind, b.salt)
	if err != nil {
		return nil, 0, err
	}
	plaintext, err = aead.Open(nil, nonce, b.ciphertext, b.header)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %v, generation %d", ErrNotAuthentic, id, b.generation)
	}
	return plaintext, b.generation, nil
}

// derive makes the cipher and the nonce of one blob. Key and nonce both come from the salt, which is new for each blob.
func derive(sealKey []byte, mode, kind string, salt [saltSize]byte) (cipher.AEAD, []byte, error) {
	var all byte
	for _, b := range sealKey {
		all |= b
	}
	if len(sealKey) < minSealKey || all == 0 {
		return nil, nil, fmt.Errorf("%w: found %d bytes, expected at least %d, not all zero", ErrSealKey, len(sealKey), minSealKey)
	}
	info := keyLabel
	for _, s := range []string{mode, kind} {
		info += string([]byte{byte(len(s))}) + s
	}
	const keySize, nonceSize = 32, 12
	out, err := hkdf.Key(sha512.New384, sealKey, salt[:], info, keySize+nonceSize)
	if err != nil {
		return nil, nil, fmt.Errorf("deriving a blob's key: %w", err)
	}
	defer clear(out[:keySize])
	block, err := aes.NewCipher(out[:keySize])
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, out[keySize:], err
}
