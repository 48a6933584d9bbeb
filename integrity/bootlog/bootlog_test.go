package bootlog

import (
	"bytes"
	"crypto"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-eventlog/tcg"
)

func parsed(t testing.TB, raw []byte) *Log {
	t.Helper()
	l, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func asError(t testing.TB, err error, check Check) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, check) || e.Found == "" || e.Expected == "" {
		t.Fatalf("found %v, expected %q", err, check)
	}
	return e
}

func TestALogIsReadInBothFormats(t *testing.T) {
	agile := parsed(t, both(ordinary()...))
	if agile.Legacy || !slices.Equal(agile.Banks, []crypto.Hash{crypto.SHA1, crypto.SHA256}) {
		t.Errorf("found %v, legacy %t", agile.Banks, agile.Legacy)
	}
	legacy := parsed(t, sha1Only(ordinary()...))
	if !legacy.Legacy || !slices.Equal(legacy.Banks, []crypto.Hash{crypto.SHA1}) {
		t.Errorf("found %v, legacy %t", legacy.Banks, legacy.Legacy)
	}
	for name, l := range map[string]*Log{"agile": agile, "legacy": legacy} {
		if len(l.Events) != len(ordinary()) {
			t.Fatalf("%s: found %d events, expected %d", name, len(l.Events), len(ordinary()))
		}
		for i, w := range ordinary() {
			e := l.Events[i]
			if e.Number != i+1 || e.PCR != int(w.pcr) || e.Type != w.kind || !bytes.Equal(e.Data, w.data) || len(e.Digests) != len(l.Banks) {
				t.Errorf("%s: event %d: %+v", name, i+1, e)
			}
			for h, d := range e.Digests {
				if !bytes.Equal(d, w.digest(h)) {
					t.Errorf("%s: event %d: %v digest %x", name, i+1, h, d)
				}
			}
		}
	}
	// A bank that is not read does not hinder the others.
	raw := append(header(algSHA512, 64, algSHA256, 32), secureBoot(1).agile(algSHA512, algSHA256)...)
	if l := parsed(t, raw); !slices.Equal(l.Banks, []crypto.Hash{crypto.SHA256}) || len(l.Events[0].Digests) != 1 {
		t.Errorf("with SHA-512: %+v", l)
	}
}

func TestALogThatIsNotAsTheProfileHasItIsRefused(t *testing.T) {
	good := secureBoot(1).agile(algSHA1, algSHA256)
	with := func(event []byte) []byte { return append(header(algSHA1, 20, algSHA256, 32), event...) }
	algorithms := func(a ...uint16) []byte { return append(header(a...), good...) }
	spec := func(change func(data []byte) []byte) []byte {
		raw := header(algSHA256, 32)
		return written{kind: typeNoAction, data: change(raw[legacyHead:])}.legacy()
	}
	many := header(algSHA1, 20)
	for range MaxEvents + 1 {
		many = append(many, written{kind: evAction}.agile()...)
	}
	cases := map[string]struct {
		raw   []byte
		check Check
		event int
	}{
		"nothing":                           {nil, CheckLimit, 0},
		"more than a MiB":                   {make([]byte, MaxSize+1), CheckLimit, 0},
		"too many events":                   {many, CheckLimit, 0},
		"the first event cut":               {header(algSHA1, 20)[:20], CheckStructure, 1},
		"a legacy event cut":                {append(sha1Only(ordinary()[:1]...), 1, 2, 3), CheckStructure, 2},
		"a legacy event longer than it is":  {append(secureBoot(1).legacy()[:28], 0xff, 0xff, 0xff, 0xff), CheckStructure, 1},
		"a legacy event in PCR 24":          {written{pcr: 24}.legacy(), CheckStructure, 1},
		"an event in PCR 24":                {with(written{pcr: 24}.agile(algSHA1, algSHA256)), CheckStructure, 1},
		"padding":                           {with(bytes.Repeat([]byte{0xff}, 64)), CheckStructure, 1},
		"an event longer than the log":      {with(append(good[:len(good)-len(secureBoot(1).data)-4:len(good)-len(secureBoot(1).data)-4], 0xff, 0xff, 0xff, 0xff)), CheckStructure, 1},
		"a second event cut":                {with(append(slices.Clone(good), good[:30]...)), CheckStructure, 2},
		"a digest twice":                    {with(secureBoot(1).agile(algSHA256, algSHA256)), CheckStructure, 1},
		"a digest that was not declared":    {with(secureBoot(1).agile(algSHA1, algSHA384)), CheckStructure, 1},
		"more digests than were declared":   {with(secureBoot(1).agile(algSHA1, algSHA256, algSHA1)), CheckStructure, 1},
		"four billion digests":              {with(le32(nil, 0, evAction, 0xffffffff)), CheckStructure, 1},
		"another signature":                 {spec(func(d []byte) []byte { return append([]byte("Spec ID Event02\x00"), d[16:]...) }), CheckStructure, 0},
		"bytes after the vendor's":          {spec(func(d []byte) []byte { return append(slices.Clone(d), 0) }), CheckStructure, 0},
		"the vendor's information cut":      {spec(func(d []byte) []byte { return append(slices.Clone(d[:len(d)-1]), 9) }), CheckStructure, 0},
		"the algorithms cut":                {spec(func(d []byte) []byte { return d[:30] }), CheckStructure, 0},
		"no algorithm":                      {header(), CheckStructure, 0},
		"too many algorithms":               {header(make([]uint16, 34)...), CheckStructure, 0},
		"an algorithm twice":                {algorithms(algSHA1, 20, algSHA1, 20), CheckStructure, 0},
		"a digest of another size":          {algorithms(algSHA256, 20), CheckStructure, 0},
		"a digest of no size":               {algorithms(0x12, 0), CheckStructure, 0},
		"a digest too large":                {algorithms(0x12, 65), CheckStructure, 0},
		"an identifier whose low byte lies": {algorithms(0x010b, 32), CheckStructure, 0},
		"no bank that can be replayed":      {header(algSHA512, 64), CheckParser, 0},
		"another version":                   {spec(func(d []byte) []byte { d = slices.Clone(d); d[21] = 3; return d }), CheckParser, 0},
		"a startup locality twice":          {both(locality(3), locality(3)), CheckLocality, 2},
		"a late startup locality":           {both(append(ordinary(), locality(3))...), CheckLocality, len(ordinary()) + 1},
		"a startup locality of 5":           {both(locality(5)), CheckLocality, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.raw)
			if e := asError(t, err, c.check); e.Event != c.event {
				t.Errorf("found event %d, expected %d: %v", e.Event, c.event, err)
			}
			if len(err.Error()) > 500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	whole := both(ordinary()...)
	accepted := 0
	for n := 1; n < len(whole); n++ {
		if l, err := Parse(whole[:n]); err == nil {
			// A log cut between two events is a shorter log; only the PCRs tell.
			if c, err := l.Compare(0, quotedOf(crypto.SHA256, 0, ordinary(), 0, 1, 2, 3, 4, 5, 6, 7, 8)); err != nil || c.OK() {
				t.Errorf("cut at byte %d: accepted, %v", n, err)
			}
			accepted++
		}
	}
	if accepted != len(ordinary()) {
		t.Errorf("%d cuts parse, expected those between %d events", accepted, len(ordinary()))
	}
}

func TestAPanicOfTheParserIsAnError(t *testing.T) {
	_, err := guarded(func() (*tcg.EventLog, error) { panic(strings.Repeat("hostile ", 1000)) })
	asError(t, err, CheckParser)
	if len(err.Error()) > 500 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}
