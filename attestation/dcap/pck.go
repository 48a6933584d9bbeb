package dcap

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
)

const (
	tcbComponents = 16
	// maxExtension bounds the SGX extension, in bytes: Intel's have 560. maxAttributes bounds each of its lists: the longest has 18.
	maxExtension  = 4096
	maxAttributes = 32
)

// oidSGX is 1.2.840.113741.1.13.1 and what is below it (Intel SGX PCK certificate profile, table 4).
func oidSGX(below ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, below...)
}

// PCK is what a PCK certificate says of its platform.
type PCK struct {
	PPID [16]byte
	// ComponentSVNs and PCESVN are the TCB that the certificate was issued for; TCB levels are matched by them.
	ComponentSVNs [tcbComponents]uint8
	PCESVN        uint16
	CPUSVN        [16]byte
	// PCEID (2 bytes) and FMSPC (6 bytes) in lower-case hex.
	PCEID, FMSPC string
}

var errExtension = errors.New("malformed SGX extension")

type attribute struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// parsePCK reads the SGX extension. Every value that is used must be there exactly once and have its size.
func parsePCK(cert *x509.Certificate) (*PCK, error) {
	var raw []byte
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidSGX()) {
			raw = e.Value // once: crypto/x509 refuses duplicates
		}
	}
	if raw == nil {
		return nil, fmt.Errorf("%w: found none, expected one of type %v", errExtension, oidSGX())
	}
	return parseExtension(raw)
}

func parseExtension(raw []byte) (*PCK, error) {
	attrs, err := attributes(raw)
	if err != nil {
		return nil, err
	}
	p := new(PCK)
	var pceid [2]byte
	var fmspc [6]byte
	for _, v := range []struct {
		n   int
		dst []byte
	}{{1, p.PPID[:]}, {3, pceid[:]}, {4, fmspc[:]}} {
		if err := octets(attrs, oidSGX(v.n), v.dst); err != nil {
			return nil, err
		}
	}
	p.PCEID, p.FMSPC = hex.EncodeToString(pceid[:]), hex.EncodeToString(fmspc[:])
	tcb, ok := attrs[oidSGX(2).String()]
	if !ok {
		return nil, fmt.Errorf("%w: found no TCB, expected %v", errExtension, oidSGX(2))
	}
	if err := p.tcb(tcb.FullBytes); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *PCK) tcb(raw []byte) error {
	attrs, err := attributes(raw)
	if err != nil {
		return err
	}
	for i := range tcbComponents {
		svn, err := integer(attrs, oidSGX(2, i+1), 255)
		if err != nil {
			return err
		}
		p.ComponentSVNs[i] = uint8(svn)
	}
	pce, err := integer(attrs, oidSGX(2, tcbComponents+1), 65535)
	if err != nil {
		return err
	}
	p.PCESVN = uint16(pce)
	return octets(attrs, oidSGX(2, tcbComponents+2), p.CPUSVN[:])
}

// attributes reads SEQUENCE OF SEQUENCE { OID, ANY }, each OID once.
func attributes(raw []byte) (map[string]asn1.RawValue, error) {
	if len(raw) > maxExtension {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", errExtension, len(raw), maxExtension)
	}
	var list []attribute
	rest, err := asn1.Unmarshal(raw, &list)
	if err != nil || len(rest) > 0 || len(list) > maxAttributes {
		return nil, fmt.Errorf("%w: found no sequence of attributes, expected one of at most %d", errExtension, maxAttributes)
	}
	attrs := make(map[string]asn1.RawValue, len(list))
	for _, a := range list {
		name := a.ID.String()
		if _, twice := attrs[name]; twice {
			return nil, fmt.Errorf("%w: found %s twice", errExtension, name)
		}
		attrs[name] = a.Value
	}
	return attrs, nil
}

func octets(attrs map[string]asn1.RawValue, oid asn1.ObjectIdentifier, dst []byte) error {
	v := attrs[oid.String()]
	if v.Class != asn1.ClassUniversal || v.Tag != asn1.TagOctetString || v.IsCompound || len(v.Bytes) != len(dst) {
		return fmt.Errorf("%w: found for %v %d bytes of tag %d, expected an octet string of %d", errExtension, oid, len(v.Bytes), v.Tag, len(dst))
	}
	copy(dst, v.Bytes)
	return nil
}

func integer(attrs map[string]asn1.RawValue, oid asn1.ObjectIdentifier, most int64) (int64, error) {
	var n int64
	rest, err := asn1.Unmarshal(attrs[oid.String()].FullBytes, &n)
	if err != nil || len(rest) > 0 || n < 0 || n > most {
		return 0, fmt.Errorf("%w: found for %v something else, expected an integer from 0 to %d", errExtension, oid, most)
	}
	return n, nil
}
