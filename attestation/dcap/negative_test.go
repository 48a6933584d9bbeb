package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func negative(t testing.TB, name string) []byte {
	t.Helper()
	return read(t, filepath.Join(vectorsDir(t), "quotes-negative", name))
}

func TestEachNegativeVectorIsRefusedForItsOwnReason(t *testing.T) {
	v := loadVectors(t)[0]
	checked, err := intel().CheckCollateral(v.collateral)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(vectorsDir(t), "quotes-negative", "*"))
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]struct {
		check    Check
		artefact Artefact
		cause    error
		says     string
	}{
		"fortanix_quote_certtype3_raw_tcb.bin": {CheckQuote, ArtefactQuote, quote.ErrUnsupported, "found 3, expected 5 (PCK certificate chain)"},
		"intel_qvl_sample_certtype1.bin":       {CheckQuote, ArtefactQuote, quote.ErrUnsupported, "found 1, expected 5 (PCK certificate chain)"},
		"fortanix_quote_pck_cert_chain_leaf_root_inter_order.bin": {CheckChain, ArtefactPCKChain, nil,
			`found "Intel SGX PCK Certificate", "Intel SGX Root CA", "Intel SGX PCK Processor CA", expected in this order`},
		// The same chain: what is corrupted is the quote's signature.
		"fortanix_quote_pck_cert_chain_corrupted_leaf_root_inter_order.bin": {CheckQuoteSignature, ArtefactQuote, nil, "does not verify"},
	}
	if len(files) != len(reasons) {
		t.Errorf("there are %d negative vectors, this test knows %d", len(files), len(reasons))
	}
	seen := map[string]string{}
	for _, file := range files {
		name := filepath.Base(file)
		want := reasons[name]
		_, err := checked.Verify(read(t, file), v.want.VerifyAt)
		refused(t, err, want.check, want.artefact)
		if err == nil || !strings.Contains(err.Error(), want.says) || (want.cause != nil && !errors.Is(err, want.cause)) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if other, twice := seen[err.Error()]; twice {
			t.Errorf("%s is refused as %s is: %v", name, other, err)
		}
		seen[err.Error()] = name
	}
}

// The decision of README.md in the vectors: a chain in another order than the specification's is refused. Sorted, this one is valid:
// what is then missing is the collateral of its platform.
func TestAChainInAnotherOrderIsValidOnlyOnceSorted(t *testing.T) {
	raw := negative(t, "fortanix_quote_pck_cert_chain_leaf_root_inter_order.bin")
	q, err := quote.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	var sorted []byte
	for _, i := range []int{0, 2, 1} {
		sorted = append(sorted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: q.CertChain[i]})...)
	}
	v := loadVectors(t)[0]
	_, err = intel().Verify(withChain(t, raw, sorted), v.collateral, v.want.VerifyAt)
	refused(t, err, CheckPlatform, ArtefactTCBInfo)
}

func TestThePreProductionRootOfTheSameNameIsRefused(t *testing.T) {
	preProduction, err := x509.ParseCertificate(read(t, filepath.Join(vectorsDir(t), "roots-negative", "intel_preproduction_root_ca.cer")))
	if err != nil {
		t.Fatal(err)
	}
	v := loadVectors(t)[0]
	q, err := quote.Parse(v.quote)
	if err != nil {
		t.Fatal(err)
	}
	production, err := x509.ParseCertificate(q.CertChain[2])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(preProduction.RawSubject, production.RawSubject) || PinOf(production) != IntelRoot() || PinOf(preProduction) == IntelRoot() {
		t.Fatal("the two roots are not what this test is about")
	}
	var chain []byte
	for _, der := range [][]byte{q.CertChain[0], q.CertChain[1], preProduction.Raw} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	_, err = intel().Verify(withChain(t, v.quote, chain), v.collateral, v.want.VerifyAt)
	refused(t, err, CheckRoot, ArtefactPCKChain)

	c := *v.collateral
	ders, err := quote.ParseChain(c.TCBSigningChain)
	if err != nil {
		t.Fatal(err)
	}
	c.TCBSigningChain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ders[0]}), encodeChain(preProduction)...)
	_, err = intel().Verify(v.quote, &c, v.want.VerifyAt)
	refused(t, err, CheckRoot, ArtefactSigningChain)
}

func TestThePinIsOfTheKeyInIntelsRootCertificate(t *testing.T) {
	raw := read(t, filepath.Join(vectorsDir(t), "intel_sgx_root_ca.pem"))
	pin, err := PinPEM(raw)
	if err != nil || pin != IntelRoot() || pin.String() != IntelRootKeySHA256 {
		t.Errorf("got %v, %v", pin, err)
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("root"), "two certificates": append(bytes.Clone(raw), raw...), "text after": append(bytes.Clone(raw), 'x'),
		"not a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1, 2, 3}}),
		"another block":     bytes.ReplaceAll(raw, []byte("CERTIFICATE"), []byte("PUBLIC KEY")),
	} {
		if _, err := PinPEM(bad); !errors.Is(err, ErrRootFile) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestASimulatedRootDoesNotVerifyRealQuotes(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	v := loadVectors(t)[0]
	_, err := r.verifier.Verify(v.quote, v.collateral, v.want.VerifyAt)
	refused(t, err, CheckRoot, ArtefactSigningChain)
	_, err = r.verifier.Verify(v.quote, r.issue(t, simulated.CollateralOptions{}), now)
	refused(t, err, CheckRoot, ArtefactPCKChain)
}
