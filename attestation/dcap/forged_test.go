package dcap

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// Forgeries by somebody who has more keys than an attacker has: each leaves one check to fire.

func TestForgedPCKChainsAreRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	root, ca, other := r.authorityIdentity(t, "root_ca"), r.authorityIdentity(t, "pck_platform_ca"), r.authorityIdentity(t, "pck_processor_ca")
	leaf, stranger := r.pck(t), newKey(t, elliptic.P256())
	leafWith := func(f func(*x509.Certificate)) *x509.Certificate { return reissue(t, leaf, ca, f).cert }
	caWith := func(f func(*x509.Certificate)) *x509.Certificate { return reissue(t, ca, root, f).cert }
	rootWith := func(f func(*x509.Certificate)) *x509.Certificate { return reissue(t, root, root, f).cert }
	same := func(*x509.Certificate) {}
	ended := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
	below := reissue(t, identity{ca.cert, stranger}, ca, func(c *x509.Certificate) { c.SubjectKeyId = nil })
	type chain = []*x509.Certificate
	for name, tc := range map[string]struct {
		chain chain
		check Check
		on    Artefact
	}{
		"the honest chain, made again":        {chain{leafWith(same), caWith(same), rootWith(same)}, "", ""},
		"leaf, root, CA":                      {chain{leaf.cert, root.cert, ca.cert}, CheckChain, ArtefactPCKChain},
		"no root":                             {chain{leaf.cert, ca.cert}, CheckChain, ArtefactPCKChain},
		"the root twice":                      {chain{leaf.cert, ca.cert, root.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"the other CA's certificate":          {chain{leaf.cert, other.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a leaf that the CA did not sign":     {chain{reissue(t, leaf, identity{ca.cert, stranger}, same).cert, ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a CA that the root did not sign":     {chain{leaf.cert, reissue(t, ca, identity{root.cert, stranger}, same).cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a root that did not sign itself":     {chain{leaf.cert, ca.cert, reissue(t, root, identity{root.cert, stranger}, same).cert}, CheckChain, ArtefactPCKChain},
		"a root of the same name":             {chain{leaf.cert, ca.cert, reissue(t, identity{root.cert, stranger}, identity{root.cert, stranger}, same).cert}, CheckRoot, ArtefactPCKChain},
		"a CA below the CA":                   {chain{reissue(t, leaf, below, same).cert, below.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a leaf that is a CA":                 {chain{leafWith(func(c *x509.Certificate) { c.IsCA = true }), ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a leaf that may not sign":            {chain{leafWith(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a CA that may not sign certificates": {chain{leaf.cert, caWith(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), root.cert}, CheckChain, ArtefactPCKChain},
		"a root without room for a CA": {chain{leaf.cert, ca.cert, rootWith(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })},
			CheckChain, ArtefactPCKChain},
		"a leaf with the name of TCB signing": {chain{leafWith(func(c *x509.Certificate) {
			c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "Safeconduct SIMULATED SGX TCB Signing"}
		}), ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"an unknown critical extension": {chain{leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}), ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"a key on another curve": {chain{reissue(t, identity{leaf.cert, newKey(t, elliptic.P384())}, ca, same).cert, ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"certificates never valid at once": {chain{leafWith(func(c *x509.Certificate) {
			c.NotBefore = ca.cert.NotAfter.Add(time.Hour)
			c.NotAfter = c.NotBefore.Add(time.Hour)
		}), ca.cert, root.cert}, CheckChain, ArtefactPCKChain},
		"no SGX extension": {chain{leafWith(func(c *x509.Certificate) { c.ExtraExtensions = nil }), ca.cert, root.cert}, CheckPCKExtension, ArtefactPCKCertificate},
		"an expired leaf":  {chain{leafWith(ended), ca.cert, root.cert}, CheckValidity, ArtefactPCKCertificate},
		"an expired CA":    {chain{leaf.cert, caWith(ended), root.cert}, CheckValidity, ArtefactPCKCA},
		"an expired root":  {chain{leaf.cert, ca.cert, rootWith(ended)}, CheckValidity, ArtefactRootCA},
		"another PCK than signed the QE's report": {chain{reissue(t, identity{leaf.cert, stranger}, ca, same).cert, ca.cert, root.cert},
			CheckQEReport, ArtefactQuote},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.verifier.Verify(withChain(t, r.quote(t, 3), encodeChain(tc.chain...)), r.issue(t, simulated.CollateralOptions{}), now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, tc.on)
		})
	}
}

// withChain puts another chain into a quote of version 3.
func withChain(t testing.TB, q, chain []byte) []byte {
	t.Helper()
	i := bytes.Index(q, []byte("-----BEGIN"))
	if i < 0 {
		t.Fatal("the quote has no chain")
	}
	out := append(bytes.Clone(q[:i]), chain...)
	binary.LittleEndian.PutUint32(out[i-4:], uint32(len(chain)))
	binary.LittleEndian.PutUint32(out[432:], uint32(len(out)-436))
	return out
}

func TestAQuotePutTogetherFromPartsOfOthersIsRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	c := r.issue(t, simulated.CollateralOptions{})
	a, b := r.quote(t, 3), r.quote(t, 3) // two loads of the enclave: two attestation keys
	const signature, key, report, reportSignature, auth, end = 436, 500, 564, 948, 1012, 1046
	swap := func(from, to int) []byte {
		return append(append(bytes.Clone(a[:from]), b[from:to]...), a[to:]...)
	}
	for name, tc := range map[string]struct {
		quote []byte
		check Check
	}{
		"nothing":                    {swap(0, 0), ""},
		"everything":                 {swap(0, len(a)), ""},
		"the signature":              {swap(signature, key), CheckQuoteSignature},
		"signature and key":          {swap(signature, report), CheckQEReport},
		"the key":                    {swap(key, report), CheckQuoteSignature},
		"the QE report":              {swap(report, reportSignature), CheckQEReport},
		"the QE report's signature":  {swap(reportSignature, auth), CheckQEReport},
		"the authentication data":    {swap(auth, end), CheckQEReport},
		"all that vouches for a key": {swap(report, end), CheckQEReport},
		"all but header and report":  {swap(signature, end), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.verifier.Verify(tc.quote, c, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, ArtefactQuote)
		})
	}
}

// The PCK signs the report of whatever enclave asks its provisioning enclave well: only the quoting enclave's may vouch for a key.
func TestAReportSignedByThePCKMustBeTheQuotingEnclavesAndBindTheKey(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	c := r.issue(t, simulated.CollateralOptions{})
	key := r.pck(t).key
	const report, reportSignature, auth = 564, 948, 1012
	for name, tc := range map[string]struct {
		at    int
		value byte
		check Check
	}{
		"unchanged":                        {19, 0, ""},
		"another CPUSVN":                   {0, 99, ""},
		"another MISCSELECT":               {16, 1, CheckQEReport},
		"a debug enclave":                  {48, 0x17, CheckQEReport},
		"without the provisioning key":     {48, 0x05, CheckQEReport},
		"another signer":                   {128 + 31, 0x5a, CheckQEReport},
		"another product":                  {256, 2, CheckQEReport},
		"another key's hash":               {320, 0x5a, CheckQEReport},
		"something after the key's hash":   {320 + 32, 1, CheckQEReport},
		"something at the end of the data": {320 + 63, 1, CheckQEReport},
	} {
		t.Run(name, func(t *testing.T) {
			q := r.quote(t, 3)
			if q[report+tc.at] == tc.value && name != "unchanged" {
				tc.value ^= 0xff
			}
			q[report+tc.at] = tc.value
			signature := signRaw(t, key, q[report:reportSignature])
			copy(q[reportSignature:auth], signature[:])
			_, err := r.verifier.Verify(q, c, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, ArtefactQuote)
		})
	}
}

func TestForgedCRLsAreRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	q := r.quote(t, 3)
	root, ca, other := r.authorityIdentity(t, "root_ca"), r.authorityIdentity(t, "pck_platform_ca"), r.authorityIdentity(t, "pck_processor_ca")
	crlBy := func(by identity, f func(*x509.RevocationList)) []byte {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: issued, NextUpdate: issued.Add(1000 * time.Hour)}
		if f != nil {
			f(l)
		}
		der, err := x509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	extension := func(critical bool, oid ...int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: oid, Critical: critical, Value: []byte{2, 1, 1}}}
		}
	}
	// An impostor of the same name and key id.
	impostor := reissue(t, identity{ca.cert, newKey(t, elliptic.P256())}, root, func(*x509.Certificate) {})
	renamed, rekeyed := *ca.cert, *ca.cert
	renamed.RawSubject, rekeyed.SubjectKeyId = other.cert.RawSubject, other.cert.SubjectKeyId
	for name, tc := range map[string]struct {
		pck, root []byte
		check     Check
		on        Artefact
	}{
		"honest ones made again":           {crlBy(ca, nil), crlBy(root, nil), "", ""},
		"a harmless extension":             {crlBy(ca, extension(false, 1, 2, 3)), nil, "", ""},
		"the root's for the CA's":          {crlBy(root, nil), nil, CheckCRL, ArtefactPCKCRL},
		"the CA's for the root's":          {nil, crlBy(ca, nil), CheckCRL, ArtefactRootCACRL},
		"by another key of the same name":  {crlBy(impostor, nil), nil, CheckCRL, ArtefactPCKCRL},
		"by the CA, under another name":    {crlBy(identity{&renamed, ca.key}, nil), nil, CheckCRL, ArtefactPCKCRL},
		"by the CA, under another key id":  {crlBy(identity{&rekeyed, ca.key}, nil), nil, CheckCRL, ArtefactPCKCRL},
		"a delta":                          {crlBy(ca, extension(true, 2, 5, 29, 27)), nil, CheckCRL, ArtefactPCKCRL},
		"a delta that is not critical":     {crlBy(ca, extension(false, 2, 5, 29, 27)), nil, CheckCRL, ArtefactPCKCRL},
		"of one distribution point":        {nil, crlBy(root, extension(true, 2, 5, 29, 28)), CheckCRL, ArtefactRootCACRL},
		"an unknown critical extension":    {crlBy(ca, extension(true, 1, 2, 3)), nil, CheckCRL, ArtefactPCKCRL},
		"a number of more than 64 bits":    {crlBy(ca, func(l *x509.RevocationList) { l.Number = new(big.Int).Lsh(big.NewInt(1), 64) }), nil, CheckCRL, ArtefactPCKCRL},
		"not a CRL":                        {[]byte("not a CRL"), nil, CheckCRL, ArtefactPCKCRL},
		"a byte more":                      {append(crlBy(ca, nil), 0), nil, CheckCRL, ArtefactPCKCRL},
		"a critical extension of an entry": {crlBy(ca, entryExtension()), nil, CheckCRL, ArtefactPCKCRL},
		"an entry of the kind remove from CRL": {crlBy(ca, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: r.platform(t).PCKSerial(), RevocationTime: issued, ReasonCode: 8}}
		}), nil, CheckRevoked, ArtefactPCKCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.issue(t, simulated.CollateralOptions{})
			if tc.pck != nil {
				c.PCKCRL = tc.pck
			}
			if tc.root != nil {
				c.RootCACRL = tc.root
			}
			_, err := r.verifier.Verify(q, c, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, tc.on)
		})
	}
}

func entryExtension() func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.RevokedCertificateEntries = []x509.RevocationListEntry{{
			SerialNumber: big.NewInt(7), RevocationTime: issued,
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{48, 0}}},
		}}
	}
}

func TestForgedSigningChainsAreRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	q := r.quote(t, 3)
	root, ca, signing := r.authorityIdentity(t, "root_ca"), r.authorityIdentity(t, "pck_platform_ca"), r.authorityIdentity(t, "tcb_signing")
	stranger := newKey(t, elliptic.P256())
	for name, tc := range map[string]struct {
		chain []byte
		check Check
		on    Artefact
	}{
		"the honest chain":                {encodeChain(signing.cert, root.cert), "", ""},
		"the PCK CA signs TCB info":       {encodeChain(ca.cert, root.cert), CheckChain, ArtefactSigningChain},
		"root first":                      {encodeChain(root.cert, signing.cert), CheckChain, ArtefactSigningChain},
		"no root":                         {encodeChain(signing.cert), CheckChain, ArtefactSigningChain},
		"below a PCK CA":                  {encodeChain(reissue(t, signing, ca, func(*x509.Certificate) {}).cert, ca.cert, root.cert), CheckChain, ArtefactSigningChain},
		"text before":                     {append([]byte("# chain\n"), encodeChain(signing.cert, root.cert)...), CheckChain, ArtefactSigningChain},
		"text between":                    {bytes.Join([][]byte{encodeChain(signing.cert), encodeChain(root.cert)}, []byte("root:\n")), CheckChain, ArtefactSigningChain},
		"another signing key, not issued": {encodeChain(reissue(t, identity{signing.cert, stranger}, identity{root.cert, stranger}, func(*x509.Certificate) {}).cert, root.cert), CheckChain, ArtefactSigningChain},
		"another signing key, issued":     {encodeChain(reissue(t, identity{signing.cert, stranger}, root, func(*x509.Certificate) {}).cert, root.cert), CheckSignature, ArtefactTCBInfo},
		"no PEM":                          {signing.cert.Raw, CheckChain, ArtefactSigningChain},
		"an expired root":                 {encodeChain(signing.cert, reissue(t, root, root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }).cert), CheckValidity, ArtefactRootCA},
		"not yet valid":                   {encodeChain(reissue(t, signing, root, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }).cert, root.cert), CheckValidity, ArtefactTCBSigning},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.issue(t, simulated.CollateralOptions{})
			c.TCBSigningChain = tc.chain
			_, err := r.verifier.Verify(q, c, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, tc.on)
		})
	}
}

func TestForgedDocumentsAreRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	q := r.quote(t, 3)
	key := r.authorityIdentity(t, "tcb_signing").key
	honest := r.issue(t, simulated.CollateralOptions{})
	tcbBody, qeBody := bodyOf(t, honest.TCBInfo), bodyOf(t, honest.QEIdentity)
	type change struct {
		name, from, to string
		check          Check
		on             Artefact
	}
	tcb := func(name, from, to string) change { return change{name, from, to, CheckDocument, ArtefactTCBInfo} }
	qe := func(name, from, to string) change { return change{name, from, to, CheckDocument, ArtefactQEIdentity} }
	for _, tc := range []change{
		tcb("TCB info: another kind", `"id":"SGX"`, `"id":"XYZ"`),
		tcb("TCB info: version 2", `"version":3`, `"version":2`),
		tcb("TCB info: another type", `"tcbType":0`, `"tcbType":1`),
		tcb("TCB info: no type", `"tcbType":0,`, ``),
		tcb("TCB info: a short FMSPC", `"fmspc":"53494D000000"`, `"fmspc":"53494D0000"`),
		tcb("TCB info: an FMSPC that is no hex", `"fmspc":"53494D000000"`, `"fmspc":"53494D00000G"`),
		tcb("TCB info: no PCEID", `"pceId":"0000",`, ``),
		tcb("TCB info: no evaluation data number", `"tcbEvaluationDataNumber":1,`, ``),
		tcb("TCB info: no end", `"nextUpdate":`, `"lastUpdate":`),
		tcb("TCB info: a status of its own", `"tcbStatus":"UpToDate"`, `"tcbStatus":"Fine"`),
		tcb("TCB info: a status in lower case", `"tcbStatus":"UpToDate"`, `"tcbStatus":"uptodate"`),
		tcb("TCB info: no PCESVN", `"pcesvn":13`, `"xpcesvn":13`),
		tcb("TCB info: 15 components", `[{"svn":7},`, `[`),
		tcb("TCB info: a component without SVN", `[{"svn":7},`, `[{},`),
		tcb("TCB info: an SVN of 256", `[{"svn":7},`, `[{"svn":256},`),
		tcb("TCB info: no levels", `"tcbLevels":`, `"levels":`),
		tcb("TCB info: of TDX without modules", `"id":"SGX"`, `"id":"TDX"`),
		qe("QE identity: another kind", `"id":"QE"`, `"id":"QVE"`),
		qe("QE identity: version 1", `"version":2`, `"version":1`),
		qe("QE identity: a short mask", `"attributesMask":"FB`, `"attributesMask":"`),
		qe("QE identity: no product", `"isvprodid":1,`, ``),
		qe("QE identity: a status that no enclave has", `"tcbStatus":"UpToDate"`, `"tcbStatus":"SWHardeningNeeded"`),
		qe("QE identity: no SVN", `"isvsvn":8`, `"xisvsvn":8`),
		{"QE identity: of the TD quoting enclave", `"id":"QE"`, `"id":"TD_QE"`, CheckDocument, ArtefactQEIdentity},
		{"QE identity: another signer", `"mrsigner":"`, `"mrsigner":"0000`, CheckQEReport, ArtefactQuote},
		{"QE identity: another product", `"isvprodid":1`, `"isvprodid":2`, CheckQEReport, ArtefactQuote},
		{"QE identity: other attributes", `"attributes":"11`, `"attributes":"01`, CheckQEReport, ArtefactQuote},
		{"QE identity: another MISCSELECT", `"miscselect":"00`, `"miscselect":"01`, CheckQEReport, ArtefactQuote},
		{"QE identity: an attribute that is masked out", `"attributes":"11`, `"attributes":"15`, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := r.issue(t, simulated.CollateralOptions{})
			body, name, dst := tcbBody, "tcbInfo", &c.TCBInfo
			if strings.HasPrefix(tc.name, "QE") {
				body, name, dst = qeBody, "enclaveIdentity", &c.QEIdentity
			}
			changed := strings.Replace(body, tc.from, tc.to, 1)
			if strings.HasPrefix(tc.to, `"mrsigner":"0000`) {
				i := strings.Index(body, tc.from) + len(tc.from)
				changed = body[:i] + "0000" + body[i+4:]
			}
			if changed == body {
				t.Fatalf("nothing was changed in %s", body)
			}
			*dst = signed(t, key, name, changed)
			_, err := r.verifier.Verify(q, c, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.check, tc.on)
		})
	}
}

// bodyOf is the signed part of a document.
func bodyOf(t testing.TB, raw []byte) string {
	t.Helper()
	from, to := bytes.IndexByte(raw, ':')+1, bytes.LastIndex(raw, []byte(`,"signature"`))
	if from <= 0 || to < from {
		t.Fatalf("not a signed document: %s", raw)
	}
	return string(raw[from:to])
}

func TestTheEnvelopeOfADocumentHasOneForm(t *testing.T) {
	const signature = `"0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000a"`
	for name, tc := range map[string]struct {
		raw string
		ok  bool
	}{
		"as published":               {`{"tcbInfo":{},"signature":` + signature + `}`, true},
		"signature first":            {`{"signature":` + signature + `,"tcbInfo":{}}`, true},
		"a key in another case":      {`{"tcbinfo":{},"signature":` + signature + `}`, false},
		"a key more":                 {`{"tcbInfo":{},"signature":` + signature + `,"x":1}`, false},
		"a body twice":               {`{"tcbInfo":{},"tcbInfo":{},"signature":` + signature + `}`, false},
		"a signature twice":          {`{"tcbInfo":{},"signature":` + signature + `,"signature":` + signature + `}`, false},
		"no signature":               {`{"tcbInfo":{}}`, false},
		"no body":                    {`{"signature":` + signature + `}`, false},
		"a short signature":          {`{"tcbInfo":{},"signature":"0a"}`, false},
		"a signature in upper case":  {`{"tcbInfo":{},"signature":` + strings.ToUpper(signature) + `}`, false},
		"a signature that is a list": {`{"tcbInfo":{},"signature":[]}`, false},
		"something after":            {`{"tcbInfo":{},"signature":` + signature + `}{}`, false},
		"an end of line after":       {`{"tcbInfo":{},"signature":` + signature + "}\n", true},
		"no end":                     {`{"tcbInfo":{},"signature":` + signature, false},
		"a list":                     {`[]`, false},
		"nothing":                    {``, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseDocument(ArtefactTCBInfo, "tcbInfo", []byte(tc.raw))
			if !tc.ok {
				refused(t, err, CheckDocument, ArtefactTCBInfo)
			} else if err != nil || string(d.body) != "{}" || d.signature[63] != 0x0a {
				t.Errorf("got %v, %v", d, err)
			}
		})
	}
}

func TestCollateralForOneKindOfTEEDoesNotJudgeTheOther(t *testing.T) {
	all := loadVectors(t)
	sgx, tdx := all[0], all[len(all)-1]
	if sgx.want.TEEType != quote.TEESGX || tdx.want.TEEType != quote.TEETDX {
		t.Fatal("the vectors are in another order")
	}
	platformCRL := *sgx.collateral
	platformCRL.PCKCRL = tdx.collateral.PCKCRL
	_, err := intel().Verify(tdx.quote, &platformCRL, sgx.want.VerifyAt)
	refused(t, err, CheckDocument, ArtefactTCBInfo)
	mixed := *tdx.collateral
	mixed.QEIdentity = sgx.collateral.QEIdentity
	_, err = intel().Verify(tdx.quote, &mixed, tdx.want.VerifyAt)
	refused(t, err, CheckDocument, ArtefactQEIdentity)
}
