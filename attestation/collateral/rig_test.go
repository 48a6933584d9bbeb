package collateral

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

var (
	// day is when tests begin.
	day  = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	keyA = Key{[6]byte{0xa}, PlatformCA}
	keyB = Key{[6]byte{0xb}, ProcessorCA}
)

var errForged = errors.New("forged")

// toyCheck takes its word for a set's validity: TCB info is a Validity in JSON. It returns the QE identity, which names the set.
func toyCheck(_ Key, c *Collateral) (string, Validity, error) {
	var v Validity
	if err := json.Unmarshal(c.TCBInfo, &v); err != nil {
		return "", v, errForged
	}
	return string(c.QEIdentity), v, nil
}

// edition makes all four versions.
func edition(number uint64, issued time.Time) Versions {
	v := Version{number, issued}
	return Versions{v, v, v, v}
}

// toySet is a set of a name, valid for a time from its issue.
func toySet(name string, number uint64, issued time.Time, life time.Duration) *Collateral {
	return toyOf(name, Validity{
		NotBefore: issued, NotAfter: issued.Add(life), Begins: "tcb_info", Expires: "pck_crl", Versions: edition(number, issued),
	})
}

func toyOf(name string, v Validity) *Collateral {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	c := complete()
	c.TCBInfo, c.QEIdentity = raw, []byte(name)
	return c
}

// toySource answers from a function, and counts.
type toySource struct {
	mu    sync.Mutex
	fetch func(context.Context, Key) (*Collateral, error)
	asked []Key
	times []time.Time
	now   func() time.Time
}

func (s *toySource) Fetch(ctx context.Context, key Key) (*Collateral, error) {
	s.mu.Lock()
	s.asked = append(s.asked, key)
	if s.now != nil {
		s.times = append(s.times, s.now())
	}
	f := s.fetch
	s.mu.Unlock()
	return f(ctx, key)
}

func (s *toySource) answer(f func(context.Context, Key) (*Collateral, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetch = f
}

func (s *toySource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func always(c *Collateral) func(context.Context, Key) (*Collateral, error) {
	return func(context.Context, Key) (*Collateral, error) { return c, nil }
}

var errDown = errors.New("connection refused")

func down(context.Context, Key) (*Collateral, error) { return nil, errDown }

// hang never answers.
func hang(ctx context.Context, _ Key) (*Collateral, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// clock is set by tests.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

// observer remembers.
type observer struct {
	mu   sync.Mutex
	errs []error
}

func (o *observer) Fetched(_ Key, _ time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.errs = append(o.errs, err)
}

func (o *observer) all() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]error(nil), o.errs...)
}

// open makes a cache that the test closes.
func open(t testing.TB, cfg Config[string]) *Cache[string] {
	t.Helper()
	if cfg.Check == nil {
		cfg.Check = toyCheck
	}
	c, err := NewCache(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// gets checks that Get gives the set of a name.
func gets(t testing.TB, c *Cache[string], key Key, want string) {
	t.Helper()
	got, meta, err := c.Get(t.Context(), key)
	if err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if err == nil && (meta.Digest == [32]byte{} || meta.Fetched.IsZero() || meta.Validity.NotAfter.IsZero()) {
		t.Errorf("got %+v", meta)
	}
}

// refuses checks that Get fails with all of these.
func refuses(t testing.TB, c *Cache[string], key Key, want ...error) {
	t.Helper()
	got, _, err := c.Get(t.Context(), key)
	is(t, err, want...)
	if got != "" {
		t.Errorf("got %q with error %v", got, err)
	}
}

func is(t testing.TB, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("got error %v, want %v", err, w)
		}
	}
	if len(want) == 0 {
		t.Error("no error to look for")
	}
}

func name(i int) string { return fmt.Sprintf("set %d", i) }
