package measure

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is the number of symbolic links that Linux follows in one path.
const maxLinks = 40

// resolve follows the symbolic links of an absolute path of the host, whose file system is seen under root, and returns the path that is
// reached, again as the host sees it. An absolute link leads to the host's root, not to ours, and ".." does not lead out of it.
func resolve(root, path string) (string, error) {
	done, rest, links := "/", filepath.Clean(path), 0
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		if part == "" {
			continue
		}
		next := filepath.Join(done, part) // Join also takes "..", and stops at "/"
		info, err := os.Lstat(filepath.Join(root, next))
		if errors.Is(err, errors.ErrUnsupported) {
			// A runtime that knows no links: let the host follow them.
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", notMeasurable("too many symbolic links")
		}
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			done = "/"
		}
		rest = target + "/" + rest
	}
	return done, nil
}
