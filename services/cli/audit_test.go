package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/audit"
)

type noMarks struct{}

func (noMarks) Get(context.Context, string, string) ([]byte, error) { return nil, sealed.ErrNotFound }
func (noMarks) Put(context.Context, string, string, []byte) error   { return nil }

// auditLog is a log of five records.
func auditLog(t *testing.T) (dir string, head audit.Head) {
	t.Helper()
	dir = t.TempDir()
	l, err := audit.Open(t.Context(), noMarks{}, audit.Options{Dir: dir, Host: "compute1", Mode: "simulated", Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := l.Append(audit.Record{Event: audit.EventCall, Method: "MigrationService/Arm", Migration: fmt.Sprint("m", i), Verdict: audit.Allowed}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir, l.Head()
}

func TestAnAuditLogIsVerifiedAndHeldToItsHead(t *testing.T) {
	dir, head := auditLog(t)
	node := startNode(t, &fakeNode{status: &v1.GetStatusResponse{AuditSequence: head.Sequence, AuditDigest: head.Digest[:]}})
	old := startNode(t, &fakeNode{status: &v1.GetStatusResponse{}})

	if got := run(t, "audit", "verify", dir).exits(t, ExitOK).out; !strings.Contains(got, "INTACT") || !strings.Contains(got, "not checked") {
		t.Errorf("without a head: %s", got)
	}
	for _, args := range [][]string{{"--head", head.String()}, {"--node", "--socket", node.socket}} {
		got := run(t, append([]string{"audit", "verify", dir}, args...)...).exits(t, ExitOK).out
		if !strings.Contains(got, "nothing is missing up to record 5:") {
			t.Errorf("%v: %s", args, got)
		}
	}
	run(t, "audit", "verify", dir, "--node", "--socket", old.socket).exits(t, ExitUsage)
	run(t, "audit", "verify", dir, "--head", "5:x").exits(t, ExitUsage)
	run(t, "audit", "verify", filepath.Join(dir, "nothing")).exits(t, ExitUsage)

	file := filepath.Join(dir, "audit-000000000001.jsonl")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Join(bytes.SplitAfter(whole, []byte("\n"))[:4], nil)
	if err := os.WriteFile(file, cut, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "audit", "verify", dir).exits(t, ExitOK)
	if got := run(t, "audit", "verify", dir, "--node", "--socket", node.socket).exits(t, ExitNotAuthentic).out; !strings.Contains(got, "cut off at the end") {
		t.Errorf("a log that was cut off: %s", got)
	}
	if err := os.WriteFile(file, bytes.Replace(whole, []byte(`"m2"`), []byte(`"m9"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	view := decode[auditView](t, run(t, "audit", "verify", dir, "-o", "json").exits(t, ExitNotAuthentic).out)
	if view.Intact || !strings.Contains(view.Damage, "line 4: edited: record 3 is not the one that record 4 is chained to") {
		t.Errorf("a log that was edited: %+v", view)
	}
}

func TestTheLogLevelIsToldAndChanged(t *testing.T) {
	f := startNode(t, &fakeNode{level: &v1.SetLogLevelResponse{Level: "debug", Previous: "info"}})
	if got := run(t, "loglevel", "debug", "--socket", f.socket).exits(t, ExitOK).out; got != "debug, was info\n" {
		t.Errorf("got %q", got)
	}
	if got := request[*v1.SetLogLevelRequest](t, f).GetLevel(); got != "debug" {
		t.Errorf("asked for %q", got)
	}
}
