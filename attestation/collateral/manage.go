package collateral

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Imported is what an import did.
type Imported struct {
	// Changed are the keys that Get gives another set for since, Unchanged those that had the very same.
	Changed, Unchanged []Key
}

// Import takes the entries of a bundle under the rules of a fetch: each through the Check, none that is older than what is kept. Those that
// are refused do not hinder the others. Errors: ErrBundle (nothing was taken), and joined for each refused entry its key with ErrRejected,
// ErrRollback or ErrFull.
func (c *Cache[T]) Import(r io.Reader) (Imported, error) {
	var done Imported
	entries, err := ReadBundle(r)
	if err != nil {
		return done, err
	}
	var refused []error
	for _, e := range entries {
		changed, err := c.accept(e.Key, e.Collateral)
		switch {
		case err != nil:
			c.cfg.Log.Warn("imported collateral is refused", "key", e.Key.String(), "error", err)
			refused = append(refused, fmt.Errorf("%v: %w", e.Key, err))
		case changed:
			done.Changed = append(done.Changed, e.Key)
		default:
			done.Unchanged = append(done.Unchanged, e.Key)
		}
	}
	return done, errors.Join(refused...)
}

// Export writes the sets of the given keys, or of all if none is given, as a bundle. Errors: ErrUnknown, ErrBundle (too large), and those of w.
func (c *Cache[T]) Export(w io.Writer, keys ...Key) error {
	entries, err := c.snapshot(keys)
	if err != nil {
		return err
	}
	return WriteBundle(w, entries)
}

func (c *Cache[T]) snapshot(keys []Key) ([]Entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(keys) == 0 {
		for key := range c.entries {
			keys = append(keys, key)
		}
	}
	entries := make([]Entry, 0, len(keys))
	for _, key := range keys {
		e, ok := c.entries[key]
		if !ok {
			return nil, fmt.Errorf("%w: %v", ErrUnknown, key)
		}
		entries = append(entries, Entry{Key: key, Fetched: e.meta.Fetched, Collateral: e.collateral})
	}
	return entries, nil
}

// Forget drops what is kept for a key, on disk too: for a kind of platform that has left the cloud, and whose expiry is nobody's concern. It
// also forgets what barred older sets. Error: the file system's.
func (c *Cache[T]) Forget(key Key) error {
	c.accepting.Lock()
	defer c.accepting.Unlock()
	if err := c.store.remove(key); err != nil {
		return fmt.Errorf("collateral cache: %v: %w", key, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
	delete(c.failures, key)
	return nil
}

// Status of one kept set.
type Status struct {
	Key  Key
	Meta Meta
	// Invalid is why Get does not give it; nil if it does.
	Invalid error
	// Due is when it is refreshed next.
	Due time.Time
	// Failures counts the fetches that failed since the last that did not; LastFailure is why, at FailedAt.
	Failures    int
	LastFailure error
	FailedAt    time.Time
	// Unsaved is why the disk does not have it; nil if it does.
	Unsaved error
}

// Status describes what is kept, in the order of the keys.
func (c *Cache[T]) Status() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	all := make([]Status, 0, len(c.entries))
	for key, e := range c.entries {
		f := c.failures[key]
		all = append(all, Status{
			Key: key, Meta: e.meta, Invalid: e.meta.Validity.At(now), Due: e.due,
			Failures: f.count, LastFailure: f.err, FailedAt: f.at, Unsaved: e.unsaved,
		})
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return all
}
