package statestream

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

var everyError = map[string]error{
	"key": ErrKey, "header": ErrHeader, "version": ErrVersion, "wrong stream": ErrWrongStream, "not authentic": ErrNotAuthentic,
	"reordered": ErrReordered, "truncated": ErrTruncated, "trailing": ErrTrailing, "too long": ErrTooLong, "malformed": ErrMalformed,
	"closed": ErrClosed,
}

// checkError says whether err is the one error that is expected, and no other.
func checkError(t *testing.T, err, expected error) {
	t.Helper()
	if !errors.Is(err, expected) {
		t.Errorf("found %v, expected %v", err, expected)
	}
	for _, other := range everyError {
		if !errors.Is(expected, other) && errors.Is(err, other) {
			t.Errorf("%v is also %v", err, other)
		}
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("%v passes for io.EOF", err)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

type vectors struct {
	Key, Session, Salt    string
	Kind, Type, Direction byte
	Segment               int
	Streams               []struct {
		Name, Stream, Error string
		Length              int
	}
}

func readVectors(t testing.TB) (v vectors, key []byte, header Header, salt [saltSize]byte) {
	t.Helper()
	raw, err := os.ReadFile("testdata/statestream.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	key, session := unhex(t, v.Key), unhex(t, v.Session)
	header = Header{Kind: Kind(v.Kind), Type: v.Type, Direction: Direction(v.Direction), Session: [16]byte(session), SegmentSize: v.Segment}
	return v, key, header, [saltSize]byte(unhex(t, v.Salt))
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readAll(r io.Reader, key []byte, want Header) ([]byte, error) {
	s, err := NewReader(r, key, want)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(s)
}

// TestVectors reads streams that crypto/testdata/vectors.py made without this package: those to accept, and those to refuse for
// one reason each.
func TestVectors(t *testing.T) {
	v, key, header, salt := readVectors(t)
	want := header
	want.SegmentSize = 0
	seen := make(map[string]bool)
	for _, s := range v.Streams {
		seen[s.Error] = true
		t.Run(s.Name, func(t *testing.T) {
			stream := unhex(t, s.Stream)
			plaintext := pattern(s.Length)
			if s.Error != "" {
				got, err := readAll(bytes.NewReader(stream), key, want)
				checkError(t, err, everyError[s.Error])
				if !bytes.HasPrefix(pattern(1<<14), got) {
					t.Error("returned bytes that were never encrypted")
				}
				// The other way to read must not be more lenient.
				if r, err := NewReader(bytes.NewReader(stream), key, want); err == nil {
					_, err = r.WriteTo(io.Discard)
					checkError(t, err, everyError[s.Error])
				}
				return
			}
			got, err := readAll(bytes.NewReader(stream), key, want)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("found %d bytes, %v; expected %d", len(got), err, s.Length)
			}
			var out bytes.Buffer
			w, err := newWriter(&out, key, header, salt)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(plaintext); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), stream) {
				t.Error("the Writer writes something else")
			}
			if size := sealedSize(int64(s.Length), int64(v.Segment)); size != int64(len(stream)) {
				t.Errorf("predicted %d bytes, found %d", size, len(stream))
			}
		})
	}
	for _, e := range []string{"", "header", "version", "wrong stream", "not authentic", "reordered", "truncated", "trailing", "malformed"} {
		if !seen[e] {
			t.Errorf("no vector for %q", e)
		}
	}
}

var (
	testKey    = bytes.Repeat([]byte{7}, KeySize)
	testHeader = Header{Kind: KindState, Type: 2, Direction: SourceToDestination, Session: [16]byte{1, 2, 3}}
)

func sealAll(t testing.TB, header Header, plaintext []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, testKey, header)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plaintext); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWhatIsWrittenIsReadWhateverTheSizes(t *testing.T) {
	for _, length := range []int{0, 1, DefaultSegment - 1, DefaultSegment, DefaultSegment + 1, 3 * DefaultSegment, 3*DefaultSegment + 17} {
		plaintext := pattern(length)
		stream := sealAll(t, testHeader, plaintext)
		if int64(len(stream)) != SealedSize(int64(length)) {
			t.Errorf("%d bytes: found a stream of %d, predicted %d", length, len(stream), SealedSize(int64(length)))
		}
		for name, r := range map[string]io.Reader{
			"at once":                   bytes.NewReader(stream),
			"half at a time":            iotest.HalfReader(bytes.NewReader(stream)),
			"with the error and data":   iotest.DataErrReader(bytes.NewReader(stream)),
			"in pieces of odd sizes":    &pieces{r: bytes.NewReader(stream), size: 977},
			"from one byte at a time":   iotest.OneByteReader(bytes.NewReader(stream)),
			"through io.Copy, not Read": bytes.NewBuffer(stream),
		} {
			t.Run(fmt.Sprintf("%d bytes %s", length, name), func(t *testing.T) {
				s, err := NewReader(r, testKey, testHeader)
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if strings.Contains(name, "io.Copy") {
					_, err = io.Copy(&out, s)
				} else {
					_, err = io.CopyBuffer(&out, struct{ io.Reader }{s}, make([]byte, 1000))
				}
				if err != nil || !bytes.Equal(out.Bytes(), plaintext) {
					t.Errorf("found %d bytes, %v; expected %d", out.Len(), err, length)
				}
				for range 2 {
					if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
						t.Errorf("after the end: found %d, %v; expected io.EOF", n, err)
					}
				}
			})
		}
	}
}

// pieces reads size bytes at a time.
type pieces struct {
	r    io.Reader
	size int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.size)]) }

func TestAReaderAcceptsTheStandardLibrarysReaderTest(t *testing.T) {
	plaintext := pattern(3*MinSegment + 5)
	header := testHeader
	header.SegmentSize = MinSegment
	r, err := NewReader(bytes.NewReader(sealAll(t, header, plaintext)), testKey, header)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, plaintext); err != nil {
		t.Error(err)
	}
}

func TestTheSizeOfWritesDoesNotShow(t *testing.T) {
	_, key, header, salt := readVectors(t)
	plaintext := pattern(3*header.SegmentSize + 5)
	streams := make(map[string]bool)
	for _, size := range []int{1, 100, header.SegmentSize, header.SegmentSize + 1, len(plaintext)} {
		var out bytes.Buffer
		w, err := newWriter(&out, key, header, salt)
		if err != nil {
			t.Fatal(err)
		}
		for p := plaintext; len(p) > 0; {
			n := min(size, len(p))
			if m, err := w.Write(p[:n]); m != n || err != nil {
				t.Fatalf("found %d, %v", m, err)
			}
			p = p[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		streams[out.String()] = true
	}
	if len(streams) != 1 {
		t.Errorf("found %d different streams, expected 1", len(streams))
	}
}

func TestEveryTruncationIsRefusedAsOne(t *testing.T) {
	header := testHeader
	header.SegmentSize = MinSegment
	stream := sealAll(t, header, pattern(MinSegment+10))
	for n := range stream {
		if n > 200 && n < MinSegment { // the middle of a record is like any other place in it
			continue
		}
		_, err := readAll(bytes.NewReader(stream[:n]), testKey, header)
		if !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d of %d: found %v, expected %v", n, len(stream), err, ErrTruncated)
		}
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	header := testHeader
	header.SegmentSize = MinSegment
	stream := sealAll(t, header, pattern(20))
	for i := range stream {
		for bit := range 8 {
			bad := bytes.Clone(stream)
			bad[i] ^= 1 << bit
			got, err := readAll(bytes.NewReader(bad), testKey, testHeader)
			if err == nil || len(got) > 0 && !bytes.Equal(got, pattern(20)) {
				t.Fatalf("bit %d of byte %d: found %x, %v", bit, i, got, err)
			}
		}
	}
}

func TestTwoStreamsOfTheSameHaveNoCiphertextInCommon(t *testing.T) {
	a, b := sealAll(t, testHeader, pattern(100)), sealAll(t, testHeader, pattern(100))
	if bytes.Equal(a[HeaderSize:], b[HeaderSize:]) {
		t.Error("the same key and nonces twice")
	}
	spliced := append(bytes.Clone(a[:HeaderSize]), b[HeaderSize:]...)
	_, err := readAll(bytes.NewReader(spliced), testKey, testHeader)
	checkError(t, err, ErrNotAuthentic)
}

func TestAStreamUnderAnotherKeyIsNotAuthentic(t *testing.T) {
	_, err := readAll(bytes.NewReader(sealAll(t, testHeader, nil)), bytes.Repeat([]byte{8}, KeySize), testHeader)
	checkError(t, err, ErrNotAuthentic)
}

func TestTheReaderCanInsistOnASegmentSize(t *testing.T) {
	want := testHeader
	want.SegmentSize = MinSegment
	_, err := readAll(bytes.NewReader(sealAll(t, testHeader, nil)), testKey, want)
	checkError(t, err, ErrWrongStream)
}

func TestKeysAndHeadersAreRefused(t *testing.T) {
	change := func(f func(*Header)) Header {
		h := testHeader
		f(&h)
		return h
	}
	for _, c := range []struct {
		name   string
		key    []byte
		header Header
		want   error
	}{
		{"no key", nil, testHeader, ErrKey},
		{"a short key", testKey[:31], testHeader, ErrKey},
		{"a long key", append(bytes.Clone(testKey), 1), testHeader, ErrKey},
		{"an all-zero key", make([]byte, KeySize), testHeader, ErrKey},
		{"the zero header", testKey, Header{}, ErrHeader},
		{"no kind", testKey, change(func(h *Header) { h.Kind = 0 }), ErrHeader},
		{"a kind that does not exist", testKey, change(func(h *Header) { h.Kind = 4 }), ErrHeader},
		{"no direction", testKey, change(func(h *Header) { h.Direction = 0 }), ErrHeader},
		{"a direction that does not exist", testKey, change(func(h *Header) { h.Direction = 3 }), ErrHeader},
		{"segments too small", testKey, change(func(h *Header) { h.SegmentSize = MinSegment - 1024 }), ErrHeader},
		{"segments too large", testKey, change(func(h *Header) { h.SegmentSize = MaxSegment + 1024 }), ErrHeader},
		{"segments of an odd size", testKey, change(func(h *Header) { h.SegmentSize = MinSegment + 1 }), ErrHeader},
		{"segments of a negative size", testKey, change(func(h *Header) { h.SegmentSize = -4096 }), ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			_, err := NewWriter(&out, c.key, c.header)
			checkError(t, err, c.want)
			if out.Len() > 0 {
				t.Error("something was written")
			}
			if errors.Is(c.want, ErrKey) {
				_, err := NewReader(bytes.NewReader(sealAll(t, testHeader, nil)), c.key, c.header)
				checkError(t, err, ErrKey)
			}
		})
	}
}

func TestTheLengthOfAKindIsBounded(t *testing.T) {
	header := testHeader
	header.Kind = KindSecret
	limit := int(KindSecret.MaxPlaintext())
	if _, err := readAll(bytes.NewReader(sealAll(t, header, pattern(limit))), testKey, header); err != nil {
		t.Errorf("the greatest length: %v", err)
	}
	t.Run("by the Writer", func(t *testing.T) {
		w, err := NewWriter(io.Discard, testKey, header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(limit)); err != nil {
			t.Fatal(err)
		}
		_, err = w.Write([]byte{1})
		checkError(t, err, ErrTooLong)
		checkError(t, w.Close(), ErrTooLong)
	})
	t.Run("by the Reader, from a sender that does not care", func(t *testing.T) {
		var out bytes.Buffer
		w, err := NewWriter(&out, testKey, header)
		if err != nil {
			t.Fatal(err)
		}
		w.limit = 1 << 30
		if _, err := w.Write(pattern(limit + 1)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(&out, testKey, header)
		checkError(t, err, ErrTooLong)
		if len(got) > limit {
			t.Errorf("found %d bytes, expected at most %d", len(got), limit)
		}
	})
}

func TestAWriterEnds(t *testing.T) {
	open := func(out io.Writer) *Writer {
		w, err := NewWriter(out, testKey, testHeader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		return w
	}
	t.Run("once, and again is nothing", func(t *testing.T) {
		var out bytes.Buffer
		w := open(&out)
		if err := errors.Join(w.Close(), w.Close()); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if err := w.Close(); err != nil {
			t.Errorf("after a deferred abort: %v", err)
		}
		_, err := w.Write([]byte("x"))
		checkError(t, err, ErrClosed)
		if got, err := readAll(&out, testKey, testHeader); err != nil || string(got) != "half" {
			t.Errorf("found %q, %v", got, err)
		}
	})
	t.Run("truncated when it is aborted, even if Close follows", func(t *testing.T) {
		var out bytes.Buffer
		w := open(&out)
		w.Abort()
		checkError(t, w.Close(), ErrClosed)
		_, err := w.Write([]byte("x"))
		checkError(t, err, ErrClosed)
		_, err = readAll(&out, testKey, testHeader)
		checkError(t, err, ErrTruncated)
	})
	t.Run("without plaintext in its buffer", func(t *testing.T) {
		for _, end := range []func(*Writer){(*Writer).Abort, func(w *Writer) { _ = w.Close() }} {
			w := open(io.Discard)
			buf := w.buf
			end(w)
			if !bytes.Equal(buf, make([]byte, len(buf))) {
				t.Error("the buffer is not cleared")
			}
		}
	})
}

// failing is a writer that fails from the nth call on, or writes short.
type failing struct {
	n     int
	short bool
	calls int
}

var errDisk = errors.New("disk full")

func (f *failing) Write(p []byte) (int, error) {
	f.calls++
	switch {
	case f.calls < f.n:
		return len(p), nil
	case f.short:
		return len(p) - 1, nil
	default:
		return 0, errDisk
	}
}

func TestAFailureOfTheUnderlyingWriterIsFinal(t *testing.T) {
	for n := 1; n <= 4; n++ { // header, whole segment, short segment, end
		for _, short := range []bool{false, true} {
			expected := errDisk
			if short {
				expected = io.ErrShortWrite
			}
			f := &failing{n: n, short: short}
			w, err := NewWriter(f, testKey, testHeader)
			if err == nil {
				_, err = w.Write(pattern(DefaultSegment + 1))
				err = errors.Join(err, w.Close())
			}
			if !errors.Is(err, expected) {
				t.Errorf("call %d: found %v, expected %v", n, err, expected)
			}
			if w != nil {
				again := w.Close()
				if !errors.Is(again, expected) || f.calls != n {
					t.Errorf("call %d: after it found %v and %d calls, expected the same error and no call", n, again, f.calls)
				}
			}
		}
	}
}

func TestAFailureOfTheUnderlyingReaderIsPassedOn(t *testing.T) {
	stream := sealAll(t, testHeader, pattern(10))
	for _, n := range []int{0, 10, HeaderSize, HeaderSize + 5, HeaderSize + 20, len(stream) - 1, len(stream)} {
		r := io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(errDisk))
		_, err := readAll(r, testKey, testHeader)
		if !errors.Is(err, errDisk) || errors.Is(err, ErrTruncated) {
			t.Errorf("at %d: found %v, expected %v", n, err, errDisk)
		}
	}
}

func TestAReaderForgetsThePlaintextAtItsEnd(t *testing.T) {
	stream := sealAll(t, testHeader, pattern(10))
	for name, in := range map[string][]byte{"a good end": stream, "a bad one": stream[:len(stream)-1]} {
		r, err := NewReader(bytes.NewReader(in), testKey, testHeader)
		if err != nil {
			t.Fatal(err)
		}
		_, first := io.ReadAll(r)
		if !bytes.Equal(r.buf, make([]byte, len(r.buf))) {
			t.Errorf("%s: the buffer is not cleared", name)
		}
		if _, again := r.Read(make([]byte, 1)); first != nil && !errors.Is(again, ErrTruncated) {
			t.Errorf("%s: the error is not final: %v", name, again)
		}
	}
}

func TestNoPlaintextIsPrinted(t *testing.T) {
	w, err := NewWriter(io.Discard, testKey, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("PLAINTEXT")); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(sealAll(t, testHeader, []byte("PLAINTEXT"))), testKey, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, v := range []any{w, r} {
			out := fmt.Sprintf(verb, v)
			if !strings.HasPrefix(out, "[record stream") || len(out) > 30 {
				t.Errorf("%s prints %.80q", verb, out)
			}
		}
	}
}

// TestMemoryIsConstant reads and writes 64 MiB through the buffers of one segment.
func TestMemoryIsConstant(t *testing.T) {
	header := testHeader
	header.Kind = KindImage
	const size = 64 << 20
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		w, err := NewWriter(pw, testKey, header)
		if err == nil {
			_, err = io.Copy(w, io.LimitReader(zeros{}, size))
			err = errors.Join(err, w.Close())
		}
		done <- errors.Join(err, pw.CloseWithError(err))
	}()
	r, err := NewReader(pr, testKey, header)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if err := errors.Join(err, <-done); err != nil || n != size {
		t.Errorf("found %d bytes, %v; expected %d", n, err, size)
	}
	if held := cap(r.buf); held > DefaultSegment+tagSize {
		t.Errorf("the Reader holds %d bytes, expected %d", held, DefaultSegment+tagSize)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FuzzReader gives the Reader arbitrary streams. Whatever it accepts must be, byte for byte, what a Writer with that header writes.
func FuzzReader(f *testing.F) {
	v, key, header, _ := readVectors(f)
	for _, s := range v.Streams {
		f.Add(unhex(f, s.Stream))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		plaintext, err := readAll(bytes.NewReader(stream), key, header)
		if err != nil {
			return
		}
		var again bytes.Buffer
		w, err := newWriter(&again, key, header, [saltSize]byte(stream[HeaderSize-saltSize:HeaderSize]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plaintext); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), stream) {
			t.Error("accepted a stream that no Writer writes")
		}
	})
}

// FuzzRecords is FuzzReader with the tags made right: it reaches the code behind the authentication, as a faulty peer would.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Add(pattern(300), uint16(100), uint8(1))
	f.Add(pattern(10000), uint16(4095), uint8(2))
	f.Add(pattern(10000), uint16(5000), uint8(3))
	_, key, header, salt := readVectors(f)
	f.Fuzz(func(t *testing.T, plaintext []byte, size uint16, last uint8) {
		raw := header.encode(salt)
		records, err := newRecords(key, raw)
		if err != nil {
			t.Fatal(err)
		}
		stream := bytes.Clone(raw[:])
		sequence := uint64(0)
		put := func(p []byte, end bool) {
			prefix := encodePrefix(sequence, end, len(p))
			nonce := records.begin(prefix)
			stream = append(stream, prefix[:]...)
			stream = records.aead.Seal(stream, nonce, p, records.aad[:])
			sequence++
		}
		canonical := true
		for p := plaintext; len(p) > 0; {
			n := min(int(size)+1, len(p))
			canonical = canonical && (n == header.SegmentSize || n < header.SegmentSize && n == len(p))
			put(p[:n], false)
			p = p[n:]
		}
		total := uint64(len(plaintext)) + uint64(last&1)
		put([]byte{0, 0, 0, 0, byte(total >> 24), byte(total >> 16), byte(total >> 8), byte(total)}, true)
		got, err := readAll(bytes.NewReader(stream), key, header)
		if good := canonical && last&1 == 0 && len(plaintext) <= 8<<20; good != (err == nil) {
			t.Errorf("records of %d bytes, %d in all, the end record wrong by %d: %v", size, len(plaintext), last&1, err)
		}
		if !bytes.HasPrefix(plaintext, got) {
			t.Error("returned something else than was encrypted")
		}
	})
}
