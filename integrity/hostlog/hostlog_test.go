package hostlog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

var at = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func digestEntry(name string) *v1.IntegrityEntry {
	return &v1.IntegrityEntry{
		Name: name, Path: "/usr/bin/" + name, DigestAlgorithm: SHA256, Digest: bytes.Repeat([]byte{7}, 32),
		Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Size: 12,
	}
}

func goodLog() *v1.IntegrityLog {
	return &v1.IntegrityLog{
		Version: 1, Host: "compute1", MeasuredAt: timestamppb.New(at),
		Entries: []*v1.IntegrityEntry{
			{Name: "kernel/image", Absent: "no such file", Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ},
			digestEntry("vmm/qemu"), digestEntry("vmm/swtpm"),
		},
		TpmQuote: &v1.TpmQuote{
			Attest: []byte{1}, Signature: []byte{2}, AkPublic: []byte{3},
			Pcrs: []*v1.PcrValue{{Bank: SHA256, Index: 0, Value: make([]byte, 32)}, {Bank: SHA256, Index: 23, Value: make([]byte, 32)}},
		},
	}
}

func TestALogIsParsedAsItWasBuilt(t *testing.T) {
	for name, quote := range map[string]*v1.TpmQuote{"with a TPM": goodLog().GetTpmQuote(), "without": nil} {
		t.Run(name, func(t *testing.T) {
			want := goodLog()
			want.TpmQuote = quote
			raw, err := Build("compute1", at.In(time.FixedZone("", 3600)), want.GetEntries(), quote)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, want) {
				t.Errorf("built %v, parsed %v", want, got)
			}
		})
	}
}

func TestALogThatBreaksARuleIsRefusedOnBothSides(t *testing.T) {
	type log = v1.IntegrityLog
	long := strings.Repeat("x", 5000)
	for name, tc := range map[string]struct {
		change func(*log)
		field  string
	}{
		"version 0":                         {func(l *log) { l.Version = 0 }, "version"},
		"version 2":                         {func(l *log) { l.Version = 2 }, "version"},
		"no host":                           {func(l *log) { l.Host = "" }, "host"},
		"a host beyond a DNS name":          {func(l *log) { l.Host = long }, "host"},
		"an escape sequence in the host":    {func(l *log) { l.Host = "a\x1b[2J" }, "host"},
		"no time":                           {func(l *log) { l.MeasuredAt = nil }, "measured_at"},
		"a time out of range":               {func(l *log) { l.MeasuredAt = &timestamppb.Timestamp{Nanos: -1} }, "measured_at"},
		"entries out of order":              {func(l *log) { l.Entries[0], l.Entries[1] = l.Entries[1], l.Entries[0] }, "entries[1].name"},
		"a name given twice":                {func(l *log) { l.Entries[1].Name = "kernel/image" }, "entries[1].name"},
		"an entry without a name":           {func(l *log) { l.Entries[0].Name = "" }, "entries[0].name"},
		"an upper-case name":                {func(l *log) { l.Entries[0].Name = "Kernel" }, "entries[0].name"},
		"a name that begins with a slash":   {func(l *log) { l.Entries[0].Name = "/kernel" }, "entries[0].name"},
		"a name of 129 bytes":               {func(l *log) { l.Entries[0].Name = "a" + long[:128] }, "entries[0].name"},
		"a path beyond PATH_MAX":            {func(l *log) { l.Entries[1].Path = "/" + long }, "entries[1].path"},
		"a line break in a path":            {func(l *log) { l.Entries[1].Path = "/a\nb" }, "entries[1].path"},
		"a text direction override":         {func(l *log) { l.Entries[1].Path = "/a\u202eb" }, "entries[1].path"},
		"no provenance":                     {func(l *log) { l.Entries[1].Provenance = 0 }, "entries[1].provenance"},
		"a provenance of a later version":   {func(l *log) { l.Entries[1].Provenance = 99 }, "entries[1].provenance"},
		"neither digest nor absence":        {func(l *log) { l.Entries[0].Absent = "" }, "entries[0].digest_algorithm"},
		"both digest and absence":           {func(l *log) { l.Entries[1].Absent = "no such file" }, "entries[1]"},
		"an algorithm beside an absence":    {func(l *log) { l.Entries[0].DigestAlgorithm = SHA256 }, "entries[0]"},
		"a size beside an absence":          {func(l *log) { l.Entries[0].Size = 1 }, "entries[0]"},
		"an endless reason for absence":     {func(l *log) { l.Entries[0].Absent = long }, "entries[0].absent"},
		"a digest of 31 bytes":              {func(l *log) { l.Entries[1].Digest = make([]byte, 31) }, "entries[1].digest"},
		"no digest":                         {func(l *log) { l.Entries[1].Digest = nil }, "entries[1].digest"},
		"a SHA-1 digest":                    {func(l *log) { l.Entries[1].DigestAlgorithm = "sha1" }, "entries[1].digest_algorithm"},
		"an empty attest":                   {func(l *log) { l.TpmQuote.Attest = nil }, "tpm_quote.attest"},
		"a signature beyond a TPM's buffer": {func(l *log) { l.TpmQuote.Signature = make([]byte, 4097) }, "tpm_quote.signature"},
		"no key":                            {func(l *log) { l.TpmQuote.AkPublic = nil }, "tpm_quote.ak_public"},
		"no PCR":                            {func(l *log) { l.TpmQuote.Pcrs = nil }, "tpm_quote.pcrs"},
		"25 PCRs":                           {func(l *log) { l.TpmQuote.Pcrs = make([]*v1.PcrValue, 25) }, "tpm_quote.pcrs"},
		"PCR 24":                            {func(l *log) { l.TpmQuote.Pcrs[1].Index = 24 }, "tpm_quote.pcrs[1].index"},
		"a PCR index that wraps":            {func(l *log) { l.TpmQuote.Pcrs[1].Index = 1<<32 - 1 }, "tpm_quote.pcrs[1].index"},
		"a PCR twice":                       {func(l *log) { l.TpmQuote.Pcrs[1].Index = 0 }, "tpm_quote.pcrs[1].index"},
		"the SHA-1 bank":                    {func(l *log) { l.TpmQuote.Pcrs[0].Bank = "sha1" }, "tpm_quote.pcrs[0].bank"},
		"a PCR value of 20 bytes":           {func(l *log) { l.TpmQuote.Pcrs[0].Value = make([]byte, 20) }, "tpm_quote.pcrs[0].value"},
		"a text that was not hashed":        {func(l *log) { l.Entries[1].Text = "quiet" }, "entries[1].text"},
		"a text beside an absence":          {func(l *log) { l.Entries[0].Text = "x" }, "entries[0]"},
		"an endless text":                   {func(l *log) { l.Entries[1].Text = long }, "entries[1].text"},
		"an attachment without a TPM":       {func(l *log) { l.TpmQuote, l.Attachments = nil, []*v1.Attachment{{Name: "ima", Size: 1}} }, "attachments[0]"},
		"an attachment of no name":          {func(l *log) { l.Attachments = []*v1.Attachment{{Size: 1}} }, "attachments[0].name"},
		"an empty attachment":               {func(l *log) { l.Attachments = []*v1.Attachment{{Name: "ima"}} }, "attachments[0].size"},
		"an endless attachment":             {func(l *log) { l.Attachments = []*v1.Attachment{{Name: "ima", Size: 1 << 40}} }, "attachments[0].size"},
		"attachments out of order":          {func(l *log) { l.Attachments = []*v1.Attachment{{Name: "ima", Size: 1}, {Name: "boot", Size: 1}} }, "attachments[1].name"},
		"too many entries": {func(l *log) {
			l.Entries = nil
			for i := range MaxEntries + 1 {
				l.Entries = append(l.Entries, digestEntry(fmt.Sprintf("e%05d", i)))
			}
		}, "entries"},
	} {
		t.Run(name, func(t *testing.T) {
			l := goodLog()
			tc.change(l)
			var err *Error
			if e := Validate(l); !errors.As(e, &err) || err.Field != tc.field {
				t.Errorf("Validate: got %v, want an error about %s", e, tc.field)
			}
			raw, merr := proto.Marshal(l)
			if merr != nil {
				t.Fatal(merr)
			}
			if _, e := Parse(raw); !errors.As(e, &err) {
				t.Errorf("Parse: got %v, want an *Error", e)
			}
			if l.GetVersion() != Version || l.GetMeasuredAt() == nil {
				return // Build sets these itself
			}
			if raw, e := Build(l.GetHost(), l.GetMeasuredAt().AsTime(), l.GetEntries(), l.GetTpmQuote(), l.GetAttachments()...); e == nil && tc.field != "measured_at" {
				t.Errorf("Build made %d bytes of it", len(raw))
			}
		})
	}
}

func TestBytesThatBuildCouldNotHaveMadeAreRefused(t *testing.T) {
	raw, err := Build("compute1", at, goodLog().GetEntries(), goodLog().GetTpmQuote())
	if err != nil {
		t.Fatal(err)
	}
	unknown := func(m proto.Message) { // a field of a later version
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 100, protowire.VarintType), 1))
	}
	with := func(change func(*v1.IntegrityLog)) []byte {
		l := goodLog()
		change(l)
		out, err := proto.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	twice := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(raw), 1, protowire.VarintType), 1)
	for name, in := range map[string][]byte{
		"nothing":                       {},
		"cut short":                     raw[:len(raw)-1],
		"a byte after the end":          append(bytes.Clone(raw), 0),
		"a field given twice":           twice,
		"a quote given twice":           append(bytes.Clone(raw), protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), nil)...),
		"larger than a log may be":      make([]byte, MaxSize+1),
		"an unknown field in the log":   with(func(l *v1.IntegrityLog) { unknown(l) }),
		"a field of another wire type":  append(bytes.Clone(raw[:2]), protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1)...),
		"an unknown field in the time":  with(func(l *v1.IntegrityLog) { unknown(l.MeasuredAt) }),
		"an unknown field in an entry":  with(func(l *v1.IntegrityLog) { unknown(l.Entries[1]) }),
		"an unknown field in the quote": with(func(l *v1.IntegrityLog) { unknown(l.TpmQuote) }),
		"an unknown field in a PCR":     with(func(l *v1.IntegrityLog) { unknown(l.TpmQuote.Pcrs[1]) }),
		"invalid UTF-8":                 bytes.Replace(raw, []byte("compute1"), []byte("\xff\xfempute"), 1),
		"a quote of a megabyte":         with(func(l *v1.IntegrityLog) { l.TpmQuote.Pcrs = make([]*v1.PcrValue, 1<<19) }),
	} {
		t.Run(name, func(t *testing.T) {
			var want *Error
			if l, err := Parse(in); l != nil || !errors.As(err, &want) {
				t.Errorf("got %v and %v, want an *Error", l, err)
			}
		})
	}
}

func TestAHostNameThatIsNotUTF8IsNotBuilt(t *testing.T) {
	var want *Error
	if raw, err := Build("compute\xff", at, nil, nil); !errors.As(err, &want) || want.Field != "host" || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("got %x and %v", raw, err)
	}
}

func TestAFloodOfEmptyMessagesIsRefusedBeforeMemoryIsSpentOnIt(t *testing.T) {
	pcrs := bytes.Repeat([]byte{4<<3 | 2, 0}, MaxSize/2-8)
	for name, flood := range map[string][]byte{
		"entries":         bytes.Repeat([]byte{fieldEntries<<3 | 2, 0}, MaxSize/2),
		"PCRs in a quote": protowire.AppendBytes(protowire.AppendTag(nil, fieldTpmQuote, protowire.BytesType), pcrs),
	} {
		allocated := testing.AllocsPerRun(1, func() {
			if _, err := Parse(flood); err == nil {
				t.Errorf("%s: accepted", name)
			}
		})
		if allocated > 100 {
			t.Errorf("%s: %v allocations, want a few", name, allocated)
		}
	}
}

func TestABuiltLogMayNotExceedTheSizeOfAMessage(t *testing.T) {
	var entries []*v1.IntegrityEntry
	for i := range MaxEntries {
		e := digestEntry(fmt.Sprintf("e%05d", i))
		e.Path = "/" + strings.Repeat("p", MaxPath-1)
		entries = append(entries, e)
	}
	_, err := Build("compute1", at, entries, nil)
	var want *Error
	if !errors.As(err, &want) || want.Field != "log" {
		t.Errorf("got %v, want an error about the size of the log", err)
	}
}

func TestNamesArePlain(t *testing.T) {
	for _, name := range []string{"a", "0", "kernel/image", "kernel/modules/kvm_intel", "vmm/qemu-system-x86_64", "a..b", "a" + strings.Repeat("b", 127)} {
		if !ValidName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", ".", "-a", "_a", "/a", "A", "a b", "a\x00", "é", "a" + strings.Repeat("b", 128)} {
		if ValidName(name) {
			t.Errorf("%q is accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, l := range []*v1.IntegrityLog{goodLog(), {Version: 1, Host: "h", MeasuredAt: timestamppb.New(at)}, {}} {
		raw, err := proto.Marshal(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{fieldEntries<<3 | 2, 0, fieldEntries<<3 | 2, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			var want *Error
			if l != nil || !errors.As(err, &want) || len(err.Error()) > 4096 {
				t.Errorf("%x: %v and %v", raw, l, err)
			}
			return
		}
		// What was accepted can be built, and then parses to the same.
		again, err := Build(l.GetHost(), l.GetMeasuredAt().AsTime(), l.GetEntries(), l.GetTpmQuote())
		if err != nil {
			t.Fatalf("%x: accepted, but not built again: %v", raw, err)
		}
		if m, err := Parse(again); err != nil || !proto.Equal(l, m) {
			t.Errorf("%x: built again as %x: %v", raw, again, err)
		}
	})
}

func BenchmarkParse100Entries(b *testing.B) {
	var entries []*v1.IntegrityEntry
	for i := range 100 {
		entries = append(entries, digestEntry(fmt.Sprintf("e%05d", i)))
	}
	raw, err := Build("compute1", at, entries, goodLog().GetTpmQuote())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}
