package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// PayloadType is the payloadType of a policy's envelope.
const PayloadType = "application/vnd.safeconduct.policy.v1+json"

// Bounds of an envelope.
const (
	// MaxEnvelope in bytes: a policy of MaxSize in base64, and its signatures.
	MaxEnvelope   = MaxSize/3*4 + 64<<10
	maxKeys       = 16
	maxSignatures = 16
)

// Errors of a signed policy; test with errors.Is.
var (
	// ErrNotSigned: the file is no signed envelope of a policy.
	ErrNotSigned = errors.New("not a signed policy")
	// ErrUntrusted: no signature is by a trusted key.
	ErrUntrusted = errors.New("the policy is not signed by a trusted key")
	// ErrBadSignature: a signature that claims a trusted key is not by it.
	ErrBadSignature = errors.New("the policy's signature does not verify")
	// ErrKeys: the file of trusted keys is not usable.
	ErrKeys = errors.New("policy signing keys not usable")
)

// Keys are the public keys whose signature makes a policy the operator's, by key id. The zero value trusts nobody.
type Keys struct{ byID map[string]crypto.PublicKey }

// ParseKeys reads 1 to 16 public keys in PEM ("PUBLIC KEY": Ed25519, or ECDSA on P-256). The error is ErrKeys.
func ParseKeys(raw []byte) (Keys, error) {
	k := Keys{byID: map[string]crypto.PublicKey{}}
	for len(bytes.TrimSpace(raw)) > 0 {
		block, rest := pem.Decode(raw)
		if block == nil || block.Type != "PUBLIC KEY" {
			return Keys{}, fmt.Errorf("%w: found something else than PEM of type PUBLIC KEY", ErrKeys)
		}
		raw = rest
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Keys{}, fmt.Errorf("%w: %w", ErrKeys, err)
		}
		id, err := KeyID(key)
		if err != nil {
			return Keys{}, err
		}
		k.byID[id] = key
		if len(k.byID) > maxKeys {
			return Keys{}, fmt.Errorf("%w: more than %d", ErrKeys, maxKeys)
		}
	}
	if len(k.byID) == 0 {
		return Keys{}, fmt.Errorf("%w: there is none", ErrKeys)
	}
	return k, nil
}

// IDs are the key ids, sorted.
func (k Keys) IDs() []string { return slices.Sorted(maps.Keys(k.byID)) }

// KeyID names a public key: SHA-256 of its SubjectPublicKeyInfo, in lower-case hex. The error is ErrKeys, for a key that cannot sign policies.
func KeyID(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("%w: an ECDSA key on %s, not P-256", ErrKeys, k.Curve.Params().Name)
		}
	default:
		return "", fmt.Errorf("%w: a key of type %T, not Ed25519 or ECDSA on P-256", ErrKeys, key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrKeys, err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// envelope is a DSSE envelope (Dead Simple Signing Envelope, v1.0).
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// pae is DSSE's pre-authentication encoding: what is signed.
func pae(payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(PayloadType)) + " " + PayloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

// Sign makes an envelope of a policy, which must be one that Parse accepts. The signers are Ed25519 or ECDSA P-256 keys, of an HSM too.
func Sign(payload []byte, signers ...crypto.Signer) ([]byte, error) {
	if _, err := Parse(payload); err != nil {
		return nil, err
	}
	if len(signers) == 0 || len(signers) > maxSignatures {
		return nil, fmt.Errorf("%w: %d signers, not 1 to %d", ErrKeys, len(signers), maxSignatures)
	}
	e := envelope{PayloadType: PayloadType, Payload: base64.StdEncoding.EncodeToString(payload)}
	for _, s := range signers {
		id, err := KeyID(s.Public())
		if err != nil {
			return nil, err
		}
		message, opts := pae(payload), crypto.SignerOpts(crypto.Hash(0))
		if _, ok := s.Public().(*ecdsa.PublicKey); ok {
			sum := sha256.Sum256(message)
			message, opts = sum[:], crypto.SHA256
		}
		sig, err := s.Sign(rand.Reader, message, opts)
		if err != nil {
			return nil, fmt.Errorf("signing with key %s: %w", id, err)
		}
		e.Signatures = append(e.Signatures, signature{KeyID: id, Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	raw, err := json.MarshalIndent(e, "", "  ")
	return append(raw, '\n'), err
}

// Open verifies a signed policy and reads it. At least one signature must be by a trusted key; those of other keys are ignored, and one
// that claims a trusted key and does not verify is an error. Errors: ErrNotSigned, ErrUntrusted, ErrBadSignature, and those of Parse.
func Open(raw []byte, trusted Keys) (*Loaded, error) {
	payload, signatures, err := unpack(raw)
	if err != nil {
		return nil, err
	}
	message := pae(payload)
	var by []string
	for _, s := range signatures {
		key, ok := trusted.byID[s.KeyID]
		if !ok {
			continue
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(s.Sig)
		if err != nil || !verify(key, message, sig) {
			return nil, fmt.Errorf("%w: key %s", ErrBadSignature, s.KeyID)
		}
		if !slices.Contains(by, s.KeyID) {
			by = append(by, s.KeyID)
		}
	}
	if len(by) == 0 {
		return nil, fmt.Errorf("%w: found signatures by %s, expected one by %v", ErrUntrusted, claimed(signatures), trusted.IDs())
	}
	l, err := Parse(payload)
	if err != nil {
		return nil, err
	}
	slices.Sort(by)
	l.SignedBy = by
	return l, nil
}

func claimed(signatures []signature) string {
	ids := make([]string, 0, len(signatures))
	for _, s := range signatures {
		ids = append(ids, fmt.Sprintf("%.64q", s.KeyID))
	}
	return fmt.Sprint(ids)
}

func verify(key crypto.PublicKey, message, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	default:
		return false
	}
}

// Unverified returns the payload of an envelope without asking who signed it, for tools that show it. Nothing may be decided by it.
func Unverified(raw []byte) ([]byte, error) {
	payload, _, err := unpack(raw)
	return payload, err
}

func unpack(raw []byte) ([]byte, []signature, error) {
	if len(raw) > MaxEnvelope {
		return nil, nil, fmt.Errorf("%w: %d bytes, more than %d", ErrNotSigned, len(raw), MaxEnvelope)
	}
	if err := noRepeatedKeys(json.NewDecoder(bytes.NewReader(raw))); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var e envelope
	if err := dec.Decode(&e); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	switch {
	case e.PayloadType != PayloadType:
		return nil, nil, fmt.Errorf("%w: payloadType is %.80q, not %q", ErrNotSigned, e.PayloadType, PayloadType)
	case len(e.Signatures) > maxSignatures:
		return nil, nil, fmt.Errorf("%w: %d signatures, more than %d", ErrNotSigned, len(e.Signatures), maxSignatures)
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil || base64.StdEncoding.EncodeToString(payload) != e.Payload {
		return nil, nil, fmt.Errorf("%w: its payload is not base64 in its one spelling", ErrNotSigned)
	}
	return payload, e.Signatures, nil
}
