package sealed

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/durable/crashdisk"
)

const absent = "\x00absent"

// content is what a fresh store on d has under the name a. A blob that does not open is a violation by itself.
func content(t *testing.T, d *crashdisk.Disk) (string, error) {
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		return "", err
	}
	got, err := s.Get(t.Context(), "escrow", "a")
	if errors.Is(err, ErrNotFound) {
		return absent, nil
	}
	return string(got), err
}

// scenario is a change of one blob.
type scenario struct {
	name, before, after string
}

var scenarios = []scenario{
	{"the first put", absent, "new"},
	{"a put over an old one", "old", "new"},
	{"a delete", "old", absent},
}

// prepare makes a disk on which everything of before is durable.
func (c scenario) prepare(t *testing.T) *crashdisk.Disk {
	t.Helper()
	d := crashdisk.New()
	if c.before == absent {
		return d
	}
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "escrow", "a", []byte(c.before)); err != nil {
		t.Fatal(err)
	}
	d.Ops = 0
	return d
}

// run makes the change on d, from opening the store on.
func (c scenario) run(t *testing.T, d *crashdisk.Disk) error {
	s, err := newStore("/sealed", newKeys(ModeSimulated), d)
	if err != nil {
		return err
	}
	if c.after == absent {
		_, err = s.Delete(t.Context(), "escrow", "a")
		return err
	}
	return s.Put(t.Context(), "escrow", "a", []byte(c.after))
}

// violations crashes the change at every operation and returns what is not as promised.
func (c scenario) violations(t *testing.T, spoil func(*crashdisk.Disk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d := c.prepare(t)
		spoil(d)
		d.CrashAt = crashAt
		err := c.run(t, d)
		if err != nil && !errors.Is(err, crashdisk.ErrCrashed) {
			t.Fatalf("%s, operation %d: %v", c.name, crashAt, err)
		}
		for how, disk := range d.Survivors() {
			got, openErr := content(t, disk)
			switch {
			case openErr != nil:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: %v", c.name, crashAt, how, openErr))
			case got != c.before && got != c.after:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: found %q", c.name, crashAt, how, got))
			case err == nil && got != c.after:
				found = append(found, fmt.Sprintf("%s was acknowledged, %s: found %q", c.name, how, got))
			}
		}
		if err == nil {
			return found, crashAt - 1
		}
	}
}

func TestACrashLeavesTheOldBlobOrTheNewOne(t *testing.T) {
	for _, c := range scenarios {
		t.Run(c.name, func(t *testing.T) {
			found, points := c.violations(t, func(*crashdisk.Disk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 3 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
			t.Logf("%d operations, 4 outcomes each", points)
		})
	}
}

func TestTheCrashTestNoticesAStoreThatDoesNotSync(t *testing.T) {
	for _, c := range scenarios {
		if found, _ := c.violations(t, func(d *crashdisk.Disk) { d.NoDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing directories passes", c.name)
		}
		if found, _ := c.violations(t, func(d *crashdisk.Disk) { d.NoFileSync = true }); len(found) == 0 && c.after != absent {
			t.Errorf("%s without syncing the file passes", c.name)
		}
	}
}

// TestAFaultLeavesTheOldBlobOrTheNewOneAndTheStoreGoesOn fails one operation at a time, without a crash.
func TestAFaultLeavesTheOldBlobOrTheNewOneAndTheStoreGoesOn(t *testing.T) {
	for _, c := range scenarios[:2] {
		t.Run(c.name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				d := c.prepare(t)
				s, err := newStore("/sealed", newKeys(ModeSimulated), d)
				if err != nil {
					t.Fatal(err)
				}
				d.Ops, d.FailAt = 0, failAt
				failed := s.Put(t.Context(), "escrow", "a", []byte(c.after))
				if failed == nil {
					if failAt < 6 {
						t.Errorf("found %d operations, expected more", failAt-1)
					}
					return
				}
				if !errors.Is(failed, crashdisk.ErrFault) {
					t.Errorf("operation %d: found %v, expected %v", failAt, failed, crashdisk.ErrFault)
				}
				// Another store looks, so that this one learns nothing by it.
				got, err := content(t, d.Copy())
				if err != nil || got != c.before && got != c.after {
					t.Errorf("operation %d: found %q, %v", failAt, got, err)
				}
				maybe := d.Copy()
				if err := s.Put(t.Context(), "escrow", "a", []byte("newer")); err != nil {
					t.Fatalf("operation %d: the next put: %v", failAt, err)
				}
				checkNoLeftovers(t, d)
				// Whatever the failed put has left, put back, is older than the newer one.
				d.Restore(maybe)
				if got, err := s.Get(t.Context(), "escrow", "a"); !errors.Is(err, ErrRollback) && !errors.Is(err, ErrNotFound) {
					t.Errorf("operation %d: the blob of the failed put is accepted again: %q, %v", failAt, got, err)
				}
			}
		})
	}
}

func checkNoLeftovers(t *testing.T, d *crashdisk.Disk) {
	t.Helper()
	names, err := d.List("/sealed/escrow")
	if err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("found %q, %v; expected one blob and no temporary file", names, err)
	}
}
