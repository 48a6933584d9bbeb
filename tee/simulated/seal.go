package simulated

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/safeconduct/safeconduct/tee"
)

// A key info is magic || ISVSVN (2, big-endian) || tag (32). The tag is an HMAC under a key of this platform and product, so that a
// foreign key info is refused by itself, and not only when what it sealed fails to open.
const (
	keyInfoMagic = "SAFECONDUCT SIMULATED SEAL KEY 1"
	tagSize      = sha256.Size
	keyInfoSize  = len(keyInfoMagic) + 2 + tagSize

	sealLabel = "safeconduct/v1/simulated/seal"
	tagLabel  = "safeconduct/v1/simulated/key-info"
)

// derive is HKDF-SHA-256 from the fuse key, over the label and the identity that SGX's product policy binds: MRSIGNER, ISVPRODID, debug.
// Every field has a fixed size.
func (p *Platform) derive(label string, svn uint16, size int) ([]byte, error) {
	m := &p.measurement
	info := append([]byte(label), m.MRSigner[:]...)
	info = binary.BigEndian.AppendUint16(info, m.ISVProdID)
	info = binary.BigEndian.AppendUint16(info, svn)
	debug := byte(0)
	if m.Debug {
		debug = 1
	}
	key, err := hkdf.Key(sha256.New, p.fuse, nil, string(append(info, debug)), size)
	if err != nil {
		return nil, fmt.Errorf("simulated sealing key: %w", err)
	}
	return key, nil
}

func (p *Platform) sealKey(svn uint16) (tee.SealKey, error) {
	raw, err := p.derive(sealLabel, svn, tee.SealKeySize)
	if err != nil {
		return tee.SealKey{}, err
	}
	defer clear(raw)
	return tee.NewSealKey(raw)
}

func (p *Platform) keyInfo(svn uint16) ([]byte, error) {
	key, err := p.derive(tagLabel, 0, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	info := binary.BigEndian.AppendUint16([]byte(keyInfoMagic), svn)
	mac := hmac.New(sha256.New, key)
	mac.Write(info)
	return mac.Sum(info), nil
}

// SealKey implements tee.Enclave: the key of this signer's product at this version.
func (p *Platform) SealKey(ctx context.Context) (tee.SealKey, []byte, error) {
	if err := ctx.Err(); err != nil {
		return tee.SealKey{}, nil, err
	}
	info, err := p.keyInfo(p.measurement.ISVSVN)
	if err != nil {
		return tee.SealKey{}, nil, err
	}
	key, err := p.sealKey(p.measurement.ISVSVN)
	return key, info, err
}

// RecoverSealKey implements tee.Enclave. As on SGX, a version recovers its own key and those of earlier versions, never a later one's.
func (p *Platform) RecoverSealKey(ctx context.Context, keyInfo []byte) (tee.SealKey, error) {
	if err := ctx.Err(); err != nil {
		return tee.SealKey{}, err
	}
	if len(keyInfo) != keyInfoSize || !strings.HasPrefix(string(keyInfo), keyInfoMagic) {
		return tee.SealKey{}, fmt.Errorf("%w: found %d bytes, expected %d that begin %q", tee.ErrForeignKeyInfo, len(keyInfo), keyInfoSize, keyInfoMagic)
	}
	svn := binary.BigEndian.Uint16(keyInfo[len(keyInfoMagic):])
	want, err := p.keyInfo(svn)
	if err != nil {
		return tee.SealKey{}, err
	}
	if !hmac.Equal(want, keyInfo) {
		return tee.SealKey{}, fmt.Errorf("%w: made on another platform, or for another signer or product", tee.ErrForeignKeyInfo)
	}
	if svn > p.measurement.ISVSVN {
		return tee.SealKey{}, fmt.Errorf("%w: found the key of version %d, expected %d at most", tee.ErrForeignKeyInfo, svn, p.measurement.ISVSVN)
	}
	return p.sealKey(svn)
}
