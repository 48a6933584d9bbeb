package channel

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, KeySize) }

func pair(t testing.TB) (source, destination *Channel) {
	t.Helper()
	context := [ContextSize]byte{3}
	source, errS := New(true, key(1), key(2), context)
	destination, errD := New(false, key(1), key(2), context)
	if err := errors.Join(errS, errD); err != nil {
		t.Fatal(err)
	}
	return source, destination
}

func mustSeal(t testing.TB, c *Channel, plaintext string) (uint64, []byte) {
	t.Helper()
	n, ciphertext, err := c.Seal([]byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	return n, ciphertext
}

func mustOpen(t testing.TB, c *Channel, counter uint64, ciphertext []byte, expected string) {
	t.Helper()
	if got, err := c.Open(counter, ciphertext); err != nil || string(got) != expected {
		t.Fatalf("found %q, %v; expected %q", got, err, expected)
	}
}

// TestVectors compares with messages that crypto/testdata/vectors.py sealed without this package.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/channel.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		KeyS     string `json:"key_s"`
		KeyD     string `json:"key_d"`
		Context  string
		Messages []struct {
			Direction, Plaintext, Ciphertext string
			Counter                          uint64
		}
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Messages) == 0 {
		t.Fatal("no vectors")
	}
	decode := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	context := [ContextSize]byte(decode(v.Context))
	source, errS := New(true, decode(v.KeyS), decode(v.KeyD), context)
	destination, errD := New(false, decode(v.KeyS), decode(v.KeyD), context)
	if err := errors.Join(errS, errD); err != nil {
		t.Fatal(err)
	}
	for _, m := range v.Messages {
		t.Run(fmt.Sprintf("%s %d", m.Direction, m.Counter), func(t *testing.T) {
			from, to := source, destination
			if m.Direction == "D->S" {
				from, to = to, from
			}
			n, ciphertext := mustSeal(t, from, string(decode(m.Plaintext)))
			if n != m.Counter || !bytes.Equal(ciphertext, decode(m.Ciphertext)) {
				t.Errorf("found %d, %x; expected %d, %s", n, ciphertext, m.Counter, m.Ciphertext)
			}
			mustOpen(t, to, m.Counter, decode(m.Ciphertext), string(decode(m.Plaintext)))
		})
	}
}

func TestAMessageIsRefusedForItsOwnReasonAndTheDueOneStillOpens(t *testing.T) {
	flip := func(b []byte, at int) []byte {
		c := bytes.Clone(b)
		c[at] ^= 1
		return c
	}
	type message struct {
		counter    uint64
		ciphertext []byte
	}
	for _, c := range []struct {
		name string
		want error
		// make gets two opened messages' worth of history: m[0] was opened, m[1] is due, m[2] is after it.
		make func(m []message, own message) message
	}{
		{"a message opened before", ErrReplay, func(m []message, _ message) message { return m[0] }},
		{"a message ahead of its turn", ErrGap, func(m []message, _ message) message { return m[2] }},
		{"our own message", ErrReflected, func(_ []message, own message) message { return own }},
		{"our own message under the number that is due", ErrNotAuthentic, func(_ []message, own message) message { return message{1, own.ciphertext} }},
		{"a flipped bit in the text", ErrNotAuthentic, func(m []message, _ message) message { return message{1, flip(m[1].ciphertext, 0)} }},
		{"a flipped bit in the tag", ErrNotAuthentic, func(m []message, _ message) message {
			return message{1, flip(m[1].ciphertext, len(m[1].ciphertext)-1)}
		}},
		{"an old message under the number that is due", ErrNotAuthentic, func(m []message, _ message) message { return message{1, m[0].ciphertext} }},
		{"a later message under the number that is due", ErrNotAuthentic, func(m []message, _ message) message { return message{1, m[2].ciphertext} }},
		{"the due message under an old number", ErrNotAuthentic, func(m []message, _ message) message { return message{0, m[1].ciphertext} }},
		{"a forgery under an old number, which is no replay", ErrNotAuthentic, func([]message, message) message { return message{0, make([]byte, 40)} }},
		{"a cut message", ErrNotAuthentic, func(m []message, _ message) message { return message{1, m[1].ciphertext[:5]} }},
		{"a message cut by one byte", ErrNotAuthentic, func(m []message, _ message) message {
			return message{1, m[1].ciphertext[:len(m[1].ciphertext)-1]}
		}},
		{"a longer message", ErrNotAuthentic, func(m []message, _ message) message { return message{1, append(bytes.Clone(m[1].ciphertext), 0)} }},
		{"no message", ErrNotAuthentic, func([]message, message) message { return message{1, nil} }},
		{"a message that is too long", ErrTooLong, func([]message, message) message { return message{1, make([]byte, MaxPlaintext+Overhead+1)} }},
		{"a number past the end", ErrExhausted, func(m []message, _ message) message { return message{MaxMessages, m[1].ciphertext} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, destination := pair(t)
			var m []message
			for i := range 3 {
				n, ciphertext := mustSeal(t, source, fmt.Sprintf("message %d", i))
				m = append(m, message{n, ciphertext})
			}
			n, ciphertext := mustSeal(t, destination, "our own")
			mustOpen(t, destination, m[0].counter, m[0].ciphertext, "message 0")
			bad := c.make(m, message{n, ciphertext})
			got, err := destination.Open(bad.counter, bad.ciphertext)
			if got != nil || !errors.Is(err, c.want) {
				t.Errorf("found %q, %v; expected %v", got, err, c.want)
			}
			for _, other := range []error{ErrReplay, ErrGap, ErrReflected, ErrNotAuthentic, ErrTooLong, ErrExhausted} {
				if !errors.Is(c.want, other) && errors.Is(err, other) {
					t.Errorf("it is also %v", other)
				}
			}
			mustOpen(t, destination, m[1].counter, m[1].ciphertext, "message 1")
			mustOpen(t, destination, m[2].counter, m[2].ciphertext, "message 2")
		})
	}
}

func TestAMessageOfAnotherChannelIsNotAuthentic(t *testing.T) {
	source, _ := pair(t)
	n, ciphertext := mustSeal(t, source, "M1")
	for _, c := range []struct {
		name       string
		keyS, keyD []byte
		context    [ContextSize]byte
	}{
		{"of another context", key(1), key(2), [ContextSize]byte{4}},
		{"of another key", key(9), key(2), [ContextSize]byte{3}},
		{"with the directions' keys swapped", key(2), key(1), [ContextSize]byte{3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New(false, c.keyS, c.keyD, c.context)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Open(n, ciphertext); !errors.Is(err, ErrNotAuthentic) {
				t.Errorf("found %v, expected %v", err, ErrNotAuthentic)
			}
		})
	}
	if _, err := source.Open(n, ciphertext); !errors.Is(err, ErrReflected) {
		t.Errorf("the source's own: found %v, expected %v", err, ErrReflected)
	}
}

func TestARequestSentAgainIsAReplayAndItsKeptAnswerOpens(t *testing.T) {
	source, destination := pair(t)
	n, request := mustSeal(t, source, "request")
	mustOpen(t, destination, n, request, "request")
	m, answer := mustSeal(t, destination, "answer") // this answer is lost
	if _, err := destination.Open(n, request); !errors.Is(err, ErrReplay) {
		t.Fatalf("found %v, expected %v", err, ErrReplay)
	}
	mustOpen(t, source, m, answer, "answer")
	n, request = mustSeal(t, source, "next")
	mustOpen(t, destination, n, request, "next")
}

func TestKeysAreRefused(t *testing.T) {
	for _, c := range []struct {
		name       string
		keyS, keyD []byte
	}{
		{"the same in both directions", key(1), key(1)},
		{"no source's", nil, key(2)},
		{"no destination's", key(1), nil},
		{"none", nil, nil},
		{"a short source's", key(1)[:16], key(2)},
		{"a long destination's", key(1), append(key(2), 0)},
		{"an all-zero source's", key(0), key(2)},
		{"an all-zero destination's", key(1), key(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if ch, err := New(true, c.keyS, c.keyD, [ContextSize]byte{}); ch != nil || !errors.Is(err, ErrKey) {
				t.Errorf("found %v; expected %v", err, ErrKey)
			}
		})
	}
}

func TestTheLimitsHold(t *testing.T) {
	t.Run("a message of the greatest length passes, one byte more does not", func(t *testing.T) {
		source, destination := pair(t)
		n, ciphertext, err := source.Seal(make([]byte, MaxPlaintext))
		if err != nil || len(ciphertext) != MaxPlaintext+Overhead {
			t.Fatalf("found %d bytes, %v", len(ciphertext), err)
		}
		if got, err := destination.Open(n, ciphertext); err != nil || len(got) != MaxPlaintext {
			t.Errorf("found %d bytes, %v", len(got), err)
		}
		if _, _, err := source.Seal(make([]byte, MaxPlaintext+1)); !errors.Is(err, ErrTooLong) {
			t.Errorf("found %v, expected %v", err, ErrTooLong)
		}
	})
	t.Run("the last number is used once", func(t *testing.T) {
		source, destination := pair(t)
		source.send.next, destination.recv.next = MaxMessages-1, MaxMessages-1
		n, ciphertext := mustSeal(t, source, "last")
		mustOpen(t, destination, n, ciphertext, "last")
		for range 2 {
			if _, _, err := source.Seal(nil); !errors.Is(err, ErrExhausted) {
				t.Errorf("found %v, expected %v", err, ErrExhausted)
			}
		}
	})
	t.Run("the total is reached and not passed", func(t *testing.T) {
		source, _ := pair(t)
		source.send.total = MaxTotal - 1
		if _, _, err := source.Seal(make([]byte, 2)); !errors.Is(err, ErrExhausted) {
			t.Errorf("found %v, expected %v", err, ErrExhausted)
		}
		mustSeal(t, source, "x")
		if _, _, err := source.Seal(make([]byte, 1)); !errors.Is(err, ErrExhausted) {
			t.Errorf("found %v, expected %v", err, ErrExhausted)
		}
	})
}

func TestAWipedChannelRefuses(t *testing.T) {
	source, destination := pair(t)
	n, ciphertext := mustSeal(t, source, "M1")
	source.Wipe()
	source.Wipe()
	destination.Wipe()
	if _, _, err := source.Seal(nil); !errors.Is(err, ErrWiped) {
		t.Errorf("seal: found %v, expected %v", err, ErrWiped)
	}
	if _, err := destination.Open(n, ciphertext); !errors.Is(err, ErrWiped) {
		t.Errorf("open: found %v, expected %v", err, ErrWiped)
	}
}

func TestConcurrentSealsGetEveryNumberOnce(t *testing.T) {
	source, destination := pair(t)
	const workers, each = 8, 50
	sealed := make([][]byte, workers*each)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range each {
				n, ciphertext, err := source.Seal([]byte("x"))
				if err != nil || n >= workers*each || sealed[n] != nil {
					t.Errorf("number %d given twice or out of range, %v", n, err)
					return
				}
				sealed[n] = ciphertext
			}
		})
	}
	group.Wait()
	if slices.ContainsFunc(sealed, func(b []byte) bool { return b == nil }) {
		t.Fatal("a number is missing")
	}
	for n, ciphertext := range sealed {
		mustOpen(t, destination, uint64(n), ciphertext, "x")
	}
}

func FuzzOpen(f *testing.F) {
	source, _ := pair(f)
	n, ciphertext := mustSeal(f, source, "M1")
	f.Add(n, ciphertext)
	f.Add(uint64(1), ciphertext)
	f.Add(uint64(MaxMessages), []byte{})
	f.Add(^uint64(0), make([]byte, Overhead))
	f.Fuzz(func(t *testing.T, counter uint64, message []byte) {
		_, destination := pair(t)
		plaintext, err := destination.Open(counter, message)
		if genuine := counter == n && bytes.Equal(message, ciphertext); genuine != (err == nil) {
			t.Errorf("genuine is %v: found %q, %v", genuine, plaintext, err)
		}
		if err != nil && plaintext != nil {
			t.Error("plaintext with an error")
		}
		if err != nil {
			mustOpen(t, destination, n, ciphertext, "M1")
		}
	})
}

func BenchmarkChannel(b *testing.B) {
	for _, size := range []int{256, 64 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			source, destination := pair(b)
			plaintext := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				n, ciphertext, err := source.Seal(plaintext)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := destination.Open(n, ciphertext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
