package vtpm

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Pauses between two attempts to attach.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Second
)

// Keep keeps this process attached as the helper of the VM's vTPM until ctx ends: without a helper the node refuses to arm a migration. A node
// service that is down or restarts is waited for; the VM does not notice.
func (r *RemoteProtector) Keep(ctx context.Context, log *slog.Logger) {
	pause, last := firstPause, ""
	for ctx.Err() == nil {
		lost, err := r.attachWithin(ctx)
		switch {
		case err == nil:
			log.Info("attached to the node service", "node", r.conn.Target())
			pause, last = firstPause, ""
			select {
			case <-lost:
				log.Warn("the node service has gone; attaching again", "node", r.conn.Target())
			case <-ctx.Done():
			}
			continue
		case ctx.Err() == nil && err.Error() != last: // once for each reason: a node that is down stays down for a while
			last = err.Error()
			log.Warn("not attached to the node service: the VM runs, and cannot be migrated", refusal.Attributes(err)...)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, lastPause)
	}
}

func (r *RemoteProtector) attachWithin(ctx context.Context) (lost <-chan struct{}, err error) {
	ctx, cancel := r.begin(ctx)
	defer cancel()
	return r.attach(ctx)
}

// attach returns once the node knows this connection as the VM's helper. lost is closed when that has ended.
func (r *RemoteProtector) attach(ctx context.Context) (lost <-chan struct{}, err error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("attaching to the node service at %s: %w", r.conn.Target(), ctx.Err())
	}
	if r.lost != nil {
		select {
		case <-r.lost:
		default:
			return r.lost, nil
		}
	}
	whole, end := context.WithCancel(r.life) // the attachment outlives the call that makes it
	stream, err := r.client.Attach(whole, &v1.AttachRequest{InstanceId: r.instance})
	if err != nil {
		end()
		return nil, r.explain(err)
	}
	first, ended := make(chan error, 1), make(chan struct{})
	r.streams.Go(func() {
		defer close(ended)
		defer end()
		_, err := stream.Recv()
		first <- err
		for err == nil {
			_, err = stream.Recv()
		}
	})
	select {
	case err := <-first:
		if err != nil {
			return nil, r.explain(err)
		}
		r.lost = ended
		return ended, nil
	case <-ctx.Done():
		end()
		return nil, fmt.Errorf("attaching to the node service at %s: %w", r.conn.Target(), ctx.Err())
	}
}
