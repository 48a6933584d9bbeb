package pccs

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// get makes attempts until one succeeds, fails for good, or the context ends.
func (c *Client) get(ctx context.Context, artefact, from string, limit int) (*answer, error) {
	for attempt := 1; ; attempt++ {
		a, err := c.once(ctx, artefact, from, limit)
		if err == nil {
			return a, nil
		}
		if attempt == c.opts.Attempts || !transient(err) || ctx.Err() != nil {
			return nil, err
		}
		if !sleep(ctx, c.pause(attempt, a)) {
			return nil, err // it says more than that the time was over
		}
	}
}

// transient says whether the same request may succeed later: the service is not there, is overloaded or has an error of its own.
func transient(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch {
	case errors.Is(e.Kind, ErrTransport):
		return true
	case errors.Is(e.Kind, ErrStatus):
		return e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout || e.Status >= http.StatusInternalServerError
	}
	return false
}

// pause is how long to wait after an attempt: what the server asks for, or else a pause that doubles, less up to half; MaxPause at most.
func (c *Client) pause(attempt int, a *answer) time.Duration {
	if a != nil {
		if asked, ok := retryAfter(a.header.Get("Retry-After"), a.header.Get("Date")); ok {
			return min(asked, c.opts.MaxPause)
		}
	}
	pause := c.opts.MaxPause
	if shift := attempt - 1; shift < 20 && c.opts.Pause<<shift < pause {
		pause = c.opts.Pause << shift
	}
	return pause - time.Duration(c.opts.Rand()*float64(pause)/2)
}

// retryAfter reads a header Retry-After (RFC 9110, section 10.2.3): seconds, or a date, which counts from the server's own.
func retryAfter(text, date string) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0, false
	}
	now, err := http.ParseTime(date)
	if err != nil {
		return 0, false
	}
	return max(at.Sub(now), 0), true
}

// sleep says whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
