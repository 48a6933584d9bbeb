package openstack

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"time"

	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Waiter waits for a time, or until ctx ends, and returns its error then.
type Waiter func(ctx context.Context, d time.Duration) error

// Wait is the Waiter of a real clock.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// firstPause is before a task that failed is done again; each further failure doubles it, up to the task's period.
const firstPause = time.Second

// task is something that the agent does again and again.
type task struct {
	name           string
	every, timeout time.Duration
	pass           func(context.Context) error
}

// runner follows tasks.
type runner struct {
	record *Recorder
	log    *slog.Logger
	wait   Waiter
	// spread makes agents that start together ask at different times.
	spread func(time.Duration) time.Duration
}

// follow does a task until ctx ends.
func (r *runner) follow(ctx context.Context, t task) {
	failures, last := 0, ""
	for {
		err := r.once(ctx, t)
		if ctx.Err() != nil {
			return
		}
		r.record.Pass(t.name, err)
		pause := t.every
		if err == nil {
			if last != "" {
				r.log.Info("works again", "task", t.name)
			}
			failures, last = 0, ""
		} else {
			pause = min(t.every, firstPause<<min(failures, 20))
			failures++
			if text := err.Error(); text != last { // once for each reason: what is down stays down for a while
				r.log.Warn("failed, and is tried again", append([]any{"task", t.name}, attributes(err)...)...)
				last = text
			}
		}
		if r.wait(ctx, r.spread(pause)) != nil {
			return
		}
	}
}

func (r *runner) once(ctx context.Context, t task) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	return t.pass(ctx)
}

// attributes of an error, for the log.
func attributes(err error) []any {
	fields := refusal.Attributes(err)
	if e, ok := errors.AsType[*CloudError](err); ok && !isNoProvider(err) {
		fields = append(fields, "kind", e.Kind(), "do", e.Remedy())
	}
	return fields
}

// tenth is up to a tenth more or less.
func tenth(d time.Duration) time.Duration {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	fraction := float64(binary.BigEndian.Uint64(b[:])) / (1 << 64)
	return time.Duration(float64(d) * (0.9 + fraction/5))
}
