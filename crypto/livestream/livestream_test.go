package livestream

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

var (
	testKey        = bytes.Repeat([]byte{7}, KeySize)
	testConnection = [ConnectionSize]byte{1, 2, 3}
)

func newWriter(t testing.TB, w io.Writer) *Writer {
	t.Helper()
	out, err := NewWriter(w, testKey, testConnection, FromInitiator)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newReader(t testing.TB, r io.Reader) *Reader {
	t.Helper()
	in, err := NewReader(r, testKey, testConnection, FromInitiator)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// seal sends each part by a Write of its own, and ends the stream.
func seal(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := newWriter(t, &out)
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// records cuts a stream into its records.
func records(t testing.TB, stream []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for len(stream) > 0 {
		_, n, err := decodePrefix(stream)
		if err != nil {
			t.Fatal(err)
		}
		n += prefixSize + tagSize
		out = append(out, stream[:n])
		stream = stream[n:]
	}
	return out
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for name, parts := range map[string][][]byte{
		"nothing":                nil,
		"one byte":               {{1}},
		"small pieces":           {random(10), random(1), random(1000)},
		"a whole record":         {random(MaxRecord)},
		"a record and a byte":    {random(MaxRecord + 1)},
		"several whole records":  {random(3 * MaxRecord), random(5)},
		"an empty write between": {random(10), {}, random(10)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, stream := bytes.Join(parts, nil), seal(t, parts...)
			for how, source := range map[string]io.Reader{
				"whole": bytes.NewReader(stream), "in halves": iotest.HalfReader(bytes.NewReader(stream)),
				"data with the error": iotest.DataErrReader(bytes.NewReader(stream)),
			} {
				if got, err := io.ReadAll(newReader(t, source)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes of %d, %v", how, len(got), len(want), err)
				}
			}
			var got bytes.Buffer
			if n, err := newReader(t, bytes.NewReader(stream)).WriteTo(&got); err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("WriteTo: %d bytes, %v", n, err)
			}
			var again bytes.Buffer
			w := newWriter(t, &again)
			if n, err := w.ReadFrom(bytes.NewReader(want)); err != nil || n != int64(len(want)) || w.Close() != nil {
				t.Errorf("ReadFrom: %d bytes, %v", n, err)
			}
			if got, err := io.ReadAll(newReader(t, &again)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("after ReadFrom: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestWhatIsWrittenGoesOutAtOnce(t *testing.T) {
	pr, pw := io.Pipe()
	w := newWriter(t, pw)
	go func() { _, _ = w.Write([]byte("x")) }()
	got := make([]byte, 10)
	if n, err := newReader(t, pr).Read(got); n != 1 || err != nil || got[0] != 'x' {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestASignOfLifeCarriesNothingAndCounts(t *testing.T) {
	var out bytes.Buffer
	w := newWriter(t, &out)
	for _, part := range []string{"", "ab", "", "", "cd", ""} {
		var err error
		if part == "" {
			err = w.Alive()
		} else {
			err = w.Send(copy(w.Payload(), part))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Alive(); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	stream := out.Bytes()
	if got, err := io.ReadAll(newReader(t, bytes.NewReader(stream))); err != nil || string(got) != "abcd" {
		t.Errorf("%q, %v", got, err)
	}
	// A record that was taken out shows with the sign of life that follows, before there is more data or an end.
	r := records(t, stream)
	got, err := io.ReadAll(newReader(t, bytes.NewReader(bytes.Join([][]byte{r[0], r[2]}, nil))))
	if !errors.Is(err, ErrNotAuthentic) || len(got) > 0 {
		t.Errorf("data left out before a sign of life: %q, %v", got, err)
	}
}

func TestTheKeyIsReplacedLongBeforeItIsWorn(t *testing.T) {
	var out bytes.Buffer
	w := newWriter(t, &out)
	first := w.cipher.key
	for range recordsPerKey {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if w.cipher.key != first || w.cipher.used != recordsPerKey {
		t.Fatal("the key was replaced early")
	}
	if _, err := w.Write([]byte{2}); err != nil {
		t.Fatal(err)
	}
	if w.cipher.key == first || w.cipher.used != 1 {
		t.Error("the key was not replaced")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(newReader(t, &out)); err != nil || len(got) != recordsPerKey+1 || got[recordsPerKey] != 2 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	plaintext := random(100)
	stream := seal(t, plaintext[:50], plaintext[50:])
	for i := range len(stream) * 8 {
		altered := bytes.Clone(stream)
		altered[i/8] ^= 1 << (i % 8)
		got, err := io.ReadAll(newReader(t, bytes.NewReader(altered)))
		if err == nil {
			t.Fatalf("bit %d: not noticed", i)
		}
		if !bytes.HasPrefix(plaintext, got) {
			t.Fatalf("bit %d: bytes that were never sent came out", i)
		}
	}
}

func TestRecordsInAnotherOrderAreRefused(t *testing.T) {
	r := records(t, seal(t, []byte("aa"), []byte("bb"), []byte("cc")))
	join := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	for name, tc := range map[string]struct {
		stream []byte
		want   error
	}{
		"swapped":                   {join(r[1], r[0], r[2], r[3]), ErrNotAuthentic},
		"one left out":              {join(r[0], r[2], r[3]), ErrNotAuthentic},
		"the first left out":        {join(r[1], r[2], r[3]), ErrNotAuthentic},
		"one twice":                 {join(r[0], r[0], r[1], r[2], r[3]), ErrNotAuthentic},
		"the end early":             {join(r[0], r[3]), ErrNotAuthentic},
		"no end":                    {join(r[0], r[1], r[2]), ErrTruncated},
		"cut in a record":           {join(r[0], r[1][:5]), ErrTruncated},
		"cut in a prefix":           {join(r[0], r[1][:2]), ErrTruncated},
		"nothing at all":            {nil, ErrTruncated},
		"the end twice":             {join(r[0], r[1], r[2], r[3], r[3]), ErrTrailing},
		"a byte behind the end":     {join(r[0], r[1], r[2], r[3], []byte{0}), ErrTrailing},
		"a kind that is not there":  {append([]byte{3}, r[0][1:]...), ErrNotAuthentic},
		"a sign of life with data":  {append([]byte{2}, r[0][1:]...), ErrNotAuthentic},
		"data of no bytes":          {make([]byte, prefixSize+tagSize), ErrNotAuthentic},
		"a record that is too long": {append([]byte{0, 4, 0, 1}, make([]byte, MaxRecord+100)...), ErrNotAuthentic},
		"an end of another length":  {append([]byte{1, 0, 0, 9}, make([]byte, 100)...), ErrNotAuthentic},
	} {
		for how, source := range map[string]io.Reader{
			"at once": bytes.NewReader(tc.stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(tc.stream)),
		} {
			r := newReader(t, source)
			if _, err := io.ReadAll(r); !errors.Is(err, tc.want) {
				t.Errorf("%s, %s: got %v, want %v", name, how, err, tc.want)
			}
			if _, err := r.Read(make([]byte, 1)); !errors.Is(err, tc.want) {
				t.Errorf("%s, %s: the error is not final: %v", name, how, err)
			}
		}
	}
}

func TestAStreamOfAnotherConnectionDirectionOrKeyIsRefused(t *testing.T) {
	stream := seal(t, []byte("x"))
	otherKey := bytes.Clone(testKey)
	otherKey[0] ^= 1
	for name, open := range map[string]func(io.Reader) (*Reader, error){
		"connection": func(r io.Reader) (*Reader, error) {
			return NewReader(r, testKey, [ConnectionSize]byte{9}, FromInitiator)
		},
		"direction": func(r io.Reader) (*Reader, error) { return NewReader(r, testKey, testConnection, ToInitiator) },
		"key":       func(r io.Reader) (*Reader, error) { return NewReader(r, otherKey, testConnection, FromInitiator) },
	} {
		r, err := open(bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, ErrNotAuthentic) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

func TestAnEndThatCountsWrongIsMalformed(t *testing.T) {
	var out bytes.Buffer
	w := newWriter(t, &out)
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	w.total = 4
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(newReader(t, &out)); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	for name, key := range map[string][]byte{"none": nil, "short": testKey[:31], "long": append(bytes.Clone(testKey), 1), "zero": make([]byte, KeySize)} {
		if _, err := NewWriter(io.Discard, key, testConnection, FromInitiator); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewReader(strings.NewReader(""), key, testConnection, FromInitiator); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewWriter(io.Discard, testKey, testConnection, 0); !errors.Is(err, ErrKey) {
		t.Errorf("no direction: %v", err)
	}
}

func TestAClosedOrFailedWriterWritesNothingMore(t *testing.T) {
	var out bytes.Buffer
	w := newWriter(t, &out)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n := out.Len()
	w.Abort()
	if _, err := w.Write([]byte("x")); !errors.Is(err, ErrClosed) || out.Len() != n {
		t.Errorf("after Close: %v", err)
	}
	if _, err := w.ReadFrom(strings.NewReader("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	aborted := newWriter(t, &out)
	aborted.Abort()
	if err := aborted.Close(); !errors.Is(err, ErrClosed) || out.Len() != n {
		t.Errorf("after Abort: %v", err)
	}
	f := newWriter(t, failing{})
	if _, err := f.Write([]byte("x")); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, errBroken) || f.cipher.key != [KeySize]byte{} {
		t.Errorf("afterwards: %v", err)
	}
}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errBroken }

func TestErrorsOfTheConnectionAreKept(t *testing.T) {
	stream := seal(t, []byte("abc"))
	source := io.MultiReader(bytes.NewReader(stream[:10]), iotest.ErrReader(errBroken))
	if _, err := io.ReadAll(newReader(t, source)); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	behind := io.MultiReader(bytes.NewReader(stream), iotest.ErrReader(errBroken))
	if _, err := io.ReadAll(newReader(t, behind)); !errors.Is(err, errBroken) {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := newWriter(t, io.Discard).ReadFrom(iotest.ErrReader(errBroken)); !errors.Is(err, errBroken) {
		t.Errorf("ReadFrom: %v", err)
	}
}

func TestNothingOfItPrints(t *testing.T) {
	w, r := newWriter(t, io.Discard), newReader(t, strings.NewReader(""))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb+verb, w, r); got != "[tunnel writer][tunnel reader]" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

// FuzzReader has the fuzzer alter a stream: what comes out is always a beginning of what went in.
func FuzzReader(f *testing.F) {
	plaintext := bytes.Repeat([]byte("safeconduct "), 20)
	stream := seal(f, plaintext[:100], plaintext[100:])
	f.Add(stream)
	f.Add(stream[:50])
	f.Add([]byte{0, 4, 0, 0})
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := io.ReadAll(newReader(t, bytes.NewReader(raw)))
		if !bytes.HasPrefix(plaintext, got) {
			t.Errorf("%d bytes came out that were not sent", len(got))
		}
		if err == nil && !bytes.Equal(raw, stream) {
			t.Error("another stream is whole")
		}
	})
}

// BenchmarkLivestream seals and opens 64 MiB in records of the largest size, beside the cipher alone.
func BenchmarkLivestream(b *testing.B) {
	const size = 64 << 20
	plaintext := make([]byte, size)
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		w := newWriter(b, io.Discard)
		for b.Loop() {
			if _, err := w.Write(plaintext); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		stream := seal(b, plaintext)
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			if n, err := newReader(b, bytes.NewReader(stream)).WriteTo(io.Discard); err != nil || n != size {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("gcm-seal", func(b *testing.B) {
		block, err := aes.NewCipher(testKey)
		if err != nil {
			b.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			b.Fatal(err)
		}
		out, nonce := make([]byte, 0, MaxRecord+tagSize), make([]byte, 12)
		b.SetBytes(size)
		for b.Loop() {
			for at := 0; at < size; at += MaxRecord {
				aead.Seal(out, nonce, plaintext[at:at+MaxRecord], nil)
			}
		}
	})
}
