package appraise

import (
	"slices"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// upgraded is golden after an upgrade: another QEMU, a new tool, no swtpm.
func upgraded() *v1.IntegrityLog {
	l := golden()
	l.Entries = []*v1.IntegrityEntry{l.Entries[0], entry("vmm/qemu", 11), entry("vmm/tool", 12)}
	return l
}

func TestAFleetRollsFromOneVersionToTheNext(t *testing.T) {
	old := withoutTPM(t)
	next, err := Generate(upgraded())
	if err != nil {
		t.Fatal(err)
	}
	next.TPM.Required = new(bool)
	until := now.Add(time.Hour)
	both := Roll(old, next, until)
	if err := both.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*v1.IntegrityLog{"old": golden(), "new": upgraded()} {
		if v := Appraise(l, both, expect()); !v.Accepted() {
			t.Errorf("%s within the window: %v", name, v.Err())
		}
	}
	mixed := golden()
	mixed.Entries[1] = entry("vmm/qemu", 99)
	onlyMismatch(t, Appraise(mixed, both, expect()), "vmm/qemu", KindDigest)

	later := expect()
	later.Now, later.MaxAge = until.Add(time.Second), 2*time.Hour
	if v := Appraise(upgraded(), both, later); !v.Accepted() {
		t.Errorf("new after the window: %v", v.Err())
	}
	v := Appraise(golden(), both, later)
	var items []string
	for _, m := range v.Mismatches {
		items = append(items, m.Item+" "+string(m.Kind))
	}
	if want := []string{"vmm/qemu digest", "vmm/swtpm digest"}; !slices.Equal(items, want) {
		t.Errorf("old after the window: %v, want %v", items, want)
	}
}

func TestAnEndThatWasEarlierStays(t *testing.T) {
	old, next := withoutTPM(t), withoutTPM(t)
	f := old.Files["vmm/qemu"]
	f.NotAfter = map[Digest]time.Time{digest(1): now.Add(time.Minute)}
	old.Files["vmm/qemu"] = f
	next.Files["vmm/qemu"] = File{SHA256: []Digest{digest(7)}}
	if got := Roll(old, next, now.Add(time.Hour)).Files["vmm/qemu"].NotAfter[digest(1)]; !got.Equal(now.Add(time.Minute)) {
		t.Errorf("it ends at %v", got)
	}
}

func TestPCRsRollToo(t *testing.T) {
	old := &ReferenceValues{PCRs: map[int][]Digest{0: {digest(1)}, 7: {digest(2)}}}
	next := &ReferenceValues{PCRs: map[int][]Digest{0: {digest(3)}}}
	both := Roll(old, next, now)
	if err := both.Validate(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(both.PCRs[0], []Digest{digest(1), digest(3)}) || !both.PCRsNotAfter[0][digest(1)].Equal(now) || both.PCRs[7] != nil {
		t.Errorf("got %+v", both)
	}
}

func TestADifferenceIsListedInFull(t *testing.T) {
	old := withoutTPM(t)
	next, err := Generate(upgraded())
	if err != nil {
		t.Fatal(err)
	}
	next.IMA.Required = true
	var got []string
	for _, c := range Diff(old, next) {
		got = append(got, c.Item+" "+c.What)
	}
	want := []string{
		"ima.required changed", "tpm.required changed", "vmm/qemu accepts", "vmm/qemu no longer accepts",
		"vmm/swtpm no longer accepts", "vmm/swtpm removed", "vmm/tool accepts", "vmm/tool added",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if d := Diff(old, old); len(d) != 0 {
		t.Errorf("no difference: %v", d)
	}
}

func TestEndsOfWhatIsNotAcceptedAreRefused(t *testing.T) {
	r := withoutTPM(t)
	f := r.Files["vmm/qemu"]
	f.NotAfter = map[Digest]time.Time{digest(99): now}
	r.Files["vmm/qemu"] = f
	if r.Validate() == nil {
		t.Error("an end of a digest that is not listed is accepted")
	}
	r = withoutTPM(t)
	r.PCRsNotAfter = map[int]map[Digest]time.Time{3: {digest(1): now}}
	if r.Validate() == nil {
		t.Error("an end of a PCR value that is not listed is accepted")
	}
}

func TestMergingEndsNothingEarlierThanEitherSide(t *testing.T) {
	with := func(ends map[Digest]time.Time) *ReferenceValues {
		return &ReferenceValues{
			Files: map[string]File{"x": {SHA256: []Digest{digest(1), digest(2)}, NotAfter: ends}},
			PCRs:  map[int][]Digest{0: {digest(1)}}, PCRsNotAfter: map[int]map[Digest]time.Time{0: {digest(1): now}},
		}
	}
	got := Merge(with(map[Digest]time.Time{digest(1): now, digest(2): now}), with(map[Digest]time.Time{digest(1): now.Add(time.Hour)}))
	if ends := got.Files["x"].NotAfter; len(ends) != 1 || !ends[digest(1)].Equal(now.Add(time.Hour)) {
		t.Errorf("ends %v", ends)
	}
	if !got.PCRsNotAfter[0][digest(1)].Equal(now) {
		t.Errorf("ends of PCRs %v", got.PCRsNotAfter)
	}
}

func TestMergingAsksForWhatEitherSideAsksFor(t *testing.T) {
	a := &ReferenceValues{Boot: Boot{SecureBoot: true}, IMA: IMA{AllowViolations: true, ReportOnly: true}}
	b := &ReferenceValues{IMA: IMA{Required: true, RuntimePolicy: []byte("{}")}}
	got := Merge(a, b)
	if !got.Boot.SecureBoot || !got.IMA.Required || got.IMA.AllowViolations || got.IMA.ReportOnly || string(got.IMA.RuntimePolicy) != "{}" {
		t.Errorf("got %+v", got)
	}
}
