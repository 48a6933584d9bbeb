package tunnelvm

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
)

// Sizes on the tunnel's wire (docs/protocol.md, "Tunnel").
const (
	nonceSize  = 16
	helloSize  = 8 + 1 + 1 + 36 + 16 + 16
	prefixSize = 4
	tagSize    = 16
	kindData   = 0
	kindEnd    = 1
)

// record of the tunnel, as it crosses.
type record struct {
	raw []byte
	// index in its direction; the first, 0, is the proof. before is the number of bytes of the records before it.
	index, before int
}

func (r record) data() bool { return r.raw[0] == kindData }

// attack is what the man in the middle does, once, to one record of one direction of one connection.
type attack struct {
	// connection is its number, in the order in which they come; back: from the destination to the source.
	connection int
	back       bool
	// last: the record is the last one with data before a pause, of those that are chosen; else it is the first that is chosen.
	last   bool
	choose func(record) bool
	// do returns what is sent in the record's place; earlier is the record before it. cut ends the connection after that.
	do func(r, earlier record) (send [][]byte, cut bool)
}

// mitm stands between the two tunnels.
type mitm struct {
	t        *testing.T
	forward  string
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	attack *attack
	done   chan struct{} // closed when the attack has been made
	seen   int           // connections, since the attack was set
	open   []net.Conn
}

func newMITM(t *testing.T, forward string) *mitm {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mitm{t: t, forward: forward, listener: l}
	m.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.all.Go(func() { m.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		m.mu.Lock()
		for _, c := range m.open {
			_ = c.Close()
		}
		m.mu.Unlock()
		m.all.Wait()
	})
	return m
}

func (m *mitm) address() string { return m.listener.Addr().String() }

// set has an attack made, once; the channel is closed when it was. nil: none is.
func (m *mitm) set(a *attack) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attack, m.done, m.seen = a, make(chan struct{}), 0
	return m.done
}

func (m *mitm) serve(source net.Conn) {
	defer source.Close()
	destination, err := net.Dial("tcp", m.forward)
	if err != nil {
		m.t.Error(err)
		return
	}
	defer destination.Close()
	m.mu.Lock()
	number, a, done := m.seen, m.attack, m.done
	m.seen++
	m.open = append(m.open, source, destination)
	m.mu.Unlock()
	if a != nil && a.connection != number {
		a = nil
	}
	var both sync.WaitGroup
	for _, way := range []struct {
		from, to net.Conn
		greeting int64
		back     bool
	}{{source, destination, helloSize, false}, {destination, source, nonceSize, true}} {
		both.Go(func() {
			if _, err := io.CopyN(way.to, way.from, way.greeting); err != nil {
				_ = way.to.Close()
				return
			}
			h := &hand{from: way.from, to: way.to, done: done}
			if a != nil && a.back == way.back {
				h.attack = a
			}
			if h.pass() {
				_ = way.to.(*net.TCPConn).CloseWrite() // an end is passed on as one
				return
			}
			_ = source.Close()
			_ = destination.Close()
		})
	}
	both.Wait()
}

// hand is one direction of one connection.
type hand struct {
	from, to net.Conn
	attack   *attack
	done     chan struct{}
	next     record // what is read next has its index and the bytes before it
}

// pass forwards until the direction ends, and says whether it was passed on to its end.
func (h *hand) pass() bool {
	var held, earlier *record
	send := func(r record) bool {
		earlier = &r
		_, err := h.to.Write(r.raw)
		return err == nil
	}
	strike := func(r record) bool {
		a := h.attack
		h.attack = nil
		before := r
		if earlier != nil {
			before = *earlier
		}
		pieces, cut := a.do(r, before)
		close(h.done)
		for _, p := range pieces {
			if _, err := h.to.Write(p); err != nil {
				return false
			}
		}
		return !cut
	}
	for {
		r, err := h.read()
		if held != nil {
			was := *held
			held = nil
			pass := send
			if err == nil && !r.data() {
				pass = strike // nothing follows it for now: it was the last
			}
			if !pass(was) {
				return false
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		switch {
		case h.attack == nil || !h.attack.choose(r):
			if !send(r) {
				return false
			}
		case h.attack.last:
			held = &r
		case !strike(r):
			return false
		}
	}
}

func (h *hand) read() (record, error) {
	prefix := make([]byte, prefixSize)
	if _, err := io.ReadFull(h.from, prefix); err != nil {
		return record{}, err
	}
	r := h.next
	r.raw = slices.Grow(prefix, int(binary.BigEndian.Uint32(prefix)&0xffffff)+tagSize)
	r.raw = r.raw[:cap(r.raw)][:prefixSize+int(binary.BigEndian.Uint32(prefix)&0xffffff)+tagSize]
	if _, err := io.ReadFull(h.from, r.raw[prefixSize:]); err != nil {
		return record{}, io.ErrUnexpectedEOF
	}
	h.next = record{index: r.index + 1, before: r.before + len(r.raw)}
	return r, nil
}
