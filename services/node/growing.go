package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// growing is a file that only ever grows, such as the kernel's measurement list: it is held in memory once, however many handshakes show it at the
// same time.
type growing struct {
	mu      sync.Mutex
	content []byte
}

// read returns the file as it is now; the bytes are shared and not to be changed. What was read before is compared, not copied; a file that turns out
// to be another one (the host has booted anew) takes its place.
func (g *growing) read(path string, most int64) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	buf := make([]byte, 256<<10)
	at := 0
	for {
		n, err := f.Read(buf)
		if int64(at+n) > most {
			return nil, fmt.Errorf("more than %d bytes", most)
		}
		g.merge(at, buf[:n])
		at += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if at < len(g.content) { // shorter than it was
		g.content = bytes.Clone(g.content[:at])
	}
	return g.content[:at:at], nil
}

// merge puts a piece at a position where everything before it is known. Bytes that others may be reading are never overwritten.
func (g *growing) merge(at int, piece []byte) {
	known := g.content[at:]
	if len(known) >= len(piece) && bytes.Equal(known[:len(piece)], piece) {
		return
	}
	if len(known) > 0 && !bytes.HasPrefix(piece, known) {
		g.content = bytes.Clone(g.content[:at]) // another file
		known = nil
	}
	g.content = append(g.content, piece[len(known):]...)
}
