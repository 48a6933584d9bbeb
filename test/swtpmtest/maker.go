package swtpmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Certificates are valid at any time that a test may take for now.
var notBefore, notAfter = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)

// Maker is a TPM maker's certificate authority: a root, and an intermediate that signs the certificates of endorsement keys.
type Maker struct {
	Root, Intermediate *x509.Certificate
	key                *ecdsa.PrivateKey
}

// NewMaker makes one, valid from an hour ago for a year.
func NewMaker(t testing.TB) *Maker {
	t.Helper()
	rootKey, key := newKey(t), newKey(t)
	root := authority("Test TPM Root")
	m := &Maker{key: key}
	m.Root = Sign(t, root, root, rootKey.Public(), rootKey)
	m.Intermediate = Sign(t, authority("Test TPM Intermediate"), m.Root, key.Public(), rootKey)
	return m
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: notBefore, NotAfter: notAfter,
	}
}

// Template is a certificate of an endorsement key as the TCG's profile asks: no subject, the TPM's model as a critical alternative name.
func Template(t testing.TB) *x509.Certificate {
	t.Helper()
	model := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "swtpm"}}}
	name, err := asn1.Marshal(model)
	if err != nil {
		t.Fatal(err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: notBefore, NotAfter: notAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: names}},
	}
}

// Sign makes a certificate.
func Sign(t testing.TB, template, issuer *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Issue makes a certificate by the intermediate.
func (m *Maker) Issue(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	return Sign(t, template, m.Intermediate, public, m.key)
}

// Certify stores a certificate of the endorsement key that template makes (tpm2.ECCEKTemplate or tpm2.RSAEKTemplate) in the TPM at address, padded as
// makers do, and the intermediate, over two indices of the chain.
func (m *Maker) Certify(t testing.TB, address string, template tpm2.TPMTPublic) {
	t.Helper()
	index := tpm2.TPMHandle(0x01C0000A)
	if template.Type == tpm2.TPMAlgRSA {
		index = 0x01C00002
	}
	Do(t, address, func(tpm transport.TPM) error {
		ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(tpm)
		if err != nil {
			return err
		}
		if _, err := (tpm2.FlushContext{FlushHandle: ek.ObjectHandle}).Execute(tpm); err != nil {
			return err
		}
		area, err := ek.OutPublic.Contents()
		if err != nil {
			return err
		}
		public, err := tpm2.Pub(*area)
		if err != nil {
			return err
		}
		leaf := m.Issue(t, Template(t), public).Raw
		half := len(m.Intermediate.Raw) / 2
		for _, nv := range []struct {
			index tpm2.TPMHandle
			data  []byte
		}{
			{index, append(leaf, make([]byte, 600)...)},
			{0x01C00100, m.Intermediate.Raw[:half]},
			{0x01C00101, append(m.Intermediate.Raw[half:len(m.Intermediate.Raw):len(m.Intermediate.Raw)], 0xff, 0xff)},
		} {
			if err := store(tpm, nv.index, nv.data); err != nil {
				return err
			}
		}
		return nil
	})
}

// store defines an NV index as a TPM's maker does, and writes it.
func store(tpm transport.TPM, index tpm2.TPMHandle, data []byte) error {
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, PlatformCreate: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += 512 {
		defined, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm)
		if err != nil {
			return err
		}
		_, err = tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: defined.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]}, Offset: uint16(offset),
		}.Execute(tpm)
		if err != nil {
			return err
		}
	}
	return nil
}
