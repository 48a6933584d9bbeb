package simulated

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"
)

// pckIdentity is what a PCK certificate says of its platform.
type pckIdentity struct {
	ppid, cpuSVN [16]byte
	components   [16]uint8
	pceSVN       uint16
	pceID        [2]byte
	fmspc        [6]byte
	ca           CA
}

type attribute struct {
	ID    asn1.ObjectIdentifier
	Value any
}

func sgxOID(n ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, n...)
}

// extension is 1.2.840.113741.1.13.1, with every attribute that Intel's certificates of the same CA carry: only those of the platform
// CA have a platform instance (.6) and a configuration (.7).
func (p *pckIdentity) extension() (pkix.Extension, error) {
	tcb := make([]attribute, 0, 18)
	for i, svn := range p.components {
		tcb = append(tcb, attribute{sgxOID(2, i+1), int(svn)})
	}
	tcb = append(tcb, attribute{sgxOID(2, 17), int(p.pceSVN)}, attribute{sgxOID(2, 18), p.cpuSVN[:]})
	attributes := []attribute{
		{sgxOID(1), p.ppid[:]}, {sgxOID(2), tcb}, {sgxOID(3), p.pceID[:]}, {sgxOID(4), p.fmspc[:]}, {sgxOID(5), asn1.Enumerated(0)},
	}
	if p.ca == PlatformCA {
		attributes[4].Value = asn1.Enumerated(1)
		configuration := []attribute{{sgxOID(7, 1), true}, {sgxOID(7, 2), false}, {sgxOID(7, 3), false}}
		instance := p.ppid
		attributes = append(attributes, attribute{sgxOID(6), instance[:]}, attribute{sgxOID(7), configuration})
	}
	der, err := asn1.Marshal(attributes)
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("simulated PCK extension: %w", err)
	}
	return pkix.Extension{Id: sgxOID(), Value: der}, nil
}

// certify issues a PCK certificate with a new key and a random serial number of 20 bytes.
func (a *Authority) certify(p *pckIdentity, at time.Time, validity time.Duration) (signer, error) {
	extension, err := p.extension()
	if err != nil {
		return signer{}, err
	}
	var serial [20]byte
	rand.Read(serial[:])
	serial[0] = serial[0]&0x7f | 0x40 // positive, and always 20 bytes
	return issue(&x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: subject(namePCK), NotBefore: at, NotAfter: at.Add(validity),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
		ExtraExtensions: []pkix.Extension{extension},
	}, &a.cas[p.ca])
}
