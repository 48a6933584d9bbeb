package cli

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/receipt"
)

// goldenFiles are the receipt of package receipt's vectors, in files: the export, the signed policy, the keys that sign it and the test root.
type goldenFiles struct{ export, policy, keys, root string }

func goldenReceipt(t *testing.T) goldenFiles {
	t.Helper()
	dir := filepath.Join("..", "..", "attestation", "receipt", "testdata")
	raw := readGoldenReceipt(t)
	e, err := receipt.ParseExport(raw)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := os.ReadFile(filepath.Join(dir, "policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := policy.Sign(payload, private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	_, root := pem.Decode(e.Collateral[0].TCBSigningChain) // the signing certificate, then the root
	return goldenFiles{
		export: write(t, "export.json", string(raw)), policy: write(t, "policy.json", string(signed)),
		keys: write(t, "keys.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))), root: write(t, "root.pem", string(root)),
	}
}

func readGoldenReceipt(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "attestation", "receipt", "testdata", "export.json"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAReceiptIsVerifiedOffline(t *testing.T) {
	g := goldenReceipt(t)
	verify := func(args ...string) (string, string, int) {
		t.Helper()
		return do(t, append([]string{"receipt", "verify", "--policy", g.policy, "--policy-keys", g.keys}, args...)...)
	}
	out, errs, code := verify("--simulated-root", g.root, g.export)
	if code != ExitOK || !strings.Contains(out, "ACCEPTED") || !strings.Contains(out, "signed by both") || strings.Contains(out, "FAILED") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if out, _, code := verify("--simulated-root", g.root, g.export, "-o", "json"); code != ExitOK || !strings.Contains(out, `"accepted": true`) {
		t.Errorf("as JSON: exit %d: %s", code, out)
	}
	if out, _, code := verify(g.export); code != ExitRefused || !strings.Contains(out, "REFUSED") {
		t.Errorf("a simulated receipt without a test root: exit %d: %s", code, out)
	}
	raw, err := os.ReadFile(g.export)
	if err != nil {
		t.Fatal(err)
	}
	e, err := receipt.ParseExport(raw)
	if err != nil {
		t.Fatal(err)
	}
	e.Source.Signature[0] ^= 1
	forged, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if out, _, code := verify("--simulated-root", g.root, write(t, "forged", string(forged))); code != ExitRefused || !strings.Contains(out, "FAILED") {
		t.Errorf("a forged signature: exit %d: %s", code, out)
	}
	for name, file := range map[string][]byte{"cut short": raw[:len(raw)-1], "no receipt": []byte("{}"), "altered": bytes.Replace(raw, []byte("m"), []byte("n"), 1)} {
		if _, _, code := verify("--simulated-root", g.root, write(t, "x", string(file))); code != ExitNotAuthentic {
			t.Errorf("%s: exit %d", name, code)
		}
	}
	if _, _, code := do(t, "receipt", "verify", "--policy", g.export, "--policy-keys", g.keys, g.export); code != ExitNotAuthentic {
		t.Errorf("a policy that is none: exit %d", code)
	}
	if _, _, code := verify("--simulated-root", g.keys, g.export); code != ExitUsage {
		t.Errorf("a root that is none: exit %d", code)
	}
}
