package collateral

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func complete() *Collateral {
	return &Collateral{TCBInfo: []byte("1"), QEIdentity: []byte("2"), TCBSigningChain: []byte("3"), PCKCRL: []byte("4"), RootCACRL: []byte("5")}
}

func writeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, a := range complete().artefacts() {
		if err := os.WriteFile(filepath.Join(dir, a.file), *a.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestADirectoryIsReadByteForByte(t *testing.T) {
	got, err := LoadDir(writeDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest() != complete().Digest() || string(got.TCBInfo) != "1" || string(got.RootCACRL) != "5" {
		t.Errorf("got %+v", got)
	}
}

func TestEachArtefactMustBeThereAndWithinItsLimit(t *testing.T) {
	for i, a := range new(Collateral).artefacts() {
		for name, tc := range map[string]struct {
			content []byte // nil: no file
			err     error
		}{
			"absent":         {nil, ErrMissing},
			"empty":          {[]byte{}, ErrMissing},
			"at the limit":   {make([]byte, a.limit), nil},
			"over the limit": {make([]byte, a.limit+1), ErrTooLarge},
		} {
			t.Run(a.file+" "+name, func(t *testing.T) {
				dir := writeDir(t)
				path := filepath.Join(dir, a.file)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if tc.content != nil {
					if err := os.WriteFile(path, tc.content, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				c, err := LoadDir(dir)
				check(t, a.file, err, tc.err)
				if (c == nil) != (tc.err != nil) {
					t.Errorf("got %v with error %v", c != nil, err)
				}
				direct := complete()
				*direct.artefacts()[i].bytes = tc.content
				check(t, a.file, direct.Check(), tc.err)
			})
		}
	}
}

func check(t *testing.T, file string, err, want error) {
	t.Helper()
	var e *Error
	if want == nil {
		if err != nil {
			t.Errorf("got %v", err)
		}
	} else if !errors.As(err, &e) || e.File != file || !errors.Is(err, want) {
		t.Errorf("got %v, want %v on %s", err, want, file)
	}
}

func TestEveryObjectionIsReported(t *testing.T) {
	err := new(Collateral).Check()
	_, errDir := LoadDir(t.TempDir())
	for _, a := range new(Collateral).artefacts() {
		for _, e := range []error{err, errDir} {
			if e == nil || !bytes.Contains([]byte(e.Error()), []byte(a.file)) {
				t.Errorf("%v does not name %s", e, a.file)
			}
		}
	}
}

func TestAFileThatCannotBeReadIsNoMissingOne(t *testing.T) {
	dir := writeDir(t)
	path := filepath.Join(dir, PCKCRLFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := LoadDir(dir)
	var e *Error
	if !errors.As(err, &e) || e.File != PCKCRLFile || errors.Is(err, ErrMissing) {
		t.Errorf("got %v", err)
	}
}

func TestTheIssuerChainOfThePCKCRLMayBeAbsentButNotTooLarge(t *testing.T) {
	for name, tc := range map[string]struct {
		content []byte // nil: no file
		err     error
	}{
		"absent":         {nil, nil},
		"empty":          {[]byte{}, nil},
		"there":          {[]byte("6"), nil},
		"at the limit":   {make([]byte, MaxPCKCRLIssuerChain), nil},
		"over the limit": {make([]byte, MaxPCKCRLIssuerChain+1), ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeDir(t)
			if tc.content != nil {
				if err := os.WriteFile(filepath.Join(dir, PCKCRLIssuerChainFile), tc.content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, err := LoadDir(dir)
			check(t, PCKCRLIssuerChainFile, err, tc.err)
			if err == nil && (!bytes.Equal(c.PCKCRLIssuerChain, tc.content) || c.Digest() != complete().Digest()) {
				t.Errorf("got %d bytes, digest %x", len(c.PCKCRLIssuerChain), c.Digest())
			}
			direct := complete()
			direct.PCKCRLIssuerChain = tc.content
			check(t, PCKCRLIssuerChainFile, direct.Check(), tc.err)
		})
	}
}

func TestTheDigestTellsEveryArtefactAndItsPlaceApart(t *testing.T) {
	seen := map[[32]byte]string{complete().Digest(): "complete"}
	add := func(name string, c *Collateral) {
		if other, ok := seen[c.Digest()]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[c.Digest()] = name
	}
	for i := range complete().artefacts() {
		c := complete()
		*c.artefacts()[i].bytes = []byte("x")
		add("a changed artefact", c)
	}
	c := complete()
	c.TCBInfo, c.QEIdentity = c.QEIdentity, c.TCBInfo
	add("two swapped", c)
	c = complete()
	c.TCBInfo, c.QEIdentity = []byte("12"), nil
	add("two run together", c)
}
