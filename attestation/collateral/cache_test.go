package collateral

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const month = 30 * 24 * time.Hour

func TestAFetchedSetIsKeptAndNotFetchedAgain(t *testing.T) {
	source := &toySource{fetch: always(toySet("a", 1, day, month))}
	clk := &clock{now: day}
	c := open(t, Config[string]{Source: source, Now: clk.Now})
	gets(t, c, keyA, "a")
	clk.set(day.Add(month))
	gets(t, c, keyA, "a")
	if source.count() != 1 {
		t.Errorf("fetched %d times, expected once", source.count())
	}
}

func TestManyCallersShareOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		source := &toySource{fetch: func(context.Context, Key) (*Collateral, error) {
			<-release
			return toySet("a", 1, time.Now(), month), nil
		}}
		c := open(t, Config[string]{Source: source})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { gets(t, c, keyA, "a") })
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if source.count() != 1 {
			t.Errorf("fetched %d times, expected once", source.count())
		}
	})
}

func TestAFetchThatHangsDoesNotDelayWhoHasAValidSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: always(toySet("a", 1, time.Now(), month))}
		c := open(t, Config[string]{Source: source})
		gets(t, c, keyA, "a")
		source.answer(hang)
		refreshed := make(chan error, 1)
		go func() { refreshed <- c.Refresh(t.Context(), keyA) }()
		synctest.Wait()
		if source.count() != 2 {
			t.Fatalf("fetched %d times, expected a second fetch that hangs", source.count())
		}
		before := time.Now()
		gets(t, c, keyA, "a")
		if !time.Now().Equal(before) {
			t.Errorf("waited for %v", time.Since(before))
		}
		is(t, <-refreshed, context.DeadlineExceeded)
		if took := time.Since(before); took != 30*time.Second {
			t.Errorf("the fetch was given up after %v, expected 30 s", took)
		}
	})
}

func TestACallerThatGivesUpLeavesTheFetchToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		source := &toySource{fetch: func(ctx context.Context, _ Key) (*Collateral, error) {
			select {
			case <-release:
				return toySet("a", 1, time.Now(), month), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		c := open(t, Config[string]{Source: source})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := c.Get(ctx, keyA)
		is(t, err, context.DeadlineExceeded, ErrUnknown)
		close(release)
		gets(t, c, keyA, "a")
		if source.count() != 1 {
			t.Errorf("fetched %d times, expected once", source.count())
		}
	})
}

func TestNothingIsGivenThatIsNotAcceptedAndValid(t *testing.T) {
	incomplete := toySet("a", 1, day, month)
	incomplete.PCKCRL = nil
	forged := toySet("a", 1, day, month)
	forged.TCBInfo = []byte("forged")
	for name, tc := range map[string]struct {
		fetch func(context.Context, Key) (*Collateral, error)
		errs  []error
	}{
		"the source is down":   {down, []error{errDown}},
		"nothing":              {always(nil), []error{ErrRejected, ErrMissing}},
		"an incomplete set":    {always(incomplete), []error{ErrRejected, ErrMissing}},
		"a forged set":         {always(forged), []error{ErrRejected, errForged}},
		"an expired set":       {always(toySet("a", 1, day.Add(-month), month-1)), []error{ErrRejected, ErrExpired}},
		"a set of a later day": {always(toySet("a", 1, day.Add(1), month)), []error{ErrRejected, ErrNotYetValid}},
	} {
		t.Run(name, func(t *testing.T) {
			o := &observer{}
			c := open(t, Config[string]{Source: &toySource{fetch: tc.fetch}, Now: func() time.Time { return day }, Observer: o})
			refuses(t, c, keyA, append(tc.errs, ErrUnknown)...)
			var e *UnavailableError
			if _, _, err := c.Get(t.Context(), keyA); !errors.As(err, &e) || e.Key != keyA {
				t.Errorf("got %v", err)
			}
			if seen := o.all(); len(seen) != 1 || !errors.Is(seen[0], tc.errs[0]) {
				t.Errorf("observed %v", seen)
			}
			if len(c.Status()) != 0 {
				t.Errorf("kept %+v", c.Status())
			}
		})
	}
}

func TestAKeyThatIsNoneIsNotAskedFor(t *testing.T) {
	source := &toySource{fetch: down}
	c := open(t, Config[string]{Source: source})
	refuses(t, c, Key{CA: "root"}, ErrKey)
	is(t, c.Refresh(t.Context(), Key{}), ErrKey)
	if source.count() != 0 {
		t.Errorf("asked %d times", source.count())
	}
}

func TestAnExpiredSetIsNotGivenAndNamesItsArtefact(t *testing.T) {
	clk := &clock{now: day}
	source := &toySource{fetch: always(toySet("a", 1, day, time.Hour))}
	c := open(t, Config[string]{Source: source, Now: clk.Now})
	gets(t, c, keyA, "a")
	source.answer(down)
	clk.set(day.Add(time.Hour + 1))
	refuses(t, c, keyA, ErrExpired, errDown)
	_, _, err := c.Get(t.Context(), keyA)
	if e := (*ValidityError)(nil); !errors.As(err, &e) || e.Artefact != "pck_crl" || !strings.Contains(err.Error(), "pck_crl: expired") {
		t.Errorf("got %v", err)
	}
	s := c.Status()
	if len(s) != 1 || !errors.Is(s[0].Invalid, ErrExpired) || s[0].Failures != 1 || !errors.Is(s[0].LastFailure, errDown) || !s[0].FailedAt.Equal(clk.Now()) {
		t.Errorf("got %+v", s)
	}
	source.answer(always(toySet("b", 1, clk.Now(), time.Hour)))
	clk.set(clk.Now().Add(15 * time.Second))
	gets(t, c, keyA, "b")
	if s := c.Status(); s[0].Failures != 0 || s[0].LastFailure != nil || s[0].Invalid != nil {
		t.Errorf("got %+v", s)
	}
}

func TestAFailedFetchIsNotRepeatedAtOnce(t *testing.T) {
	clk := &clock{now: day}
	source := &toySource{fetch: down}
	c := open(t, Config[string]{Source: source, Now: clk.Now})
	for i, tc := range []struct {
		at      time.Time
		fetches int
	}{
		{day, 1},
		{day.Add(14 * time.Second), 1},
		{day.Add(15 * time.Second), 2},
		{day.Add(29 * time.Second), 2},
		{day.Add(-time.Hour), 3}, // a clock that was set back does not bar it for an hour
	} {
		clk.set(tc.at)
		refuses(t, c, keyA, errDown, ErrUnknown)
		if source.count() != tc.fetches {
			t.Errorf("call %d: fetched %d times, expected %d", i, source.count(), tc.fetches)
		}
	}
}

func TestFetchesForUnknownKeysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: hang}
		c := open(t, Config[string]{Source: source, MaxFetches: 3, MaxEntries: 5})
		get := func(i int) error {
			_, _, err := c.Get(t.Context(), Key{[6]byte{byte(i >> 8), byte(i)}, PlatformCA})
			return err
		}
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { is(t, get(i), context.DeadlineExceeded) })
		}
		synctest.Wait()
		is(t, get(3), ErrBusy)
		wg.Wait()
		source.answer(down)
		for i := range 200 {
			is(t, get(i), ErrUnknown)
		}
		c.mu.Lock()
		if len(c.failures) > 8 {
			t.Errorf("%d failures are kept", len(c.failures))
		}
		c.mu.Unlock()
		// Those that hold nothing back any more make room.
		time.Sleep(16 * time.Second)
		before := source.count()
		is(t, get(1000), errDown)
		is(t, get(1000), errDown)
		if got := source.count() - before; got != 1 {
			t.Errorf("fetched %d times, expected once", got)
		}
	})
}

func TestARollbackIsRefusedAndReported(t *testing.T) {
	clk := &clock{now: day}
	o := &observer{}
	source := &toySource{fetch: always(toySet("new", 7, day, month))}
	c := open(t, Config[string]{Source: source, Now: clk.Now, Observer: o})
	gets(t, c, keyA, "new")
	var changes []Key
	c.OnChange(func(k Key) { changes = append(changes, k) })
	source.answer(always(toySet("old", 6, day, 2*month)))
	is(t, c.Refresh(t.Context(), keyA), ErrRollback)
	gets(t, c, keyA, "new")
	// Expiry does not make an older number acceptable, an older date it does.
	clk.set(day.Add(month + time.Hour))
	refuses(t, c, keyA, ErrExpired, ErrRollback)
	source.answer(always(toySet("mixed", 7, day.Add(-time.Hour), 2*month)))
	clk.set(clk.Now().Add(time.Minute))
	gets(t, c, keyB, "mixed")
	gets(t, c, keyA, "mixed")
	if seen := o.all(); len(seen) != 5 || seen[0] != nil || !errors.Is(seen[1], ErrRollback) || !errors.Is(seen[2], ErrRollback) || seen[4] != nil {
		t.Errorf("observed %v", seen)
	}
	if !slices.Equal(changes, []Key{keyB, keyA}) {
		t.Errorf("changes %v", changes)
	}
}

func TestWhatIsFetchedUnchangedChangesNothing(t *testing.T) {
	clk := &clock{now: day}
	source := &toySource{fetch: always(toySet("a", 1, day, month))}
	c := open(t, Config[string]{Source: source, Now: clk.Now, Dir: t.TempDir()})
	changes := 0
	c.OnChange(func(Key) { changes++ })
	gets(t, c, keyA, "a")
	clk.set(day.Add(time.Hour))
	if err := c.Refresh(t.Context(), keyA); err != nil {
		t.Fatal(err)
	}
	if s := c.Status()[0]; changes != 1 || !s.Meta.Fetched.Equal(clk.Now()) || !s.Due.After(clk.Now()) {
		t.Errorf("%d changes, %+v", changes, s)
	}
}

func TestOfflineOnlyAnImportBringsASet(t *testing.T) {
	c := open(t, Config[string]{Now: func() time.Time { return day }})
	refuses(t, c, keyA, ErrOffline, ErrUnknown)
	is(t, c.Refresh(t.Context(), keyA), ErrOffline)
	if err := c.Run(t.Context()); err != nil {
		t.Errorf("run: %v", err)
	}
	var changes []Key
	c.OnChange(func(k Key) { changes = append(changes, k) })
	bundle := encoded(t, []Entry{
		{Key: keyA, Collateral: toySet("a", 2, day, month)},
		{Key: keyB, Collateral: toySet("b", 2, day, month)},
	})
	done, err := c.Import(bytes.NewReader(bundle))
	if err != nil || !slices.Equal(done.Changed, []Key{keyA, keyB}) || len(done.Unchanged) > 0 {
		t.Errorf("got %+v, %v", done, err)
	}
	gets(t, c, keyA, "a")
	gets(t, c, keyB, "b")
	done, err = c.Import(bytes.NewReader(encoded(t, []Entry{
		{Key: keyA, Collateral: toySet("a", 2, day, month)},
		{Key: keyB, Collateral: toySet("older", 1, day, month)},
		{Key: Key{[6]byte{0xc}, PlatformCA}, Collateral: complete()},
		{Key: Key{[6]byte{0xd}, PlatformCA}, Collateral: toySet("d", 1, day, month)},
	})))
	is(t, err, ErrRollback, ErrRejected)
	if len(done.Unchanged) != 1 || len(done.Changed) != 1 || !strings.Contains(err.Error(), keyB.String()) {
		t.Errorf("got %+v, %v", done, err)
	}
	gets(t, c, keyB, "b")
	if _, err := c.Import(strings.NewReader("{}")); !errors.Is(err, ErrBundle) {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(changes, []Key{keyA, keyB, {[6]byte{0xd}, PlatformCA}}) {
		t.Errorf("changes %v", changes)
	}
}

func TestAnExportIsWhatAnotherNodeImports(t *testing.T) {
	clk := func() time.Time { return day }
	from, to := open(t, Config[string]{Now: clk}), open(t, Config[string]{Now: clk})
	bundle := encoded(t, []Entry{
		{Key: keyA, Collateral: toySet("a", 2, day, month)}, {Key: keyB, Collateral: toySet("b", 2, day, month)},
	})
	if _, err := from.Import(bytes.NewReader(bundle)); err != nil {
		t.Fatal(err)
	}
	var one, all bytes.Buffer
	if err := errors.Join(from.Export(&one, keyB), from.Export(&all)); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Import(&one); err != nil {
		t.Fatal(err)
	}
	gets(t, to, keyB, "b")
	refuses(t, to, keyA, ErrUnknown)
	if entries, err := ReadBundle(&all); err != nil || len(entries) != 2 {
		t.Errorf("got %d entries, %v", len(entries), err)
	}
	is(t, to.Export(&one, keyA), ErrUnknown)
}

func TestTheNumberOfSetsIsBounded(t *testing.T) {
	clk := &clock{now: day}
	c := open(t, Config[string]{Now: clk.Now, MaxEntries: 2})
	imports := func(i int, life time.Duration) error {
		e := Entry{Key: Key{[6]byte{byte(i)}, PlatformCA}, Collateral: toySet(name(i), 1, clk.Now(), life)}
		_, err := c.Import(bytes.NewReader(encoded(t, []Entry{e})))
		return err
	}
	if err := errors.Join(imports(0, month), imports(1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	is(t, imports(2, month), ErrFull)
	clk.set(day.Add(2 * time.Hour))
	if err := imports(2, month); err != nil { // in the place of the one that has expired
		t.Fatal(err)
	}
	gets(t, c, Key{[6]byte{0}, PlatformCA}, name(0))
	gets(t, c, Key{[6]byte{2}, PlatformCA}, name(2))
}

func TestARestartFindsWhatWasKept(t *testing.T) {
	dir, clk := filepath.Join(t.TempDir(), "a", "cache"), &clock{now: day}
	source := &toySource{fetch: always(toySet("a", 5, day, month))}
	first := open(t, Config[string]{Dir: dir, Source: source, Now: clk.Now})
	gets(t, first, keyA, "a")
	first.Close()
	clk.set(day.Add(time.Hour))
	source.answer(down)
	second := open(t, Config[string]{Dir: dir, Source: source, Now: clk.Now})
	gets(t, second, keyA, "a")
	if s := second.Status()[0]; !s.Meta.Fetched.Equal(day) || s.Due.Before(day.Add(12*time.Hour)) || s.Due.After(day.Add(18*time.Hour)) {
		t.Errorf("got %+v", s)
	}
	source.answer(always(toySet("old", 4, day, month)))
	is(t, second.Refresh(t.Context(), keyA), ErrRollback)
	// What has expired in the meantime is not given, but explains itself, and still bars older ones.
	clk.set(day.Add(2 * month))
	third := open(t, Config[string]{Dir: dir, Source: source, Now: clk.Now})
	source.answer(always(toySet("old", 4, clk.Now(), month)))
	refuses(t, third, keyA, ErrExpired, ErrRollback)
	if due := third.Status()[0].Due; due.Sub(clk.Now()) > time.Minute {
		t.Errorf("an expired set is due at %v", due)
	}
}

func TestDamagedFilesAreSkippedAndLeftoversRemoved(t *testing.T) {
	dir := t.TempDir()
	good := encoded(t, []Entry{{Key: keyA, Fetched: day, Collateral: toySet("a", 1, day, month)}})
	other := Key{[6]byte{0xcc}, PlatformCA}
	for file, content := range map[string][]byte{
		keyA.String() + ".json":       good,
		keyB.String() + ".json":       good, // of another key
		other.String() + ".json":      good[:len(good)/2],
		"0d0000000000-platform.json":  encoded(t, []Entry{{Key: Key{[6]byte{0xd}, PlatformCA}, Collateral: complete()}}), // not accepted
		"0e0000000000-platform.json":  make([]byte, maxEntryFile+1),
		".tmp-leftover":               good,
		"readme.json":                 good,
		"0f0000000000-platform.json~": good,
	} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "100000000000-platform.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	source := &toySource{fetch: always(toySet("again", 1, day, month))}
	c := open(t, Config[string]{Dir: dir, Source: source, Now: func() time.Time { return day.Add(time.Hour) }})
	if s := c.Status(); len(s) != 1 || s[0].Key != keyA {
		t.Errorf("got %+v", s)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-leftover")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover: %v", err)
	}
	gets(t, c, other, "again") // and the damaged file is replaced
	if raw, err := os.ReadFile(filepath.Join(dir, other.String()+".json")); err != nil || bytes.Equal(raw, good[:len(good)/2]) {
		t.Errorf("the damaged file: %v", err)
	}
}

func TestADirectoryThatCannotBeUsedIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCache(Config[string]{Dir: path, Check: toyCheck}); err == nil {
		t.Error("a file is used as a directory")
	}
	if _, err := NewCache(Config[string]{}); err == nil {
		t.Error("a cache without a check is made")
	}
}

func TestWhatIsForgottenIsGone(t *testing.T) {
	dir := t.TempDir()
	source := &toySource{fetch: always(toySet("a", 2, day, month))}
	c := open(t, Config[string]{Dir: dir, Source: source, Now: func() time.Time { return day }})
	gets(t, c, keyA, "a")
	if err := errors.Join(c.Forget(keyA), c.Forget(keyB)); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 || len(c.Status()) > 0 {
		t.Errorf("found %v, %v, %+v", files, err, c.Status())
	}
	source.answer(always(toySet("older", 1, day, month)))
	gets(t, c, keyA, "older")
}

func TestAClosedCacheEndsItsFetchesAndStillGivesWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: always(toySet("a", 1, time.Now(), month))}
		c := open(t, Config[string]{Source: source})
		gets(t, c, keyA, "a")
		source.answer(hang)
		var wg sync.WaitGroup
		wg.Go(func() { is(t, c.Refresh(t.Context(), keyA), context.Canceled) })
		wg.Go(func() { is(t, c.Run(t.Context()), ErrClosed) })
		synctest.Wait()
		before := time.Now()
		c.Close()
		wg.Wait()
		if !time.Now().Equal(before) {
			t.Errorf("closing took %v", time.Since(before))
		}
		gets(t, c, keyA, "a")
		refuses(t, c, keyB, ErrClosed)
		is(t, c.Refresh(t.Context(), keyA), ErrClosed)
	})
}

func TestACacheIsSafeForConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	var edit sync.Mutex
	number := uint64(0)
	source := &toySource{fetch: func(_ context.Context, k Key) (*Collateral, error) {
		edit.Lock()
		defer edit.Unlock()
		number++
		return toySet(k.String(), number, day, month), nil
	}}
	c := open(t, Config[string]{Dir: dir, Source: source, Now: func() time.Time { return day }})
	c.OnChange(func(k Key) { gets(t, c, k, k.String()) })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			k := []Key{keyA, keyB}[i%2]
			for range 10 {
				gets(t, c, k, k.String())
				if err := c.Refresh(t.Context(), k); err != nil && !errors.Is(err, ErrRollback) {
					t.Error(err)
				}
				c.Status()
				if err := c.Export(&bytes.Buffer{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
