package collateral

import (
	"context"
	"fmt"
	"time"
)

// longestNap bounds how long Run sleeps without a look at the clock, which a host may set, or stop while it is suspended.
const longestNap = 10 * time.Minute

// flight is one fetch under way, which several callers may wait for.
type flight struct {
	done chan struct{}
	// err is set before done is closed.
	err error
}

// failure is what is known of the fetches of a key that failed since the last that did not.
type failure struct {
	count int
	err   error
	at    time.Time
}

// why says who wants a fetch.
type why int

const (
	// onDemand: a Get has nothing valid. It may be for any key, and is bounded: MaxFetches, and RetryMin after a failure.
	onDemand why = iota
	// byRule: Run or Refresh want it.
	byRule
)

// Refresh fetches a set now, whether or not it is due, and waits for it: for the operator who cannot wait, and for who finds that a set that
// the Check accepted does not serve. A fetch that is under way already is the one that is waited for. Errors: ErrKey, ErrOffline,
// ErrClosed, ErrRejected, ErrRollback, ErrFull, and those of the Source.
func (c *Cache[T]) Refresh(ctx context.Context, key Key) error {
	if err := key.Valid(); err != nil {
		return err
	}
	return c.fetch(ctx, key, byRule)
}

// fetch joins the flight of a key or begins one, and waits for its end. The flight goes on if ctx ends.
func (c *Cache[T]) fetch(ctx context.Context, key Key, reason why) error {
	f, err := c.board(key, reason)
	if err != nil {
		return err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for collateral: %w", context.Cause(ctx))
	}
}

func (c *Cache[T]) board(key Key, reason why) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if f, ok := c.flights[key]; ok {
		return f, nil
	}
	if c.cfg.Source == nil {
		return nil, ErrOffline
	}
	if reason == onDemand {
		if f, failed := c.failures[key]; failed {
			if again := f.at.Add(c.cfg.RetryMin); c.cfg.Now().Before(again) && !c.cfg.Now().Before(f.at) {
				return nil, fmt.Errorf("tried at %s, not before %s again: %w", stamp(f.at), stamp(again), f.err)
			}
		}
		if len(c.flights) >= c.cfg.MaxFetches {
			return nil, fmt.Errorf("%w: found %d, expected fewer", ErrBusy, len(c.flights))
		}
	}
	f := &flight{done: make(chan struct{})}
	c.flights[key] = f
	c.wg.Add(1)
	go c.fly(key, f)
	return f, nil
}

// fly fetches and keeps. It is the Cache's, and ends with it.
func (c *Cache[T]) fly(key Key, f *flight) {
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()
	start := c.cfg.Now()
	got, err := c.cfg.Source.Fetch(ctx, key)
	if err == nil {
		_, err = c.accept(key, got)
	}
	took := c.cfg.Now().Sub(start)
	c.mu.Lock()
	if err != nil {
		c.fail(key, err)
	}
	delete(c.flights, key)
	c.mu.Unlock()
	if err != nil {
		c.cfg.Log.Warn("collateral was not refreshed", "key", key.String(), "error", err)
	}
	if c.cfg.Observer != nil {
		c.cfg.Observer.Fetched(key, took, err)
	}
	f.err = err
	close(f.done)
}

// fail notes a failure. mu is held.
func (c *Cache[T]) fail(key Key, err error) {
	now := c.cfg.Now()
	e, kept := c.entries[key]
	if !kept {
		c.forgetFailures(now)
		if len(c.failures) >= c.cfg.MaxEntries+c.cfg.MaxFetches {
			return // any peer's quote can name a new key: the next Get for this one will ask again
		}
	}
	f := c.failures[key]
	f = failure{count: f.count + 1, err: err, at: now}
	c.failures[key] = f
	if kept {
		e.due = now.Add(c.retryAfter(f.count, e.meta.Validity.NotAfter.Sub(now)))
	}
}

// forgetFailures drops those that no longer hold anything back.
func (c *Cache[T]) forgetFailures(now time.Time) {
	for key, f := range c.failures {
		if _, kept := c.entries[key]; !kept && now.Sub(f.at) >= c.cfg.RetryMin {
			delete(c.failures, key)
		}
	}
}

// retryAfter is the pause after the count-th failure in a row: RetryMin, doubled each time up to RetryMax, and never more than a quarter of
// what is left of a set's life, less up to a quarter, so that a fleet does not come back as one.
func (c *Cache[T]) retryAfter(count int, left time.Duration) time.Duration {
	pause := c.cfg.RetryMax
	if shift := count - 1; shift < 20 && c.cfg.RetryMin<<shift < pause {
		pause = c.cfg.RetryMin << shift
	}
	if left > 0 {
		pause = min(pause, left/4)
	}
	pause = max(pause, c.cfg.RetryMin)
	return pause - time.Duration(c.cfg.Rand()*float64(pause)/4)
}

// dueAfter is when a set that came at a time is refreshed: between half and three quarters of its life from then on, or of MaxAge, whichever
// is shorter. A time that lies ahead, written by a clock that was wrong or by the host, counts as now.
func (c *Cache[T]) dueAfter(fetched time.Time, v Validity) time.Time {
	now := c.cfg.Now()
	if fetched.After(now) {
		fetched = now
	}
	life := min(v.NotAfter.Sub(fetched), c.cfg.MaxAge)
	due := fetched.Add(time.Duration((0.5 + 0.25*c.cfg.Rand()) * float64(life)))
	if earliest := now.Add(c.cfg.RetryMin); fetched.Equal(now) && due.Before(earliest) {
		return earliest // a PCCS that gives what is about to expire is not asked in a loop
	}
	return due
}

// Run refreshes every kept set when it is due, one after the other, until ctx ends or the Cache is closed. It returns nil if there is no
// Source, the context's cause, or ErrClosed.
func (c *Cache[T]) Run(ctx context.Context) error {
	if c.cfg.Source == nil {
		return nil
	}
	for {
		key, wait, ok := c.next()
		if ok && wait <= 0 {
			_ = c.fetch(ctx, key, byRule) // logged, counted and put off by the flight
			if err := c.over(ctx); err != nil {
				return err
			}
			continue
		}
		if !ok || wait > longestNap {
			wait = longestNap
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.wake:
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
		timer.Stop()
		if err := c.over(ctx); err != nil {
			return err
		}
	}
}

func (c *Cache[T]) over(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// next is the set that is due first, and how long that is from now.
func (c *Cache[T]) next() (key Key, wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	for k, e := range c.entries {
		if w := e.due.Sub(now); !ok || w < wait {
			key, wait, ok = k, w, true
		}
	}
	return key, wait, ok
}
