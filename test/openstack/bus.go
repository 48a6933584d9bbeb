package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// busTap stands between every OpenStack service and RabbitMQ, and records what each connection carries, both ways, whole and in order: a packet capture
// without the packets. RabbitMQ has no other client, for none knows another address.
type busTap struct {
	dir, to  string
	listener net.Listener
	wait     sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]struct{}
	closed   bool
	count    int
}

func tapBus(ctx context.Context, dir, at, to string) (*busTap, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("%s:%d", at, busPort))
	if err != nil {
		return nil, err
	}
	t := &busTap{dir: dir, to: fmt.Sprintf("%s:%d", to, busPort), listener: l, open: map[net.Conn]struct{}{}}
	t.wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.wait.Go(func() { t.serve(conn) })
		}
	})
	return t, nil
}

// hangUp closes what has ended, by whichever side.
func hangUp(c io.Closer) { _ = c.Close() }

// own has close end a connection; it says how many there were before.
func (t *busTap) own(conn net.Conn) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = conn.Close() // nothing was sent on it
		return 0, false
	}
	t.open[conn] = struct{}{}
	t.count++
	return t.count, true
}

func (t *busTap) serve(client net.Conn) {
	n, ok := t.own(client)
	if !ok {
		return
	}
	defer hangUp(client)
	server, err := net.DialTimeout("tcp", t.to, 10*time.Second)
	if err != nil {
		return // RabbitMQ is not there yet: the service tries again
	}
	defer hangUp(server)
	if _, ok := t.own(server); !ok {
		return
	}
	var both sync.WaitGroup
	pass := func(to, from net.Conn, name string) {
		defer hangUp(to)
		record, err := os.Create(filepath.Join(t.dir, fmt.Sprintf("%04d-%s", n, name)))
		if err != nil {
			return // a connection that cannot be recorded is not made
		}
		defer hangUp(record)
		_, _ = io.Copy(io.MultiWriter(record, to), from) // ends with either side
	}
	from, _, _ := net.SplitHostPort(client.RemoteAddr().String())
	both.Go(func() { pass(server, client, "from-"+from) })
	both.Go(func() { pass(client, server, "to-"+from) })
	both.Wait()
}

func (t *busTap) close() error {
	t.mu.Lock()
	t.closed = true
	err := t.listener.Close()
	for conn := range t.open {
		_ = conn.Close() // may have ended by itself
	}
	t.mu.Unlock()
	t.wait.Wait()
	return err
}

// recorded is how much has passed, in bytes.
func (t *busTap) recorded() (total int64, err error) {
	records, err := os.ReadDir(t.dir)
	for _, r := range records {
		info, statErr := r.Info()
		err = errors.Join(err, statErr)
		if statErr == nil {
			total += info.Size()
		}
	}
	return total, err
}

// find returns where on the bus the secret has been, in any of the writings that it could have there; "" if nowhere.
func (t *busTap) find(secret []byte) (string, error) {
	records, err := os.ReadDir(t.dir)
	if err != nil {
		return "", err
	}
	for _, r := range records {
		raw, err := os.ReadFile(filepath.Join(t.dir, r.Name()))
		if err != nil {
			return "", err
		}
		for writing, needle := range writings(secret) {
			if at := bytes.Index(raw, needle); at >= 0 {
				return fmt.Sprintf("%s at byte %d, %s", r.Name(), at, writing), nil
			}
		}
	}
	return "", nil
}

// writings of a secret: as it is, in base64 at each of the three places of a group where it may begin, and in hexadecimal. The first bytes of each are
// enough, and stay together where a longer text is broken.
func writings(secret []byte) map[string][]byte {
	const enough = 24 // bytes: no chance hit, and within a frame of AMQP but for one in thousands
	head := secret[:min(len(secret), enough)]
	found := map[string][]byte{"as it is": head, "hexadecimal": []byte(hex.EncodeToString(head)), "HEXADECIMAL": []byte(strings.ToUpper(hex.EncodeToString(head)))}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), head...))
		// What the bytes in front and behind decide is cut off.
		from, to := (shift*8+5)/6, (shift+len(head))*8/6
		found[fmt.Sprintf("base64, shifted by %d", shift)] = []byte(text[from:to])
	}
	return found
}
