package receipt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func openDir(t testing.TB, dir string, m *marks) *Chain {
	t.Helper()
	c, err := OpenChain(t.Context(), dir, m, options())
	must(t, err)
	return c
}

func (c *Chain) add(t testing.TB, e *Entry) Link {
	t.Helper()
	link, err := c.Append(t.Context(), e)
	must(t, err)
	return link
}

func TestReceiptsAreChainedAndOutliveARestart(t *testing.T) {
	r := newRig(t)
	dir, m := filepath.Join(t.TempDir(), "receipts"), &marks{}
	c := openDir(t, dir, m)
	if err := c.VerifyChain(t.Context()); err != nil {
		t.Errorf("an empty chain: %v", err)
	}
	var entries []*Entry
	var links []Link
	for range 3 {
		e := r.entry(t, r.migrate(t))
		entries, links = append(entries, e), append(links, c.add(t, e))
	}
	again := c.add(t, entries[1])
	if again.Number != 2 || !bytes.Equal(again.Link, links[1].Link) || c.Len() != 3 {
		t.Errorf("appended again: number %d of %d", again.Number, c.Len())
	}
	previous := make([]byte, 32)
	for i, l := range links {
		if l.Number != uint64(i)+1 || !bytes.Equal(l.Previous, previous) || l.Host != "compute1" {
			t.Errorf("link %d: found %+v", i+1, l)
		}
		previous = l.Link
	}
	for _, c := range []*Chain{c, openDir(t, dir, m)} {
		if err := c.VerifyChain(t.Context()); err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			raw, err := c.Get(ID(e.Record))
			must(t, err)
			report, err := r.verifier().Verify(raw)
			if err != nil || !report.Accepted {
				t.Errorf("an export: %v, %+v", err, report)
			}
		}
	}
	sets, err := os.ReadDir(filepath.Join(dir, collateralDir))
	if err != nil || len(sets) != 1 {
		t.Errorf("found %d sets of collateral, expected 1, for all quotes: %v", len(sets), err)
	}
	info, err := os.Stat(filepath.Join(dir, receiptName(1, ID(entries[0].Record))))
	must(t, err)
	t.Logf("%d bytes a receipt, without its collateral", info.Size())
}

func TestAReceiptWithoutCollateralIsKeptAndVerifiesForNobody(t *testing.T) {
	r := newRig(t)
	e := r.entry(t, r.migrate(t))
	e.SourceCollateral = nil
	c := openDir(t, t.TempDir(), &marks{})
	c.add(t, e)
	if err := c.VerifyChain(t.Context()); err != nil {
		t.Error(err)
	}
	raw, err := c.Get(ID(e.Record))
	must(t, err)
	report, err := r.verifier().Verify(raw)
	must(t, err)
	if failed := report.Failed(); report.Accepted || len(failed) != 1 || failed[0].Name != CheckQuote.Of(source) {
		t.Errorf("found %+v", failed)
	}
}

func TestReceiptsAreListedInOrderByPages(t *testing.T) {
	r := newRig(t)
	c := openDir(t, t.TempDir(), &marks{})
	for range 3 {
		c.add(t, r.entry(t, r.migrate(t)))
	}
	numbers := func(instance string, after uint64, limit int) (out []uint64) {
		t.Helper()
		all, err := c.List(t.Context(), instance, after, limit)
		must(t, err)
		for _, s := range all {
			out = append(out, s.Number)
			if s.Instance != vm || s.MigrationID != migration || s.Source != "compute1" || s.Destination != "compute2" || s.Mode != "simulated" ||
				s.Outcome.Result != Committed || s.SignedBy != SignedByBoth || s.At != options().Now() {
				t.Errorf("found %+v", s)
			}
			if _, err := c.Get(s.ID); err != nil {
				t.Error(err)
			}
		}
		return out
	}
	for _, l := range []struct {
		instance string
		after    uint64
		limit    int
		want     []uint64
	}{
		{"", 0, 0, []uint64{1, 2, 3}}, {"", 0, 2, []uint64{1, 2}}, {"", 2, 2, []uint64{3}}, {"", 3, 2, nil}, {"", 1 << 63, 2, nil},
		{vm, 1, MaxList + 1, []uint64{2, 3}}, {strings.Replace(vm, "c11", "c12", 1), 0, 0, nil},
	} {
		if got := numbers(l.instance, l.after, l.limit); !slices.Equal(got, l.want) {
			t.Errorf("%+v: found %v", l, got)
		}
	}
	_, err := c.Get([32]byte{1})
	if !errors.Is(err, refusal.Because(v1.Reason_REASON_NO_RECEIPT)) {
		t.Errorf("a receipt that there is not: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.List(ctx, "", 0, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a list that nobody waits for: %v", err)
	}
	if err := c.VerifyChain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a verification that nobody waits for: %v", err)
	}
}

func TestWhatIsNoReceiptIsNotStored(t *testing.T) {
	r := newRig(t)
	e, other := r.entry(t, r.migrate(t)), r.entry(t, r.migrate(t))
	for name, change := range map[string]func(e *Entry){
		"no record":                       func(e *Entry) { e.Record = nil },
		"another record":                  func(e *Entry) { e.Record = other.Record },
		"no signature":                    func(e *Entry) { e.SourceSignature, e.DestinationSignature = nil, nil },
		"a signature of another":          func(e *Entry) { e.SourceSignature = other.SourceSignature },
		"the other side's signature":      func(e *Entry) { e.DestinationSignature = e.SourceSignature },
		"a short signature":               func(e *Entry) { e.DestinationSignature = []byte{1} },
		"another quote":                   func(e *Entry) { e.SourceEvidence = other.SourceEvidence },
		"another log":                     func(e *Entry) { e.DestinationLog = []byte("x") },
		"collateral without its TCB info": func(e *Entry) { c := *r.collateral; c.TCBInfo = nil; e.SourceCollateral = &c },
	} {
		dir := t.TempDir()
		c := openDir(t, dir, &marks{})
		changed := *e
		change(&changed)
		if _, err := c.Append(t.Context(), &changed); err == nil || c.Len() != 0 {
			t.Errorf("%s: found %v, %d receipts", name, err, c.Len())
		}
		c.add(t, e) // it goes on
	}
	o := options()
	o.Host = "compute3"
	c, err := OpenChain(t.Context(), t.TempDir(), &marks{}, o)
	must(t, err)
	if _, err := c.Append(t.Context(), e); !errors.Is(err, ErrExport) {
		t.Errorf("a migration of two other hosts: %v", err)
	}
	o.Host = "not a host"
	if _, err := OpenChain(t.Context(), t.TempDir(), &marks{}, o); err == nil {
		t.Error("a chain of no host is opened")
	}
	o = options()
	o.MaxReceipts = 1
	c, err = OpenChain(t.Context(), t.TempDir(), &marks{}, o)
	must(t, err)
	c.add(t, e)
	if _, err := c.Append(t.Context(), other); !errors.Is(err, refusal.Because(v1.Reason_REASON_LIMIT_EXCEEDED)) {
		t.Errorf("one too many: %v", err)
	}
	c.add(t, e) // which is there
}

// rewrite changes a stored receipt, and keeps its form.
func rewrite(t *testing.T, path string, change func(e *Export)) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	e, err := ParseExport(raw)
	must(t, err)
	change(e)
	raw, err = e.Encode()
	must(t, err)
	must(t, os.WriteFile(path, raw, 0o600))
}

// TestWhatTheHostDoesToTheFiles names who notices: opening the chain, or reading it whole.
func TestWhatTheHostDoesToTheFiles(t *testing.T) {
	r := newRig(t)
	var entries [3]*Entry
	for i := range entries {
		entries[i] = r.entry(t, r.migrate(t))
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir string, files []string, m *marks)
		atOpen bool
	}{
		{"the last receipt is removed", func(t *testing.T, _ string, f []string, _ *marks) { must(t, os.Remove(f[2])) }, true},
		{"a receipt within is removed", func(t *testing.T, _ string, f []string, _ *marks) { must(t, os.Remove(f[1])) }, true},
		{"all are removed", func(t *testing.T, _ string, f []string, _ *marks) {
			for _, name := range f {
				must(t, os.Remove(name))
			}
		}, true},
		{"the sealed head is removed", func(_ *testing.T, _ string, _ []string, m *marks) { m.content = nil }, true},
		{"the sealed head is no head", func(_ *testing.T, _ string, _ []string, m *marks) { m.content = []byte("{}") }, true},
		{"the sealed head is no JSON", func(_ *testing.T, _ string, _ []string, m *marks) { m.content = []byte("x") }, true},
		{"another receipt takes the last one's place", func(t *testing.T, dir string, f []string, _ *marks) {
			raw, err := os.ReadFile(f[0])
			must(t, err)
			must(t, os.WriteFile(f[2], raw, 0o600))
		}, true},
		{"the last receipt gets another number's link", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[2], func(e *Export) { e.Chain.Link = flip(e.Chain.Link) })
		}, true},
		{"the last one is cut short", func(t *testing.T, _ string, f []string, _ *marks) { must(t, os.Truncate(f[2], 100)) }, true},
		{"the last one is huge", func(t *testing.T, _ string, f []string, _ *marks) { must(t, os.Truncate(f[2], 1<<40)) }, true},
		{"one is added", func(t *testing.T, dir string, f []string, _ *marks) {
			raw, err := os.ReadFile(f[2])
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, receiptName(4, ID(entries[2].Record))), raw, 0o600))
		}, true},
		{"a number is there twice", func(t *testing.T, dir string, f []string, _ *marks) {
			must(t, os.WriteFile(filepath.Join(dir, receiptName(2, [32]byte{1})), nil, 0o600))
		}, true},
		{"a receipt within is altered", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[1], func(e *Export) { e.Source.Signature = flip(e.Source.Signature) })
		}, false},
		{"a signature within is removed", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[1], func(e *Export) { e.Destination.Signature = nil })
		}, false},
		{"a signature within is removed and the receipt linked anew", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[1], func(e *Export) { e.Destination.Signature = nil; e.relink() })
		}, false},
		{"a quote within is replaced", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[0], func(e *Export) { e.Source.Evidence = e.Destination.Evidence })
		}, false},
		{"a time within is altered", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[0], func(e *Export) { e.Chain.At = began })
		}, false},
		{"a receipt within is another node's", func(t *testing.T, _ string, f []string, _ *marks) {
			rewrite(t, f[0], func(e *Export) { e.Chain.Host = "compute2"; e.relink() })
		}, false},
		{"the collateral is removed", func(t *testing.T, dir string, _ []string, _ *marks) {
			must(t, os.RemoveAll(filepath.Join(dir, collateralDir)))
		}, false},
		{"the collateral is altered", func(t *testing.T, dir string, _ []string, _ *marks) {
			sets, err := filepath.Glob(filepath.Join(dir, collateralDir, "*"))
			must(t, err)
			must(t, os.WriteFile(sets[0], []byte("{}"), 0o600))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, m := t.TempDir(), &marks{}
			chain := openDir(t, dir, m)
			var files []string
			for i, e := range entries {
				chain.add(t, e)
				files = append(files, filepath.Join(dir, receiptName(uint64(i)+1, ID(e.Record))))
			}
			must(t, chain.VerifyChain(t.Context()))
			c.change(t, dir, files, m)
			again, err := OpenChain(t.Context(), dir, m, options())
			if c.atOpen {
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("opened: found %v, expected %v", err, ErrDamaged)
				}
				return
			}
			must(t, err)
			if err := again.VerifyChain(t.Context()); !errors.Is(err, ErrDamaged) {
				t.Errorf("verified: found %v, expected %v", err, ErrDamaged)
			}
		})
	}
}

func TestAnOldHeadAndDirectoryPutBackTogetherAreNotNoticed(t *testing.T) {
	// What sealed storage cannot notice after a restart, a chain cannot either: docs/receipts.md says so. Others who know a later link can.
	r := newRig(t)
	dir, m := t.TempDir(), &marks{}
	c := openDir(t, dir, m)
	c.add(t, r.entry(t, r.migrate(t)))
	old := bytes.Clone(m.content)
	second := r.entry(t, r.migrate(t))
	later := c.add(t, second)
	must(t, os.Remove(filepath.Join(dir, receiptName(2, ID(second.Record)))))
	m.content = old
	c = openDir(t, dir, m)
	if link := c.add(t, r.entry(t, r.migrate(t))); link.Number != later.Number || bytes.Equal(link.Link, later.Link) {
		t.Errorf("found %+v, expected another link of number %d", link, later.Number)
	}
}

func TestFilesOfOthersAreLeftAlone(t *testing.T) {
	r := newRig(t)
	dir, m := t.TempDir(), &marks{}
	names := []string{"README", "000000000001.json", "1-" + fmt.Sprintf("%064x", 1) + ".json", fmt.Sprintf("%012d-%064X.json", 1, 0xab), "000000000002-xy.json"}
	for _, name := range names {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-x"), []byte("half"), 0o600))
	c := openDir(t, dir, m)
	c.add(t, r.entry(t, r.migrate(t)))
	if c = openDir(t, dir, m); c.Len() != 1 {
		t.Errorf("found %d receipts", c.Len())
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crashed writer left is still there: %v", err)
	}
}

func TestAPendingReceiptThatIsNotTheSealedOneIsDropped(t *testing.T) {
	r := newRig(t)
	dir, m := t.TempDir(), &marks{}
	c := openDir(t, dir, m)
	c.add(t, r.entry(t, r.migrate(t)))
	second := r.entry(t, r.migrate(t))
	c.add(t, second)
	var h head
	must(t, json.Unmarshal(m.content, &h))
	first, err := c.shelf.readReceipt(1, c.ids[0])
	must(t, err)
	m.content, err = json.Marshal(head{Number: 1, Link: first.Chain.Link, Pending: flip(h.Link)})
	must(t, err)
	if c = openDir(t, dir, m); c.Len() != 1 {
		t.Errorf("found %d receipts", c.Len())
	}
	if link := c.add(t, second); link.Number != 2 {
		t.Errorf("found number %d", link.Number)
	}
	if err := c.VerifyChain(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestManyAppendAndReadAtOnce(t *testing.T) {
	r := newRig(t)
	entries := make([]*Entry, 6)
	for i := range entries {
		entries[i] = r.entry(t, r.migrate(t))
	}
	c := openDir(t, t.TempDir(), &marks{})
	var group sync.WaitGroup
	for _, e := range entries {
		group.Go(func() {
			if _, err := c.Append(t.Context(), e); err != nil {
				t.Error(err)
			}
			if _, err := c.Get(ID(e.Record)); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			if _, err := c.List(t.Context(), "", 0, 0); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := c.VerifyChain(t.Context()); err != nil || c.Len() != len(entries) {
		t.Errorf("%d receipts, %v", c.Len(), err)
	}
}

func BenchmarkAppend(b *testing.B) {
	r := newRig(b)
	entries := make([]*Entry, 100)
	for i := range entries {
		entries[i] = r.entry(b, r.migrate(b))
	}
	c := openDir(b, b.TempDir(), &marks{})
	for i := 0; b.Loop(); i++ {
		if i%len(entries) == 0 {
			b.StopTimer()
			c = openDir(b, b.TempDir(), &marks{})
			b.StartTimer()
		}
		c.add(b, entries[i%len(entries)])
	}
}
