package sgx

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/safeconduct/safeconduct/tee"
)

// A key info is magic || KEYREQUEST (512) || tag (32). It comes back from a disk that the host writes, and EGETKEY answers almost any request. A
// request with KEYPOLICY 0 names a key that every enclave of the same product id can have, whoever signed it; one without DEBUG in its
// attribute mask names a key that a debug enclave of the same signer has too. So only requests exactly as EGo makes them are answered.
//
// The tag is HMAC-SHA-256 over the request under a key derived from the sealing key: a key info of another processor, signer or product is
// refused by itself, and not only when what it sealed fails to open.
const (
	keyInfoMagic = "SAFECONDUCT SGX SEAL KEY 1"
	tagLabel     = "safeconduct/v1/sgx/key-info"
	tagSize      = sha256.Size
	keyInfoSize  = len(keyInfoMagic) + requestSize + tagSize
)

// SGX KEYREQUEST (Intel SDM volume 3D, section 36.18.1), little-endian.
const (
	requestSize = 512

	offsetKeyName   = 0  // u16
	offsetKeyPolicy = 2  // u16
	offsetISVSVN    = 4  // u16
	offsetReserved  = 6  // u16
	offsetCPUSVN    = 8  // 16 bytes: the processor refuses one above its own
	offsetFlagsMask = 24 // u64
	offsetXFRMMask  = 32 // u64
	offsetKeyID     = 40 // 32 bytes, random
	offsetMiscMask  = 72 // u32
	offsetRest      = 76 // CONFIGSVN and reserved: zero

	keyNameSeal     = 4
	keyPolicySigner = 2 // MRSIGNER alone: not MRENCLAVE (1), not NOISVPRODID (4)

	// EGo's masks: of the attributes INIT, DEBUG and the bits that SGX reserves; no XFRM; the upper bits of MISCSELECT.
	flagsMask = 0xff0000000000000b
	xfrmMask  = 0
	miscMask  = 0xf0000000
)

// checkRequest says whether request asks for a product key that this enclave may have, and for nothing else.
func checkRequest(request []byte, self identity) error {
	le := binary.LittleEndian
	if len(request) != requestSize {
		return fmt.Errorf("key request: found %d bytes, expected %d", len(request), requestSize)
	}
	for _, field := range []struct {
		name            string
		found, expected uint64
	}{
		{"key name", uint64(le.Uint16(request[offsetKeyName:])), keyNameSeal},
		{"key policy", uint64(le.Uint16(request[offsetKeyPolicy:])), keyPolicySigner},
		{"reserved field", uint64(le.Uint16(request[offsetReserved:])), 0},
		{"attribute mask", le.Uint64(request[offsetFlagsMask:]), flagsMask},
		{"xfrm mask", le.Uint64(request[offsetXFRMMask:]), xfrmMask},
		{"misc mask", uint64(le.Uint32(request[offsetMiscMask:])), miscMask},
	} {
		if field.found != field.expected {
			return fmt.Errorf("key request: %s: found %#x, expected %#x", field.name, field.found, field.expected)
		}
	}
	if !bytes.Equal(request[offsetRest:], make([]byte, requestSize-offsetRest)) {
		return fmt.Errorf("key request: found data after byte %d, expected zeros", offsetRest)
	}
	if svn := le.Uint16(request[offsetISVSVN:]); svn > self.isvSVN {
		return fmt.Errorf("key request: found the key of version %d, expected %d at most", svn, self.isvSVN)
	}
	return nil
}

// newProductKey asks for a fresh key and checks that it is one, for what we asked for.
func newProductKey(hw hardware, self identity) (tee.SealKey, []byte, error) {
	answer, err := guarded("product seal key", func() (keyAnswer, error) { return pair(hw.productKey()) })
	if err != nil {
		return tee.SealKey{}, nil, err
	}
	defer clear(answer.key)
	if err := checkRequest(answer.request, self); err != nil {
		return tee.SealKey{}, nil, fmt.Errorf("product seal key: %w: %w", tee.ErrUnusableKey, err)
	}
	if bytes.Equal(answer.request[offsetKeyID:offsetMiscMask], make([]byte, offsetMiscMask-offsetKeyID)) {
		return tee.SealKey{}, nil, fmt.Errorf("product seal key: %w: its key id is all zero, expected a random one", tee.ErrUnusableKey)
	}
	key, err := tee.NewSealKey(answer.key)
	if err != nil {
		return tee.SealKey{}, nil, fmt.Errorf("product seal key: %w", err)
	}
	return key, answer.request, nil
}

// What the processor answers to a request with a version above its own, in Open Enclave's words.
const (
	answerCPUSVN = "OE_INVALID_CPUSVN"
	answerISVSVN = "OE_INVALID_ISVSVN"
)

// refusedForVersion says whether the processor refused a request as one that only a later version of it, or of the enclave, could have made.
func refusedForVersion(err error) bool {
	return strings.HasSuffix(err.Error(), answerCPUSVN) || strings.HasSuffix(err.Error(), answerISVSVN)
}

// recoverKey asks for the key of a request that was checked.
func recoverKey(hw hardware, request []byte) (tee.SealKey, error) {
	raw, err := guarded("seal key", func() ([]byte, error) { return hw.keyOf(request) })
	if err != nil {
		return tee.SealKey{}, err
	}
	defer clear(raw)
	key, err := tee.NewSealKey(raw)
	if err != nil {
		return tee.SealKey{}, fmt.Errorf("seal key: %w", err)
	}
	return key, nil
}

func tagOf(request []byte, key tee.SealKey) ([]byte, error) {
	tagKey, err := hkdf.Key(sha256.New, key.Bytes(), nil, tagLabel, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("key info: %w", err)
	}
	defer clear(tagKey)
	mac := hmac.New(sha256.New, tagKey)
	mac.Write(request)
	return mac.Sum(nil), nil
}

func encodeKeyInfo(request []byte, key tee.SealKey) ([]byte, error) {
	tag, err := tagOf(request, key)
	if err != nil {
		return nil, err
	}
	info := make([]byte, 0, keyInfoSize)
	return append(append(append(info, keyInfoMagic...), request...), tag...), nil
}

// splitKeyInfo returns slices of info.
func splitKeyInfo(info []byte) (request, tag []byte, err error) {
	if len(info) != keyInfoSize || !strings.HasPrefix(string(info), keyInfoMagic) {
		return nil, nil, fmt.Errorf("%w: found %d bytes, expected %d that begin %q", tee.ErrForeignKeyInfo, len(info), keyInfoSize, keyInfoMagic)
	}
	request = info[len(keyInfoMagic) : len(keyInfoMagic)+requestSize]
	return request, info[len(keyInfoMagic)+requestSize:], nil
}

func checkTag(request, tag []byte, key tee.SealKey) error {
	want, err := tagOf(request, key)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, tag) {
		return fmt.Errorf("%w: made on another processor, or for another signer or product, or altered", tee.ErrForeignKeyInfo)
	}
	return nil
}
