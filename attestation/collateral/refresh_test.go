package collateral

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// running runs a cache's Run until the test ends.
func running(t *testing.T, c *Cache[string]) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}

// fresh gives what is issued at the moment it is asked for.
func fresh(life time.Duration) func(context.Context, Key) (*Collateral, error) {
	return func(_ context.Context, k Key) (*Collateral, error) {
		return toySet(k.String(), 1, time.Now(), life), nil
	}
}

func TestASetIsRefreshedBetweenHalfAndThreeQuartersOfItsLifeOrOfTheGreatestAge(t *testing.T) {
	for name, tc := range map[string]struct {
		life, maxAge time.Duration
		rand         float64
		after        time.Duration
	}{
		"a short life, no spread":    {8 * time.Hour, 0, 0, 4 * time.Hour},
		"a short life, half spread":  {8 * time.Hour, 0, 0.5, 5 * time.Hour},
		"a short life, near the end": {8 * time.Hour, 0, 0.99, 8 * time.Hour * 7475 / 10000},
		"a long life, no spread":     {month, 0, 0, 12 * time.Hour},
		"a long life, near the end":  {month, 0, 0.99, 24 * time.Hour * 7475 / 10000},
		"another greatest age":       {month, 4 * time.Hour, 0, 2 * time.Hour},
		"about to expire":            {10 * time.Second, 0, 0, 15 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &toySource{fetch: fresh(tc.life), now: time.Now}
				c := open(t, Config[string]{Source: source, MaxAge: tc.maxAge, Rand: func() float64 { return tc.rand }})
				start := time.Now()
				gets(t, c, keyA, keyA.String())
				running(t, c)
				time.Sleep(3*tc.after + time.Second)
				synctest.Wait()
				if source.count() != 4 {
					t.Fatalf("fetched %d times, expected 4: %v", source.count(), source.times)
				}
				for i, at := range source.times {
					if got, want := at.Sub(start), time.Duration(i)*tc.after; got.Round(time.Second) != want.Round(time.Second) {
						t.Errorf("fetch %d after %v, expected after %v", i, got, want)
					}
				}
			})
		})
	}
}

func TestASetIsRefreshedLongBeforeItExpiresWhateverTheChance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config[string]{Source: &toySource{fetch: fresh(time.Hour)}})
		gets(t, c, keyA, keyA.String())
		gets(t, c, keyB, keyB.String())
		running(t, c)
		for range 200 {
			time.Sleep(time.Minute)
			synctest.Wait()
			for _, s := range c.Status() {
				if left := time.Until(s.Meta.Validity.NotAfter); left < 15*time.Minute {
					t.Errorf("%v: %v left of an hour", s.Key, left)
				}
			}
		}
	})
}

func TestAFailedRefreshIsRepeatedAfterPausesThatDoubleUpToTheLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: fresh(month), now: time.Now}
		o := &observer{}
		c := open(t, Config[string]{Source: source, Observer: o, Rand: func() float64 { return 0 }, RetryMin: time.Minute, RetryMax: 5 * time.Minute})
		start := time.Now()
		gets(t, c, keyA, keyA.String())
		source.answer(down)
		running(t, c)
		time.Sleep(12*time.Hour + 30*time.Minute)
		synctest.Wait()
		first := start.Add(12 * time.Hour)
		for i, want := range []time.Duration{0, 1, 3, 7, 12, 17, 22, 27} {
			if i+1 >= len(source.times) || !source.times[i+1].Equal(first.Add(want*time.Minute)) {
				t.Fatalf("retry %d: got %v, want %v", i, source.times, first.Add(want*time.Minute))
			}
		}
		if s := c.Status()[0]; s.Failures != 8 || !errors.Is(s.LastFailure, errDown) || s.Invalid != nil {
			t.Errorf("got %+v", s)
		}
		if seen := o.all(); len(seen) != 9 || seen[8] == nil {
			t.Errorf("observed %v", seen)
		}
		gets(t, c, keyA, keyA.String())
		source.answer(fresh(month))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if s := c.Status()[0]; s.Failures != 0 || s.LastFailure != nil {
			t.Errorf("got %+v", s)
		}
	})
}

func TestTheLessOfItsLifeIsLeftTheSoonerARefreshIsRepeated(t *testing.T) {
	c := open(t, Config[string]{Rand: func() float64 { return 0 }, RetryMin: time.Minute, RetryMax: time.Hour})
	for _, tc := range []struct {
		count      int
		left, want time.Duration
	}{
		{1, month, time.Minute},
		{4, month, 8 * time.Minute},
		{7, month, time.Hour},
		{1000, month, time.Hour},
		{1000, 40 * time.Minute, 10 * time.Minute},
		{1000, time.Minute, time.Minute},
		{1000, -time.Hour, time.Hour}, // it has expired: every Get asks too
	} {
		if got := c.retryAfter(tc.count, tc.left); got != tc.want {
			t.Errorf("failure %d, %v left: got %v, want %v", tc.count, tc.left, got, tc.want)
		}
	}
	c.cfg.Rand = func() float64 { return 0.8 }
	if got := c.retryAfter(4, month); got != 8*time.Minute*8/10 {
		t.Errorf("got %v", got)
	}
}

func TestAHangingSourceIsGivenUpAndTheOthersAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: fresh(time.Hour)}
		c := open(t, Config[string]{Source: source})
		gets(t, c, keyA, keyA.String())
		gets(t, c, keyB, keyB.String())
		source.answer(func(ctx context.Context, k Key) (*Collateral, error) {
			if k == keyA {
				return hang(ctx, k)
			}
			return toySet("refreshed", 1, time.Now(), time.Hour), nil
		})
		running(t, c)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		gets(t, c, keyB, "refreshed")
		gets(t, c, keyA, keyA.String())
	})
}

func TestRunNoticesWhatComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &toySource{fetch: fresh(4 * time.Minute)} // less than Run would sleep
		c := open(t, Config[string]{Source: source, Rand: func() float64 { return 0 }})
		running(t, c)
		time.Sleep(time.Second)
		gets(t, c, keyA, keyA.String())
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if source.count() != 2 {
			t.Errorf("fetched %d times, expected twice", source.count())
		}
	})
}

func TestAClockThatIsSetForwardIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := &clock{now: day}
		source := &toySource{fetch: func(context.Context, Key) (*Collateral, error) { return toySet("a", 1, clk.Now(), month), nil }}
		c := open(t, Config[string]{Source: source, Now: clk.Now})
		gets(t, c, keyA, "a")
		running(t, c)
		synctest.Wait()
		clk.set(day.Add(20 * time.Hour))
		time.Sleep(longestNap + time.Second)
		synctest.Wait()
		if source.count() != 2 {
			t.Errorf("fetched %d times, expected twice", source.count())
		}
	})
}

func TestATimeOfFetchThatLiesAheadDoesNotPutOffARefresh(t *testing.T) {
	c := open(t, Config[string]{Now: func() time.Time { return day }, Rand: func() float64 { return 0 }})
	v := Validity{NotBefore: day, NotAfter: day.Add(month)}
	if got := c.dueAfter(day.Add(1000*time.Hour), v); !got.Equal(day.Add(12 * time.Hour)) {
		t.Errorf("due at %v", got)
	}
	if got := c.dueAfter(day.Add(-48*time.Hour), v); got.After(day) {
		t.Errorf("a set that came two days ago is due at %v", got)
	}
}
