package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
)

// signedDocument is TCB info or QE identity as published: {"<name>":BODY,"signature":"<r || s in hex>"}. The signature is over the exact
// bytes of BODY (PCS API version 4, TCB info v3 and enclave identity v2 schemas).
type signedDocument struct {
	artefact  Artefact
	body      []byte
	signature [64]byte
}

// parseDocument reads the envelope strictly: two keys, spelled exactly, once each, nothing after. encoding/json alone would take any case
// and the last of several.
func parseDocument(artefact Artefact, name string, raw []byte) (*signedDocument, error) {
	body, signature, err := envelope(name, raw)
	if err != nil {
		return nil, caused(CheckDocument, artefact, err)
	}
	d := &signedDocument{artefact: artefact, body: body}
	text := strings.Trim(string(signature), `"`)
	if n, err := hex.Decode(d.signature[:], []byte(text)[:min(len(text), 128)]); err != nil || n != 64 || len(signature) != 130 || strings.ToLower(text) != text {
		return nil, failed(CheckDocument, artefact, fmt.Sprintf("a signature of %d characters", len(text)), "128 lower-case hex digits")
	}
	return d, nil
}

func envelope(name string, raw []byte) (body, signature json.RawMessage, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, nil, errors.New("found no JSON object")
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, nil, errors.New("found broken JSON")
		}
		dst := &body
		if key == "signature" {
			dst = &signature
		}
		if (key != name && key != "signature") || *dst != nil {
			return nil, nil, fmt.Errorf("found key %.40q, expected %q and \"signature\", once each", key, name)
		}
		if err := dec.Decode(dst); err != nil {
			return nil, nil, errors.New("found broken JSON")
		}
	}
	if t, err := dec.Token(); err != nil || t != json.Delim('}') {
		return nil, nil, errors.New("found an object without an end")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("found something after the object")
	}
	if body == nil || signature == nil {
		return nil, nil, fmt.Errorf("found not both %q and \"signature\"", name)
	}
	return body, signature, nil
}

// verify checks the signature over the body.
func (d *signedDocument) verify(key *ecdsa.PublicKey) error {
	if !verifyRaw(key, d.body, d.signature) {
		return failed(CheckSignature, d.artefact, "a signature that does not verify", "one by the TCB signing certificate over these bytes")
	}
	return nil
}

// verifyRaw verifies r || s, big-endian, over the SHA-256 of message.
func verifyRaw(key *ecdsa.PublicKey, message []byte, signature [64]byte) bool {
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(key, digest[:], r, s)
}

// verifyWithPoint is verifyRaw under the key x || y.
func verifyWithPoint(point [64]byte, message []byte, signature [64]byte) bool {
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, point[:]...))
	return err == nil && verifyRaw(key, message, signature)
}
