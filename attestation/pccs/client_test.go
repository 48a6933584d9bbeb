package pccs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/safeconduct/safeconduct/attestation/collateral"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = collateral.Key{FMSPC: [6]byte{0, 0x60, 0x6a}, CA: collateral.PlatformCA}

// certificate is a PEM certificate of a name; nobody here verifies it.
func certificate(t testing.TB, name string) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// fakeCRL begins as a DER CRL of its length does.
func fakeCRL(n int) []byte {
	return append([]byte{0x30, 0x82, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{7}, n)...)
}

// reply is what a service says to one question.
type reply struct {
	status int // zero means 200
	header map[string]string
	body   []byte
}

// service is a PCCS whose replies a test sets, by the last part of the path. It is a RoundTripper, so that time can be a test's.
type service struct {
	chain   []byte
	replies map[string][]reply
	mu      sync.Mutex
	asked   []*http.Request
	times   []time.Time
}

func newService(t testing.TB) *service {
	t.Helper()
	s := &service{chain: append(certificate(t, "signing"), certificate(t, "root")...)}
	ca := append(certificate(t, "ca"), certificate(t, "root")...)
	s.replies = map[string][]reply{
		"tcb":       {{header: map[string]string{headerTCBChain: escape(s.chain)}, body: []byte(`{"tcbInfo":{}}`)}},
		"identity":  {{header: map[string]string{headerIdentityChain: escape(s.chain)}, body: []byte(`{"enclaveIdentity":{}}`)}},
		"pckcrl":    {{header: map[string]string{headerCRLChain: escape(ca)}, body: fakeCRL(300)}},
		"rootcacrl": {{body: hex.AppendEncode(nil, fakeCRL(200))}},
	}
	return s
}

func escape(b []byte) string { return strings.ReplaceAll(url.QueryEscape(string(b)), "+", "%20") }

// RoundTrip gives the replies of a path one after the other, the last one again and again.
func (s *service) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.times = append(s.asked, r), append(s.times, time.Now())
	path := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	replies := s.replies[path]
	if len(replies) == 0 {
		return nil, errDown
	}
	now := replies[0]
	if len(replies) > 1 {
		s.replies[path] = replies[1:]
	}
	if now.status == 0 {
		now.status = http.StatusOK
	}
	res := &http.Response{
		StatusCode: now.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, Header: http.Header{},
		Body: io.NopCloser(bytes.NewReader(now.body)), ContentLength: int64(len(now.body)),
	}
	for name, value := range now.header {
		res.Header.Set(name, value)
	}
	return res, nil
}

var errDown = errors.New("connection refused")

func (s *service) client(t testing.TB, change func(*Options)) *Client {
	t.Helper()
	o := Options{BaseURL: "https://pccs.example:8081", HTTP: &http.Client{Transport: s}, Rand: func() float64 { return 0 }}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *service) urls() []string {
	var all []string
	for _, r := range s.asked {
		all = append(all, r.URL.String())
	}
	return all
}

func TestASetIsFetchedByteForByte(t *testing.T) {
	s := newService(t)
	got, err := s.client(t, nil).Fetch(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.TCBInfo) != `{"tcbInfo":{}}` || string(got.QEIdentity) != `{"enclaveIdentity":{}}` || !bytes.Equal(got.TCBSigningChain, s.chain) ||
		!bytes.Equal(got.PCKCRL, fakeCRL(300)) || !bytes.Equal(got.RootCACRL, fakeCRL(200)) || !bytes.Contains(got.PCKCRLIssuerChain, []byte("CERTIFICATE")) {
		t.Errorf("got %+v", got)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
}

func TestEachServiceIsAskedAtItsOwnAddresses(t *testing.T) {
	const p = "https://pccs.example:8081/sgx/certification/v4"
	for name, tc := range map[string]struct {
		change func(*Options)
		urls   []string
	}{
		"a PCCS": {nil, []string{
			p + "/tcb?fmspc=00606A000000", p + "/qe/identity", p + "/pckcrl?ca=platform&encoding=der", p + "/rootcacrl",
		}},
		"a PCCS by the URL of Intel's configuration files": {func(o *Options) { o.BaseURL = p + "/" }, []string{
			p + "/tcb?fmspc=00606A000000", p + "/qe/identity", p + "/pckcrl?ca=platform&encoding=der", p + "/rootcacrl",
		}},
		"Intel's own service, the early update": {func(o *Options) { o.BaseURL, o.Update = IntelPCS, Early }, []string{
			IntelPCS + apiPath + "/tcb?fmspc=00606A000000&update=early", IntelPCS + apiPath + "/qe/identity?update=early",
			IntelPCS + apiPath + "/pckcrl?ca=platform&encoding=der", IntelRootCRLURL,
		}},
		"a generation by its number, a path before, the root's CRL elsewhere": {func(o *Options) {
			o.BaseURL, o.EvaluationDataNumber, o.RootCRLURL = "http://proxy.example/intel/", 19, "http://proxy.example/rootcacrl?x=y"
		}, []string{
			"http://proxy.example/intel" + apiPath + "/tcb?fmspc=00606A000000&tcbEvaluationDataNumber=19",
			"http://proxy.example/intel" + apiPath + "/qe/identity?tcbEvaluationDataNumber=19",
			"http://proxy.example/intel" + apiPath + "/pckcrl?ca=platform&encoding=der", "http://proxy.example/rootcacrl?x=y",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			s.replies["IntelSGXRootCA.der"] = []reply{{body: fakeCRL(200)}}
			got, err := s.client(t, tc.change).Fetch(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.urls(), tc.urls) || !bytes.Equal(got.RootCACRL, fakeCRL(200)) {
				t.Errorf("asked %q, want %q", s.urls(), tc.urls)
			}
		})
	}
}

func TestTheKeyGoesToTheServiceOnly(t *testing.T) {
	s := newService(t)
	c := s.client(t, func(o *Options) { o.APIKey, o.RootCRLURL = "secret", "https://elsewhere.example/rootcacrl" })
	if _, err := c.Fetch(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.asked {
		if got, want := r.Header.Get(headerAPIKey) != "", r.URL.Host == "pccs.example:8081"; got != want {
			t.Errorf("%v: key sent: %v", r.URL, got)
		}
	}
}

func TestCRLsAreReadInEveryEncoding(t *testing.T) {
	der := fakeCRL(300)
	pemCRL := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	for name, body := range map[string][]byte{
		"DER": der, "hex": hex.AppendEncode(nil, der), "hex in upper case with a line end": []byte(strings.ToUpper(hex.EncodeToString(der)) + "\n"), "PEM": pemCRL,
	} {
		s := newService(t)
		s.replies["pckcrl"][0].body, s.replies["rootcacrl"][0].body = body, body
		got, err := s.client(t, nil).Fetch(t.Context(), key)
		if err != nil || !bytes.Equal(got.PCKCRL, der) || !bytes.Equal(got.RootCACRL, der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, body := range map[string]string{
		"a page":              "<html>",
		"hex of no sequence":  "31820000",
		"half a byte of hex":  hex.EncodeToString(der) + "0",
		"a certificate":       string(certificate(t, "x")),
		"two CRLs":            string(pemCRL) + string(pemCRL),
		"text before the PEM": "x\n" + string(pemCRL),
		"a single byte":       "0",
	} {
		s := newService(t)
		s.replies["pckcrl"][0].body = []byte(body)
		if _, err := s.client(t, nil).Fetch(t.Context(), key); !errors.Is(err, ErrContent) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestEveryDefectOfAnAnswerHasItsError(t *testing.T) {
	other := append(certificate(t, "another"), certificate(t, "root")...)
	header := func(path, name, value string) func(*service) {
		return func(s *service) { s.replies[path][0].header[name] = value }
	}
	body := func(path string, n int) func(*service) {
		return func(s *service) { s.replies[path][0].body = bytes.Repeat([]byte("3"), n) }
	}
	for name, tc := range map[string]struct {
		spoil    func(*service)
		kind     error
		artefact string
	}{
		"no chain of TCB info":            {header("tcb", headerTCBChain, ""), ErrContent, collateral.TCBInfoFile},
		"a chain that is no PEM":          {header("tcb", headerTCBChain, "x"), ErrContent, collateral.TCBInfoFile},
		"a chain that is badly escaped":   {header("tcb", headerTCBChain, "%zz"), ErrContent, collateral.TCBInfoFile},
		"a chain that is too long":        {header("tcb", headerTCBChain, strings.Repeat("x", collateral.MaxTCBSigningChain+1)), ErrTooLarge, collateral.TCBInfoFile},
		"two different chains":            {header("identity", headerIdentityChain, escape(other)), ErrChains, collateral.QEIdentityFile},
		"a bad chain of the PCK CRL":      {header("pckcrl", headerCRLChain, "x"), ErrContent, collateral.PCKCRLFile},
		"empty TCB info":                  {body("tcb", 0), ErrContent, collateral.TCBInfoFile},
		"TCB info that is too large":      {body("tcb", collateral.MaxTCBInfo+1), ErrTooLarge, collateral.TCBInfoFile},
		"a QE identity that is too large": {body("identity", collateral.MaxQEIdentity+1), ErrTooLarge, collateral.QEIdentityFile},
		"a PCK CRL that is too large":     {body("pckcrl", 2*collateral.MaxPCKCRL+1025), ErrTooLarge, collateral.PCKCRLFile},
		"a PCK CRL whose hex hides it": {func(s *service) {
			s.replies["pckcrl"][0].body = hex.AppendEncode(nil, append([]byte{0x30, 0x83}, make([]byte, collateral.MaxPCKCRL)...))
		}, ErrTooLarge, collateral.PCKCRLFile},
		"a root CRL that is too large": {body("rootcacrl", 2*collateral.MaxRootCACRL+1025), ErrTooLarge, collateral.RootCACRLFile},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			tc.spoil(s)
			got, err := s.client(t, nil).Fetch(t.Context(), key)
			var e *Error
			if !errors.Is(err, tc.kind) || !errors.As(err, &e) || e.Artefact != tc.artefact || got != nil {
				t.Errorf("got %v, want %v on %s", err, tc.kind, tc.artefact)
			}
		})
	}
}

func TestAPCKCRLWithoutItsChainIsLeftToTheCheck(t *testing.T) {
	s := newService(t)
	s.replies["pckcrl"][0].header = nil
	if got, err := s.client(t, nil).Fetch(t.Context(), key); err != nil || got.PCKCRLIssuerChain != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestWhatMayPassIsTriedAgainAndNothingElse(t *testing.T) {
	for name, tc := range map[string]struct {
		replies []reply
		pauses  []time.Duration
		status  int // of the error; 0: it succeeds
	}{
		"at once":                     {nil, nil, 0},
		"after an error of its own":   {[]reply{{status: 503}, {status: 500}}, []time.Duration{500, 1000}, 0},
		"not found":                   {[]reply{{status: 404, body: []byte("No cache data for this platform.")}}, nil, 404},
		"unauthorized":                {[]reply{{status: 401}}, nil, 401},
		"a request that is malformed": {[]reply{{status: 400}}, nil, 400},
		"too many, in seconds":        {[]reply{{status: 429, header: map[string]string{"Retry-After": "7"}}}, []time.Duration{7000}, 0},
		"too many, far too long":      {[]reply{{status: 429, header: map[string]string{"Retry-After": "86400"}}}, []time.Duration{20000}, 0},
		"too many, by a date": {[]reply{{status: 429, header: map[string]string{
			"Retry-After": "Mon, 23 Nov 2026 10:00:09 GMT", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"}}}, []time.Duration{9000}, 0},
		"too many, by a date that has passed": {[]reply{{status: 429, header: map[string]string{
			"Retry-After": "Mon, 23 Nov 2026 09:00:09 GMT", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"}}}, []time.Duration{0}, 0},
		"too many, nonsense": {[]reply{{status: 429, header: map[string]string{"Retry-After": "soon"}}}, []time.Duration{500}, 0},
		"always":             {[]reply{{status: 503}, {status: 503}, {status: 503}, {status: 504}, {status: 500}}, []time.Duration{500, 1000, 2000}, 504},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newService(t)
				s.replies["tcb"] = append(tc.replies, s.replies["tcb"]...)
				_, err := s.client(t, nil).Fetch(t.Context(), key)
				var e *Error
				switch {
				case tc.status == 0 && err != nil:
					t.Fatal(err)
				case tc.status != 0 && (!errors.Is(err, ErrStatus) || !errors.As(err, &e) || e.Status != tc.status):
					t.Fatalf("got %v, want status %d", err, tc.status)
				}
				for i, want := range tc.pauses {
					if got := s.times[i+1].Sub(s.times[i]); got != want*time.Millisecond {
						t.Errorf("pause %d: %v, want %v", i+1, got, want*time.Millisecond)
					}
				}
				if asked := len(s.times); tc.status != 0 && asked != len(tc.pauses)+1 {
					t.Errorf("asked %d times, expected %d", asked, len(tc.pauses)+1)
				}
			})
		})
	}
}

func TestPausesAreSpread(t *testing.T) {
	c := newService(t).client(t, func(o *Options) { o.Rand = func() float64 { return 0.5 } })
	for attempt, want := range map[int]time.Duration{1: 375 * time.Millisecond, 2: 750 * time.Millisecond, 100: 15 * time.Second} {
		if got := c.pause(attempt, nil); got != want {
			t.Errorf("attempt %d: %v, want %v", attempt, got, want)
		}
	}
}

func TestAServiceThatIsDownIsTriedAgainAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		s.replies["identity"] = nil
		_, err := s.client(t, nil).Fetch(t.Context(), key)
		if !errors.Is(err, ErrTransport) || !errors.Is(err, errDown) || len(s.asked) != 5 {
			t.Errorf("got %v after %d requests", err, len(s.asked))
		}
	})
}

func TestTheContextEndsAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		s.replies["tcb"] = []reply{{status: 503, header: map[string]string{"Retry-After": "15"}}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := s.client(t, nil).Fetch(ctx, key)
		if !errors.Is(err, ErrStatus) || time.Since(start) != time.Second || len(s.asked) != 1 {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestErrorsShowNoQueryAndNoControlCharacters(t *testing.T) {
	s := newService(t)
	s.replies["rootcacrl"] = []reply{{status: 404, body: []byte("gone\r\n\x1b[31m  away\xff" + strings.Repeat("x", 1000))}}
	_, err := s.client(t, func(o *Options) { o.RootCRLURL = "https://mirror.example/rootcacrl?token=secret" }).Fetch(t.Context(), key)
	text := err.Error()
	if strings.Contains(text, "secret") || strings.ContainsAny(text, "\r\n\x1b") || !strings.Contains(text, "https://mirror.example/rootcacrl") ||
		!strings.Contains(text, "404") || len(text) > 400 {
		t.Errorf("got %q", text)
	}
	s.replies["rootcacrl"] = nil
	_, err = s.client(t, func(o *Options) { o.RootCRLURL, o.Attempts = "https://mirror.example/rootcacrl?token=secret", 1 }).Fetch(t.Context(), key)
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"no base URL":            {},
		"a path":                 {BaseURL: "/sgx"},
		"another scheme":         {BaseURL: "file:///etc"},
		"a user":                 {BaseURL: "https://user:secret@pccs.example"},
		"a query":                {BaseURL: "https://pccs.example?x=secret"},
		"no URL at all":          {BaseURL: "https://pccs.example:secret/"},
		"a bad root CRL URL":     {BaseURL: IntelPCS, RootCRLURL: "ftp://x"},
		"an unknown update":      {BaseURL: IntelPCS, Update: "late"},
		"a number and an update": {BaseURL: IntelPCS, Update: Early, EvaluationDataNumber: 17},
	} {
		if c, err := New(o); !errors.Is(err, ErrOptions) || c != nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	s := newService(t)
	if _, err := s.client(t, nil).Fetch(t.Context(), collateral.Key{}); !errors.Is(err, collateral.ErrKey) || len(s.asked) > 0 {
		t.Errorf("got %v", err)
	}
}

// redirecting serves redirects to where.
func redirecting(t *testing.T, where func(r *http.Request) string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, where(r), http.StatusFound)
	}))
	t.Cleanup(server.Close)
	return server
}

func TestRedirectionsToOtherHostsAndEndlessOnesAreRefused(t *testing.T) {
	reached := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	for name, where := range map[string]func(*http.Request) string{
		"another host":   func(*http.Request) string { return other.URL },
		"another scheme": func(r *http.Request) string { return "https://" + r.Host },
		"without end":    func(r *http.Request) string { return r.URL.String() + "x" },
	} {
		c, err := New(Options{BaseURL: redirecting(t, where).URL})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Fetch(t.Context(), key); !errors.Is(err, ErrRedirect) {
			t.Errorf("%s: got %v", name, err)
		}
		c.Close()
	}
	if reached {
		t.Error("the other host was asked")
	}
}

func TestARedirectionWithinTheHostIsFollowed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/moved") {
			http.Redirect(w, r, "/moved"+r.URL.Path, http.StatusMovedPermanently)
			return
		}
		http.Error(w, "here", http.StatusTeapot)
	}))
	defer server.Close()
	c, err := New(Options{BaseURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var e *Error
	if _, err := c.Fetch(t.Context(), key); !errors.As(err, &e) || e.Status != http.StatusTeapot {
		t.Errorf("got %v", err)
	}
}

func TestAServiceWithACAOfItsOwnIsAskedUnderItAndUnderNoOther(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that fails
	server.StartTLS()
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	with := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	for name, tc := range map[string]struct {
		http *http.Client
		kind error
	}{"its CA": {with, ErrStatus}, "the system's": {nil, ErrTransport}} {
		c, err := New(Options{BaseURL: server.URL, HTTP: tc.http, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Fetch(t.Context(), key); !errors.Is(err, tc.kind) {
			t.Errorf("%s: got %v", name, err)
		}
		c.Close()
	}
}

func FuzzDecodeCRL(f *testing.F) {
	f.Add(fakeCRL(300))
	f.Add(hex.AppendEncode(nil, fakeCRL(3)))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: fakeCRL(9)}))
	f.Add([]byte("-----BEGIN X509 CRL-----"))
	f.Fuzz(func(t *testing.T, body []byte) {
		der, err := decodeCRL(body)
		if err == nil && len(der) > len(body) {
			t.Fatalf("%d bytes of %d", len(der), len(body))
		}
		a := &answer{header: http.Header{headerTCBChain: {string(body)}}}
		if chain, err := a.chain(headerTCBChain); err == nil && len(chain) > collateral.MaxTCBSigningChain {
			t.Fatal("a chain beyond its limit")
		}
		if text := excerpt(body); len(text) > 1000 || strings.ContainsAny(text, "\r\n") {
			t.Fatal(fmt.Sprint("an excerpt of ", len(text)))
		}
	})
}
