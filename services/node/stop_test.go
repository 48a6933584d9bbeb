package node

import (
	"context"
	"os"
	"testing"
)

// A service that is told to stop before its servers have begun to serve stops without an error.
func TestAServiceThatStopsAtOnceStopsWell(t *testing.T) {
	r := newRig(t)
	r.src.stop()
	for range 10 {
		_ = os.Remove(r.src.cfg.Local.Socket)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- run(ctx, r.src.cfg, r.src.enclave, r.src.root, discardLog(), r.src.now) }()
		eventually(t, "its socket is there", func() bool { _, err := os.Stat(r.src.cfg.Local.Socket); return err == nil })
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}
