package simulated

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/tee"
)

var measurement = Measurement{MREnclave: [32]byte{1}, MRSigner: SignerOf("test"), ISVProdID: 3, ISVSVN: 5}

func authority(t *testing.T) (*Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "authority")
	a, err := CreateAuthority(dir, AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a, dir
}

func platform(t *testing.T, a *Authority) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "platform")
	if err := a.CreatePlatform(dir, PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string, m Measurement) *Platform {
	t.Helper()
	p, err := Open(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnAuthorityIsLaidOutAsCollateralAndKeepsItsKeysPrivate(t *testing.T) {
	_, dir := authority(t)
	public := []string{RootFile, TCBInfoFile, QEIdentityFile, TCBSigningChainFile, PCKCRLFile, PCKCRLIssuerChainFile, RootCACRLFile}
	for _, name := range public {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		private := strings.Contains(string(raw), "PRIVATE KEY")
		if private && (info.Mode().Perm() != 0o600 || filepath.Base(filepath.Dir(path)) != privateDir) {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, privateDir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestAnAuthorityReadBackIsTheSame(t *testing.T) {
	a, dir := authority(t)
	b, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	other := b.members()
	for name, s := range a.members() {
		if !s.cert.Equal(other[name].cert) || !s.key.Equal(other[name].key) {
			t.Errorf("%s differs", name)
		}
	}
	if err := b.CreatePlatform(filepath.Join(t.TempDir(), "p"), PlatformOptions{}); err != nil {
		t.Error(err)
	}
}

func TestNothingThatHoldsKeysIsOverwritten(t *testing.T) {
	a, dir := authority(t)
	if _, err := CreateAuthority(dir, AuthorityOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("authority: %v", err)
	}
	p := platform(t, a)
	before, err := os.ReadFile(filepath.Join(p, fuseFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.CreatePlatform(p, PlatformOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("platform: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(p, fuseFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the fuse key has changed, or %v", err)
	}
}

func TestEverythingSaysThatItIsSimulated(t *testing.T) {
	a, _ := authority(t)
	for name, s := range a.members() {
		if !strings.Contains(s.cert.Subject.CommonName, "SIMULATED") || !strings.Contains(s.cert.Subject.Organization[0], "SIMULATED") {
			t.Errorf("%s: %s", name, s.cert.Subject)
		}
	}
	dir := platform(t, a)
	leaf, err := readCert(filepath.Join(dir, chainFile))
	if err != nil || !strings.Contains(leaf.Subject.CommonName, "SIMULATED") {
		t.Errorf("%v, %v", leaf.Subject, err)
	}
	p := open(t, dir, measurement)
	quote, err := p.Quote(t.Context(), [64]byte{})
	if err != nil || !strings.HasPrefix(string(quote[28:48]), "SIMULATED") {
		t.Errorf("%q, %v", quote[28:48], err)
	}
	_, info, err := p.SealKey(t.Context())
	if err != nil || !strings.Contains(string(info), "SIMULATED") {
		t.Errorf("%q, %v", info, err)
	}
	if p.Mode() != tee.ModeSimulated {
		t.Errorf("mode %s", p.Mode())
	}
}

func TestIncompleteDirectoriesAreRefused(t *testing.T) {
	a, authorityDir := authority(t)
	other, _ := authority(t)
	for name, spoil := range map[string]func(t *testing.T, dir string) error{
		"no record":        func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, platformFile)) },
		"no fuse key":      func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, fuseFile)) },
		"a short fuse key": func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, fuseFile), 31) },
		"no chain":         func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, chainFile)) },
		"no PCK key":       func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, pckKeyFile)) },
		"a record of a stranger": func(_ *testing.T, dir string) error {
			return replace(dir, platformFile, platformSchema, "something/else")
		},
		"a CPUSVN that is none": func(_ *testing.T, dir string) error {
			return replace(dir, platformFile, `"cpu_svn": "07`, `"cpu_svn": "`)
		},
		"a key file that is a certificate": func(_ *testing.T, dir string) error {
			return os.Rename(filepath.Join(dir, chainFile), filepath.Join(dir, pckKeyFile))
		},
		"another platform's PCK key": func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(platform(t, other), pckKeyFile), filepath.Join(dir, pckKeyFile))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := platform(t, a)
			if err := spoil(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, measurement); !errors.Is(err, ErrNotPlatform) {
				t.Errorf("got %v, want ErrNotPlatform", err)
			}
		})
	}
	if err := os.Remove(filepath.Join(authorityDir, privateDir, signingName+keySuffix)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(authorityDir); !errors.Is(err, ErrNotAuthority) {
		t.Errorf("got %v, want ErrNotAuthority", err)
	}
}

func replace(dir, file, from, to string) error {
	path := filepath.Join(dir, file)
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(raw, []byte(from)) {
		return fmt.Errorf("%s does not hold %q", file, from)
	}
	return os.WriteFile(path, bytes.Replace(raw, []byte(from), []byte(to), 1), 0o600)
}

func TestTheMeasurementOfAnExecutableIsNoPlainChecksum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave")
	write := func(content string) [32]byte {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := MeasureExecutable(path)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a, b, again := write("a program"), write("another"), write("a program")
	if a == b || a != again || a == sha256.Sum256([]byte("a program")) {
		t.Errorf("%x, %x, %x", a, b, again)
	}
	if _, err := MeasureExecutable(path + ".absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSealingKeysFollowPlatformSignerProductVersionAndDebug(t *testing.T) {
	a, _ := authority(t)
	dir := platform(t, a)
	key, info, err := open(t, dir, measurement).SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*Measurement)) Measurement {
		m := measurement
		f(&m)
		return m
	}
	for name, tc := range map[string]struct {
		dir     string
		m       Measurement
		recover bool
	}{
		"the same enclave, started again":        {dir, measurement, true},
		"another enclave of signer and product":  {dir, change(func(m *Measurement) { m.MREnclave[0]++ }), true},
		"a later version":                        {dir, change(func(m *Measurement) { m.ISVSVN++ }), true},
		"an earlier version":                     {dir, change(func(m *Measurement) { m.ISVSVN-- }), false},
		"another signer":                         {dir, change(func(m *Measurement) { m.MRSigner[31]++ }), false},
		"another product":                        {dir, change(func(m *Measurement) { m.ISVProdID++ }), false},
		"the debug build":                        {dir, change(func(m *Measurement) { m.Debug = true }), false},
		"the same enclave on another platform":   {platform(t, a), measurement, false},
		"a later version on another platform":    {platform(t, a), change(func(m *Measurement) { m.ISVSVN++ }), false},
		"a version that wraps around to be late": {dir, change(func(m *Measurement) { m.ISVSVN = 0 }), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, tc.dir, tc.m)
			got, err := p.RecoverSealKey(t.Context(), info)
			if tc.recover && (err != nil || !got.Equal(key)) || !tc.recover && (!errors.Is(err, tee.ErrForeignKeyInfo) || got.Bytes() != nil) {
				t.Errorf("recovered %t, %v", got.Equal(key), err)
			}
			own, _, err := p.SealKey(t.Context())
			if same := own.Equal(key); err != nil || same != (tc.recover && tc.m.ISVSVN == measurement.ISVSVN) {
				t.Errorf("its own key is the same: %t, %v", same, err)
			}
		})
	}
}

func TestAForeignKeyInfoIsRefused(t *testing.T) {
	a, _ := authority(t)
	p := open(t, platform(t, a), measurement)
	_, info, err := p.SealKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string][]byte{"nothing": nil, "a byte more": append(bytes.Clone(info), 0), "a key request of SGX": make([]byte, 512)}
	for i := range info {
		changed := bytes.Clone(info)
		changed[i] ^= 1
		inputs[fmt.Sprintf("byte %d changed", i)] = changed
		inputs[fmt.Sprintf("cut after %d bytes", i)] = info[:i]
	}
	for name, input := range inputs {
		if _, err := p.RecoverSealKey(t.Context(), input); !errors.Is(err, tee.ErrForeignKeyInfo) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatOnePlatformSealsItOpensAndAnotherDoesNot(t *testing.T) {
	a, _ := authority(t)
	p, other := open(t, platform(t, a), measurement), open(t, platform(t, a), measurement)
	id := sealed.ID{Kind: "secret", Name: "vm"}
	blob, err := sealed.Seal(t.Context(), tee.SealKeys{Enclave: p}, id, 1, []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := sealed.Open(t.Context(), tee.SealKeys{Enclave: p}, id, blob); err != nil || string(got) != "passphrase" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, _, err := sealed.Open(t.Context(), tee.SealKeys{Enclave: other}, id, blob); !errors.Is(err, tee.ErrForeignKeyInfo) {
		t.Errorf("got %v", err)
	}
}

func TestAPlatformKeepsItsFuseKeyOutOfLogs(t *testing.T) {
	a, _ := authority(t)
	p := open(t, platform(t, a), measurement)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, p); strings.Contains(out, fmt.Sprintf("%v", p.fuse)) || !strings.HasPrefix(out, "simulated platform") {
			t.Errorf("%s prints %.80s", verb, out)
		}
	}
}

func TestACallWhoseContextHasEndedDoesNothing(t *testing.T) {
	a, _ := authority(t)
	p := open(t, platform(t, a), measurement)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, errQuote := p.Quote(ctx, [64]byte{})
	_, _, errSeal := p.SealKey(ctx)
	_, errRecover := p.RecoverSealKey(ctx, nil)
	for _, err := range []error{errQuote, errSeal, errRecover} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

// The quote's layout is written down a second time here, byte by byte, for package quote has its reader from the same specification.
func TestAQuoteHasTheLayoutOfTheSpecification(t *testing.T) {
	a, _ := authority(t)
	m := measurement
	m.Debug = true
	p := open(t, platform(t, a), m)
	data := [64]byte{0: 0xaa, 63: 0xbb}
	q, err := p.Quote(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	report := q[48:432]
	signer := SignerOf("test")
	for what, ok := range map[string]bool{
		"version 3":            q[0] == 3 && q[1] == 0,
		"ECDSA P-256":          q[2] == 2 && q[3] == 0,
		"INIT, DEBUG, MODE64":  report[48] == 7,
		"MRENCLAVE":            report[64] == 1 && report[65] == 0,
		"MRSIGNER":             bytes.Equal(report[128:160], signer[:]),
		"ISVPRODID and ISVSVN": report[256] == 3 && report[257] == 0 && report[258] == 5 && report[259] == 0,
		"REPORTDATA":           bytes.Equal(report[320:384], data[:]),
		"the length of the signature data is the rest": int(q[432])|int(q[433])<<8|int(q[434])<<16|int(q[435])<<24 == len(q)-436,
		"the rest of the report is zero":               len(bytes.Trim(report[20:48], "\x00")) == 0 && len(bytes.Trim(report[260:320], "\x00")) == 0,
	} {
		if !ok {
			t.Errorf("%s: no", what)
		}
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q[500:564]...))
	if err != nil {
		t.Fatal(err)
	}
	bound := sha256.Sum256(append(bytes.Clone(q[500:564]), q[564+384+64+2:564+384+64+2+32]...))
	if !bytes.Equal(q[564+320:564+352], bound[:]) {
		t.Error("the QE report does not bind the attestation key")
	}
	if !key.Equal(&p.qe.key.PublicKey) {
		t.Error("the attestation key is another")
	}
}

func TestCertificatesOfTheTwoCAsCarryTheAttributesOfTheirKind(t *testing.T) {
	for ca, want := range map[CA]int{PlatformCA: 7, ProcessorCA: 5} {
		p := &pckIdentity{ca: ca}
		e, err := p.extension()
		if err != nil {
			t.Fatal(err)
		}
		var attributes []asn1.RawValue
		if _, err := asn1.Unmarshal(e.Value, &attributes); err != nil || len(attributes) != want {
			t.Errorf("CA %d: %d attributes, want %d; %v", ca, len(attributes), want, err)
		}
	}
}

func TestIssuedDocumentsAreJSONWithASignature(t *testing.T) {
	a, _ := authority(t)
	files, err := a.Issue(CollateralOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for file, key := range map[string]string{TCBInfoFile: "tcbInfo", QEIdentityFile: "enclaveIdentity"} {
		var doc map[string]json.RawMessage
		if err := json.Unmarshal(files[file], &doc); err != nil || len(doc) != 2 || doc[key] == nil || len(doc["signature"]) != 130 {
			t.Errorf("%s: %v, %d keys", file, err, len(doc))
		}
	}
}
