package wycheproof

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/keyschedule"
)

// TestAES256GCM: crypto/channel, crypto/statestream and crypto/sealed use 32-byte keys, 12-byte nonces and whole tags.
func TestAES256GCM(t *testing.T) {
	type group struct{ IVSize, KeySize, TagSize int }
	type test struct {
		vector
		Key, IV, AAD, Msg, CT, Tag unhex
	}
	run(t, "aes_gcm_test.json", 66, func(g group, v test) error {
		if g.KeySize != 256 || g.IVSize != 96 || g.TagSize != 128 {
			return errSkipped
		}
		block, err := aes.NewCipher(v.Key)
		if err != nil {
			return err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return err
		}
		sealed := append(append([]byte(nil), v.CT...), v.Tag...)
		// In place, as a Reader of crypto/statestream does.
		inPlace := bytes.Clone(sealed)
		opened, err := aead.Open(inPlace[:0], v.IV, inPlace, v.AAD)
		if err := v.expects(err == nil); err != nil {
			return err
		}
		if !v.valid() {
			return nil
		}
		if !bytes.Equal(opened, v.Msg) {
			return fmt.Errorf("opened to %x", opened)
		}
		buf := append(make([]byte, 0, len(sealed)), v.Msg...)
		if got := aead.Seal(buf[:0], v.IV, buf, v.AAD); !bytes.Equal(got, sealed) {
			return fmt.Errorf("sealed to %x", got)
		}
		return nil
	})
}

type hkdfTest struct {
	vector
	IKM, Salt, Info, OKM unhex
	Size                 int
}

// TestHKDF: SHA-384 in crypto/keyschedule, crypto/statestream and crypto/sealed; SHA-256 in tee/simulated.
func TestHKDF(t *testing.T) {
	check := func(h func() hash.Hash) func(struct{}, hkdfTest) error {
		return func(_ struct{}, v hkdfTest) error {
			prk, err := hkdf.Extract(h, v.IKM, v.Salt)
			if err != nil {
				return err
			}
			out, err := hkdf.Expand(h, prk, string(v.Info), v.Size)
			if err := v.expects(err == nil); err != nil {
				return err
			}
			if v.valid() && !bytes.Equal(out, v.OKM) {
				return fmt.Errorf("derived %x", out)
			}
			whole, err := hkdf.Key(h, v.IKM, v.Salt, string(v.Info), v.Size)
			if err := v.expects(err == nil && bytes.Equal(whole, v.OKM)); err != nil {
				return fmt.Errorf("hkdf.Key: %w", err)
			}
			return nil
		}
	}
	run(t, "hkdf_sha384_test.json", 83, check(sha512.New384))
	run(t, "hkdf_sha256_test.json", 86, check(sha256.New))
}

// TestHMAC: SHA-384 confirms the keys of a handshake; SHA-256 is in tee/simulated. Only whole tags are ever compared.
func TestHMAC(t *testing.T) {
	type group struct{ TagSize int }
	type test struct {
		vector
		Key, Msg, Tag unhex
	}
	check := func(h func() hash.Hash) func(group, test) error {
		return func(g group, v test) error {
			mac := hmac.New(h, v.Key)
			if g.TagSize != 8*mac.Size() {
				return errSkipped
			}
			mac.Write(v.Msg)
			return v.expects(hmac.Equal(mac.Sum(nil), v.Tag))
		}
	}
	run(t, "hmac_sha384_test.json", 87, check(sha512.New384))
	run(t, "hmac_sha256_test.json", 87, check(sha256.New))
}

// TestEd25519: logs and receipts are signed with it.
func TestEd25519(t *testing.T) {
	type group struct{ PublicKey struct{ PK unhex } }
	type test struct {
		vector
		Msg, Sig unhex
	}
	run(t, "ed25519_test.json", 151, func(g group, v test) error {
		return v.expects(len(v.Sig) == ed25519.SignatureSize && ed25519.Verify(ed25519.PublicKey(g.PublicKey.PK), v.Msg, v.Sig))
	})
}

// TestX25519: half of the KEM. A point of low order gives the shared secret zero and must be refused; what Wycheproof else calls acceptable has
// one right answer.
func TestX25519(t *testing.T) {
	type test struct {
		vector
		Public, Private, Shared unhex
	}
	run(t, "x25519_test.json", 518, func(_ struct{}, v test) error {
		private, err := ecdh.X25519().NewPrivateKey(v.Private)
		if err != nil {
			return err
		}
		public, err := ecdh.X25519().NewPublicKey(v.Public)
		if err != nil {
			return err
		}
		shared, err := private.ECDH(public)
		switch {
		case v.has("ZeroSharedSecret") && err == nil:
			return errors.New("a shared secret of zeros was accepted")
		case v.has("ZeroSharedSecret"):
			return nil
		case err != nil:
			return err
		case !bytes.Equal(shared, v.Shared):
			return fmt.Errorf("agreed on %x", shared)
		}
		return nil
	})
}

type ecdsaGroup struct {
	PublicKey struct{ Uncompressed unhex }
}

type ecdsaTest struct {
	vector
	Msg, Sig unhex
}

func (g ecdsaGroup) key() (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), g.PublicKey.Uncompressed)
}

// TestECDSA: quotes, TCB info and QE identities carry r || s of 32 bytes each over SHA-256, TPM quotes r and s apart; certificates and CRLs
// carry them in DER, which crypto/x509 gives to VerifyASN1.
func TestECDSA(t *testing.T) {
	run(t, "ecdsa_secp256r1_sha256_p1363_test.json", 262, func(g ecdsaGroup, v ecdsaTest) error {
		key, err := g.key()
		if err != nil {
			return err
		}
		if len(v.Sig) != 64 { // attestation/dcap takes an array of 64
			return v.expects(false)
		}
		digest := sha256.Sum256(v.Msg)
		return v.expects(ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(v.Sig[:32]), new(big.Int).SetBytes(v.Sig[32:])))
	})
	run(t, "ecdsa_secp256r1_sha256_test.json", 484, func(g ecdsaGroup, v ecdsaTest) error {
		key, err := g.key()
		if err != nil {
			return err
		}
		digest := sha256.Sum256(v.Msg)
		return v.expects(ecdsa.VerifyASN1(key, digest[:], v.Sig))
	})
}

// TestMLKEM768: the other half of the KEM.
func TestMLKEM768(t *testing.T) {
	type keygen struct {
		vector
		Seed, EK unhex
	}
	run(t, "mlkem_768_keygen_seed_test.json", 100, func(_ struct{}, v keygen) error {
		key, err := mlkem.NewDecapsulationKey768(v.Seed)
		if err != nil {
			return err
		}
		return v.expects(bytes.Equal(key.EncapsulationKey().Bytes(), v.EK))
	})
	type decapsulation struct {
		vector
		Seed, EK, C, K unhex
	}
	run(t, "mlkem_768_test.json", 201, func(_ struct{}, v decapsulation) error {
		key, err := mlkem.NewDecapsulationKey768(v.Seed)
		if err != nil {
			return v.expects(false)
		}
		shared, err := key.Decapsulate(v.C)
		if err != nil {
			return v.expects(false)
		}
		return v.expects(bytes.Equal(shared, v.K) && (v.EK == nil || bytes.Equal(key.EncapsulationKey().Bytes(), v.EK)))
	})
	run(t, "mlkem_768_encaps_test.json", 265, func(_ struct{}, v encapsulation) error {
		key, err := mlkem.NewEncapsulationKey768(v.EK)
		if err != nil {
			return v.expects(false)
		}
		shared, ciphertext, err := mlkemtest.Encapsulate768(key, v.M)
		if err != nil {
			return err
		}
		return v.expects(bytes.Equal(shared, v.K) && bytes.Equal(ciphertext, v.C))
	})
}

type encapsulation struct {
	vector
	M, EK, C, K unhex
}

// TestNoSeedIsSealedToAnInvalidKEMKey gives the encapsulation keys of Wycheproof, each with a good X25519 key behind it, to package keyschedule as a peer's
// public key.
func TestNoSeedIsSealedToAnInvalidKEMKey(t *testing.T) {
	good, err := keyschedule.GenerateKEM()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := keyschedule.SecretFrom(bytes.Repeat([]byte{1}, keyschedule.SecretSize))
	if err != nil {
		t.Fatal(err)
	}
	x25519 := good.Public()[mlkem.EncapsulationKeySize768:]
	run(t, "mlkem_768_encaps_test.json", 265, func(_ struct{}, v encapsulation) error {
		sealed, err := keyschedule.SealSeed(append(bytes.Clone(v.EK), x25519...), seed, []byte("info"))
		if err != nil && !errors.Is(err, keyschedule.ErrPublicKey) {
			return err
		}
		if err == nil && len(sealed) != keyschedule.SealedSeedSize {
			return fmt.Errorf("sealed to %d bytes", len(sealed))
		}
		return v.expects(err == nil)
	})
}
