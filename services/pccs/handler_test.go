package pccs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func ask(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, http.NoBody))
	return w
}

func TestEachArtefactIsServedByteForByteWithItsChain(t *testing.T) {
	c := newRig(t).issue(t, simulated.CollateralOptions{EvaluationDataNumber: 19})
	h := Handler(Fixed(library(t, entry(c))))
	fmspc := hex.EncodeToString(key.FMSPC[:])
	for target, want := range map[string]struct {
		body, chain         []byte
		header, contentType string
	}{
		"/tcb?fmspc=" + fmspc: {c.TCBInfo, c.TCBSigningChain, "TCB-Info-Issuer-Chain", "application/json"},
		"/tcb?fmspc=" + strings.ToUpper(fmspc) + "&update=early": {c.TCBInfo, c.TCBSigningChain, "TCB-Info-Issuer-Chain", "application/json"},
		"/tcb?tcbEvaluationDataNumber=19&fmspc=" + fmspc:         {c.TCBInfo, c.TCBSigningChain, "TCB-Info-Issuer-Chain", "application/json"},
		"/qe/identity":                     {c.QEIdentity, c.TCBSigningChain, "SGX-Enclave-Identity-Issuer-Chain", "application/json"},
		"/qe/identity?update=STANDARD":     {c.QEIdentity, c.TCBSigningChain, "SGX-Enclave-Identity-Issuer-Chain", "application/json"},
		"/pckcrl?ca=platform&encoding=der": {c.PCKCRL, c.PCKCRLIssuerChain, "SGX-PCK-CRL-Issuer-Chain", "application/pkix-crl"},
		"/pckcrl?ca=PLATFORM":              {[]byte(hex.EncodeToString(c.PCKCRL)), c.PCKCRLIssuerChain, "SGX-PCK-CRL-Issuer-Chain", "application/pkix-crl"},
		"/rootcacrl":                       {[]byte(hex.EncodeToString(c.RootCACRL)), nil, "", "application/pkix-crl"},
	} {
		res := ask(h, http.MethodGet, apiPath+target)
		if res.Code != http.StatusOK || !bytes.Equal(res.Body.Bytes(), want.body) || res.Header().Get("Content-Type") != want.contentType {
			t.Errorf("%s: status %d, %q, %d bytes", target, res.Code, res.Header().Get("Content-Type"), res.Body.Len())
		}
		if want.chain == nil {
			continue
		}
		// Clients undo percent-encoding in two ways: with plus signs taken for blanks, and without.
		text := res.Header().Get(want.header)
		asQuery, err1 := url.QueryUnescape(text)
		asPath, err2 := url.PathUnescape(text)
		if err := errors.Join(err1, err2); err != nil || asQuery != string(want.chain) || asPath != string(want.chain) {
			t.Errorf("%s: header %s is %.80q, %v", target, want.header, text, err)
		}
	}
	if res := ask(h, http.MethodHead, apiPath+"/rootcacrl"); res.Code != http.StatusOK || res.Header().Get("Content-Length") != strconv.Itoa(2*len(c.RootCACRL)) {
		t.Errorf("HEAD: status %d, %v", res.Code, res.Header())
	}
}

func TestEveryRefusalIsAProblemInJSON(t *testing.T) {
	c := newRig(t).issue(t, simulated.CollateralOptions{EvaluationDataNumber: 19})
	h := Handler(Fixed(library(t, entry(c))))
	fmspc := "fmspc=" + hex.EncodeToString(key.FMSPC[:])
	for name, tc := range map[string]struct {
		method, target string
		status         int
		code           string
	}{
		"no FMSPC":                  {"GET", apiPath + "/tcb", 400, CodeInvalid},
		"half an FMSPC":             {"GET", apiPath + "/tcb?fmspc=00606a", 400, CodeInvalid},
		"an FMSPC that is no hex":   {"GET", apiPath + "/tcb?fmspc=zz606a000000", 400, CodeInvalid},
		"another FMSPC":             {"GET", apiPath + "/tcb?fmspc=00606a000000", 404, CodeNotFound},
		"another generation":        {"GET", apiPath + "/tcb?tcbEvaluationDataNumber=18&" + fmspc, 404, CodeNotFound},
		"another QE generation":     {"GET", apiPath + "/qe/identity?tcbEvaluationDataNumber=18", 404, CodeNotFound},
		"a generation of no number": {"GET", apiPath + "/qe/identity?tcbEvaluationDataNumber=x", 400, CodeInvalid},
		"a generation twice":        {"GET", apiPath + "/tcb?update=early&tcbEvaluationDataNumber=19&" + fmspc, 400, CodeInvalid},
		"an unknown update":         {"GET", apiPath + "/qe/identity?update=late", 400, CodeInvalid},
		"no CA":                     {"GET", apiPath + "/pckcrl", 400, CodeInvalid},
		"an unknown CA":             {"GET", apiPath + "/pckcrl?ca=root", 400, CodeInvalid},
		"a CA without a CRL":        {"GET", apiPath + "/pckcrl?ca=processor", 404, CodeNotFound},
		"a parameter twice":         {"GET", apiPath + "/pckcrl?ca=platform&ca=processor", 400, CodeInvalid},
		"a malformed query":         {"GET", apiPath + "/pckcrl?ca=%zz", 400, CodeInvalid},
		"another method":            {"POST", apiPath + "/rootcacrl", 405, CodeMethod},
		"a PCK certificate":         {"GET", apiPath + "/pckcert", 404, CodeNotFound},
		"another version":           {"GET", "/sgx/certification/v3/rootcacrl", 404, CodeNotFound},
	} {
		res := ask(h, tc.method, tc.target)
		var p Problem
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil || res.Code != tc.status || p.Code != tc.code || p.Message == "" ||
			res.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: got status %d, %+v, %v, want %d, %s", name, res.Code, p, err, tc.status, tc.code)
		}
	}
	broken := Handler(func() (*Library, error) { return nil, os.ErrPermission })
	if res := ask(broken, http.MethodGet, apiPath+"/rootcacrl"); res.Code != http.StatusServiceUnavailable {
		t.Errorf("a library that cannot be read: status %d", res.Code)
	}
}

func TestOfSeveralIssuesTheNewestIsServed(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	old := r.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 1, At: now.Add(-2 * time.Hour)})
	newer := r.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 1, At: now.Add(-time.Hour), FMSPC: [6]byte{9}})
	newest := r.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 2, At: now.Add(-3 * time.Hour), FMSPC: [6]byte{8}})
	newestKey, newerKey := collateral.Key{FMSPC: [6]byte{8}, CA: key.CA}, collateral.Key{FMSPC: [6]byte{9}, CA: key.CA}
	sets := []collateral.Entry{entry(old), {Key: newerKey, Collateral: newer}, {Key: newestKey, Collateral: newest}}
	for range 2 {
		l := library(t, sets...)
		if !bytes.Equal(l.identity.body, newest.QEIdentity) { // by its number
			t.Error("the QE identity is not of the highest number")
		}
		if !bytes.Equal(l.rootCRL.body, newer.RootCACRL) || !bytes.Equal(l.crl[key.CA].body, newer.PCKCRL) { // by their dates
			t.Error("a CRL is not the newest")
		}
		if got := l.FMSPCs(); !slices.Equal(got, []string{"080000000000", "090000000000", hex.EncodeToString(key.FMSPC[:])}) {
			t.Errorf("got %q", got)
		}
		slices.Reverse(sets)
	}
}

func TestADirectoryOfSetsAndASingleSetAreRead(t *testing.T) {
	r := newRig(t)
	platform, processor := r.issue(t, simulated.CollateralOptions{}), r.issue(t, simulated.CollateralOptions{CA: simulated.ProcessorCA})
	many := t.TempDir()
	write(t, filepath.Join(many, key.String()), platform)
	write(t, filepath.Join(many, processorKey.String()), processor)
	if err := os.Mkdir(filepath.Join(many, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := LoadDir(many)
	if err != nil || !bytes.Equal(l.crl[collateral.PlatformCA].body, platform.PCKCRL) || !bytes.Equal(l.crl[collateral.ProcessorCA].body, processor.PCKCRL) {
		t.Errorf("a directory of sets: %v", err)
	}
	for ca, set := range map[collateral.CA]*collateral.Collateral{collateral.PlatformCA: platform, collateral.ProcessorCA: processor} {
		one := t.TempDir()
		write(t, one, set)
		l, err := LoadDir(one)
		if err != nil || len(l.crl) != 1 || !bytes.Equal(l.crl[ca].body, set.PCKCRL) || !bytes.Equal(l.tcb[key.FMSPC].body, set.TCBInfo) {
			t.Errorf("a single set of the %s CA: %v", ca, err)
		}
	}
	// A simulated authority's own directory is such a set.
	if l, err := LoadDir(r.dir); err != nil || len(l.FMSPCs()) != 1 {
		t.Errorf("the authority's directory: %v", err)
	}
}

func TestWhatCannotBeServedIsAnError(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	_, err := LoadDir(dir)
	is(t, err, ErrEmpty)
	_, err = LoadDir(filepath.Join(dir, "absent"))
	is(t, err, os.ErrNotExist)
	_, err = LoadBundle(filepath.Join(dir, "absent"))
	is(t, err, os.ErrNotExist)
	write(t, filepath.Join(dir, key.String()), r.issue(t, simulated.CollateralOptions{}))
	if err := os.Remove(filepath.Join(dir, key.String(), collateral.PCKCRLFile)); err != nil {
		t.Fatal(err)
	}
	_, err = LoadDir(dir)
	is(t, err, collateral.ErrMissing)
	for file, spoil := range map[string]func(*collateral.Collateral){
		collateral.TCBInfoFile:    func(c *collateral.Collateral) { c.TCBInfo = c.QEIdentity },
		collateral.QEIdentityFile: func(c *collateral.Collateral) { c.QEIdentity = []byte("{") },
		collateral.PCKCRLFile:     func(c *collateral.Collateral) { c.PCKCRL = []byte("x") },
		collateral.RootCACRLFile:  func(c *collateral.Collateral) { c.RootCACRL = []byte("x") },
	} {
		c := r.issue(t, simulated.CollateralOptions{})
		spoil(c)
		var e *collateral.Error
		if _, err := NewLibrary([]collateral.Entry{entry(c)}); !errors.As(err, &e) || e.File != file {
			t.Errorf("%s: got %v", file, err)
		}
	}
}

func TestWhatWasReadIsServedUntilSomethingBetterCanBeRead(t *testing.T) {
	now := time.Now()
	libraries := []*Library{{}, {}}
	var fail error
	loads := 0
	r := &Reloading{Now: func() time.Time { return now }, Load: func() (*Library, error) {
		loads++
		if fail != nil {
			return nil, fail
		}
		return libraries[min(loads, 2)-1], nil
	}}
	fail = os.ErrNotExist
	if _, err := r.Current(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	fail, loads = nil, 0
	expect := func(want *Library, wantLoads int) {
		t.Helper()
		if got, err := r.Current(); err != nil || got != want || loads != wantLoads {
			t.Errorf("got %v after %d loads, expected %d", err, loads, wantLoads)
		}
	}
	expect(libraries[0], 1)
	now = now.Add(9 * time.Second)
	expect(libraries[0], 1)
	now, fail = now.Add(time.Second), os.ErrPermission
	expect(libraries[0], 2)
	expect(libraries[0], 2)
	now, fail = now.Add(10*time.Second), nil
	expect(libraries[1], 3)
	now = now.Add(-time.Hour) // a clock that was set back
	expect(libraries[1], 4)
}
