package appraise

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/hosttpm"
	"github.com/safeconduct/safeconduct/integrity/measure"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

// machine is a host with files, a measurer and a real TPM.
type machine struct {
	root, address string
	items         []measure.Item
	tpm           *hosttpm.TPM
	ak            []byte
}

var pcrs = []int{0, 4, 7, 10}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{root: t.TempDir(), address: swtpmtest.Start(t)}
	for _, name := range []string{"qemu", "swtpm"} {
		m.write(t, name, name)
		m.items = append(m.items, measure.Item{Name: "vmm/" + name, Kind: measure.KindFile, Path: "/" + name})
	}
	m.items = append(m.items, measure.Item{Name: "kernel/image", Kind: measure.KindKernelImage})
	var err error
	if m.tpm, err = hosttpm.Open(m.address); err != nil {
		t.Fatal(err)
	}
	if m.ak, err = m.tpm.AKPublic(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, name), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// log measures, quotes, builds and parses, as two nodes do in an exchange.
func (m *machine) log(t testing.TB, qualifying [32]byte) *v1.IntegrityLog {
	t.Helper()
	measurer, err := measure.New(measure.Config{Root: m.root, Items: m.items})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := measurer.Measure(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	quote, err := m.tpm.Quote(context.Background(), qualifying, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hostlog.Build("compute2", now, entries, quote)
	if err != nil {
		t.Fatal(err)
	}
	log, err := hostlog.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func TestAHostWithARealTPMIsAcceptedAndEachSingleChangeRefused(t *testing.T) {
	m := newMachine(t)
	refs, err := Generate(m.log(t, [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	qualifying := sha256.Sum256([]byte("this exchange"))
	want := Expectation{Host: "compute2", Qualifying: qualifying, AKPublic: m.ak, Now: now, MaxAge: 30 * time.Second}
	good := m.log(t, qualifying)
	v := Appraise(good, refs, want)
	if !v.Accepted() || v.TPM == nil || !slices.Equal(v.Matched, []string{"kernel/image", "vmm/qemu", "vmm/swtpm", "pcr/0", "pcr/4", "pcr/7", "pcr/10"}) {
		t.Fatalf("verdict %+v: %v", v, v.Err())
	}
	if !v.Summary("compute2", nil).GetTpmQuoteVerified() {
		t.Error("the summary leaves the TPM out")
	}

	// What changes on the host.
	t.Run("a file is replaced", func(t *testing.T) {
		m.write(t, "qemu", "another")
		defer m.write(t, "qemu", "qemu")
		onlyMismatch(t, Appraise(m.log(t, qualifying), refs, want), "vmm/qemu", KindDigest)
	})
	t.Run("a file is removed", func(t *testing.T) {
		if err := os.Remove(filepath.Join(m.root, "swtpm")); err != nil {
			t.Fatal(err)
		}
		defer m.write(t, "swtpm", "swtpm")
		onlyMismatch(t, Appraise(m.log(t, qualifying), refs, want), "vmm/swtpm", KindAbsent)
	})
	t.Run("an item is not measured", func(t *testing.T) {
		all := m.items
		m.items = all[1:]
		defer func() { m.items = all }()
		onlyMismatch(t, Appraise(m.log(t, qualifying), refs, want), "vmm/qemu", KindMissing)
	})
	t.Run("an item is measured that nobody expects", func(t *testing.T) {
		all := m.items
		m.items = append(slices.Clone(all), measure.Item{Name: "extra", Kind: measure.KindFile, Path: "/qemu"})
		defer func() { m.items = all }()
		onlyMismatch(t, Appraise(m.log(t, qualifying), refs, want), "extra", KindUnlisted)
	})

	// What changes about the quote.
	quote := func(name string, change func(*v1.IntegrityLog, *Expectation), check tpmquote.Check) {
		t.Run(name, func(t *testing.T) {
			l, w := proto.CloneOf(good), want
			change(l, &w)
			v := Appraise(l, refs, w)
			got := onlyMismatch(t, v, "tpm", KindTPMQuote)
			if !errors.Is(got, check) || !errors.Is(v.Err(), check) {
				t.Errorf("got %v, want %v", got.Cause, check)
			}
			if v.TPM != nil || v.Summary("compute2", nil).GetTpmQuoteVerified() {
				t.Error("a quote that does not verify counts as verified")
			}
		})
	}
	quote("it was made for another exchange", func(_ *v1.IntegrityLog, w *Expectation) { w.Qualifying[0] ^= 1 }, tpmquote.CheckQualifyingData)
	quote("another TPM's key is enrolled", func(_ *v1.IntegrityLog, w *Expectation) { w.AKPublic = newMachine(t).ak }, tpmquote.CheckKey)
	quote("another TPM answers (cuckoo)", func(l *v1.IntegrityLog, _ *Expectation) {
		l.TpmQuote = newMachine(t).log(t, qualifying).GetTpmQuote()
	}, tpmquote.CheckKey)
	quote("another TPM answers under this one's name", func(l *v1.IntegrityLog, _ *Expectation) {
		l.TpmQuote = newMachine(t).log(t, qualifying).GetTpmQuote()
		l.TpmQuote.AkPublic = m.ak
	}, tpmquote.CheckSignature)
	quote("the signature is altered", func(l *v1.IntegrityLog, _ *Expectation) { l.TpmQuote.Signature[40] ^= 1 }, tpmquote.CheckSignature)
	quote("the signed bytes are altered", func(l *v1.IntegrityLog, _ *Expectation) { l.TpmQuote.Attest[60] ^= 1 }, tpmquote.CheckSignature)
	quote("a PCR value is altered", func(l *v1.IntegrityLog, _ *Expectation) { l.TpmQuote.Pcrs[2].Value[0] ^= 1 }, tpmquote.CheckPCRDigest)
	quote("a PCR is left out", func(l *v1.IntegrityLog, _ *Expectation) { l.TpmQuote.Pcrs = l.TpmQuote.Pcrs[1:] }, tpmquote.CheckSelection)

	// What changed since it was accepted before.
	first := Appraise(good, refs, want).TPM
	again := want
	again.Previous = first
	if v := Appraise(m.log(t, qualifying), refs, again); !v.Accepted() {
		t.Errorf("the same host again: %v", v.Err())
	}
	for name, change := range map[string]func(*tpmquote.Statement){
		"the TPM was reset":       func(s *tpmquote.Statement) { s.ResetCount-- },
		"the TPM was resumed":     func(s *tpmquote.Statement) { s.RestartCount-- },
		"its clock has gone back": func(s *tpmquote.Statement) { s.Clock += 1 << 32 },
	} {
		t.Run(name, func(t *testing.T) {
			before, w := *first, want
			change(&before)
			w.Previous = &before
			onlyMismatch(t, Appraise(m.log(t, qualifying), refs, w), "tpm", KindTPMReset)
		})
	}

	t.Run("the quote is taken out", func(t *testing.T) {
		l := proto.CloneOf(good)
		l.TpmQuote = nil
		onlyMismatch(t, Appraise(l, refs, want), "tpm", KindTPMMissing)
	})
	t.Run("no key is enrolled", func(t *testing.T) {
		w := want
		w.AKPublic = nil
		onlyMismatch(t, Appraise(good, refs, w), "tpm", KindTPMNotEnrolled)
	})
	t.Run("a PCR is judged that was not quoted", func(t *testing.T) {
		more := Merge(refs, &ReferenceValues{PCRs: map[int][]Digest{14: {digest(0)}}})
		for name, f := range more.Files { // required by one side only, no matter here
			f.Required = nil
			more.Files[name] = f
		}
		onlyMismatch(t, Appraise(good, more, want), "pcr/14", KindPCR)
	})
	t.Run("a PCR is quoted that nobody judges", func(t *testing.T) {
		fewer := Merge(refs, refs)
		delete(fewer.PCRs, 10)
		if v := Appraise(good, fewer, want); !v.Accepted() || !slices.Equal(v.Unjudged, []string{"pcr/10"}) {
			t.Errorf("unjudged %v: %v", v.Unjudged, v.Err())
		}
	})
	t.Run("a PCR is extended after the golden log", func(t *testing.T) { // last: there is no way back
		swtpmtest.Extend(t, m.address, 7, sha256.Sum256([]byte("something was started")))
		onlyMismatch(t, Appraise(m.log(t, qualifying), refs, want), "pcr/7", KindPCR)
	})
}

func BenchmarkAppraise100Entries(b *testing.B) {
	m := newMachine(b)
	log := m.log(b, [32]byte{})
	log.Entries = nil
	for i := range 100 {
		log.Entries = append(log.Entries, entry(fmt.Sprintf("entry/%03d", i), byte(i)))
	}
	refs, err := Generate(log)
	if err != nil {
		b.Fatal(err)
	}
	want := Expectation{Host: "compute2", AKPublic: m.ak, Now: now, MaxAge: time.Second}
	b.ReportAllocs()
	for b.Loop() {
		if v := Appraise(log, refs, want); !v.Accepted() {
			b.Fatal(v.Err())
		}
	}
}
