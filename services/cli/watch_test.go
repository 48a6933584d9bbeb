package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

func armedSession() *v1.Session {
	return &v1.Session{
		SessionId: fill(0x11, 16), InstanceId: vmID, State: v1.SessionState_SESSION_STATE_TRANSFERRING, SourceHost: "compute1", DestinationHost: "compute2",
		BytesProtected: 1368, AppraisedAt: timestamppb.New(noon.Add(-3 * time.Second)),
	}
}

// carrying is a tunnel that has sent a MiB more each time it is asked, on two connections, until it has sent most of them.
func carrying(t *testing.T, most int64, asked func(n int64)) string {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := n.Add(1)
		if r.URL.Path != "/connections" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		sent := min(i, most) << 19
		_, _ = fmt.Fprintf(w, `{"connections": [{"session_id": %[1]q, "sent_bytes": %[2]d}, {"session_id": %[1]q, "sent_bytes": %[2]d, "received_bytes": 7},
			{"session_id": "another", "sent_bytes": 5}]}`, hexOf(fill(0x11, 16)), sent)
		asked(i)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestAWatchTellsHowFarAMigrationHasCome(t *testing.T) {
	f := startNode(t, &fakeNode{hold: true, changes: []*v1.WatchResponse{{Session: armedSession()}}, sessions: []*v1.Session{armedSession()}})
	ctx, cancel := context.WithCancel(t.Context())
	url := carrying(t, 3, func(n int64) {
		if n == 6 { // twice nothing has moved
			cancel()
		}
	})
	r := runIn(ctx, t, "--socket", f.socket, "-o", "json", "migrations", "watch", "--every", "10ms", "--tunnel", url).exits(t, ExitOK)
	var sent []int64
	for i, line := range strings.Split(strings.TrimSpace(r.out), "\n") {
		var e change
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if i == 0 {
			if e.Session == nil || e.Progress != nil {
				t.Errorf("the first event is %s", line)
			}
			continue
		}
		p := e.Progress
		if p == nil || e.Session != nil || p.SessionID != hexOf(fill(0x11, 16)) || p.State != "transferring" || p.Protected != 1368 || p.Elapsed != 3 ||
			p.Tunnel == nil || p.Tunnel.Connections != 2 || p.Tunnel.Received != 7 {
			t.Fatalf("event %d is %s", i, line)
		}
		if len(sent) > 0 && p.Tunnel.Rate == 0 {
			t.Errorf("it moves without a rate: %s", line)
		}
		sent = append(sent, p.Tunnel.Sent>>20)
	}
	if fmt.Sprint(sent) != "[1 2 3]" {
		t.Errorf("it told of %v MiB, expected each once, and nothing where nothing has moved", sent)
	}
}

func TestOnATerminalProgressIsOneLine(t *testing.T) {
	f := startNode(t, &fakeNode{sessions: []*v1.Session{armedSession()}})
	var out bytes.Buffer
	w := &watch{
		app: &app{Env: Env{Out: &out, Now: func() time.Time { return noon }}.withDefaults(), socket: f.socket, timeout: 10 * time.Second, format: formatTable}, every: time.Second, line: true,
		tunnel: carrying(t, 10, func(int64) {}), live: map[string]bool{hexOf(fill(0x11, 16)): true}, before: map[string]progress{},
	}
	for range 2 {
		if err := w.progressed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(out.String(), "\n") || strings.Count(out.String(), "\r\x1b[K11111111 "+vmID+" transferring 3.") != 2 ||
		!strings.Contains(out.String(), "vTPM 1368 bytes, tunnel 2.0 MiB sent, 0.0 received on 2 connections") {
		t.Errorf("found %q", out.String())
	}
	ended := armedSession()
	ended.State = v1.SessionState_SESSION_STATE_COMMITTED
	out.Reset()
	if err := w.changed(&v1.WatchResponse{Session: ended}); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "\r\x1b[K-") || !strings.HasSuffix(out.String(), "\n") || len(w.live) != 0 {
		t.Errorf("the change stands beside the progress: %q", out.String())
	}
}

func TestAWatchGoesOnWithoutATunnelAndWithoutProgress(t *testing.T) {
	f := startNode(t, &fakeNode{sessions: []*v1.Session{armedSession()}})
	for name, tunnel := range map[string]string{"nobody there": "http://127.0.0.1:1", "no URL": "://", "not asked": ""} {
		var out bytes.Buffer
		w := &watch{
			app: &app{Env: Env{Out: &out, Now: func() time.Time { return noon }}.withDefaults(), socket: f.socket, timeout: 10 * time.Second, format: formatTable}, every: time.Second, tunnel: tunnel,
			live: map[string]bool{hexOf(fill(0x11, 16)): true}, before: map[string]progress{},
		}
		for range 2 {
			if err := w.progressed(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if strings.Count(out.String(), "\n") != 1 || strings.Contains(out.String(), "tunnel") {
			t.Errorf("%s: found %q", name, out.String())
		}
	}
	run(t, "--socket", f.socket, "migrations", "watch", "--every", "2h").exits(t, ExitUsage)
}
