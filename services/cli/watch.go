package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// maxConnections bounds an answer of the tunnel, in bytes: some 20,000 connections.
const maxConnections = 8 << 20

// change is one event of watch: a session's new state, or how far it has come.
type change struct {
	At       string       `json:"at"`
	Previous string       `json:"previous_state,omitempty"`
	Session  *sessionView `json:"session,omitempty"`
	Progress *progress    `json:"progress,omitempty"`
}

// progress of a session that is armed.
type progress struct {
	SessionID  string `json:"session_id"`
	InstanceID string `json:"instance_id"`
	State      string `json:"state"`
	// Elapsed is the time since the two nodes appraised each other, in seconds.
	Elapsed float64 `json:"elapsed_seconds"`
	// Protected are bytes of the vTPM's state.
	Protected uint64          `json:"protected_bytes"`
	Tunnel    *tunnelProgress `json:"tunnel,omitempty"`
}

// tunnelProgress is what the host's tunnel carries of a VM.
type tunnelProgress struct {
	Connections int   `json:"connections"`
	Sent        int64 `json:"sent_bytes"`
	Received    int64 `json:"received_bytes"`
	// Rate is in bytes per second since the last time; both directions.
	Rate int64 `json:"bytes_per_second"`
}

// watch is one run of migrations watch.
type watch struct {
	app      *app
	instance string
	every    time.Duration
	tunnel   string // URL of the tunnel's http.listen; empty: not asked
	// line is true where progress is a line that is written again and again; written says that it stands there now.
	line, written bool
	live          map[string]bool // sessions that have progress
	before        map[string]progress
	asked         time.Time
}

func migrationsWatchCommand(a *app) *cobra.Command {
	w := &watch{app: a, live: map[string]bool{}, before: map[string]progress{}}
	c := &cobra.Command{
		Use: "watch", Short: "Print the open sessions, then every change of state and how far they have come, until interrupted", Args: cobra.NoArgs,
		Long: `Print the open sessions, then every change of state, and between changes how far those have come that are armed: on a terminal in a line that is
written again, elsewhere in a line each time that something has moved. With -o json, each is an object on a line of its own.

With --tunnel, the address of safeconduct-tunnel's http.listen, the bytes of memory and disks are there too.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := within("--every", w.every, time.Hour); err != nil {
				return err
			}
			w.line = a.format == formatTable && isTerminal(a.Out)
			return w.run(cmd.Context())
		},
	}
	c.Flags().StringVar(&w.instance, "instance", "", "only those of the VM with this UUID")
	c.Flags().DurationVar(&w.every, "every", time.Second, "how often to look how far they have come; 0 never does")
	c.Flags().StringVar(&w.tunnel, "tunnel", "", "URL of the tunnel's http.listen, such as http://127.0.0.1:9465")
	return c
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// run prints what the node tells, and asks how far it is in between. Both happen here: nothing is printed at the same time as another thing.
func (w *watch) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	events, ended := make(chan *v1.WatchResponse), make(chan error, 1)
	go func() {
		ended <- follow(ctx, w.app, func(ctx context.Context, c *grpc.ClientConn) (grpc.ServerStreamingClient[v1.WatchResponse], error) {
			return v1.NewMigrationServiceClient(c).Watch(ctx, &v1.WatchRequest{InstanceId: w.instance})
		}, func(e *v1.WatchResponse) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	var tick <-chan time.Time
	if w.every > 0 {
		ticker := time.NewTicker(w.every)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		var err error
		select {
		case e := <-events:
			err = w.changed(e)
		case <-tick:
			err = w.progressed(ctx)
		case err = <-ended:
			return errors.Join(err, w.clearLine())
		}
		if err != nil {
			stop()
			return errors.Join(err, <-ended)
		}
	}
}

func (w *watch) changed(e *v1.WatchResponse) error {
	view := viewSession(e.GetSession())
	switch e.GetSession().GetState() {
	case v1.SessionState_SESSION_STATE_ARMED, v1.SessionState_SESSION_STATE_TRANSFERRING:
		w.live[view.SessionID] = true
	default:
		delete(w.live, view.SessionID)
		delete(w.before, view.SessionID)
	}
	ev := change{At: stamp(e.GetAt()), Session: &view}
	if e.GetPreviousState() != v1.SessionState_SESSION_STATE_UNSPECIFIED {
		ev.Previous = enumName(e.GetPreviousState().String(), "SESSION_STATE_")
	}
	if err := w.clearLine(); err != nil {
		return err
	}
	return w.app.event(ev, ev.print)
}

// progressed tells how far the armed sessions are. A node or a tunnel that does not answer ends nothing: the next change says more.
func (w *watch) progressed(ctx context.Context) error {
	if len(w.live) == 0 {
		return nil
	}
	sessions, err := w.app.sessions(ctx, w.instance, false)
	if err != nil {
		return nil
	}
	carried := w.carried(ctx)
	if ctx.Err() != nil {
		return nil
	}
	now, since := w.app.Now(), time.Since(w.asked).Seconds()
	w.asked = time.Now()
	var line []string
	for _, s := range sessions {
		v := viewSession(s)
		if !w.live[v.SessionID] {
			continue
		}
		p := progress{SessionID: v.SessionID, InstanceID: v.InstanceID, State: v.State, Protected: v.Bytes, Tunnel: carried[v.SessionID],
			Elapsed: max(0, now.Sub(s.GetAppraisedAt().AsTime()).Round(100*time.Millisecond).Seconds())}
		last, known := w.before[p.SessionID]
		if p.Tunnel != nil && last.Tunnel != nil && since > 0 {
			moved := p.Tunnel.Sent + p.Tunnel.Received - last.Tunnel.Sent - last.Tunnel.Received
			p.Tunnel.Rate = max(0, int64(float64(moved)/since))
		}
		w.before[p.SessionID] = p
		if w.line {
			line = append(line, p.text())
			continue
		}
		if known && last.Protected == p.Protected && last.State == p.State && last.still(p.Tunnel) {
			continue
		}
		ev := change{At: now.UTC().Format(time.RFC3339Nano), Progress: &p}
		if err := w.app.event(ev, ev.print); err != nil {
			return err
		}
	}
	if len(line) == 0 {
		return nil
	}
	w.written = true
	_, err = fmt.Fprintf(w.app.Out, "\r\x1b[K%s", strings.Join(line, " | "))
	return err
}

// still says that the tunnel has carried nothing since.
func (p *progress) still(t *tunnelProgress) bool {
	if t == nil || p.Tunnel == nil {
		return t == nil && p.Tunnel == nil
	}
	return t.Connections == p.Tunnel.Connections && t.Sent == p.Tunnel.Sent && t.Received == p.Tunnel.Received
}

func (w *watch) clearLine() error {
	if !w.written {
		return nil
	}
	w.written = false
	_, err := io.WriteString(w.app.Out, "\r\x1b[K")
	return err
}

// carried asks the tunnel, and returns what it carries by session. Nothing if it is not to be asked, or does not answer in time.
func (w *watch) carried(ctx context.Context) map[string]*tunnelProgress {
	if w.tunnel == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(w.tunnel, "/")+"/connections", http.NoBody)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or is of no use
	var answer struct {
		Connections []struct {
			Session  string `json:"session_id"`
			Sent     int64  `json:"sent_bytes"`
			Received int64  `json:"received_bytes"`
		} `json:"connections"`
	}
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, maxConnections)).Decode(&answer) != nil {
		return nil
	}
	out := map[string]*tunnelProgress{}
	for _, c := range answer.Connections {
		if out[c.Session] == nil {
			out[c.Session] = new(tunnelProgress)
		}
		t := out[c.Session]
		t.Connections++
		t.Sent += c.Sent
		t.Received += c.Received
	}
	return out
}

func (e *change) print(s *sheet) {
	if e.Progress != nil {
		s.line("%s %s", orElse(e.At, "-"), e.Progress.text())
		return
	}
	v := e.Session
	from := when(e.Previous != "", e.Previous+" > ")
	why := ""
	if v.Refusal != nil {
		why = " " + v.Refusal.Reason + ": " + v.Refusal.Message
	}
	s.line("%s %s %s %s > %s %s%s %s%s", orElse(e.At, "-"), v.SessionID, v.InstanceID, v.Source, v.Destination, from, v.State,
		modeWord(v.Mode), why)
}

// text is the progress in a line.
func (p *progress) text() string {
	out := fmt.Sprintf("%s %s %s %.1f s, vTPM %d bytes", p.SessionID[:min(8, len(p.SessionID))], p.InstanceID, p.State, p.Elapsed, p.Protected)
	if t := p.Tunnel; t != nil {
		out += fmt.Sprintf(", tunnel %.1f MiB sent, %.1f received on %d connections, %.1f MiB/s", mib(t.Sent), mib(t.Received), t.Connections, mib(t.Rate))
	}
	return out
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
