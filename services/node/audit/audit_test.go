package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/crypto/sealed"
)

// marks is sealed storage in memory.
type marks struct {
	mu   sync.Mutex
	blob []byte
	fail error
}

func (m *marks) Get(context.Context, string, string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blob == nil {
		return nil, sealed.ErrNotFound
	}
	return m.blob, m.fail
}

func (m *marks) Put(_ context.Context, _, _ string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		m.blob = bytes.Clone(b)
	}
	return m.fail
}

func options(dir string) Options {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	return Options{Dir: dir, Host: "compute1", Mode: "simulated", Now: func() time.Time { now = now.Add(time.Second); return now }}
}

func open(t *testing.T, m *marks, o Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(context.Background()) })
	return l
}

func fill(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		err := l.Append(Record{Event: EventCall, Method: "MigrationService/Arm", Caller: &Caller{UID: 64060, PID: 7, Process: "nova-compute"}, Migration: fmt.Sprint("m", i), Verdict: Allowed})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// made is a log of n records in files of about four, closed.
func made(t *testing.T, n int) (dir string, m *marks, head Head) {
	t.Helper()
	dir, m = t.TempDir(), new(marks)
	o := options(dir)
	o.MaxFile = 1400
	l := open(t, m, o)
	fill(t, l, n)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir, m, l.Head()
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range all {
		out = append(out, s.path)
	}
	return out
}

func TestALogThatNobodyTouchedVerifies(t *testing.T) {
	dir, _, head := made(t, 30)
	r, err := Verify(dir, &head)
	if err != nil {
		t.Fatal(err)
	}
	if r.Files < 5 || r.Records != 30 || r.First != 1 || r.Head != head || head.Sequence != 30 || !r.Anchored || r.Partial {
		t.Errorf("got %+v", r)
	}
	raw, err := os.ReadFile(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	want := `{"v":1,"seq":1,"time":"2026-11-23T12:00:01Z","host":"compute1","mode":"simulated","event":"call",` +
		`"caller":{"uid":64060,"gid":0,"pid":7,"process":"nova-compute"},"method":"MigrationService/Arm","migration":"m0","verdict":"allowed",` +
		`"prev":"0000000000000000000000000000000000000000000000000000000000000000"}`
	if first != want {
		t.Errorf("got  %s\nwant %s", first, want)
	}
}

func rewrite(t *testing.T, path string, f func(lines []string) []string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := f(strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n"))
	if err := os.WriteFile(path, []byte(strings.Join(all, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rechain writes a log again with a record changed and every later one chained to it anew, as whoever may write the directory can.
func rechain(t *testing.T, dir string, change func(*Record)) {
	t.Helper()
	var before Digest
	for _, path := range files(t, dir) {
		rewrite(t, path, func(lines []string) []string {
			for i, line := range lines {
				r, err := parse([]byte(line))
				if err != nil {
					t.Fatal(err)
				}
				change(r)
				r.Previous = before
				raw, err := r.encode()
				if err != nil {
					t.Fatal(err)
				}
				lines[i], before = string(raw), digestOf(raw)
			}
			return lines
		})
	}
}

func TestWhatWasDoneToALogIsFound(t *testing.T) {
	edit := func(old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			rewrite(t, files(t, dir)[1], func(lines []string) []string {
				if !strings.Contains(lines[1], old) {
					t.Fatalf("no %s in %s", old, lines[1])
				}
				lines[1] = strings.Replace(lines[1], old, new, 1)
				return lines
			})
		}
	}
	for name, tc := range map[string]struct {
		do func(*testing.T, string)
		// alone is what Verify finds by itself (nil: nothing), anchored what it finds with the head.
		alone, anchored error
	}{
		"a verdict was changed":  {edit("allowed", "refused"), ErrEdited, ErrEdited},
		"a uid was changed":      {edit("64060", "64061"), ErrEdited, ErrEdited},
		"a time was changed":     {edit("12:00", "11:00"), ErrEdited, ErrEdited},
		"a key was put in":       {edit(`"event"`, `"x":1,"event"`), ErrMalformed, ErrMalformed},
		"a space was put in":     {edit(`"event":`, `"event": `), ErrMalformed, ErrMalformed},
		"a sequence was changed": {edit(`"seq":`, `"seq":1`), ErrMissing, ErrMissing},
		"a line was emptied": {func(t *testing.T, d string) {
			rewrite(t, files(t, d)[1], func(l []string) []string { l[0] = ""; return l })
		}, ErrMalformed, ErrMalformed},
		"a line was removed": {func(t *testing.T, d string) {
			rewrite(t, files(t, d)[1], func(l []string) []string { return append(l[:1], l[2:]...) })
		}, ErrMissing, ErrMissing},
		"the first line of a file is gone": {func(t *testing.T, d string) { rewrite(t, files(t, d)[1], func(l []string) []string { return l[1:] }) }, ErrMissing, ErrMissing},
		"two lines were exchanged": {func(t *testing.T, d string) {
			rewrite(t, files(t, d)[1], func(l []string) []string { l[0], l[1] = l[1], l[0]; return l })
		}, ErrMissing, ErrMissing},
		"a line is there twice": {func(t *testing.T, d string) {
			rewrite(t, files(t, d)[1], func(l []string) []string { return append(l[:2], l[1:]...) })
		}, ErrMissing, ErrMissing},
		"a file amid the log is gone": {func(t *testing.T, d string) { remove(t, files(t, d)[2]) }, ErrMissing, ErrMissing},
		"the first file is gone":      {func(t *testing.T, d string) { remove(t, files(t, d)[0]) }, ErrMissing, ErrMissing},
		"a file was emptied":          {func(t *testing.T, d string) { write(t, files(t, d)[1], nil) }, ErrMissing, ErrMissing},
		"two files were exchanged": {func(t *testing.T, d string) {
			f := files(t, d)
			rename(t, f[1], d+"/x")
			rename(t, f[2], f[1])
			rename(t, d+"/x", f[2])
		}, ErrMissing, ErrMissing},
		"a file ends within a line": {func(t *testing.T, d string) {
			f := files(t, d)[1]
			write(t, f, []byte(strings.TrimSuffix(read(t, f), "\n")))
		}, ErrMalformed, ErrMalformed},
		"a line is longer than any": {func(t *testing.T, d string) {
			write(t, files(t, d)[1], bytes.Repeat([]byte("x"), MaxLine+5))
		}, ErrMalformed, ErrMalformed},
		// Only who knows the head finds these.
		"the last record is gone": {func(t *testing.T, d string) {
			f := files(t, d)
			rewrite(t, f[len(f)-1], func(l []string) []string { return l[:len(l)-1] })
		}, nil, ErrTruncated},
		"the last file is gone": {func(t *testing.T, d string) { f := files(t, d); remove(t, f[len(f)-1]) }, nil, ErrTruncated},
		"everything is gone": {func(t *testing.T, d string) {
			for _, f := range files(t, d) {
				remove(t, f)
			}
		}, nil, ErrTruncated},
		"another chain was written":        {func(t *testing.T, d string) { rechain(t, d, func(r *Record) { r.Caller.UID = 0 }) }, nil, ErrEdited},
		"the last record was changed":      {lastChanged, nil, ErrEdited},
		"nothing was done but a rewriting": {func(t *testing.T, d string) { rechain(t, d, func(*Record) {}) }, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir, m, head := made(t, 30)
			tc.do(t, dir)
			if _, err := Verify(dir, nil); !errors.Is(err, tc.alone) {
				t.Errorf("without the head: %v, want %v", err, tc.alone)
			}
			if _, err := Verify(dir, &head); !errors.Is(err, tc.anchored) {
				t.Errorf("with the head: %v, want %v", err, tc.anchored)
			}
			if tc.alone == nil && tc.anchored != nil { // at the end, where the node looks when it starts
				if _, err := Open(t.Context(), m, options(dir)); !errors.Is(err, tc.anchored) || !strings.Contains(err.Error(), "evidence") {
					t.Errorf("the node starts with it: %v, want %v", err, tc.anchored)
				}
			}
		})
	}
}

func lastChanged(t *testing.T, d string) {
	f := files(t, d)
	rewrite(t, f[len(f)-1], func(l []string) []string {
		l[len(l)-1] = strings.Replace(l[len(l)-1], "allowed", "refused", 1)
		return l
	})
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestALogGoesOnWhereItStopped(t *testing.T) {
	dir, m, _ := made(t, 10)
	for range 3 {
		l := open(t, m, options(dir))
		fill(t, l, 5)
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		head := l.Head()
		if r, err := Verify(dir, &head); err != nil || !r.Anchored {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if r, _ := Verify(dir, nil); r.Records != 25 {
		t.Errorf("%d records", r.Records)
	}
}

// What a crash leaves: records after the sealed head, and a last line that is cut short.
func TestACrashLosesAtMostTheLineThatWasBeingWritten(t *testing.T) {
	dir, m := t.TempDir(), new(marks)
	l := open(t, m, options(dir))
	fill(t, l, 3)
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 2) // never sealed
	f := files(t, dir)[0]
	write(t, f, []byte(read(t, f)+`{"v":1,"seq":6,"ti`))
	if r, err := Verify(dir, nil); err != nil || !r.Partial || r.Records != 5 {
		t.Errorf("before it starts again: %+v, %v", r, err)
	}
	again := open(t, m, options(dir))
	fill(t, again, 1)
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := again.Head()
	if r, err := Verify(dir, &head); err != nil || r.Partial || r.Records != 6 || !r.Anchored {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFilesThatAreNoLongerKeptAreOwnedUpTo(t *testing.T) {
	dir, m := t.TempDir(), new(marks)
	o := options(dir)
	o.MaxFile, o.MaxFiles = 1400, 3
	l := open(t, m, o)
	for range 10 {
		fill(t, l, 5)
		if err := l.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	r, err := Verify(dir, &head)
	if err != nil || r.First < 20 || r.Files > 4 || !r.Anchored {
		t.Fatalf("%+v, %v", r, err)
	}
	early := Head{Sequence: 3}
	if _, err := Verify(dir, &early); !errors.Is(err, ErrMissing) {
		t.Errorf("with a head from before: %v", err)
	}
	again := open(t, m, o)
	fill(t, again, 1)
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	remove(t, files(t, dir)[0])
	if _, err := Verify(dir, nil); !errors.Is(err, ErrMissing) {
		t.Errorf("one file more is gone: %v", err)
	}
}

func TestADiskThatFailsIsToldAndTheGapIsRecorded(t *testing.T) {
	dir, m := t.TempDir(), new(marks)
	o := options(dir)
	var told []string
	o.Observe = func(written bool, err error) { told = append(told, fmt.Sprint(written, " ", err != nil)) }
	l := open(t, m, o)
	fill(t, l, 2)
	good := l.file
	l.file, _ = os.Open(good.Name()) // cannot be written
	for range 3 {
		if err := l.Append(Record{Event: EventCall}); err == nil {
			t.Fatal("it was written")
		}
	}
	if err := l.flush(t.Context()); err == nil {
		t.Error("all is well while records are lost")
	}
	_ = l.file.Close()
	l.file = good
	if err := l.flush(t.Context()); err != nil { // what Run does after a pause
		t.Fatal(err)
	}
	want := []string{"true false", "true false", "false true", "false true", "false true", "false true", "false false"}
	if strings.Join(told, ",") != strings.Join(want, ",") {
		t.Errorf("told %v, want %v", told, want)
	}
	fill(t, l, 1)
	m.fail = errors.New("sealed storage is broken")
	if err := l.flush(t.Context()); !errors.Is(err, m.fail) {
		t.Errorf("a head that cannot be sealed: %v", err)
	}
	m.fail = nil
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	if r, err := Verify(dir, &head); err != nil || r.Lost != 3 || r.Records != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestManyWritersMakeOneChain(t *testing.T) {
	dir, m := t.TempDir(), new(marks)
	o := options(dir)
	o.MaxFile, o.Now = 4000, time.Now
	l := open(t, m, o)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 50 {
				_ = l.Append(Record{Event: EventCall, Method: "x"})
				_ = l.flush(ctx)
			}
		})
	}
	writers.Wait()
	stop()
	wg.Wait()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	if r, err := Verify(dir, &head); err != nil || r.Records != 400 || r.Files < 10 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestTextsOfCallersAreBoundedAndCannotBreakALine(t *testing.T) {
	dir := t.TempDir()
	l := open(t, new(marks), options(dir))
	evil := strings.Repeat("a\n\"}\x00\xff\u2028", 1000)
	if err := l.Append(Record{Event: EventCall, Message: evil, Instance: evil, Item: evil, Found: evil, Expected: evil, Peer: evil, Subject: evil, Caller: &Caller{Process: evil}}); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 1)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(dir, nil); err != nil || r.Records != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAHeadIsReadAsItIsWritten(t *testing.T) {
	h := Head{Sequence: 42, Digest: Digest{1, 2}}
	if got, err := ParseHead(h.String()); err != nil || got != h {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "42", "42:", "x:" + h.Digest.String(), "042:" + h.Digest.String(), "42:" + strings.ToUpper(Digest{0xab}.String())} {
		if _, err := ParseHead(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzVerify(f *testing.F) {
	dir, _, _ := func() (string, *marks, Head) {
		dir, m := f.TempDir(), new(marks)
		l, err := Open(context.Background(), m, options(dir))
		if err != nil {
			f.Fatal(err)
		}
		_ = l.Append(Record{Event: EventStart})
		_ = l.Append(Record{Event: EventPruned, Through: &Head{Sequence: 1}})
		_ = l.Close(context.Background())
		return dir, m, l.Head()
	}()
	raw, err := os.ReadFile(filepath.Join(dir, "audit-000000000001.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("\n"))
	f.Add([]byte(`{"v":1,"seq":18446744073709551615}` + "\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "audit-000000000001.jsonl"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(dir, nil)
		if err == nil && int(r.Records) != bytes.Count(raw, []byte("\n")) {
			t.Errorf("%d records of %q", r.Records, raw)
		}
	})
}
