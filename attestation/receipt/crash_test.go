package receipt

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/durable/crashdisk"
)

// bench is a chain on a crashdisk.Disk that gets a receipt: its first, with the collateral, or one more.
type bench struct {
	old []*Entry
	add *Entry
}

func benches(t *testing.T) map[string]*bench {
	t.Helper()
	r := newRig(t)
	first, second := r.entry(t, r.migrate(t)), r.entry(t, r.migrate(t))
	return map[string]*bench{"the first receipt": {nil, first}, "the second": {[]*Entry{first}, second}}
}

func openOn(t *testing.T, d *crashdisk.Disk, m *marks) (*Chain, error) {
	t.Helper()
	return openChain(t.Context(), shelf{"/receipts", d}, m, options())
}

// prepare makes a disk with the old receipts on it.
func (b *bench) prepare(t *testing.T) (*crashdisk.Disk, *marks) {
	t.Helper()
	d, m := crashdisk.New(), &marks{}
	if len(b.old) > 0 {
		c, err := openOn(t, d, m)
		must(t, err)
		for _, e := range b.old {
			c.add(t, e)
		}
	}
	d.Ops = 0
	return d, m
}

// violations opens the chain and appends a receipt, crashes at every operation, and returns what is not as promised. A write of sealed storage is
// two operations: the crash comes before it has taken effect, or after.
func (b *bench) violations(t *testing.T, spoil func(*crashdisk.Disk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d, m := b.prepare(t)
		spoil(d)
		d.CrashAt = crashAt
		m.op, m.after = d.Op, d.Op
		acknowledged := false
		c, err := openOn(t, d, m)
		if err == nil {
			_, err = c.Append(t.Context(), b.add)
			acknowledged = err == nil
		}
		if err != nil && !errors.Is(err, crashdisk.ErrCrashed) {
			t.Fatalf("operation %d: %v", crashAt, err)
		}
		for how, disk := range d.Survivors() {
			if v := b.inspect(t, disk, &marks{content: bytes.Clone(m.content)}, acknowledged); v != "" {
				found = append(found, fmt.Sprintf("operation %d, %s: %s", crashAt, how, v))
			}
		}
		if acknowledged {
			return found, crashAt - 1
		}
	}
}

// inspect says what is wrong with a chain that was found after a crash.
func (b *bench) inspect(t *testing.T, d *crashdisk.Disk, m *marks, acknowledged bool) string {
	c, err := openOn(t, d, m)
	if err != nil {
		return err.Error()
	}
	if err := c.VerifyChain(t.Context()); err != nil {
		return err.Error()
	}
	n, before := c.Len(), len(b.old)
	if n != before && n != before+1 || acknowledged && n != before+1 {
		return fmt.Sprintf("found %d receipts, acknowledged is %t", n, acknowledged)
	}
	for _, e := range b.old {
		if _, err := c.Get(ID(e.Record)); err != nil {
			return err.Error()
		}
	}
	link, err := c.Append(t.Context(), b.add)
	if err != nil || link.Number != uint64(before)+1 {
		return fmt.Sprintf("the next append: number %d, %v", link.Number, err)
	}
	if err := c.VerifyChain(t.Context()); err != nil {
		return err.Error()
	}
	for _, dir := range []string{"/receipts", "/receipts/" + collateralDir} {
		names, _ := d.List(dir)
		if slices.ContainsFunc(names, func(s string) bool { return strings.HasPrefix(s, ".tmp-") }) {
			return "a temporary file is left"
		}
	}
	return ""
}

func TestACrashLeavesTheChainWithTheReceiptOrWithoutIt(t *testing.T) {
	for name, b := range benches(t) {
		t.Run(name, func(t *testing.T) {
			found, points := b.violations(t, func(*crashdisk.Disk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 10 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
			t.Logf("%d operations, 4 outcomes each", points)
		})
	}
}

func TestTheCrashTestNoticesAChainThatDoesNotSync(t *testing.T) {
	for name, b := range benches(t) {
		if found, _ := b.violations(t, func(d *crashdisk.Disk) { d.NoDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing directories passes", name)
		}
		if found, _ := b.violations(t, func(d *crashdisk.Disk) { d.NoFileSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing files passes", name)
		}
	}
}

// TestAFaultIsSettledByTheNextAppend fails one operation at a time, without a crash: the chain in memory goes on.
func TestAFaultIsSettledByTheNextAppend(t *testing.T) {
	for name, b := range benches(t) {
		t.Run(name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				d, m := b.prepare(t)
				c, err := openOn(t, d, m)
				must(t, err)
				d.Ops, d.FailAt = 0, failAt
				m.op, m.after = d.Op, d.Op
				_, failed := c.Append(t.Context(), b.add)
				if failed == nil {
					if failAt < 10 {
						t.Errorf("found %d operations, expected more", failAt-1)
					}
					return
				}
				if !errors.Is(failed, crashdisk.ErrFault) {
					t.Errorf("operation %d: found %v, expected %v", failAt, failed, crashdisk.ErrFault)
				}
				link, err := c.Append(t.Context(), b.add)
				if err != nil || link.Number != uint64(len(b.old))+1 || c.Len() != len(b.old)+1 {
					t.Errorf("operation %d: the next append: number %d, %v", failAt, link.Number, err)
				}
				if err := c.VerifyChain(t.Context()); err != nil {
					t.Errorf("operation %d: %v", failAt, err)
				}
			}
		})
	}
}
