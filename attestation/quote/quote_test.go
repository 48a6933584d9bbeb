package quote

import (
	"bytes"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/tee/simulated"
)

// authData is the offset of the authentication data's length in a quote of version 3; chainType that of the certification data type.
const (
	authDataAt  = 436 + 64 + 64 + 384 + 64
	chainTypeAt = authDataAt + 2 + 32
)

func simulatedQuote(t testing.TB, version int) []byte {
	t.Helper()
	a, err := simulated.CreateAuthority(filepath.Join(t.TempDir(), "a"), simulated.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "p")
	if err := a.CreatePlatform(dir, simulated.PlatformOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := simulated.Open(dir, simulated.Measurement{MREnclave: [32]byte{1}, MRSigner: [32]byte{2}, ISVProdID: 3, ISVSVN: 4, Debug: version == 4})
	if err != nil {
		t.Fatal(err)
	}
	quoteOf := p.Quote
	if version == 4 {
		quoteOf = p.QuoteV4
	}
	raw, err := quoteOf(t.Context(), [64]byte{5, 63: 6})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// vectors are the quotes of real hardware, if they are there.
func vectors(t testing.TB) map[string][]byte {
	t.Helper()
	dir := os.Getenv("SAFECONDUCT_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	files, err := filepath.Glob(filepath.Join(dir, "quotes", "*", "quote.bin"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(filepath.Dir(file))] = raw
	}
	return all
}

func TestASimulatedQuoteParsesToWhatWasQuoted(t *testing.T) {
	for _, version := range []int{3, 4} {
		q, err := Parse(simulatedQuote(t, version))
		if err != nil {
			t.Fatal(err)
		}
		s := q.SGX
		if int(q.Version) != version || q.TEEType != TEESGX || q.TDX != nil || s.MREnclave != [32]byte{1} || s.MRSigner != [32]byte{2} ||
			s.ISVProdID != 3 || s.ISVSVN != 4 || s.Debug() != (version == 4) || q.ReportData() != [64]byte{5, 63: 6} {
			t.Errorf("got %+v, %+v", q, s)
		}
		if len(q.CertChain) != 3 || len(q.AuthData) != 32 || len(q.Signed) != 432 || !strings.HasPrefix(string(q.UserData[:]), "SIMULATED") {
			t.Errorf("got %+v", q)
		}
	}
}

func TestRealQuotesParseAndEncodeToTheirBytes(t *testing.T) {
	all := vectors(t)
	if len(all) == 0 {
		t.Skip("the vectors of real hardware are not there: set SAFECONDUCT_VECTORS to run this test")
	}
	for name, raw := range all {
		q, err := Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkEncoding(t, name, raw, q)
		if (q.TDX != nil) != strings.Contains(name, "tdx") || (q.SGX != nil) == (q.TDX != nil) {
			t.Errorf("%s: %+v", name, q)
		}
	}
}

// checkEncoding puts a quote together again from its fields: every byte of the original must be there, but for the PEM of the chain, whose
// bytes are compared without line ends.
func checkEncoding(t *testing.T, name string, raw []byte, q *Quote) {
	t.Helper()
	i := len(q.Signed) + 4 + 64 + 64 + 384 + 64 + 2 + len(q.AuthData) + 2 + 4
	if q.Version == 4 {
		i += 2 + 4
	}
	var chain []byte
	for _, der := range q.CertChain {
		chain = append(chain, withoutLineEnds(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))...)
	}
	if !bytes.Equal(bytes.TrimSuffix(withoutLineEnds(raw[i:]), []byte{0}), chain) {
		t.Errorf("%s: the chain is another", name)
	}
	inner := append(bytes.Clone(q.QEReportRaw), q.QEReportSignature[:]...)
	inner = binary.LittleEndian.AppendUint16(inner, uint16(len(q.AuthData)))
	inner = append(inner, q.AuthData...)
	inner = binary.LittleEndian.AppendUint16(inner, certPCKChain)
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(raw)-i))
	inner = append(inner, raw[i:]...)
	data := append(bytes.Clone(q.Signature[:]), q.AttestationKey[:]...)
	if q.Version == 4 {
		data = binary.LittleEndian.AppendUint16(data, certQEReport)
		data = binary.LittleEndian.AppendUint32(data, uint32(len(inner)))
	}
	data = append(data, inner...)
	out := binary.LittleEndian.AppendUint32(bytes.Clone(q.Signed), uint32(len(data)))
	if out = append(out, data...); !bytes.Equal(out, raw) {
		t.Errorf("%s: the fields encode to other bytes", name)
	}
}

func put16(at int, v uint16) func([]byte) []byte {
	return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[at:], v); return b }
}

func put32(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
}

func TestWhatIsNoQuoteIsRefusedAndTheFieldNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		field  string
		kind   error
	}{
		"nothing":                         {func([]byte) []byte { return nil }, "version", ErrMalformed},
		"a header alone":                  {func(b []byte) []byte { return b[:48] }, "SGX report", ErrMalformed},
		"a header cut short":              {func(b []byte) []byte { return b[:40] }, "user data", ErrMalformed},
		"more than the limit":             {func([]byte) []byte { return make([]byte, MaxSize+1) }, "quote", ErrMalformed},
		"version 2":                       {put16(0, 2), "version", ErrUnsupported},
		"version 5":                       {put16(0, 5), "version", ErrUnsupported},
		"an EPID key":                     {put16(2, 1), "attestation key type", ErrUnsupported},
		"ECDSA P-384":                     {put16(2, 3), "attestation key type", ErrUnsupported},
		"TDX in version 3":                {put32(4, TEETDX), "TEE type", ErrUnsupported},
		"a reserved bit in version 3":     {put32(4, 1<<31), "TEE type", ErrUnsupported},
		"a byte more":                     {func(b []byte) []byte { return append(b, 0) }, "signature data", ErrMalformed},
		"a byte less":                     {func(b []byte) []byte { return b[:len(b)-1] }, "signature data", ErrMalformed},
		"signature data of 0":             {func(b []byte) []byte { return put32(432, 0)(b[:436]) }, "signature", ErrMalformed},
		"signature data of 4 GiB":         {put32(432, 1<<32-1), "signature data", ErrMalformed},
		"authentication data of 64 KiB":   {put16(authDataAt, 65535), "QE authentication data", ErrMalformed},
		"authentication data to the end":  {func(b []byte) []byte { return put32(432, 576+2+32)(put16(authDataAt, 32)(b[:chainTypeAt])) }, "certification data type", ErrMalformed},
		"certification data of type 1":    {put16(chainTypeAt, 1), "certification data type", ErrUnsupported},
		"certification data of type 6":    {put16(chainTypeAt, 6), "certification data type", ErrUnsupported},
		"a chain longer than the quote":   {put32(chainTypeAt+2, 1<<31), "PCK certificate chain", ErrMalformed},
		"a chain of 0 and the rest after": {put32(chainTypeAt+2, 0), "PCK certificate chain", ErrMalformed},
		"a chain that is text":            {func(b []byte) []byte { copy(b[chainTypeAt+6:], "-----BEGIN NOTHING"); return b }, "certificate chain", ErrMalformed},
		"a chain with a base64 character changed to an invalid one": {func(b []byte) []byte { b[chainTypeAt+100] = '!'; return b },
			"certificate chain", ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := Parse(tc.change(simulatedQuote(t, 3)))
			var e *Error
			if q != nil || !errors.As(err, &e) || !errors.Is(err, tc.kind) || e.Field != tc.field || e.Found == "" || e.Expected == "" {
				t.Errorf("got %v, want %v of %q", err, tc.kind, tc.field)
			}
		})
	}
}

func TestVersion4IsStrictToo(t *testing.T) {
	const outerTypeAt = 436 + 128
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		field  string
		kind   error
	}{
		"the chain without a QE report":     {put16(outerTypeAt, 5), "certification data type", ErrUnsupported},
		"a QE report of another length":     {put32(outerTypeAt+2, 100), "certification data", ErrMalformed},
		"an unknown TEE":                    {put32(4, 0x82), "TEE type", ErrUnsupported},
		"TDX, whose report is longer":       {put32(4, TEETDX), "signature data", ErrMalformed},
		"certification data without a body": {func(b []byte) []byte { return put32(432, 128)(b[:outerTypeAt]) }, "certification data type", ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.change(simulatedQuote(t, 4)))
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, tc.kind) || e.Field != tc.field {
				t.Errorf("got %v, want %v of %q", err, tc.kind, tc.field)
			}
		})
	}
}

func TestAChainHasOneFormButForLineEnds(t *testing.T) {
	raw := simulatedQuote(t, 3)
	chain := raw[chainTypeAt+6:]
	lines := bytes.Split(bytes.TrimSuffix(chain, []byte("\n")), []byte("\n"))
	for name, tc := range map[string]struct {
		chain []byte
		ok    bool
	}{
		"as Intel writes it":         {chain, true},
		"with a NUL, as its library": {append(bytes.Clone(chain), 0), true},
		"without the last line end":  {chain[:len(chain)-1], true},
		"with CR LF":                 {bytes.ReplaceAll(chain, []byte("\n"), []byte("\r\n")), true},
		"in lines of 76":             {rewrap(t, chain, 76), true},
		"two NULs":                   {append(bytes.Clone(chain), 0, 0), false},
		"a NUL in the middle":        {bytes.Replace(chain, []byte("-----\n-----"), []byte("-----\n\x00-----"), 1), false},
		"text before":                {append([]byte("chain:\n"), chain...), false},
		"text between":               {bytes.Replace(chain, []byte("-----\n-----"), []byte("-----\nCA:\n-----"), 1), false},
		"text after":                 {append(bytes.Clone(chain), "end\n"...), false},
		"a header in a block":        {bytes.Replace(chain, []byte("CERTIFICATE-----\n"), []byte("CERTIFICATE-----\nA: b\n\n"), 1), false},
		"spaces within a line":       {bytes.Join([][]byte{lines[0], append([]byte("  "), lines[1]...), bytes.Join(lines[2:], []byte("\n"))}, []byte("\n")), false},
		"another kind of block":      {bytes.ReplaceAll(chain, []byte("CERTIFICATE"), []byte("PRIVATE KEY")), false},
		"nine certificates":          {bytes.Repeat(chain, 3), false},
		"nothing":                    {nil, false},
		"a NUL alone":                {[]byte{0}, false},
		"a certificate cut off":      {chain[:len(chain)-40], false},
	} {
		t.Run(name, func(t *testing.T) {
			out := append(bytes.Clone(raw[:chainTypeAt+6]), tc.chain...)
			put32(chainTypeAt+2, uint32(len(tc.chain)))(out)
			put32(432, uint32(len(out)-436))(out)
			q, err := Parse(out)
			if tc.ok != (err == nil) || (err != nil && !errors.Is(err, ErrMalformed)) {
				t.Errorf("got %v", err)
			}
			if tc.ok && len(q.CertChain) != 3 {
				t.Errorf("got %d certificates", len(q.CertChain))
			}
		})
	}
}

// rewrap writes a PEM chain with lines of another length.
func rewrap(t *testing.T, chain []byte, width int) []byte {
	t.Helper()
	var out []byte
	for rest := chain; len(rest) > 0; {
		end := bytes.Index(rest, []byte(pemEnd+"\n")) + len(pemEnd) + 1
		body := withoutLineEnds(rest[len(pemBegin) : end-len(pemEnd)-1])
		out = append(out, pemBegin+"\n"...)
		for len(body) > 0 {
			n := min(width, len(body))
			out, body = append(append(out, body[:n]...), '\n'), body[n:]
		}
		out, rest = append(out, pemEnd+"\n"...), rest[end:]
	}
	return out
}

func TestBase64WithUnusedBitsIsRefused(t *testing.T) {
	for digits, ok := range map[string]bool{"AA==": true, "AB==": false, "AAA=": true, "AAB=": false, "AAAA": true, "AA=": false} {
		if _, err := ParseChain([]byte(pemBegin + "\n" + digits + "\n" + pemEnd + "\n")); ok != (err == nil) {
			t.Errorf("%s: got %v", digits, err)
		}
	}
}

func TestTheZeroQuoteHasNoReportData(t *testing.T) {
	if (&Quote{}).ReportData() != [64]byte{} {
		t.Error("it has")
	}
	r := &TDXReport{TDAttributes: [8]byte{0, 0xff}}
	if r.Debug() {
		t.Error("a TD without debug attributes is under debug")
	}
	for bit := range 8 {
		r.TDAttributes[0] = 1 << bit
		if !r.Debug() {
			t.Errorf("bit %d of TUD is not debug", bit)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(simulatedQuote(f, 3))
	f.Add(simulatedQuote(f, 4))
	for _, raw := range vectors(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		original := bytes.Clone(raw)
		q, err := Parse(raw)
		if !bytes.Equal(raw, original) {
			t.Error("the input has changed")
		}
		if err != nil {
			var e *Error
			if q != nil || !errors.As(err, &e) || errors.Is(err, ErrMalformed) == errors.Is(err, ErrUnsupported) {
				t.Errorf("got %v, %v", q, err)
			}
			return
		}
		checkEncoding(t, "input", raw, q)
		if len(raw) > MaxSize || len(q.CertChain) == 0 || len(q.CertChain) > maxCertificates || len(q.AuthData) > maxAuthData {
			t.Errorf("got %+v", q)
		}
	})
}

func FuzzParseChain(f *testing.F) {
	raw := simulatedQuote(f, 3)
	f.Add(raw[chainTypeAt+6:])
	f.Add([]byte(pemBegin + "\n" + pemEnd + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := ParseChain(text)
		if err != nil {
			return
		}
		var canonical []byte
		for _, der := range chain {
			canonical = append(canonical, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		if !bytes.Equal(withoutLineEnds(canonical), withoutLineEnds(text)) {
			t.Errorf("%q is accepted as the PEM of something else", text)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	raw := simulatedQuote(b, 3)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}
