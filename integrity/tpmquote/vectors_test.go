package tpmquote

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// vector reads a file of the folder of real-world vectors.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		// The project's root is two folders up, and the vectors are beside it.
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "tpm-quote", name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("skipped: no vectors at %s; set SAFECONDUCT_VECTORS", dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// azureQuote is a quote by the vTPM of a confidential VM. The vector has the key as a JSON Web Key and the signature bare, as the
// hypervisor reports them; the TPM structures around them are rebuilt here.
func azureQuote(t testing.TB) (*v1.TpmQuote, []byte) {
	t.Helper()
	var q struct {
		Signature, Message string
		PCRs               []string
	}
	if err := json.Unmarshal(vector(t, "az-snp-vtpm-tpm-quote-v1.json"), &q); err != nil {
		t.Fatal(err)
	}
	_, report, _ := bytes.Cut(vector(t, "az-snp-vtpm-hcl-report.bin"), []byte(`{"keys"`))
	var claims struct {
		Keys []struct{ Kid, N string }
	}
	if err := json.NewDecoder(strings.NewReader(`{"keys"` + string(report))).Decode(&claims); err != nil {
		t.Fatal(err)
	}
	if claims.Keys[0].Kid != "HCLAkPub" {
		t.Fatalf("found key %q, expected HCLAkPub", claims.Keys[0].Kid)
	}
	modulus, err := base64.RawURLEncoding.DecodeString(claims.Keys[0].N)
	if err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var public, signature writer
	public.put(uint16(algRSA), uint16(algSHA256), uint32(goodAttributes), []byte{}, uint16(algNull), uint16(algRSASSA), uint16(algSHA256))
	public.put(uint16(2048), uint32(0), modulus)
	signature.put(uint16(algRSASSA), uint16(algSHA256), unhex(q.Signature))
	out := &v1.TpmQuote{Attest: unhex(q.Message), Signature: signature.Bytes(), AkPublic: public.Bytes()}
	for i, p := range q.PCRs {
		out.Pcrs = append(out.Pcrs, &v1.PcrValue{Bank: "sha256", Index: uint32(i), Value: unhex(p)})
	}
	return out, public.Bytes()
}

func TestARealQuoteOfAHardwareVendorsTPMVerifies(t *testing.T) {
	q, ak := azureQuote(t)
	s, err := verify(q, ak, []byte("challenge"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.PCRs) != 24 || s.ResetCount != 3 || s.RestartCount != 0 || !s.ClockSafe || s.Clock != 0x211111 {
		t.Errorf("statement %+v", s)
	}
	if _, err := verify(q, ak, []byte("challengf")); !errors.Is(err, CheckQualifyingData) {
		t.Errorf("another challenge: %v", err)
	}
	q.Pcrs[17].Value[0] ^= 1
	if _, err := verify(q, ak, []byte("challenge")); !errors.Is(err, CheckPCRDigest) {
		t.Errorf("another PCR value: %v", err)
	}
	q.Pcrs[17].Value[0] ^= 1
	q.Signature[100] ^= 1
	if _, err := verify(q, ak, []byte("challenge")); !errors.Is(err, CheckSignature) {
		t.Errorf("another signature: %v", err)
	}
}

// The vector of rust-keylime is a genuine quote, with SHA-1 in its signature, its bank and its name. It comes without its key, so that only
// parsing and refusal can be tested on it.
func TestARealQuoteWithSHA1IsParsedAndRefused(t *testing.T) {
	parts := strings.Split(strings.TrimPrefix(strings.TrimSpace(string(vector(t, "rust-keylime_test-quote.txt"))), "r"), ":")
	if len(parts) != 3 {
		t.Fatalf("found %d parts, expected quote, signature and PCRs", len(parts))
	}
	attest, err := base64.StdEncoding.DecodeString(parts[0])
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseAttest(attest); !errors.Is(err, CheckSelection) {
		t.Errorf("the SHA-1 bank: %v", err)
	}
	s, err := parseSignature(raw)
	if err != nil || s.scheme != algRSASSA || s.hash != 4 || len(s.rsa) != 256 {
		t.Fatalf("signature %+v, %v", s, err)
	}
	key := softRSA(t, algRSASSA, 2048)
	v, err := (&public{kind: algRSA, scheme: algRSASSA, hash: algSHA256, keyBits: 2048, modulus: key.rsa.N.Bytes()}).verifier()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.verify(attest, s); !errors.Is(err, CheckAlgorithm) {
		t.Errorf("a SHA-1 signature: %v", err)
	}
}
