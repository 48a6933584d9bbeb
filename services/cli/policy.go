package cli

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/policy"
)

// maxKeyFile bounds files of keys and certificates, in bytes.
const maxKeyFile = 256 << 10

func policyCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "policy", Short: "Make and read signed policies",
		Long: "Make and read signed policies: what is accepted, signed by the operator. Nodes take no other.",
	}
	c.AddCommand(policyKeygenCommand(a), policySignCommand(a), policyVerifyCommand(a), policyShowCommand(a), policyDiffCommand(a), policyTestCommand(a),
		policySchemaCommand(a))
	return c
}

func policyKeygenCommand(a *app) *cobra.Command {
	var key, public string
	c := &cobra.Command{
		Use: "keygen --key FILE --public FILE", Short: "Make a key that signs policies", Args: cobra.NoArgs,
		Long: `Make a key that signs policies (Ed25519): the private half as PKCS #8 in PEM, mode 0600, the public half as PEM. Keep the private
half off the nodes; the public half is policy.keys of every node. Nothing is overwritten.`,
		RunE: func(*cobra.Command, []string) error {
			pub, private, err := ed25519.GenerateKey(a.Rand)
			if err != nil {
				return err
			}
			secret, err := x509.MarshalPKCS8PrivateKey(private)
			if err != nil {
				return err
			}
			open, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				return err
			}
			id, err := policy.KeyID(pub)
			if err != nil {
				return err
			}
			if err := a.writePair(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
				public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: open})); err != nil {
				return err
			}
			v := struct {
				KeyID string `json:"key_id"`
			}{id}
			return a.show(v, func(s *sheet) { s.field("key id", id) })
		},
	}
	c.Flags().StringVar(&key, "key", "", "new file for the private key")
	c.Flags().StringVar(&public, "public", "", "new file for the public key")
	_, _ = c.MarkFlagRequired("key"), c.MarkFlagRequired("public") // the flags are there
	return c
}

// writePair writes both files or none: half a key pair that blocks the next attempt helps nobody.
func (a *app) writePair(key string, secret []byte, public string, open []byte) error {
	for _, path := range []string{key, public} {
		if path == "" || path == "-" {
			return advise(errors.New("--key and --public name files"), "give two file names; keys do not go to standard output")
		}
	}
	if err := a.writeNew(key, 0o600, secret); err != nil {
		return err
	}
	if err := a.writeNew(public, 0o644, open); err != nil {
		return errors.Join(err, os.Remove(key))
	}
	return nil
}

func policySignCommand(a *app) *cobra.Command {
	var keys []string
	var out string
	c := &cobra.Command{
		Use: "sign --key FILE [--key FILE ...] [--out FILE] POLICY", Short: "Sign a policy", Args: cobra.ExactArgs(1),
		Long: `Sign a policy, which is checked first: a DSSE envelope with one signature for each key. A node needs one of them to be by a key
that it trusts.`,
		RunE: func(_ *cobra.Command, args []string) error {
			payload, err := readFile(args[0], policy.MaxSize)
			if err != nil {
				return err
			}
			var signers []crypto.Signer
			for _, path := range keys {
				signer, err := readSigner(path)
				if err != nil {
					return err
				}
				signers = append(signers, signer)
			}
			signed, err := policy.Sign(payload, signers...)
			if err != nil {
				return advise(fmt.Errorf("%s: %w", args[0], err), "correct the policy, or the key, and sign again")
			}
			return a.writeNew(out, 0o644, signed)
		},
	}
	c.Flags().StringArrayVar(&keys, "key", nil, "private key in PEM (PKCS #8): Ed25519, or ECDSA on P-256")
	c.Flags().StringVar(&out, "out", "", "new file for the signed policy; standard output without")
	_ = c.MarkFlagRequired("key") // the flag is there
	return c
}

// readSigner reads a private key. What it says of a file that is none does not repeat the file.
func readSigner(path string) (crypto.Signer, error) {
	raw, err := readFile(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	const do = "give a private key in PEM of type PRIVATE KEY: safeconduct policy keygen, or openssl genpkey -algorithm ed25519"
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, advise(fmt.Errorf("%s: no private key in PEM of type PRIVATE KEY", path), do)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, advise(fmt.Errorf("%s: not a private key that signs", path), do)
	}
	return signer, nil
}

func readKeys(path string) (policy.Keys, error) {
	raw, err := readFile(path, maxKeyFile)
	if err != nil {
		return policy.Keys{}, err
	}
	keys, err := policy.ParseKeys(raw)
	if err != nil {
		return policy.Keys{}, advise(fmt.Errorf("%s: %w", path, err), "give the public keys, in PEM of type PUBLIC KEY")
	}
	return keys, nil
}

// policyView is what policy verify and policy show print.
type policyView struct {
	// Authentic is absent where nobody asked who signed the policy.
	Authentic *bool    `json:"authentic,omitempty"`
	Schema    string   `json:"schema"`
	SVN       uint64   `json:"policy_svn"`
	Mode      string   `json:"mode"`
	Warning   string   `json:"warning,omitempty"`
	Digest    string   `json:"policy_sha256"`
	SignedBy  []string `json:"signed_by,omitempty"`
	Enclaves  int      `json:"enclaves"`
	Platforms int      `json:"platforms"`
	Files     int      `json:"reference_files"`
	Statuses  []string `json:"tcb_statuses"`
	Tolerated []string `json:"tolerated_advisories"`
	Debug     bool     `json:"accepts_debug"`
	Exported  []string `json:"exported_keys"`
}

func viewPolicy(p *policy.Loaded) *policyView {
	v := &policyView{
		Schema: p.Schema, SVN: p.SVN, Mode: string(p.Mode), Digest: hexOf(p.Digest[:]), SignedBy: p.SignedBy, Enclaves: len(p.Enclaves),
		Platforms: len(p.Platforms), Files: len(p.Integrity.Files), Statuses: p.TCB.Statuses, Tolerated: append([]string{},
			p.TCB.ToleratedAdvisories...),
		Exported: append([]string{}, p.ExportedKeys...),
	}
	if len(v.Statuses) == 0 {
		v.Statuses = []string{"UpToDate"}
	}
	for _, e := range p.Enclaves {
		v.Debug = v.Debug || e.Debug
	}
	if v.Mode != "intel" {
		v.Warning = modeLine(v.Mode)
	}
	return v
}
