package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// fakeMonitor is QEMU's side of a monitor: it greets, then answers each command by what answer says, until that says nothing.
func fakeMonitor(t *testing.T, answer func(command string, id uint64) string) *QMP {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, `{"QMP": {"version": {}, "capabilities": []}}`)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var request struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if json.Unmarshal(lines.Bytes(), &request) != nil {
				return
			}
			line := fmt.Sprintf(`{"return": {}, "id": %d}`, request.ID)
			if request.Execute != "qmp_capabilities" {
				line = answer(request.Execute, request.ID)
			}
			if line == "" {
				return
			}
			fmt.Fprintln(theirs, line)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	q, err := NewQMP(ctx, ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

func TestTheMonitorAnswersRefusesAndTells(t *testing.T) {
	q := fakeMonitor(t, func(command string, id uint64) string {
		switch command {
		case "query-status":
			return fmt.Sprintf(`{"event": "RESUME", "data": {"x": 1}}`+"\n"+`{"return": {"status": "running"}, "id": %d}`, id)
		case "migrate":
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, id)
		case "broken":
			return "not JSON"
		default:
			return ""
		}
	})
	ctx := context.Background()
	v := &VM{qmp: q}
	if s, err := v.QueryStatus(ctx); err != nil || s != "running" {
		t.Errorf("status %q (%v), expected running", s, err)
	}
	if e, err := q.WaitEvent(ctx, "RESUME"); err != nil || string(e.Data) != `{"x": 1}` {
		t.Errorf("event %+v (%v)", e, err)
	}
	var refused *QMPError
	if err := v.Migrate(ctx, "unix:/x"); !errors.As(err, &refused) || refused.Desc != "no" {
		t.Errorf("%v, expected QEMU's refusal", err)
	}
	expired, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := q.WaitEvent(expired, "STOP"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, expected %v", err, context.Canceled)
	}
	if err := q.Execute(ctx, "broken", nil, nil); !errors.Is(err, ErrMonitorClosed) {
		t.Errorf("%v, expected %v", err, ErrMonitorClosed)
	}
	if _, err := q.WaitEvent(ctx, "STOP"); !errors.Is(err, ErrMonitorClosed) {
		t.Errorf("%v, expected %v", err, ErrMonitorClosed)
	}
}

func TestAMonitorThatHangsUpIsNoticed(t *testing.T) {
	q := fakeMonitor(t, func(string, uint64) string { return "" })
	if err := q.Execute(context.Background(), "quit", nil, nil); !errors.Is(err, ErrMonitorClosed) {
		t.Errorf("%v, expected %v", err, ErrMonitorClosed)
	}
}

func TestAVMWithoutItsPartsIsRefused(t *testing.T) {
	if _, err := Start(context.Background(), Config{Name: "x"}); err == nil {
		t.Error("accepted")
	}
	dir := t.TempDir()
	if _, err := Start(context.Background(), Config{Name: "x", Dir: dir, Kernel: "k", Initrd: "i", QEMU: "/bin/false"}); err == nil {
		t.Error("a QEMU that ends at once is accepted")
	}
}
