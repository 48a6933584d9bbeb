package dcap

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/quote"
)

type testAttribute struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// extensionWith is a whole SGX extension, its attributes changed by f: the top level, and the TCB.
func extensionWith(t *testing.T, f func(top, tcb []testAttribute) ([]testAttribute, []testAttribute)) []byte {
	t.Helper()
	var tcb []testAttribute
	for i := range 16 {
		tcb = append(tcb, testAttribute{oidSGX(2, i+1), i})
	}
	tcb = append(tcb, testAttribute{oidSGX(2, 17), 13}, testAttribute{oidSGX(2, 18), bytes.Repeat([]byte{9}, 16)})
	top := []testAttribute{{oidSGX(1), bytes.Repeat([]byte{1}, 16)}, {oidSGX(2), nil}, {oidSGX(3), []byte{0, 1}}, {oidSGX(4), []byte{0, 0xA0, 0x67, 0x11, 0, 0}}}
	if f != nil {
		top, tcb = f(top, tcb)
	}
	for i := range top {
		if top[i].Value == nil {
			top[i].Value = tcb
		}
	}
	der, err := asn1.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestTheSGXExtensionIsReadWhole(t *testing.T) {
	p, err := parseExtension(extensionWith(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if p.PPID != [16]byte(bytes.Repeat([]byte{1}, 16)) || p.CPUSVN != [16]byte(bytes.Repeat([]byte{9}, 16)) || p.PCESVN != 13 ||
		p.FMSPC != "00a067110000" || p.PCEID != "0001" {
		t.Errorf("got %+v", p)
	}
	for i, svn := range p.ComponentSVNs {
		if int(svn) != i {
			t.Errorf("component %d is %d", i, svn)
		}
	}
}

func TestAMalformedSGXExtensionIsRefused(t *testing.T) {
	type list = []testAttribute
	setTop := func(i int, v any) func(top, tcb list) (list, list) {
		return func(top, tcb list) (list, list) { top[i].Value = v; return top, tcb }
	}
	setTCB := func(i int, v any) func(top, tcb list) (list, list) {
		return func(top, tcb list) (list, list) { tcb[i].Value = v; return top, tcb }
	}
	for name, f := range map[string]func(top, tcb list) (list, list){
		"no PPID":                   func(top, tcb list) (list, list) { return top[1:], tcb },
		"no TCB":                    func(top, tcb list) (list, list) { return append(top[:1:1], top[2:]...), tcb },
		"no FMSPC":                  func(top, tcb list) (list, list) { return top[:3], tcb },
		"the FMSPC twice":           func(top, tcb list) (list, list) { return append(top, top[3]), tcb },
		"a component twice":         func(top, tcb list) (list, list) { return top, append(tcb, tcb[0]) },
		"no component 16":           func(top, tcb list) (list, list) { return top, append(tcb[:15:15], tcb[16:]...) },
		"no CPUSVN":                 func(top, tcb list) (list, list) { return top, tcb[:17] },
		"more attributes than fit":  func(top, tcb list) (list, list) { return top, append(tcb, many()...) },
		"a short PPID":              setTop(0, make([]byte, 15)),
		"a PPID that is an integer": setTop(0, 7),
		"a PPID that is text":       setTop(0, "sixteen bytes...."[:16]),
		"a TCB that is an integer":  setTop(1, 7),
		"a PCEID of three bytes":    setTop(2, make([]byte, 3)),
		"a component of 256":        setTCB(0, 256),
		"a component below zero":    setTCB(0, -1),
		"a component of bytes":      setTCB(0, []byte{1}),
		"a PCESVN of 65536":         setTCB(16, 65536),
		"a CPUSVN of 17 bytes":      setTCB(17, make([]byte, 17)),
	} {
		if p, err := parseExtension(extensionWith(t, f)); p != nil || !errors.Is(err, errExtension) {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
	}
	whole := extensionWith(t, nil)
	for name, raw := range map[string][]byte{
		"nothing": nil, "a byte more": append(bytes.Clone(whole), 0), "a byte less": whole[:len(whole)-1],
		"too many bytes": append(bytes.Clone(whole), make([]byte, maxExtension)...), "not a sequence": {2, 1, 1},
	} {
		if p, err := parseExtension(raw); p != nil || !errors.Is(err, errExtension) {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
	}
}

func many() []testAttribute {
	var out []testAttribute
	for i := range maxAttributes {
		out = append(out, testAttribute{oidSGX(9, i), 0})
	}
	return out
}

func TestAQuoteOfAnotherVendorsQuotingEnclaveIsRefused(t *testing.T) {
	refused(t, checkOwnSignature(&quote.Quote{}), CheckQuote, ArtefactQuote)
}
