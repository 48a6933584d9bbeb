package pccs

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/quote"
)

// answer is one answer of the service.
type answer struct {
	artefact, url string
	status        int
	header        http.Header
	body          []byte
}

func (a *answer) failed(kind, err error) error {
	return &Error{Artefact: a.artefact, URL: a.url, Status: a.status, Kind: kind, Err: err}
}

// chain reads an issuer chain from a header. Percent-encoding alone is undone: a plus sign is base64's, not a blank.
func (a *answer) chain(name string) ([]byte, error) {
	values := a.header.Values(name)
	if len(values) != 1 {
		return nil, a.failed(ErrContent, fmt.Errorf("found header %s %d times, expected once", name, len(values)))
	}
	text, err := url.PathUnescape(values[0])
	if err != nil {
		return nil, a.failed(ErrContent, fmt.Errorf("header %s: not percent-encoded", name))
	}
	if len(text) > collateral.MaxTCBSigningChain {
		return nil, a.failed(ErrTooLarge, fmt.Errorf("header %s: found %d bytes, expected at most %d", name, len(text), collateral.MaxTCBSigningChain))
	}
	if _, err := quote.ParseChain([]byte(text)); err != nil {
		return nil, a.failed(ErrContent, fmt.Errorf("header %s: %w", name, err))
	}
	return []byte(text), nil
}

func sameChain(a, b []byte) bool {
	x, errX := quote.ParseChain(a)
	y, errY := quote.ParseChain(b)
	return errX == nil && errY == nil && slices.EqualFunc(x, y, bytes.Equal)
}

// crlText is the longest text of a CRL of so many bytes: hex doubles it, PEM needs less.
func crlText(limit int) int { return 2*limit + 1024 }

// crl reads a CRL in whichever encoding it comes. Asked for DER, Intel's service and a new PCCS answer in DER; older ones in hex, as every
// PCCS does for the root's; PEM is what Intel's service gives unasked.
func (a *answer) crl(limit int) ([]byte, error) {
	der, err := decodeCRL(a.body)
	if err != nil {
		return nil, a.failed(ErrContent, err)
	}
	if len(der) > limit {
		return nil, a.failed(ErrTooLarge, fmt.Errorf("found %d bytes, expected at most %d", len(der), limit))
	}
	return der, nil
}

const asn1Sequence = 0x30

// decodeCRL tells the encodings apart by how they begin: DER with the tag of a SEQUENCE and a length of at least 128 (which takes a byte from
// 0x81 on), hex with "30", PEM with hyphens. Whether it is a CRL is for others to say.
func decodeCRL(body []byte) ([]byte, error) {
	if len(body) > 2 && body[0] == asn1Sequence && body[1] > 0x80 {
		return body, nil
	}
	text := bytes.TrimSpace(body)
	if block, rest := pem.Decode(text); block != nil {
		if block.Type != "X509 CRL" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(text, []byte("-----BEGIN")) {
			return nil, fmt.Errorf("found a PEM block %.40q, or something besides it, expected one X509 CRL", block.Type)
		}
		return block.Bytes, nil
	}
	der := make([]byte, hex.DecodedLen(len(text)))
	if n, err := hex.Decode(der, text); err != nil || n == 0 || der[0] != asn1Sequence {
		return nil, errors.New("found neither DER nor hex nor PEM of a CRL")
	}
	return der, nil
}

// excerpt is the beginning of an error's text, fit for one line of a log.
func excerpt(body []byte) string {
	const most = 200
	text := strings.ToValidUTF8(string(body[:min(len(body), most)]), "?")
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)), " ")
	if text == "" {
		return "without a word"
	}
	return fmt.Sprintf("saying %q", text)
}

// redact is a URL without its query: what is asked for is in Error.Artefact, and a query may hold a key.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}
