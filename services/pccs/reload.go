package pccs

import (
	"log/slog"
	"sync"
	"time"
)

// Reloading is a Library that is read anew now and then, for Handler: who carries files in need not restart the server. A set that cannot be
// read, such as one that is half copied, does not displace the one before.
type Reloading struct {
	// Load reads it; LoadDir and LoadBundle do.
	Load func() (*Library, error)
	// Every is how long one is used; zero means 10 seconds.
	Every time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log is told what cannot be read; nil means nobody is.
	Log *slog.Logger

	mu      sync.Mutex
	library *Library
	loaded  time.Time
}

// Current returns the Library of this moment. Error: that of Load, if it has never succeeded.
func (r *Reloading) Current() (*Library, error) {
	now, every := time.Now, r.Every
	if r.Now != nil {
		now = r.Now
	}
	if every <= 0 {
		every = 10 * time.Second
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := now().Sub(r.loaded); r.library != nil && age >= 0 && age < every {
		return r.library, nil
	}
	library, err := r.Load()
	if err != nil {
		if r.Log != nil {
			r.Log.Warn("collateral cannot be read", "error", err, "serving_older", r.library != nil)
		}
		if r.library == nil {
			return nil, err
		}
		r.loaded = now() // not at every request again
		return r.library, nil
	}
	r.library, r.loaded = library, now()
	return library, nil
}
