package dcap

import (
	"bytes"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

// Fuzz targets run on simulated seeds, for the vectors may be absent. What all of them assert: no panic, an error or a value, and of a value
// what the rest of the package relies on.

func FuzzPCKExtension(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	for _, e := range r.pck(f).cert.Extensions {
		if e.Id.Equal(oidSGX()) {
			f.Add(e.Value)
		}
	}
	f.Add([]byte{0x30, 0x80})
	f.Add(bytes.Repeat([]byte{0x30, 0x82, 0xff, 0xff}, 64))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parseExtension(raw)
		if err != nil {
			if p != nil || !errors.Is(err, errExtension) {
				t.Errorf("got %v, %v", p, err)
			}
			return
		}
		if len(p.FMSPC) != 12 || len(p.PCEID) != 4 || len(raw) > maxExtension {
			t.Errorf("got %+v", p)
		}
	})
}

func FuzzTCBInfo(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	f.Add([]byte(bodyOf(f, r.issue(f, simulated.CollateralOptions{}).TCBInfo)))
	f.Add([]byte(tdxInfo(strings.Repeat("0 ", 16))))
	f.Add([]byte(`{"tcbLevels":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		info, err := parseTCBInfo(raw)
		if err != nil {
			return
		}
		pck := &PCK{}
		for i := range pck.ComponentSVNs {
			pck.ComponentSVNs[i] = 255
		}
		pck.PCESVN = 65535
		if l := info.match(pck, nil); l == nil || !l.Status.known() {
			t.Errorf("a platform above everything has level %+v", l)
		}
		if info.ID != idTDX {
			return
		}
		all := td(bytes.Repeat([]byte{255}, 16)...)
		if l := info.match(pck, all); l == nil {
			t.Error("a TD above everything has no level")
		}
		for version := range 3 {
			if m, err := info.moduleStatus(td(255, byte(version))); err == nil && m.Status != "" && !m.Status.ofEnclave() && m.Status != Unsupported {
				t.Errorf("module status %q", m.Status)
			}
		}
	})
}

func FuzzQEIdentity(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	f.Add([]byte(bodyOf(f, r.issue(f, simulated.CollateralOptions{}).QEIdentity)), uint16(8))
	f.Add([]byte(`{"id":"QE","version":2}`), uint16(0))
	f.Fuzz(func(t *testing.T, raw []byte, svn uint16) {
		q, err := parseQEIdentity(raw)
		if err != nil {
			return
		}
		report := sgxReport(svn)
		if s := q.status(report); !s.Status.ofEnclave() {
			t.Errorf("status %q", s.Status)
		}
		if err := q.describes(report); err != nil && !errors.Is(err, CheckQEReport) {
			t.Error(err)
		}
	})
}

func FuzzDocument(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	f.Add(r.issue(f, simulated.CollateralOptions{}).TCBInfo)
	f.Add([]byte(`{"signature":"","tcbInfo":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := parseDocument(ArtefactTCBInfo, "tcbInfo", raw)
		if err != nil {
			if !errors.Is(err, CheckDocument) {
				t.Error(err)
			}
			return
		}
		if len(d.body) == 0 || !bytes.Contains(raw, d.body) {
			t.Errorf("the body %q is not of the document", d.body)
		}
	})
}

func FuzzCRL(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	c := r.issue(f, simulated.CollateralOptions{RevokedPCKs: bigInts(1, 2, 3)})
	f.Add(c.PCKCRL)
	f.Add(c.RootCACRL)
	ca := r.authorityIdentity(f, "pck_platform_ca").cert
	f.Fuzz(func(t *testing.T, der []byte) {
		l, err := parseCRL(ArtefactPCKCRL, der)
		if err != nil {
			if !errors.Is(err, CheckCRL) {
				t.Error(err)
			}
			return
		}
		if l.period().to.IsZero() {
			t.Error("a CRL without an end")
		}
		if err := l.issuedBy(ca); err == nil && !bytes.Equal(der, c.PCKCRL) {
			t.Error("another CRL verifies")
		}
	})
}

func FuzzVerify(f *testing.F) {
	r := newRig(f, simulated.PlatformOptions{})
	checked, err := r.verifier.CheckCollateral(r.issue(f, simulated.CollateralOptions{}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(r.quote(f, 3))
	f.Add(r.quote(f, 4))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := checked.Verify(raw, now)
		var e *Error
		switch {
		case err == nil && (got.MRSigner != measurement.MRSigner || got.ReportData != reportData):
			t.Errorf("a forged quote verifies: %+v", got)
		case err != nil && (got != nil || !errors.As(err, &e)):
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// Inputs made to be costly, at the size limits. The bounds are generous: they are there to catch what grows faster than its input.
func TestHostileInputCostsLittle(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	honest := r.issue(t, simulated.CollateralOptions{})
	q := r.quote(t, 3)
	fill := func(unit string, size int) []byte { return []byte(strings.Repeat(unit, size/len(unit))) }
	with := func(set func(*collateral.Collateral)) *collateral.Collateral {
		c := *honest
		set(&c)
		return &c
	}
	for name, tc := range map[string]struct {
		quote []byte
		c     *collateral.Collateral
	}{
		"a chain of begins":  {withChain(t, q, fill("-----BEGIN CERTIFICATE-----\n", 60<<10)), honest},
		"a chain of ends":    {withChain(t, q, fill("-----BEGIN X-----\n-----END Y-----\n", 60<<10)), honest},
		"a chain of empties": {withChain(t, q, fill("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", 60<<10)), honest},
		"a quote of 60 MB":   {make([]byte, 60<<20), honest},
		"a signing chain":    {q, with(func(c *collateral.Collateral) { c.TCBSigningChain = fill("-----BEGIN CERTIFICATE-----\n", 64<<10) })},
		"deep brackets":      {q, with(func(c *collateral.Collateral) { c.TCBInfo = append([]byte(`{"tcbInfo":`), fill("[", 200<<10)...) })},
		"a long document": {q, with(func(c *collateral.Collateral) {
			c.QEIdentity = append([]byte(`{"enclaveIdentity":[`), fill("0,", 60<<10)...)
		})},
		"many keys":             {q, with(func(c *collateral.Collateral) { c.TCBInfo = append([]byte(`{`), fill(`"a":0,`, 200<<10)...) })},
		"a CRL of sequences":    {q, with(func(c *collateral.Collateral) { c.PCKCRL = fill("\x30\x80", 1<<20) })},
		"a CRL of much revoked": {q, r.issue(t, simulated.CollateralOptions{RevokedPCKs: bigInts(consecutive(20000)...)})},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := r.verifier.Verify(tc.quote, tc.c, now)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 || took > 5*time.Second {
				t.Errorf("%d bytes allocated in %v", used, took)
			}
			if (err == nil) != (name == "a CRL of much revoked") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	r := newRig(b, simulated.PlatformOptions{})
	c := r.issue(b, simulated.CollateralOptions{})
	q := r.quote(b, 3)
	checked, err := r.verifier.CheckCollateral(c)
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, verify func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := verify(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("checked collateral", func() error { _, err := checked.Verify(q, now); return err })
	run("raw collateral", func() error { _, err := r.verifier.Verify(q, c, now); return err })
	run("collateral alone", func() error { _, err := r.verifier.CheckCollateral(c); return err })
}

func BenchmarkVerifyReal(b *testing.B) {
	v := loadVectors(b)[1] // a platform's, with the long PCK CRL
	checked, err := intel().CheckCollateral(v.collateral)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := checked.Verify(v.quote, v.want.VerifyAt); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCollateralIsReadFromAnAuthoritysDirectory(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	c, err := collateral.LoadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	raw := read(t, filepath.Join(r.dir, simulated.RootFile))
	pin, err := PinPEM(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Verifier{Root: pin}).Verify(r.quote(t, 3), c, now); err != nil || got.Status != UpToDate {
		t.Errorf("got %v, %v", got, err)
	}
}
