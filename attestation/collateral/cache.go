package collateral

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/safeconduct/safeconduct/crypto/durable"
)

// Source gets collateral from elsewhere. What it returns is trusted with nothing. It returns soon after its context ends.
type Source interface {
	Fetch(ctx context.Context, key Key) (*Collateral, error)
}

// Observer is told of every attempt to fetch, for metrics. It is called without locks, and must not block.
type Observer interface {
	// Fetched: an attempt took so long and ended so. A nil error means that what came is kept; errors.Is tells ErrRollback, ErrRejected,
	// ErrExpired and ErrNotYetValid from failures to get anything.
	Fetched(key Key, took time.Duration, err error)
}

// Config of a Cache. Only Check must be set.
type Config[T any] struct {
	// Dir is the cache's directory, which no other process uses; empty means that nothing outlives the process.
	Dir string
	// Source of collateral; nil means that only Import brings any.
	Source Source
	// Check says whether collateral is authentic and is what the key asks for, and what it is worth. Nothing else decides that. T is what
	// the verification made of it, kept so that it is done once.
	Check func(Key, *Collateral) (T, Validity, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Rand spreads refreshes: a number in [0, 1); nil means math/rand/v2's.
	Rand func() float64
	// Log; nil means none.
	Log *slog.Logger
	// Observer; nil means none.
	Observer Observer
	// MaxAge bounds how old a set gets before it is refreshed, however long it is valid; zero means 24 hours.
	MaxAge time.Duration
	// FetchTimeout bounds one fetch; zero means 30 seconds.
	FetchTimeout time.Duration
	// RetryMin and RetryMax bound the pause after a failed fetch, which doubles each time; zero means 15 seconds and an hour.
	RetryMin, RetryMax time.Duration
	// MaxFetches bounds the fetches under way, since a peer's quote, not verified yet, may name any key; zero means 8.
	MaxFetches int
	// MaxEntries bounds the sets kept; zero, and anything above it, means MaxKeys.
	MaxEntries int
}

// Meta describes a set that is kept.
type Meta struct {
	// Digest as Collateral.Digest makes it.
	Digest [32]byte
	// Fetched is when it came.
	Fetched  time.Time
	Validity Validity
}

// Cache keeps collateral, checked, by kind of platform. It is safe for concurrent use.
type Cache[T any] struct {
	cfg   Config[T]
	store store

	// ctx ends with the Cache, and with it the fetches, which outlive the calls that began them.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// wake tells Run that what is due may have changed.
	wake chan struct{}

	// accepting serialises changes of the entries and their files. It is taken before mu, which is never held while a disk is waited for.
	accepting sync.Mutex

	mu       sync.Mutex
	closed   bool
	entries  map[Key]*entry[T]
	flights  map[Key]*flight
	failures map[Key]failure
	changed  []func(Key)
}

// entry is immutable but for due and unsaved, which are mu's.
type entry[T any] struct {
	meta       Meta
	checked    T
	collateral *Collateral
	due        time.Time
	// unsaved is why the disk does not have it.
	unsaved error
}

// NewCache opens a cache and reads what its directory has. A file that is damaged, or not accepted, is logged and skipped. Errors: those of
// the directory.
func NewCache[T any](cfg Config[T]) (*Cache[T], error) { return newCache(cfg, durable.Disk{}) }

func newCache[T any](cfg Config[T], files durable.FileSystem) (*Cache[T], error) {
	if cfg.Check == nil {
		return nil, errors.New("collateral cache: no check is configured")
	}
	s, err := openStore(cfg.Dir, files)
	if err != nil {
		return nil, err
	}
	c := &Cache[T]{
		cfg: cfg.withDefaults(), store: s, wake: make(chan struct{}, 1),
		entries: make(map[Key]*entry[T]), flights: make(map[Key]*flight), failures: make(map[Key]failure),
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	return c, nil
}

func (cfg Config[T]) withDefaults() Config[T] {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	orDuration := func(d *time.Duration, standard time.Duration) {
		if *d <= 0 {
			*d = standard
		}
	}
	orDuration(&cfg.MaxAge, 24*time.Hour)
	orDuration(&cfg.FetchTimeout, 30*time.Second)
	orDuration(&cfg.RetryMin, 15*time.Second)
	orDuration(&cfg.RetryMax, time.Hour)
	if cfg.MaxFetches <= 0 {
		cfg.MaxFetches = 8
	}
	if cfg.MaxEntries <= 0 || cfg.MaxEntries > MaxKeys {
		cfg.MaxEntries = MaxKeys
	}
	return cfg
}

// load reads the directory. What has expired is kept too: its numbers still bar older sets, and its dates explain what is wrong.
func (c *Cache[T]) load() error {
	keys, err := c.store.keys()
	if err != nil {
		return err
	}
	for _, key := range keys {
		if len(c.entries) == c.cfg.MaxEntries {
			c.cfg.Log.Warn("more collateral on disk than is kept", "files", len(keys), "kept", c.cfg.MaxEntries)
			break
		}
		e, err := c.store.load(key)
		if err != nil {
			c.cfg.Log.Warn("cached collateral is damaged and is not used", "key", key.String(), "error", err)
			continue
		}
		checked, v, err := c.cfg.Check(key, e.Collateral)
		if err != nil {
			c.cfg.Log.Warn("cached collateral is not accepted and is not used", "key", key.String(), "error", err)
			continue
		}
		c.entries[key] = &entry[T]{
			meta:    Meta{Digest: e.Collateral.Digest(), Fetched: e.Fetched, Validity: v},
			checked: checked, collateral: e.Collateral, due: c.dueAfter(e.Fetched, v),
		}
	}
	return nil
}

// Get returns what the Check made of the collateral for a kind of platform, and what it is. It returns at once if there is a valid set; else
// it waits for a fetch, which it shares with every other caller. Errors: ErrKey, ErrClosed, *UnavailableError.
func (c *Cache[T]) Get(ctx context.Context, key Key) (T, Meta, error) {
	var none T
	if err := key.Valid(); err != nil {
		return none, Meta{}, err
	}
	e, have := c.valid(key)
	if have == nil {
		return e.checked, e.meta, nil
	}
	err := c.fetch(ctx, key, onDemand)
	if errors.Is(err, ErrClosed) {
		return none, Meta{}, err
	}
	// Whatever became of the fetch: another, or an Import, may have brought something.
	e, again := c.valid(key)
	if again == nil {
		return e.checked, e.meta, nil
	}
	if err == nil { // it expired between the two looks
		err = again
	}
	return none, Meta{}, &UnavailableError{Key: key, Have: have, Fetch: err}
}

// valid returns the entry that is valid now, or says why there is none.
func (c *Cache[T]) valid(key Key) (*entry[T], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil, ErrUnknown
	}
	return e, e.meta.Validity.At(c.cfg.Now())
}

// accept checks a set and keeps it, unless what is kept is newer. It says whether Get gives another set since.
func (c *Cache[T]) accept(key Key, got *Collateral) (changed bool, err error) {
	if got == nil {
		got = new(Collateral) // misses everything
	}
	if err := got.Check(); err != nil {
		return false, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	checked, v, err := c.cfg.Check(key, got)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	now := c.cfg.Now()
	if err := v.At(now); err != nil {
		return false, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	e := &entry[T]{meta: Meta{Digest: got.Digest(), Fetched: now, Validity: v}, checked: checked, collateral: got, due: c.dueAfter(now, v)}
	c.accepting.Lock()
	old, err := c.replaceable(key, v, now)
	if err == nil {
		c.keep(key, e)
	}
	c.accepting.Unlock()
	if err != nil {
		return false, err
	}
	changed = old == nil || old.meta.Digest != e.meta.Digest
	if changed {
		c.cfg.Log.Info("collateral changed", "key", key.String(), "expires", v.NotAfter, "first_to_expire", v.Expires)
		c.tell(key)
	}
	return changed, nil
}

// replaceable says whether a set may take the place of what is kept, which it returns.
func (c *Cache[T]) replaceable(key Key, v Validity, now time.Time) (*entry[T], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.entries[key]
	if !ok {
		return nil, c.room(now)
	}
	return old, notOlder(old.meta.Validity.Versions, v.Versions, old.meta.Validity.At(now) == nil)
}

// room makes room for one more entry, of something expired if need be. Its file is left: it will not be accepted again either.
func (c *Cache[T]) room(now time.Time) error {
	if len(c.entries) < c.cfg.MaxEntries {
		return nil
	}
	for key, e := range c.entries {
		if errors.Is(e.meta.Validity.At(now), ErrExpired) {
			delete(c.entries, key)
			return nil
		}
	}
	return fmt.Errorf("%w: found %d entries, expected fewer", ErrFull, len(c.entries))
}

// keep puts an entry into its place, on disk first. A disk that fails does not keep a valid set from being used.
func (c *Cache[T]) keep(key Key, e *entry[T]) {
	if e.unsaved = c.store.save(Entry{Key: key, Fetched: e.meta.Fetched, Collateral: e.collateral}); e.unsaved != nil {
		c.cfg.Log.Error("collateral is used but could not be saved", "key", key.String(), "error", e.unsaved)
	}
	c.mu.Lock()
	c.entries[key] = e
	delete(c.failures, key)
	c.mu.Unlock()
	c.stir()
}

// stir has Run look again at what is due.
func (c *Cache[T]) stir() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// OnChange has f called whenever Get begins to give another set for a key, so that what was judged by the old one can be judged again. f must
// not block, and must not call Close.
func (c *Cache[T]) OnChange(f func(Key)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = append(c.changed, f)
}

func (c *Cache[T]) tell(key Key) {
	c.mu.Lock()
	callbacks := slices.Clone(c.changed)
	c.mu.Unlock()
	for _, f := range callbacks {
		f(key)
	}
}

// Close ends the fetches under way and waits for them. Get, Refresh and Run then refuse with ErrClosed; what is valid is still given.
func (c *Cache[T]) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}
