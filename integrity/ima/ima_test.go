package ima

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEveryTemplateIsReadFromBothLists(t *testing.T) {
	module := written{
		pcr: 10, template: "ima-modsig",
		data: lengths("sha256:\x00"+digest(32, 1), "/m.ko\x00", "", "sha512:\x00"+digest(64, 2), "pkcs7"),
		text: "sha256:" + hexed(digest(32, 1)) + " /m.ko  sha512:" + hexed(digest(64, 2)) + " " + hexed("pkcs7"),
	}
	bare := module
	bare.data = lengths("sha256:\x00"+digest(32, 1), "/m.ko\x00", "s", "", "")
	bare.text = "sha256:" + hexed(digest(32, 1)) + " /m.ko " + hexed("s") + "  "
	verity := written{
		pcr: 10, template: "ima-sigv2", data: lengths("verity:sha256:\x00"+digest(32, 4), "/v\x00", "s"),
		text: "verity:sha256:" + hexed(digest(32, 4)) + " /v " + hexed("s"),
	}
	ngv2 := written{
		pcr: 10, template: "ima-ngv2", data: lengths("ima:sha1:\x00"+digest(20, 5), "/f\x00"), text: "ima:sha1:" + hexed(digest(20, 5)) + " /f",
	}
	format := written{
		pcr: 9, template: "n-ng|d-ng", data: lengths("/f\x00", "md5:\x00"+digest(16, 6)), text: "/f md5:" + hexed(digest(16, 6)),
	}
	for name, c := range map[string]struct {
		in   written
		want Entry
	}{
		"ima":                            {legacy("/bin/sh"), Entry{DigestAlgorithm: "sha1", Digest: []byte(digest(20, 3)), Path: "/bin/sh"}},
		"ima with the longest name":      {legacy(strings.Repeat("n", 255)), Entry{DigestAlgorithm: "sha1", Digest: []byte(digest(20, 3)), Path: strings.Repeat("n", 255)}},
		"ima-ng":                         {ng("/bin/sh", 1), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 1)), Path: "/bin/sh"}},
		"ima-ng with a space in a path":  {ng("/bin/a  b ", 1), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 1)), Path: "/bin/a  b "}},
		"ima-ng with odd bytes":          {ng("/\xff\x01\t\xc3", 1), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 1)), Path: "/\xff\x01\t\xc3"}},
		"ima-sig":                        {sig("/bin/sh", "\x03\x02"), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 7)), Path: "/bin/sh", Signature: []byte("\x03\x02")}},
		"ima-sig without a signature":    {sig("/bin/sh", ""), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 7)), Path: "/bin/sh"}},
		"ima-sig with a space in a path": {sig("/a b", "s"), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 7)), Path: "/a b", Signature: []byte("s")}},
		"ima-buf":                        {buf("kexec-cmdline", "quiet"), Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 9)), Path: "kexec-cmdline", Buffer: []byte("quiet")}},
		"ima-modsig": {module, Entry{
			DigestAlgorithm: "sha256", Digest: []byte(digest(32, 1)), Path: "/m.ko",
			ModuleDigestAlgorithm: "sha512", ModuleDigest: []byte(digest(64, 2)), ModuleSignature: []byte("pkcs7"),
		}},
		"ima-modsig without one": {bare, Entry{DigestAlgorithm: "sha256", Digest: []byte(digest(32, 1)), Path: "/m.ko", Signature: []byte("s")}},
		"ima-sigv2":              {verity, Entry{DigestType: "verity", DigestAlgorithm: "sha256", Digest: []byte(digest(32, 4)), Path: "/v", Signature: []byte("s")}},
		"ima-ngv2":               {ngv2, Entry{DigestType: "ima", DigestAlgorithm: "sha1", Digest: []byte(digest(20, 5)), Path: "/f"}},
		"a format for a name":    {format, Entry{DigestAlgorithm: "md5", Digest: []byte(digest(16, 6)), Path: "/f"}},
		"a violation":            {violation("/var/log/wtmp"), Entry{DigestAlgorithm: "sha256", Digest: make([]byte, 32), Path: "/var/log/wtmp", Violation: true}},
	} {
		c.want.Number, c.want.PCR, c.want.Template, c.want.Data, c.want.Recorded = 1, c.in.pcr, c.in.template, c.in.data, c.in.recorded()
		for kind, raw := range map[string][]byte{"binary": c.in.binary(), "ASCII": c.in.ascii()} {
			t.Run(name+", "+kind, func(t *testing.T) {
				got, err := readAll(t, raw, Limits{})
				if err != nil || len(got) != 1 {
					t.Fatalf("%d entries, %v", len(got), err)
				}
				e := got[0]
				for _, b := range []*[]byte{&e.Signature, &e.ModuleSignature} {
					if len(*b) == 0 {
						*b = nil
					}
				}
				if !reflect.DeepEqual(e, c.want) {
					t.Errorf("found    %+v\nexpected %+v", e, c.want)
				}
				if !e.RecordedMatches() {
					t.Error("the recorded hash does not match")
				}
			})
		}
	}
}

func TestAnUnknownTemplateStaysReplayable(t *testing.T) {
	all, err := readAll(t, binaryList(ng("/a", 1), opaque(), ng("/b", 2)), Limits{})
	if err != nil || len(all) != 3 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	if e := all[1]; !e.Opaque || e.Path != "" || !bytes.Equal(e.Data, opaque().data) || !e.RecordedMatches() {
		t.Errorf("entry %+v", e)
	}
	if all[0].Opaque || all[2].Opaque {
		t.Error("a known template is opaque")
	}
	_, err = readAll(t, asciiList(ng("/a", 1), opaque()), Limits{})
	if e := asError(t, err, CheckTemplate); e.Entry != 2 {
		t.Errorf("found entry %d, expected 2", e.Entry)
	}
}

func TestARecordedHashThatIsNotTheDatasIsSeen(t *testing.T) {
	raw := ng("/a", 1).binary()
	raw[4] ^= 1
	all, err := readAll(t, raw, Limits{})
	if err != nil || all[0].RecordedMatches() {
		t.Errorf("%+v, %v", all, err)
	}
	// The kernel records no violation for boot_aggregate, so zeros there are a hash that does not match.
	aggregate := violation(bootAggregate)
	all, err = readAll(t, aggregate.binary(), Limits{})
	if err != nil || all[0].Violation || all[0].RecordedMatches() {
		t.Errorf("%+v, %v", all, err)
	}
}

func asError(t testing.TB, err error, check Check) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, check) {
		t.Fatalf("found %v, expected %q", err, check)
	}
	return e
}

func TestWhatTheKernelWouldNotWriteIsRefused(t *testing.T) {
	alter := func(w written, change func(*written)) written { change(&w); return w }
	data := func(b []byte) []byte { return alter(ng("/a", 1), func(w *written) { w.data = b }).binary() }
	line := func(old, replacement string) []byte {
		return []byte(strings.Replace(string(ng("/a", 1).ascii()), old, replacement, 1))
	}
	whole := sig("/a", "signature").binary()
	cut := map[string][]byte{}
	for n := 1; n < len(whole); n++ {
		cut["binary cut at byte "+strings.Repeat("I", n)] = whole[:n]
	}
	cases := map[string][]byte{
		"a PCR above 23":                   alter(ng("/a", 1), func(w *written) { w.pcr = 24 }).binary(),
		"a big-endian list":                append([]byte{0, 0, 0, 10}, ng("/a", 1).binary()[4:]...),
		"a template name of no bytes":      alter(ng("/a", 1), func(w *written) { w.template = "" }).binary(),
		"a template name with a space":     alter(ng("/a", 1), func(w *written) { w.template = "ima ng" }).binary(),
		"a template name too long":         alter(ng("/a", 1), func(w *written) { w.template = strings.Repeat("x", 256) }).binary(),
		"a field longer than the data":     data([]byte{9, 0, 0, 0, 1}),
		"a field length cut":               data([]byte{9, 0, 0}),
		"no name field":                    data(lengths("sha256:\x00" + digest(32, 1))),
		"data after the last field":        data(append(lengths("sha256:\x00"+digest(32, 1), "/a\x00"), 0)),
		"a digest field without a name":    data(lengths(digest(32, 1), "/a\x00")),
		"a digest of another size":         data(lengths("sha256:\x00"+digest(31, 1), "/a\x00")),
		"an algorithm that nobody knows":   data(lengths("sha257:\x00"+digest(32, 1), "/a\x00")),
		"a path without NUL":               data(lengths("sha256:\x00"+digest(32, 1), "/a")),
		"an empty path field":              data(lengths("sha256:\x00"+digest(32, 1), "")),
		"a path with NUL inside":           data(lengths("sha256:\x00"+digest(32, 1), "/a\x00b\x00")),
		"a digest type that nobody knows":  alter(ng("/a", 1), func(w *written) { w.template = "ima-ngv2"; w.data = lengths("elf:sha256:\x00"+digest(32, 1), "/a\x00") }).binary(),
		"a legacy name too long":           alter(legacy(""), func(w *written) { w.legacyName = strings.Repeat("n", 256) }).binary(),
		"a legacy name with NUL":           alter(legacy(""), func(w *written) { w.legacyName = "a\x00b" }).binary(),
		"a legacy entry cut in its digest": legacy("/a").binary()[:40],
		"a legacy entry cut in its length": legacy("/a").binary()[:53],
		"a legacy entry cut in its name":   legacy("/a").binary()[:56],
		"a legacy line, digest not hex":    []byte("10 " + strings.Repeat("a", 40) + " ima zz /a\n"),
		"a legacy line, digest too short":  []byte("10 " + strings.Repeat("a", 40) + " ima aa /a\n"),
		"a line without its line break":    bytes.TrimSuffix(ng("/a", 1).ascii(), []byte("\n")),
		"a blank line":                     append(ng("/a", 1).ascii(), '\n'),
		"a line with two fields":           []byte("10 aa\n"),
		"a PCR that is not a number":       line("10 ", "1x "),
		"a template hash too short":        []byte("10 aa ima-ng sha1:" + strings.Repeat("0", 40) + " /a\n"),
		"a template hash not hex":          []byte("10 " + strings.Repeat("g", 40) + " ima-ng sha1:" + strings.Repeat("0", 40) + " /a\n"),
		"a line without a path":            line(" /a", ""),
		"a digest that is not hex":         line("0101", "01zz"),
		"a signature field missing":        line("ima-ng", "ima-sig"),
		"a signature that is not hex":      []byte(strings.Replace(string(sig("/a", "s").ascii()), hexed("s"), "xy", 1)),
		"a path with a line break":         ng("/a\nb", 1).ascii(),
	}
	for name, raw := range cut {
		cases[name] = raw
	}
	for name, raw := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(t, raw, Limits{})
			if e := asError(t, err, CheckStructure); e.Entry < 1 || e.Found == "" || e.Expected == "" {
				t.Errorf("error without its place: %+v", e)
			}
		})
	}
}

func TestLimitsHoldOnBothLists(t *testing.T) {
	two := []written{ng("/a", 1), sig("/b", strings.Repeat("s", 100<<10))}
	huge := slices.Concat(ng("/a", 1).binary()[:34], []byte{0xff, 0xff, 0xff, 0xff}) // claims 4 GiB of template data
	for name, c := range map[string]struct {
		raw    []byte
		limits Limits
		entry  int
	}{
		"entries, binary":        {binaryList(two...), Limits{Entries: 1}, 2},
		"entries, ASCII":         {asciiList(two...), Limits{Entries: 1}, 2},
		"entry size, binary":     {binaryList(two...), Limits{EntryBytes: 1000}, 2},
		"entry size, ASCII":      {asciiList(two...), Limits{EntryBytes: 1000}, 2},
		"list size, binary":      {binaryList(two...), Limits{Bytes: 100 << 10}, 2},
		"list size, ASCII":       {asciiList(two...), Limits{Bytes: 100 << 10}, 2},
		"a claim that is absurd": {huge, Limits{}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(t, c.raw, c.limits)
			if e := asError(t, err, CheckLimit); e.Entry != c.entry {
				t.Errorf("found entry %d, expected %d", e.Entry, c.entry)
			}
		})
	}
	for _, raw := range [][]byte{binaryList(two...), asciiList(two...)} {
		exact := Limits{Entries: 2, Bytes: int64(len(raw))}
		if all, err := readAll(t, raw, exact); err != nil || len(all) != 2 {
			t.Errorf("exactly at the limits: %d entries, %v", len(all), err)
		}
		if all, err := readAll(t, raw, Limits{Bytes: 1<<63 - 1}); err != nil || len(all) != 2 {
			t.Errorf("the largest limit: %d entries, %v", len(all), err)
		}
	}
}

func TestReadersThatMisbehave(t *testing.T) {
	raw := binaryList(ng("/a", 1), sig("/b", "s"))
	count := 0
	for _, err := range Entries(iotest.OneByteReader(bytes.NewReader(raw)), Limits{}) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 2 {
		t.Errorf("byte by byte: found %d entries, expected 2", count)
	}
	dead := errors.New("the line is dead")
	var last error
	for _, err := range Entries(iotest.ErrReader(dead), Limits{}) {
		last = err
	}
	asError(t, last, CheckRead)
	if !errors.Is(last, dead) {
		t.Errorf("%v does not wrap its cause", last)
	}
	if all, err := readAll(t, nil, Limits{}); err != nil || len(all) != 0 {
		t.Errorf("an empty list: %d entries, %v", len(all), err)
	}
	for e := range Entries(bytes.NewReader(raw), Limits{}) {
		if e.Number != 1 {
			t.Error("read on after the loop was left")
		}
		break
	}
}
