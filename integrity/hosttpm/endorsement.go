package hosttpm

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// maxCertificate bounds an NV index that holds certificates, in bytes; TCG PC Client TPMs have indices of at most 2,048.
	maxCertificate = 8 << 10
	// firstChain and lastChain are the NV indices of the endorsement key's certificate chain (TCG EK Credential Profile 2.5, 2.2.1.5.2).
	firstChain, lastChain = 0x01C00100, 0x01C001FF
	// maxChain bounds how many of them are read.
	maxChain = 16
	// credentialSize is the size of the challenge, in bytes.
	credentialSize = 32
)

// endorsementKeys are the low-range templates L-2 and L-1 of the TCG EK Credential Profile 2.5, with the NV index of each one's certificate.
// ECC comes first: a TPM makes it in milliseconds, and an RSA key in seconds.
var endorsementKeys = []struct {
	certificate tpm2.TPMHandle
	template    tpm2.TPMTPublic
}{
	{0x01C0000A, tpm2.ECCEKTemplate},
	{0x01C00002, tpm2.RSAEKTemplate},
}

// ErrActivation says that the TPM that holds the endorsement key did not show that it holds the attestation key.
var ErrActivation = errors.New("attestation key not shown to be in the tpm of this endorsement key")

// Endorsement says which TPM the attestation key is in: the TPM's own key, and what its maker signed about it.
type Endorsement struct {
	// AKPublic and EKPublic are the TPMT_PUBLIC of the attestation and of the endorsement key.
	AKPublic, EKPublic []byte
	// Certificate is what the TPM stores as the certificate of the endorsement key; empty where it has none. It is not verified here.
	Certificate []byte
	// Chain is what the TPM stores of that certificate's issuers, each element one or more certificates in DER.
	Chain [][]byte
}

// Endorse proves by credential activation (TPM 2.0 Library, Part 1, 24) that the attestation key is in the same TPM as the endorsement key, and
// returns that key with its certificates. A caller who believes the certificate (package endorsement) knows then that the attestation key is in a TPM of that maker.
// Beside the errors of AKPublic: ErrActivation.
func (t *TPM) Endorse(ctx context.Context) (*Endorsement, error) {
	var e *Endorsement
	err := t.withKey(ctx, func(tpm transport.TPM, ak *attestationKey) error {
		var err error
		e, err = endorse(tpm, ak)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tpm: endorsement: %w", err)
	}
	return e, nil
}

func endorse(tpm transport.TPM, ak *attestationKey) (_ *Endorsement, err error) {
	e := &Endorsement{AKPublic: ak.public}
	kind := endorsementKeys[0]
	for _, k := range endorsementKeys {
		if e.Certificate, err = readNV(tpm, k.certificate); err != nil {
			return nil, err
		}
		if len(e.Certificate) > 0 {
			kind = k
			break
		}
	}
	if e.Chain, err = readChain(tpm); err != nil {
		return nil, err
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(kind.template)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("creating the endorsement key: %w", err)
	}
	defer func() {
		_, ferr := tpm2.FlushContext{FlushHandle: ek.ObjectHandle}.Execute(tpm)
		if ferr != nil && err == nil {
			err = fmt.Errorf("flushing the endorsement key: %w", ferr)
		}
	}()
	public, err := ek.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: endorsement key: %w", ErrProtocol, err)
	}
	e.EKPublic = ek.OutPublic.Bytes()
	if err := activate(tpm, ak, tpm2.NamedHandle{Handle: ek.ObjectHandle, Name: ek.Name}, public); err != nil {
		return nil, err
	}
	return e, nil
}

// activate gives the TPM a secret that only the TPM of ek can open, and that it opens only if the object with the attestation key's name is loaded in it.
func activate(tpm transport.TPM, ak *attestationKey, ek tpm2.NamedHandle, ekPublic *tpm2.TPMTPublic) error {
	key, err := tpm2.ImportEncapsulationKey(ekPublic)
	if err != nil {
		return fmt.Errorf("%w: endorsement key: %w", ErrProtocol, err)
	}
	secret := make([]byte, credentialSize)
	_, _ = rand.Read(secret) // it never fails
	blob, encrypted, err := tpm2.CreateCredential(rand.Reader, key, ak.name.Buffer, secret)
	if err != nil {
		return fmt.Errorf("making the credential: %w", err)
	}
	// The key's policy is the profile's PolicyA: TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
	authorise := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, PolicySession: session, NonceTPM: nonce,
		}.Execute(tpm)
		return err
	})
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: authorise},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrActivation, err)
	}
	if subtle.ConstantTimeCompare(rsp.CertInfo.Buffer, secret) != 1 {
		return fmt.Errorf("%w: the tpm opened another secret than the one it was given", ErrActivation)
	}
	return nil
}

// readChain reads the issuers' certificates, in the order of their indices.
func readChain(tpm transport.TPM) ([][]byte, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: firstChain, PropertyCount: maxChain}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("listing the certificate chain: %w", err)
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	var chain [][]byte
	for _, handle := range handles.Handle {
		if handle < firstChain || handle > lastChain {
			break // the answer goes on with the handles that follow
		}
		raw, err := readNV(tpm, handle)
		if err != nil {
			return nil, err
		}
		if len(raw) > 0 {
			chain = append(chain, raw)
		}
	}
	return chain, nil
}

// readNV returns what an NV index holds; nothing if it is not defined or was never written.
func readNV(tpm transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nv index 0x%08x: %w", uint32(index), err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: nv index 0x%08x: %w", ErrProtocol, uint32(index), err)
	}
	if !public.Attributes.Written {
		return nil, nil
	}
	size := int(public.DataSize)
	if size > maxCertificate {
		return nil, fmt.Errorf("%w: nv index 0x%08x: found %d bytes, expected at most %d", ErrProtocol, uint32(index), size, maxCertificate)
	}
	// A TPM gives at least 512 bytes a command (TPM_PT_NV_BUFFER_MAX of the PC Client profile).
	const most = 512
	out := make([]byte, 0, size)
	for len(out) < size {
		self := tpm2.AuthHandle{Handle: index, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)}
		piece, err := tpm2.NVRead{
			AuthHandle: self, NVIndex: tpm2.NamedHandle{Handle: index, Name: rsp.NVName}, Size: uint16(min(most, size-len(out))), Offset: uint16(len(out)),
		}.Execute(tpm)
		if err != nil {
			return nil, fmt.Errorf("nv index 0x%08x: %w", uint32(index), err)
		}
		if n := len(piece.Data.Buffer); n == 0 || n > size-len(out) {
			return nil, fmt.Errorf("%w: nv index 0x%08x: found a piece of %d bytes with %d missing", ErrProtocol, uint32(index), n, size-len(out))
		}
		out = append(out, piece.Data.Buffer...)
	}
	return out, nil
}
