package collateral

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/crypto/durable/crashdisk"
)

const crashDir = "/cache"

const absent = "(absent)"

func cacheOn(t *testing.T, d *crashdisk.Disk, source Source) *Cache[string] {
	t.Helper()
	c, err := newCache(Config[string]{Dir: crashDir, Check: toyCheck, Source: source, Now: func() time.Time { return day }}, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// content is what a new cache on d gives, and the files it has.
func content(t *testing.T, d *crashdisk.Disk) (name string, files []string) {
	t.Helper()
	c := cacheOn(t, d, nil)
	name, _, err := c.Get(t.Context(), keyA)
	if err != nil {
		name = absent
	}
	if files, err = d.List(crashDir); err != nil {
		t.Fatal(err)
	}
	return name, files
}

// crashScenario is a change of what is kept.
type crashScenario struct {
	name, before, after string
}

var crashScenarios = []crashScenario{
	{"the first set", absent, "new"},
	{"a newer set over an old one", "old", "new"},
	{"forgetting", "old", absent},
}

func (s crashScenario) prepare(t *testing.T) *crashdisk.Disk {
	t.Helper()
	d := crashdisk.New()
	c := cacheOn(t, d, &toySource{fetch: always(toySet(s.before, 1, day, month))})
	if s.before != absent {
		gets(t, c, keyA, s.before)
	}
	return d
}

// run makes the change on a disk that crashes at an operation of it, and says whether it is on disk.
func (s crashScenario) run(t *testing.T, d *crashdisk.Disk, crashAt int) error {
	t.Helper()
	c := cacheOn(t, d, &toySource{fetch: always(toySet("new", 2, day, month))})
	d.Ops, d.CrashAt = 0, crashAt
	if s.after == absent {
		return c.Forget(keyA)
	}
	if err := c.Refresh(t.Context(), keyA); err != nil {
		t.Fatalf("%s: a disk that fails keeps a valid set from being used: %v", s.name, err)
	}
	gets(t, c, keyA, "new")
	return c.Status()[0].Unsaved
}

func (s crashScenario) violations(t *testing.T, spoil func(*crashdisk.Disk)) (found []string, points int) {
	t.Helper()
	for crashAt := 1; ; crashAt++ {
		d := s.prepare(t)
		spoil(d)
		err := s.run(t, d, crashAt)
		if err != nil && !errors.Is(err, crashdisk.ErrCrashed) {
			t.Fatalf("%s, operation %d: %v", s.name, crashAt, err)
		}
		for how, after := range d.Survivors() {
			got, files := content(t, after)
			switch {
			case got != s.before && got != s.after:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: found %q", s.name, crashAt, how, got))
			case err == nil && got != s.after:
				found = append(found, fmt.Sprintf("%s was done, %s: found %q", s.name, how, got))
			case len(files) > 1:
				found = append(found, fmt.Sprintf("%s, operation %d, %s: leftovers %q", s.name, crashAt, how, files))
			}
		}
		if err == nil {
			return found, crashAt - 1
		}
	}
}

func TestACrashLeavesTheOldSetOrTheNewOne(t *testing.T) {
	for _, s := range crashScenarios {
		t.Run(s.name, func(t *testing.T) {
			found, points := s.violations(t, func(*crashdisk.Disk) {})
			for _, v := range found {
				t.Error(v)
			}
			if points < 2 {
				t.Errorf("found %d operations to crash at, expected more", points)
			}
		})
	}
}

func TestTheCrashTestNoticesAStoreThatDoesNotSync(t *testing.T) {
	for _, s := range crashScenarios {
		if found, _ := s.violations(t, func(d *crashdisk.Disk) { d.NoDirSync = true }); len(found) == 0 {
			t.Errorf("%s without syncing the directory passes", s.name)
		}
		if found, _ := s.violations(t, func(d *crashdisk.Disk) { d.NoFileSync = true }); len(found) == 0 && s.after != absent {
			t.Errorf("%s without syncing the file passes", s.name)
		}
	}
}

// TestAFaultLeavesTheOldSetOrTheNewOneAndTheCacheGoesOn fails one operation at a time, without a crash.
func TestAFaultLeavesTheOldSetOrTheNewOneAndTheCacheGoesOn(t *testing.T) {
	s := crashScenarios[1]
	for failAt := 1; ; failAt++ {
		d := s.prepare(t)
		source := &toySource{fetch: always(toySet("new", 2, day, month))}
		c := cacheOn(t, d, source)
		d.Ops, d.FailAt = 0, failAt
		if err := c.Refresh(t.Context(), keyA); err != nil {
			t.Fatal(err)
		}
		gets(t, c, keyA, "new")
		unsaved := c.Status()[0].Unsaved
		if unsaved == nil {
			if failAt < 6 {
				t.Errorf("found %d operations, expected more", failAt-1)
			}
			return
		}
		if !errors.Is(unsaved, crashdisk.ErrFault) {
			t.Errorf("operation %d: %v", failAt, unsaved)
		}
		if got, _ := content(t, d.Copy()); got != "old" && got != "new" {
			t.Errorf("operation %d: found %q", failAt, got)
		}
		source.answer(always(toySet("newer", 3, day, month)))
		if err := c.Refresh(t.Context(), keyA); err != nil {
			t.Fatal(err)
		}
		if got, files := content(t, d); got != "newer" || len(files) != 1 || c.Status()[0].Unsaved != nil {
			t.Errorf("operation %d, the next refresh: found %q, %q", failAt, got, files)
		}
	}
}
