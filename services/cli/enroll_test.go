package cli

import (
	"encoding/json"
	"encoding/pem"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

func TestEnrollShowsTheHostsTPMAndBelievesItsMakerOnly(t *testing.T) {
	address := swtpmtest.Start(t)
	maker := swtpmtest.NewMaker(t)
	maker.Certify(t, address, tpm2.RSAEKTemplate)
	c := newCloud(t, address)
	roots := func(m *swtpmtest.Maker) string {
		return put(t, t.TempDir(), "roots.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Root.Raw}))
	}
	enroll := func(i int, args ...string) result {
		return run(t, append([]string{"--socket", c.nodes[i].socket, "enroll"}, args...)...)
	}

	r := enroll(0, "-o", "json", "--ek-roots", roots(maker))
	r.exits(t, ExitOK)
	var got policy.Platform
	if err := json.Unmarshal([]byte(r.out), &got); err != nil {
		t.Fatal(err)
	}
	if want := c.policy.Platforms[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v\nexpected %+v", got, want)
	}

	for name, test := range map[string]struct {
		node int
		args []string
		code int
		says string
	}{
		"certified":                 {0, []string{"--ek-roots", roots(maker)}, ExitOK, "certified by CN=Test TPM Intermediate under CN=Test TPM Root"},
		"not checked":               {0, nil, ExitOK, "its certificate was not checked"},
		"without a TPM":             {1, nil, ExitOK, "none: this host has no TPM"},
		"without a TPM, with roots": {1, []string{"--ek-roots", roots(maker)}, ExitUsage, "this host has no TPM"},
		"of another maker":          {0, []string{"--ek-roots", roots(swtpmtest.NewMaker(t))}, ExitNotAuthentic, "does not lead to a trusted root"},
		"roots that are none":       {0, []string{"--ek-roots", put(t, t.TempDir(), "roots.pem", []byte("none"))}, ExitUsage, "found no certificate in PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			r := enroll(test.node, test.args...)
			r.exits(t, test.code)
			if !strings.Contains(r.out+r.err, test.says) {
				t.Errorf("no %q in\n%s%s", test.says, r.out, r.err)
			}
			if test.code != ExitOK && strings.Contains(r.out, "tpm key") {
				t.Errorf("a platform to enrol was printed all the same:\n%s", r.out)
			}
		})
	}
}
