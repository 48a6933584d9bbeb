package pccs

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/collateral/pinned"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	client "github.com/safeconduct/safeconduct/attestation/pccs"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// site is a simulated authority, its PCCS over HTTP, and a node's cache.
type site struct {
	*rig
	quote  []byte
	server *httptest.Server
	// serves is what the PCCS serves. A nil library has it hang.
	serves atomic.Pointer[Library]
	// hanging is told when it does.
	hanging chan struct{}
	dir     string
	clock   atomic.Int64
}

func (s *site) now() time.Time { return time.Unix(s.clock.Load(), 0) }

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{rig: newRig(t), dir: filepath.Join(t.TempDir(), "cache"), hanging: make(chan struct{}, 1)}
	s.clock.Store(time.Now().Unix())
	platform := filepath.Join(t.TempDir(), "platform")
	if err := s.CreatePlatform(platform, simulated.PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := simulated.Open(platform, simulated.Measurement{MREnclave: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if s.quote, err = p.Quote(t.Context(), [64]byte{2}); err != nil {
		t.Fatal(err)
	}
	handler := Handler(func() (*Library, error) { return s.serves.Load(), nil })
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.serves.Load() == nil {
			s.hanging <- struct{}{}
			<-r.Context().Done()
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.server.Close)
	s.serve(t, simulated.CollateralOptions{EvaluationDataNumber: 5, CRLNumber: 5})
	return s
}

func (s *site) serve(t *testing.T, o simulated.CollateralOptions) {
	t.Helper()
	if o.At.IsZero() {
		o.At = s.now().Add(-time.Hour)
	}
	s.serves.Store(library(t, entry(s.issue(t, o))))
}

// node starts a node: its cache, which asks the PCCS.
func (s *site) node(t *testing.T) *collateral.Cache[*dcap.CheckedCollateral] {
	t.Helper()
	source, err := client.New(client.Options{BaseURL: s.server.URL, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	c, err := collateral.NewCache(collateral.Config[*dcap.CheckedCollateral]{
		Dir: s.dir, Source: source, Check: pinned.Checker{Root: s.pin}.Check, Now: s.now, FetchTimeout: 2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// verify verifies the quote against what the cache gives, and returns the generation.
func (s *site) verify(t *testing.T, c *collateral.Cache[*dcap.CheckedCollateral]) uint32 {
	t.Helper()
	checked, _, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	result, err := checked.Verify(s.quote, s.now())
	if err != nil {
		t.Fatal(err)
	}
	if result.Status != dcap.UpToDate {
		t.Errorf("got %v", result.Status)
	}
	return result.EvaluationDataNumber()
}

func TestAQuoteIsVerifiedAgainstWhatAPCCSServes(t *testing.T) {
	s := newSite(t)
	if got := s.verify(t, s.node(t)); got != 5 {
		t.Errorf("generation %d", got)
	}
}

func TestAPCCSThatHangsOrIsGoneDelaysNobodyWhoHasAValidSet(t *testing.T) {
	s := newSite(t)
	c := s.node(t)
	s.verify(t, c)
	s.serves.Store(nil)
	refresh := make(chan error, 1)
	go func() { refresh <- c.Refresh(context.Background(), key) }()
	<-s.hanging
	s.verify(t, c)
	select {
	case err := <-refresh:
		t.Errorf("the quote was verified after the refresh, which ended with %v", err)
	default:
	}
	if err := <-refresh; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	s.server.CloseClientConnections()
	s.server.Close()
	is(t, c.Refresh(t.Context(), key), client.ErrTransport)
	s.verify(t, c)
	c.Close()
	// A restart finds the set on disk.
	if got := s.verify(t, s.node(t)); got != 5 {
		t.Errorf("generation %d", got)
	}
}

func TestWhatHasExpiredIsNamed(t *testing.T) {
	s := newSite(t)
	s.serve(t, simulated.CollateralOptions{RootCRLValidity: 2 * time.Hour})
	c := s.node(t)
	s.verify(t, c)
	s.clock.Add(int64(2 * time.Hour / time.Second))
	s.server.Close()
	_, _, err := c.Get(t.Context(), key)
	is(t, err, collateral.ErrExpired, client.ErrTransport)
	var e *collateral.ValidityError
	if !errors.As(err, &e) || e.Artefact != string(dcap.ArtefactRootCACRL) || !strings.Contains(err.Error(), "root_ca_crl: expired") {
		t.Errorf("got %v", err)
	}
}

func TestAPCCSCannotTakeACacheBackNorGiveItWhatIsNotAuthentic(t *testing.T) {
	s := newSite(t)
	c := s.node(t)
	s.verify(t, c)
	for name, o := range map[string]simulated.CollateralOptions{
		"an older generation":              {EvaluationDataNumber: 4, CRLNumber: 5},
		"older CRLs":                       {EvaluationDataNumber: 5, CRLNumber: 4},
		"the same numbers of an older day": {EvaluationDataNumber: 5, CRLNumber: 5, At: s.now().Add(-24 * time.Hour)},
	} {
		s.serve(t, o)
		if err := c.Refresh(t.Context(), key); !errors.Is(err, collateral.ErrRollback) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	stranger := newRig(t)
	s.serves.Store(library(t, entry(stranger.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 9, CRLNumber: 9}))))
	is(t, c.Refresh(t.Context(), key), collateral.ErrRejected, dcap.CheckRoot)
	mixed := s.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 9, CRLNumber: 9})
	mixed.PCKCRL = stranger.issue(t, simulated.CollateralOptions{CRLNumber: 1 << 60}).PCKCRL
	s.serves.Store(library(t, entry(mixed)))
	is(t, c.Refresh(t.Context(), key), collateral.ErrRejected, pinned.ErrIssuer)
	if got := s.verify(t, c); got != 5 {
		t.Errorf("generation %d", got)
	}
	changed := make(chan collateral.Key, 1)
	c.OnChange(func(k collateral.Key) { changed <- k })
	s.serve(t, simulated.CollateralOptions{EvaluationDataNumber: 6, CRLNumber: 5})
	if err := c.Refresh(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if got := s.verify(t, c); got != 6 || <-changed != key {
		t.Errorf("generation %d", got)
	}
}

func TestAnUnknownKindOfPlatformIsNotFound(t *testing.T) {
	s := newSite(t)
	_, _, err := s.node(t).Get(t.Context(), collateral.Key{FMSPC: [6]byte{1}, CA: collateral.PlatformCA})
	var e *client.Error
	if !errors.As(err, &e) || e.Status != http.StatusNotFound || e.Artefact != collateral.TCBInfoFile {
		t.Errorf("got %v", err)
	}
}
