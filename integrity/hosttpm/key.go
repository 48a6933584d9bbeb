package hosttpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// attestationKey is the key while it is loaded.
type attestationKey struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte
}

// template is the attestation key's: ECDSA with SHA-256 on P-256, restricted to what the TPM itself made. Any change of it changes the key
// of every enrolled host.
func template() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// withKey connects, loads the attestation key, runs use and removes the key again.
func (t *TPM) withKey(ctx context.Context, use func(transport.TPM, *attestationKey) error) error {
	return t.session(ctx, func(tpm transport.TPM) (err error) {
		ak, err := loadKey(tpm)
		if err != nil {
			return err
		}
		defer func() {
			_, ferr := tpm2.FlushContext{FlushHandle: ak.handle}.Execute(tpm)
			if ferr != nil && err == nil {
				err = fmt.Errorf("flushing the attestation key: %w", ferr)
			}
		}()
		return use(tpm, ak)
	})
}

func loadKey(tpm transport.TPM) (*attestationKey, error) {
	create := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template())}
	rsp, err := create.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCObjectMemory) {
		// A TPM without a resource manager keeps what a killed predecessor of this process left behind.
		if err := flushLeftovers(tpm); err != nil {
			return nil, fmt.Errorf("making room for the attestation key: %w", err)
		}
		rsp, err = create.Execute(tpm)
	}
	if err != nil {
		return nil, fmt.Errorf("creating the attestation key: %w", err)
	}
	return &attestationKey{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}, nil
}

// flushLeftovers removes transient objects that are this package's attestation key, and no others.
func flushLeftovers(tpm transport.TPM) error {
	const transient, most = 0x80000000, 64
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: transient, PropertyCount: most}.Execute(tpm)
	if err != nil {
		return err
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	for _, handle := range handles.Handle {
		object, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(tpm)
		if err != nil {
			return err
		}
		public, err := object.OutPublic.Contents()
		if err != nil || !sameTemplate(public) {
			continue
		}
		if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(tpm); err != nil {
			return err
		}
	}
	return nil
}

// sameTemplate compares all of a public area but the key itself.
func sameTemplate(p *tpm2.TPMTPublic) bool {
	want := template()
	got := *p
	got.Unique = want.Unique
	return p.Type == want.Type && string(tpm2.Marshal(got)) == string(tpm2.Marshal(want))
}

// quote runs TPM2_Quote. The PCR values are for the caller to add.
func (ak *attestationKey) quote(tpm transport.TPM, qualifying [32]byte, pcrs []int) (*v1.TpmQuote, error) {
	rsp, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying[:]},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      selection(pcrs),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("quoting: %w", err)
	}
	return &v1.TpmQuote{Attest: rsp.Quoted.Bytes(), Signature: tpm2.Marshal(rsp.Signature), AkPublic: ak.public}, nil
}
