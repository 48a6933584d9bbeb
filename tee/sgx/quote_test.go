package sgx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/tee"
)

func reportData() (d [tee.ReportDataSize]byte) {
	copy(d[:], bytes.Repeat([]byte("report data "), 8))
	return d
}

func TestAQuoteIsReturnedWithoutItsHeader(t *testing.T) {
	p := newProcessor(t)
	raw, err := mustOpen(t, p).Quote(t.Context(), reportData())
	if err != nil {
		t.Fatal(err)
	}
	q, err := quote.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if q.Version != 3 || q.ReportData() != reportData() || q.SGX.MREnclave != p.self.mrEnclave || q.SGX.MRSigner != p.self.mrSigner {
		t.Errorf("another quote: %+v", q)
	}
	if MaxQuoteSize != quote.MaxSize {
		t.Errorf("the bounds differ: %d here, %d in package quote", MaxQuoteSize, quote.MaxSize)
	}
}

func TestARemoteReportThatIsNoneOfOursIsRefused(t *testing.T) {
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		change func(report []byte) []byte
		says   string
	}{
		"nothing":                {func([]byte) []byte { return nil }, "size of the report: found 0"},
		"a header alone":         {func(r []byte) []byte { return r[:16] }, "size of the report: found 16"},
		"a quote without header": {func(r []byte) []byte { return r[16:] }, "version of the report's header"},
		"too long":               {func(r []byte) []byte { return append(r, make([]byte, MaxQuoteSize)...) }, "size of the report"},
		"another header version": {func(r []byte) []byte { r[0] = 2; return r }, "version of the report's header: found 2, expected 1"},
		"a local report":         {func(r []byte) []byte { r[4] = 1; return r }, "type of the report: found 1, expected 2"},
		"a header that says less": {
			func(r []byte) []byte { le.PutUint64(r[8:], uint64(len(r)-17)); return r }, "size in the report's header",
		},
		"a header that says more": {
			func(r []byte) []byte { le.PutUint64(r[8:], uint64(len(r))); return r }, "size in the report's header",
		},
		"a header with a size beyond all bounds": {
			func(r []byte) []byte { le.PutUint64(r[8:], 1<<63); return r }, "size in the report's header",
		},
		"cut at the end":         {func(r []byte) []byte { return r[:len(r)-1] }, "size in the report's header"},
		"another quote version":  {func(r []byte) []byte { r[16] = 4; return r }, "version of the quote: found 4, expected 3"},
		"an EPID-like key type":  {func(r []byte) []byte { r[18] = 1; return r }, "attestation key type: found 1, expected 2"},
		"bytes after the quote":  {withTail, "size of the quote's signature"},
		"a signature beyond all": {func(r []byte) []byte { le.PutUint32(r[16+432:], 1<<31); return r }, "size of the quote's signature"},
		"other report data":      {func(r []byte) []byte { r[16+48+320+63] ^= 1; return r }, "does not hold the report data"},
		"no report data":         {func(r []byte) []byte { clear(r[16+48+320:][:64]); return r }, "does not hold the report data"},
		"another enclave":        {func(r []byte) []byte { r[16+48+64] ^= 1; return r }, "MRENCLAVE"},
		"another signer":         {func(r []byte) []byte { r[16+48+128] ^= 1; return r }, "MRSIGNER"},
		"a debug enclave's":      {func(r []byte) []byte { r[16+48+48] |= 2; return r }, "debug attribute: found true, expected false"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcessor(t)
			p.onQuote = func(report []byte, err error) ([]byte, error) { return tc.change(slices.Clone(report)), err }
			raw, err := mustOpen(t, p).Quote(t.Context(), reportData())
			if raw != nil || !errors.Is(err, ErrQuote) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %d bytes, %v, want ErrQuote that says %q", len(raw), err, tc.says)
			}
		})
	}
}

func withTail(r []byte) []byte {
	r = append(r, 0)
	binary.LittleEndian.PutUint64(r[8:], uint64(len(r)-16))
	return r
}

func TestAQuotingServiceThatFailsIsNamed(t *testing.T) {
	p := newProcessor(t)
	p.onQuote = func(report []byte, _ error) ([]byte, error) { return report, errors.New("OE_SERVICE_UNAVAILABLE") }
	raw, err := mustOpen(t, p).Quote(t.Context(), reportData())
	if raw != nil || !errors.Is(err, ErrQuote) || !strings.Contains(err.Error(), "OE_SERVICE_UNAVAILABLE") || !strings.Contains(err.Error(), "AESM") {
		t.Errorf("got %d bytes, %v", len(raw), err)
	}
	p.onQuote, p.panicking = nil, "remote report"
	if raw, err := mustOpen(t, p).Quote(t.Context(), reportData()); raw != nil || !errors.Is(err, ErrQuote) || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("a panic: got %d bytes, %v", len(raw), err)
	}
}

func TestAHangingQuotingServiceHoldsAFewThreadsAtMost(t *testing.T) {
	p := newProcessor(t)
	synctest.Test(t, func(t *testing.T) {
		started, gate := make(chan struct{}, 100), make(chan struct{})
		p.quoteStart, p.quoteGate = started, gate
		e := mustOpen(t, p)
		results := make(chan error, 100)
		ask := func(ctx context.Context) {
			_, err := e.Quote(ctx, reportData())
			results <- err
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range maxQuotes + 3 {
			go ask(ctx)
		}
		synctest.Wait()
		if n := len(started); n != maxQuotes {
			t.Errorf("%d calls were begun, want %d", n, maxQuotes)
		}
		cancel()
		for range maxQuotes + 3 {
			if err := <-results; !errors.Is(err, context.Canceled) || !errors.Is(err, ErrQuote) {
				t.Errorf("a caller who left: got %v", err)
			}
		}
		// The calls hang still: nobody else gets in.
		go ask(t.Context())
		synctest.Wait()
		if n := len(started); n != maxQuotes || len(results) != 0 {
			t.Errorf("%d calls were begun, want %d; %d answers", n, maxQuotes, len(results))
		}
		close(gate)
		if err := <-results; err != nil {
			t.Errorf("after the service woke up: %v", err)
		}
	})
}

func TestNoQuoteIsBegunForACallerWhoIsGone(t *testing.T) {
	p := newProcessor(t)
	p.onQuote = func(report []byte, err error) ([]byte, error) {
		t.Error("the quoting service was asked")
		return report, err
	}
	e := mustOpen(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if _, err := e.Quote(ctx, reportData()); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
}

func FuzzStripReport(f *testing.F) {
	self := identity{mrEnclave: [32]byte{1}, mrSigner: [32]byte{2}}
	le := binary.LittleEndian
	good := make([]byte, reportHeaderSize+quoteFixedSize+8)
	le.PutUint32(good, 1)
	le.PutUint32(good[4:], 2)
	le.PutUint64(good[8:], uint64(len(good)-reportHeaderSize))
	q := good[reportHeaderSize:]
	le.PutUint16(q, 3)
	le.PutUint16(q[2:], 2)
	q[offsetMREnclave], q[offsetMRSigner] = 1, 2
	d := reportData()
	copy(q[offsetReportData:], d[:])
	le.PutUint32(q[offsetSignatureSize:], 8)
	if _, err := stripReport(good, self, d); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(q)
	f.Fuzz(func(t *testing.T, report []byte) {
		quote, err := stripReport(report, self, d)
		if (err == nil) != (quote != nil) || err != nil && !errors.Is(err, ErrQuote) {
			t.Fatalf("got %d bytes, %v", len(quote), err)
		}
		if err == nil && (!bytes.Equal(quote, report[16:]) || !bytes.Equal(quote[368:432], d[:])) {
			t.Fatal("not the quote of the report")
		}
	})
}
