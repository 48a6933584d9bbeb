package appraise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func entry(name string, fill byte) *v1.IntegrityEntry {
	return &v1.IntegrityEntry{
		Name: name, Path: "/usr/bin/x", DigestAlgorithm: "sha256", Digest: bytes.Repeat([]byte{fill}, 32),
		Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Size: 1,
	}
}

func missing(name, reason string) *v1.IntegrityEntry {
	return &v1.IntegrityEntry{Name: name, Absent: reason, Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ}
}

// golden is a host without a TPM; swtpm_test.go has the others.
func golden() *v1.IntegrityLog {
	return &v1.IntegrityLog{
		Version: 1, Host: "compute2", MeasuredAt: timestamppb.New(now),
		Entries: []*v1.IntegrityEntry{missing("kernel/image", "no such file"), entry("vmm/qemu", 1), entry("vmm/swtpm", 2)},
	}
}

func digest(fill byte) Digest { return Digest(bytes.Repeat([]byte{fill}, 32)) }

// withoutTPM are the reference values of golden, loosened as a host without a TPM needs it.
func withoutTPM(t testing.TB) *ReferenceValues {
	t.Helper()
	refs, err := Generate(golden())
	if err != nil {
		t.Fatal(err)
	}
	refs.TPM.Required = new(bool)
	return refs
}

func expect() Expectation {
	return Expectation{Host: "compute2", Now: now, MaxAge: 30 * time.Second}
}

// onlyMismatch checks that exactly one thing speaks against the host, and that it is told in full.
func onlyMismatch(t *testing.T, v *Verdict, item string, kind Kind) Mismatch {
	t.Helper()
	if v.Accepted() || v.Err() == nil || len(v.Mismatches) != 1 {
		t.Fatalf("accepted %v, mismatches %v; want one, %s on %s", v.Accepted(), v.Mismatches, kind, item)
	}
	m := v.Mismatches[0]
	if m.Item != item || m.Kind != kind {
		t.Errorf("got %s on %s, want %s on %s", m.Kind, m.Item, kind, item)
	}
	if m.Found == "" || m.Expected == "" || m.Remedy == "" {
		t.Errorf("found, expected or remedy is missing: %+v", m)
	}
	return m
}

func TestAGoldenHostIsAcceptedUnderItsOwnReferenceValues(t *testing.T) {
	v := Appraise(golden(), withoutTPM(t), expect())
	if !v.Accepted() || v.Err() != nil || !slices.Equal(v.Matched, []string{"kernel/image", "vmm/qemu", "vmm/swtpm"}) || len(v.Unjudged) != 0 {
		t.Errorf("verdict %+v", v)
	}
	s := v.Summary("compute2", []byte("raw"))
	if s.GetMatched() != 3 || s.GetUnjudged() != 0 || s.GetTpmQuoteVerified() || len(s.GetLogDigest()) != 32 || s.GetHost() != "compute2" {
		t.Errorf("summary %v", s)
	}
}

func TestEachSingleChangeIsRefusedWithItsOwnReason(t *testing.T) {
	type log = v1.IntegrityLog
	required := true
	for name, tc := range map[string]struct {
		log  func(*log)
		refs func(*ReferenceValues)
		want func(*Expectation)
		item string
		kind Kind
	}{
		"a digest changed":            {log: func(l *log) { l.Entries[1].Digest[31] ^= 1 }, item: "vmm/qemu", kind: KindDigest},
		"an entry left out":           {log: func(l *log) { l.Entries = l.Entries[:2] }, item: "vmm/swtpm", kind: KindMissing},
		"an absent entry left out":    {log: func(l *log) { l.Entries = l.Entries[1:] }, item: "kernel/image", kind: KindMissing},
		"an entry too many":           {log: func(l *log) { l.Entries = append(l.Entries, entry("zzz", 9)) }, item: "zzz", kind: KindUnlisted},
		"an absent entry too many":    {log: func(l *log) { l.Entries = append(l.Entries, missing("zzz", "gone")) }, item: "zzz", kind: KindUnlisted},
		"a file that is gone":         {log: func(l *log) { l.Entries[1] = missing("vmm/qemu", "no such file") }, item: "vmm/qemu", kind: KindAbsent},
		"a file where there was none": {log: func(l *log) { l.Entries[0] = entry("kernel/image", 9) }, item: "kernel/image", kind: KindDigest},
		"another host's log":          {log: func(l *log) { l.Host = "compute3" }, item: "host", kind: KindWrongHost},
		"a log of 31 seconds ago":     {want: func(e *Expectation) { e.Now = now.Add(31 * time.Second) }, item: "measured_at", kind: KindStale},
		"a log of the future":         {want: func(e *Expectation) { e.Now = now.Add(-31 * time.Second) }, item: "measured_at", kind: KindStale},
		"no bound on the age given":   {want: func(e *Expectation) { e.MaxAge, e.Now = 0, now.Add(1) }, item: "measured_at", kind: KindStale},
		"a negative bound":            {want: func(e *Expectation) { e.MaxAge = math.MinInt64 }, item: "measured_at", kind: KindStale},
		"a log of the year 1":         {log: func(l *log) { l.MeasuredAt = timestamppb.New(time.Time{}) }, item: "measured_at", kind: KindStale},
		"a log of the year 9999": {
			log:  func(l *log) { l.MeasuredAt = timestamppb.New(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)) },
			item: "measured_at", kind: KindStale,
		},
		"a malformed log":              {log: func(l *log) { l.Entries[1].Digest = nil }, item: "log", kind: KindLogInvalid},
		"a log with a field too many":  {log: func(l *log) { l.ProtoReflect().SetUnknown([]byte{0xa0, 6, 1}) }, item: "log", kind: KindLogInvalid},
		"a digest that policy dropped": {refs: func(r *ReferenceValues) { r.Files["vmm/qemu"] = File{SHA256: []Digest{digest(7)}} }, item: "vmm/qemu", kind: KindDigest},
		"explicitly required":          {refs: func(r *ReferenceValues) { r.Files["more"] = File{SHA256: []Digest{digest(7)}, Required: &required} }, item: "more", kind: KindMissing},
		"a reference that cannot match": {
			refs: func(r *ReferenceValues) { r.Files["vmm/qemu"] = File{} }, item: "policy", kind: KindReferenceInvalid,
		},
		"an unknown rule for unlisted": {refs: func(r *ReferenceValues) { r.Unlisted = "accept" }, item: "policy", kind: KindReferenceInvalid},
		"a TPM quote that is missing": {
			refs: func(r *ReferenceValues) { r.TPM, r.PCRs = TPM{}, map[int][]Digest{0: {digest(0)}} }, item: "tpm", kind: KindTPMMissing,
		},
		"a TPM quote without an enrolled key": {
			log: func(l *log) {
				l.TpmQuote = &v1.TpmQuote{
					Attest: []byte{1}, Signature: []byte{1}, AkPublic: []byte{1}, Pcrs: []*v1.PcrValue{{Bank: "sha256", Value: make([]byte, 32)}},
				}
			}, item: "tpm", kind: KindTPMNotEnrolled,
		},
		"a TPM quote that does not verify, although none is required": {
			log: func(l *log) {
				l.TpmQuote = &v1.TpmQuote{
					Attest: []byte{1}, Signature: []byte{1}, AkPublic: []byte{1}, Pcrs: []*v1.PcrValue{{Bank: "sha256", Value: make([]byte, 32)}},
				}
			}, want: func(e *Expectation) { e.AKPublic = []byte{1} }, item: "tpm", kind: KindTPMQuote,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, refs, want := golden(), withoutTPM(t), expect()
			if tc.log != nil {
				tc.log(l)
			}
			if tc.refs != nil {
				tc.refs(refs)
			}
			if tc.want != nil {
				tc.want(&want)
			}
			onlyMismatch(t, Appraise(l, refs, want), tc.item, tc.kind)
		})
	}
}

func TestTheBoundOnTheAgeIsIncludedBothWays(t *testing.T) {
	for _, d := range []time.Duration{-30 * time.Second, 0, 30 * time.Second} {
		want := expect()
		want.Now = now.Add(d)
		if v := Appraise(golden(), withoutTPM(t), want); !v.Accepted() {
			t.Errorf("%v: %v", d, v.Err())
		}
	}
}

func TestEveryMismatchIsListedNotTheFirstOnly(t *testing.T) {
	l := golden()
	l.Host = "compute3"
	l.Entries = []*v1.IntegrityEntry{entry("kernel/image", 9), entry("vmm/qemu", 9), entry("zzz", 9)}
	want := expect()
	want.Now = now.Add(time.Hour)
	refs := withoutTPM(t)
	refs.TPM.Required = nil
	v := Appraise(l, refs, want)
	var got []string
	for _, m := range v.Mismatches {
		got = append(got, m.Item+" "+string(m.Kind))
	}
	expected := []string{
		"host wrong_host", "measured_at stale", "kernel/image digest", "vmm/qemu digest", "zzz unlisted",
		"vmm/swtpm missing", "policy reference_invalid", "tpm tpm_missing",
	}
	if !slices.Equal(got, expected) {
		t.Errorf("got %q, want %q", got, expected)
	}
	var refused *RefusedError
	if err := v.Err(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "and 5 more") {
		t.Errorf("error %v", err)
	}
	var m Mismatch
	if !errors.As(v.Err(), &m) || m.Kind != KindWrongHost {
		t.Errorf("no mismatch in the error's chain: %v", m)
	}
}

func TestTheZeroValueOfEverythingRefuses(t *testing.T) {
	for name, v := range map[string]*Verdict{
		"no reference values":                  Appraise(golden(), nil, expect()),
		"empty reference values":               Appraise(golden(), &ReferenceValues{}, expect()),
		"empty values on an empty log":         Appraise(&v1.IntegrityLog{}, &ReferenceValues{}, Expectation{}),
		"no log":                               Appraise(nil, withoutTPM(t), expect()),
		"nothing expected":                     Appraise(golden(), withoutTPM(t), Expectation{}),
		"a verdict that nobody reached":        {},
		"no verdict":                           nil,
		"every switch loosened, and no values": Appraise(golden(), &ReferenceValues{TPM: TPM{Required: new(bool)}, Unlisted: UnlistedReport}, expect()),
	} {
		if v.Accepted() || v.Err() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (&Verdict{}).Err(); err.Error() != "host integrity was not judged" {
		t.Errorf("error %q", err)
	}
	if err := (*Verdict)(nil).Err(); errors.Is(err, tpmquote.CheckSignature) || err.Error() != "host integrity was not judged" {
		t.Errorf("error %q", err)
	}
}

func TestUnlistedEntriesAreReportedIfPolicySaysSo(t *testing.T) {
	l, refs := golden(), withoutTPM(t)
	l.Entries = append(l.Entries, entry("zzz", 9))
	refs.Unlisted = UnlistedReport
	v := Appraise(l, refs, expect())
	if !v.Accepted() || !slices.Equal(v.Unjudged, []string{"zzz"}) || slices.Contains(v.Matched, "zzz") {
		t.Errorf("verdict %+v", v)
	}
}

func TestInformationIsJudgedOnlyIfItIsListed(t *testing.T) {
	told := golden()
	cpu := entry("cpu", 9)
	cpu.Information = true
	told.Entries = append([]*v1.IntegrityEntry{cpu}, told.Entries...)
	refs, err := Generate(told)
	if err != nil {
		t.Fatal(err)
	}
	refs.TPM.Required = new(bool)
	if v := Appraise(told, refs, expect()); !v.Accepted() || !slices.Equal(v.Unjudged, []string{"cpu"}) {
		t.Errorf("verdict %+v", v)
	}
	refs.Files["cpu"] = File{SHA256: []Digest{digest(8)}}
	onlyMismatch(t, Appraise(told, refs, expect()), "cpu", KindDigest)
}

func TestAnEntryThatIsNotRequiredMayBeMissingButNotWrong(t *testing.T) {
	refs := withoutTPM(t)
	f := refs.Files["vmm/swtpm"]
	f.Required = new(bool)
	refs.Files["vmm/swtpm"] = f
	l := golden()
	l.Entries = l.Entries[:2]
	if v := Appraise(l, refs, expect()); !v.Accepted() {
		t.Error(v.Err())
	}
	l = golden()
	l.Entries[2].Digest[0] ^= 1
	onlyMismatch(t, Appraise(l, refs, expect()), "vmm/swtpm", KindDigest)
}

func TestATPMThatIsRequiredNeedsPCRsToJudge(t *testing.T) {
	refs := withoutTPM(t)
	refs.TPM.Required = nil
	v := Appraise(golden(), refs, expect())
	if len(v.Mismatches) != 2 || v.Mismatches[0].Kind != KindReferenceInvalid || v.Mismatches[1].Kind != KindTPMMissing {
		t.Errorf("mismatches %v", v.Mismatches)
	}
}

func TestEveryKindHasAReasonForTheWire(t *testing.T) {
	for kind, want := range map[Kind]v1.Reason{
		KindLogInvalid: v1.Reason_REASON_PROTOCOL_VIOLATION, KindWrongHost: v1.Reason_REASON_PROTOCOL_VIOLATION,
		KindReferenceInvalid: v1.Reason_REASON_POLICY_REFUSED, KindStale: v1.Reason_REASON_INTEGRITY_STALE,
		KindTPMMissing: v1.Reason_REASON_TPM_QUOTE_INVALID, KindTPMNotEnrolled: v1.Reason_REASON_TPM_QUOTE_INVALID,
		KindTPMQuote: v1.Reason_REASON_TPM_QUOTE_INVALID, KindDigest: v1.Reason_REASON_INTEGRITY_MISMATCH,
		KindAbsent: v1.Reason_REASON_INTEGRITY_MISMATCH, KindMissing: v1.Reason_REASON_INTEGRITY_MISMATCH,
		KindUnlisted: v1.Reason_REASON_INTEGRITY_MISMATCH, KindPCR: v1.Reason_REASON_INTEGRITY_MISMATCH,
	} {
		if got := kind.Reason(); got != want {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

func TestReferenceValuesSurviveJSON(t *testing.T) {
	want := withoutTPM(t)
	want.PCRs = map[int][]Digest{0: {digest(3)}, 23: {digest(4), digest(5)}}
	want.Unlisted = UnlistedReport
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got ReferenceValues
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&got)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("%s became %s, %v", raw, again, err)
	}
	if got.TPM.required() || !got.Files["vmm/qemu"].required() || !got.Files["kernel/image"].AllowAbsent {
		t.Errorf("read %+v", got)
	}
}

func TestReferenceValuesWithAMistakeAreRefused(t *testing.T) {
	ok := strings.Repeat("ab", 32)
	for name, in := range map[string]string{
		"a prefix":                 `{"files":{"a":{"sha256":["sha256:` + ok + `"]}}}`,
		"upper case":               `{"files":{"a":{"sha256":["` + strings.ToUpper(ok) + `"]}}}`,
		"a digit missing":          `{"files":{"a":{"sha256":["` + ok[1:] + `"]}}}`,
		"two digits missing":       `{"files":{"a":{"sha256":["` + ok[2:] + `"]}}}`,
		"a digit that is none":     `{"files":{"a":{"sha256":["` + ok[:63] + `x"]}}}`,
		"an empty digest":          `{"files":{"a":{"sha256":[""]}}}`,
		"no digest":                `{"files":{"a":{}}}`,
		"a name that is not one":   `{"files":{"A":{"sha256":["` + ok + `"]}}}`,
		"an unknown key":           `{"files":{"a":{"sha1":["` + ok + `"]}}}`,
		"a rule that is not there": `{"unlisted":"ignore"}`,
		"PCR 24":                   `{"pcrs":{"24":["` + ok + `"]}}`,
		"PCR -1":                   `{"pcrs":{"-1":["` + ok + `"]}}`,
		"PCR seven":                `{"pcrs":{"seven":["` + ok + `"]}}`,
		"a PCR without a value":    `{"pcrs":{"7":[]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			var r ReferenceValues
			dec := json.NewDecoder(strings.NewReader(in))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&r); err == nil {
				if err := r.Validate(); err == nil {
					t.Errorf("accepted as %+v", r)
				}
			}
		})
	}
	good := ReferenceValues{Files: map[string]File{"a": {SHA256: []Digest{digest(1)}}}, PCRs: map[int][]Digest{0: {digest(1)}}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestGenerateRefusesALogThatIsNotOne(t *testing.T) {
	var want *hostlog.Error
	if r, err := Generate(&v1.IntegrityLog{}); r != nil || !errors.As(err, &want) {
		t.Errorf("got %v and %v", r, err)
	}
}

func TestTwoGoldenHostsAreBothAcceptedUnderTheirUnion(t *testing.T) {
	a, b := golden(), golden()
	b.Entries = []*v1.IntegrityEntry{entry("kernel/image", 5), entry("kernel/modules/kvm_amd", 6), entry("vmm/qemu", 7), entry("vmm/swtpm", 2)}
	ra, rb := withoutTPM(t), withoutTPM(t)
	generated, err := Generate(b)
	if err != nil {
		t.Fatal(err)
	}
	rb.Files = generated.Files
	m := Merge(ra, rb)
	for _, l := range []*v1.IntegrityLog{a, b} {
		if v := Appraise(l, m, expect()); !v.Accepted() {
			t.Error(v.Err())
		}
	}
	if f := m.Files["kernel/modules/kvm_amd"]; f.required() {
		t.Error("an entry of one golden host alone is still required")
	}
	if f := m.Files["vmm/swtpm"]; !f.required() || len(f.SHA256) != 1 {
		t.Errorf("what both have: %+v", f)
	}
	if f := m.Files["kernel/image"]; !f.AllowAbsent || !slices.Equal(f.SHA256, []Digest{digest(5)}) {
		t.Errorf("absent on one, present on the other: %+v", f)
	}
	third := proto.CloneOf(a)
	third.Entries[1].Digest = bytes.Repeat([]byte{9}, 32)
	onlyMismatch(t, Appraise(third, m, expect()), "vmm/qemu", KindDigest)
}

func TestMergingLoosensNothingThatOneSideAsksFor(t *testing.T) {
	strict := &ReferenceValues{Files: map[string]File{"a": {SHA256: []Digest{digest(1)}}}, PCRs: map[int][]Digest{0: {digest(1)}}}
	loose := &ReferenceValues{
		Files: map[string]File{"a": {SHA256: []Digest{digest(1)}}}, PCRs: map[int][]Digest{7: {digest(2)}},
		TPM: TPM{Required: new(bool)}, Unlisted: UnlistedReport,
	}
	for _, m := range []*ReferenceValues{Merge(strict, loose), Merge(loose, strict)} {
		if !m.TPM.required() || m.Unlisted != UnlistedRefuse || len(m.PCRs) != 2 || !m.Files["a"].required() {
			t.Errorf("merged %+v", m)
		}
	}
	if m := Merge(loose, loose); m.TPM.required() || m.Unlisted != UnlistedReport || len(m.Files["a"].SHA256) != 1 {
		t.Errorf("merged %+v", m)
	}
	m := Merge(&ReferenceValues{}, &ReferenceValues{})
	if v := Appraise(golden(), m, expect()); v.Accepted() {
		t.Error("the union of nothing accepts a host")
	}
	before := len(strict.Files["a"].SHA256)
	if Merge(strict, loose); len(strict.Files["a"].SHA256) != before || len(strict.PCRs) != 1 {
		t.Error("merging changed its argument")
	}
}

// FuzzReferenceValues reads policies of any content: what is valid keeps its meaning when it is written and read again.
func FuzzReferenceValues(f *testing.F) {
	f.Add([]byte(`{"files":{"vmm/qemu":{"sha256":["` + strings.Repeat("ab", 32) + `"]}},"pcrs":{"7":["` + strings.Repeat("00", 32) + `"]},"tpm":{"required":false},"unlisted":"report"}`))
	f.Add([]byte(`{"files":{"a":{"allow_absent":true,"required":false}}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r ReferenceValues
		if json.Unmarshal(raw, &r) != nil || r.Validate() != nil {
			return
		}
		out, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		var again ReferenceValues
		if err := json.Unmarshal(out, &again); err != nil || again.Validate() != nil {
			t.Fatalf("%s became %s: %v", raw, out, err)
		}
		a, b := Appraise(golden(), &r, expect()), Appraise(golden(), &again, expect())
		if fmt.Sprint(a.Mismatches) != fmt.Sprint(b.Mismatches) {
			t.Errorf("%s: %v, then %v", raw, a.Mismatches, b.Mismatches)
		}
	})
}
