package collateral

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// BundleFile is a Source without a network: a bundle that somebody carries in and puts at Path, by renaming it into place. It is read anew
// at each Fetch.
type BundleFile struct {
	Path string
}

// Fetch implements Source. Errors: ErrUnknown if the bundle has no such entry, ErrBundle, and those of the file system.
func (f BundleFile) Fetch(_ context.Context, key Key) (c *Collateral, err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("collateral bundle: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	entries, err := ReadBundle(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	for _, e := range entries {
		if e.Key == key {
			return e.Collateral, nil
		}
	}
	return nil, fmt.Errorf("%s: %w: %v", f.Path, ErrUnknown, key)
}
