package hosttpm

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/safeconduct/safeconduct/integrity/endorsement"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

func endorsed(t *testing.T, address string) *Endorsement {
	t.Helper()
	e, err := open(t, address).Endorse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestATPMWithoutACertificateStillShowsThatBothKeysAreIts(t *testing.T) {
	address := swtpmtest.Start(t)
	e := endorsed(t, address)
	if !bytes.Equal(e.AKPublic, akOf(t, open(t, address))) {
		t.Error("another attestation key than the one that quotes")
	}
	if len(e.EKPublic) == 0 || len(e.Certificate) != 0 || len(e.Chain) != 0 {
		t.Errorf("endorsement %+v", e)
	}
	// Neither key is left in the TPM: it has room for three.
	for range 4 {
		if again := endorsed(t, address); !bytes.Equal(again.EKPublic, e.EKPublic) {
			t.Fatal("the same TPM gave two endorsement keys")
		}
	}
}

func TestTheStoredCertificateAndItsChainAreReadWhole(t *testing.T) {
	address := swtpmtest.Start(t)
	authority := swtpmtest.NewMaker(t)
	authority.Certify(t, address, tpm2.ECCEKTemplate)
	e := endorsed(t, address)
	roots := x509.NewCertPool()
	roots.AddCert(authority.Root)
	s, err := endorsement.Verify(e.EKPublic, e.Certificate, e.Chain, roots, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if s.Root != authority.Root.Subject.String() || len(e.Chain) != 2 {
		t.Errorf("statement %+v, chain of %d indices", s, len(e.Chain))
	}

	t.Run("another TPM with the certificate of this one", func(t *testing.T) {
		other := endorsed(t, swtpmtest.Start(t))
		_, err := endorsement.Verify(other.EKPublic, e.Certificate, e.Chain, roots, time.Now())
		if !errors.Is(err, endorsement.ErrOtherKey) {
			t.Errorf("error %v", err)
		}
	})
}

func TestATPMDoesNotActivateACredentialForAKeyThatItDoesNotHold(t *testing.T) {
	address := swtpmtest.Start(t)
	var foreign *attestationKey
	err := open(t, swtpmtest.Start(t)).withKey(t.Context(), func(_ transport.TPM, ak *attestationKey) error {
		foreign = ak
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = open(t, address).withKey(t.Context(), func(tpm transport.TPM, ak *attestationKey) error {
		_, err := endorse(tpm, &attestationKey{ak.handle, foreign.name, foreign.public})
		return err
	})
	if !errors.Is(err, ErrActivation) {
		t.Errorf("error %v", err)
	}
}

func TestASecretThatTheTPMInventedIsRefused(t *testing.T) {
	err := open(t, swtpmtest.Start(t)).withKey(t.Context(), func(tpm transport.TPM, ak *attestationKey) error {
		_, err := endorse(guessing{tpm}, ak)
		return err
	})
	if !errors.Is(err, ErrActivation) {
		t.Errorf("error %v", err)
	}
}

// guessing answers TPM2_ActivateCredential with a secret of its own, as an impostor before the TPM would.
type guessing struct{ transport.TPM }

func (g guessing) Send(command []byte) ([]byte, error) {
	response, err := g.TPM.Send(command)
	if err == nil && binary.BigEndian.Uint32(command[6:]) == uint32(tpm2.TPMCCActivateCredential) {
		// After the header and the size of the parameters comes TPM2B_DIGEST.
		_, _ = rand.Read(response[16 : 16+credentialSize])
	}
	return response, err
}
