package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxQMPLine bounds one message of the monitor, in bytes.
const maxQMPLine = 4 << 20

// ErrMonitorClosed says that the connection to QEMU's monitor has ended.
var ErrMonitorClosed = errors.New("QEMU's monitor is closed")

// QMPError is QEMU's own answer that a command failed.
type QMPError struct{ Class, Desc string }

// Error returns the description.
func (e *QMPError) Error() string { return e.Desc + " (" + e.Class + ")" }

// Event of QEMU's monitor.
type Event struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// message is anything that QEMU sends (docs/interop/qmp-spec.txt).
type message struct {
	Event
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *QMPError       `json:"error"`
}

// QMP is a client of QEMU's monitor. It is safe for concurrent use.
type QMP struct {
	conn   net.Conn
	closed chan struct{}

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan message
	events  []Event
	news    chan struct{} // closed and replaced at each event
}

// NewQMP takes over conn and negotiates.
func NewQMP(ctx context.Context, conn net.Conn) (*QMP, error) {
	q := &QMP{conn: conn, closed: make(chan struct{}), waiting: map[uint64]chan message{}, news: make(chan struct{})}
	go q.receive()
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("negotiating with QEMU's monitor: %w", err), q.Close())
	}
	return q, nil
}

// receive hands out QEMU's messages until the connection ends.
func (q *QMP) receive() {
	defer close(q.closed)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(nil, maxQMPLine)
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			return
		}
		q.mu.Lock()
		switch {
		case m.Event.Event != "":
			q.events = append(q.events, m.Event)
			close(q.news)
			q.news = make(chan struct{})
		case m.ID != nil && q.waiting[*m.ID] != nil:
			q.waiting[*m.ID] <- m // has room for one
			delete(q.waiting, *m.ID)
		}
		q.mu.Unlock()
	}
}

// Execute runs a command. args and out may be nil. A command that QEMU refuses is a *QMPError.
func (q *QMP) Execute(ctx context.Context, command string, args, out any) error {
	answer := make(chan message, 1)
	q.mu.Lock()
	q.lastID++
	id := q.lastID
	q.waiting[id] = answer
	request := map[string]any{"execute": command, "id": id}
	if args != nil {
		request["arguments"] = args
	}
	b, err := json.Marshal(request)
	if err == nil {
		_, err = q.conn.Write(append(b, '\n'))
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", command, ErrMonitorClosed, err)
	}
	select {
	case m := <-answer:
		return m.into(command, out)
	case <-q.closed:
		select {
		case m := <-answer: // both were ready
			return m.into(command, out)
		default:
			return fmt.Errorf("%s: %w", command, ErrMonitorClosed)
		}
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

func (m *message) into(command string, out any) error {
	if m.Error != nil {
		return fmt.Errorf("%s: %w", command, m.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// Events returns every event so far.
func (q *QMP) Events() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Event(nil), q.events...)
}

// WaitEvent waits until an event of this name has come, now or before.
func (q *QMP) WaitEvent(ctx context.Context, name string) (Event, error) {
	for {
		q.mu.Lock()
		news := q.news
		for _, e := range q.events {
			if e.Event == name {
				q.mu.Unlock()
				return e, nil
			}
		}
		q.mu.Unlock()
		select {
		case <-news:
		case <-q.closed:
			return Event{}, fmt.Errorf("waiting for %s: %w", name, ErrMonitorClosed)
		case <-ctx.Done():
			return Event{}, fmt.Errorf("waiting for %s: %w", name, ctx.Err())
		}
	}
}

// Close ends the connection and waits for its reader.
func (q *QMP) Close() error {
	err := q.conn.Close()
	<-q.closed
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
