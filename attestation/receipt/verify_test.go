package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/tee"
)

var update = flag.Bool("update", false, "make testdata anew")

const (
	source      = v1.Role_ROLE_SOURCE
	destination = v1.Role_ROLE_DESTINATION

	goldenExport = "testdata/export.json"
	goldenPolicy = "testdata/policy.json"
	goldenRoot   = "testdata/root_key_sha256.txt"
)

// golden is the export in testdata and a Verifier that accepts it. It was made by a real handshake between two simulated enclaves.
func golden(t testing.TB) ([]byte, Verifier) {
	t.Helper()
	if *update {
		r := newRig(t)
		must(t, os.WriteFile(goldenExport, export(t, r.entry(t, r.migrate(t))), 0o644))
		must(t, os.WriteFile(goldenPolicy, r.policy.Raw, 0o644))
		must(t, os.WriteFile(goldenRoot, []byte(r.roots[tee.ModeSimulated].String()+"\n"), 0o644))
	}
	read := func(name string) []byte {
		raw, err := os.ReadFile(name)
		must(t, err)
		return raw
	}
	var pin policy.Hex
	must(t, pin.UnmarshalText(bytes.TrimSpace(read(goldenRoot))))
	return read(goldenExport), Verifier{
		Roots: map[tee.Mode]dcap.RootPin{tee.ModeSimulated: dcap.RootPin(pin)}, Policy: loadPolicy(t, string(read(goldenPolicy))),
	}
}

func TestTheGoldenExportIsAccepted(t *testing.T) {
	raw, v := golden(t)
	r, err := v.Verify(raw)
	must(t, err)
	for _, c := range r.Failed() {
		t.Errorf("%s: found %s, expected %s", c.Name, c.Found, c.Expected)
	}
	if !r.Accepted || r.SignedBy != SignedByBoth || !r.SourcePolicy || !r.DestinationPolicy || len(r.OtherCollateral) != 0 || !r.At.Equal(began) {
		t.Errorf("found %+v", r)
	}
	for _, name := range []CheckName{
		CheckID, CheckMode, CheckCtx, CheckTH1, CheckTH2, CheckTH3, CheckSession, CheckTimes, CheckLink, CheckSigned,
		CheckEvidence.Of(source), CheckLog.Of(source), CheckQuote.Of(source), CheckBinding.Of(source), CheckPolicy.Of(source), CheckSignature.Of(source),
		CheckEvidence.Of(destination), CheckLog.Of(destination), CheckQuote.Of(destination), CheckBinding.Of(destination), CheckPolicy.Of(destination),
		CheckFinding.Of(destination), CheckSignature.Of(destination),
	} {
		if n := len(r.named(name)); n != 1 {
			t.Errorf("check %q was made %d times", name, n)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("a report is no JSON: %v", err)
	}
	t.Logf("%d bytes", len(raw))
}

func (r *Report) named(name CheckName) []Result {
	return slices.DeleteFunc(slices.Clone(r.Checks), func(c Result) bool { return c.Name != name })
}

// seal makes an export whole again after its record was changed, as far as one can without the enclaves' keys.
func (e *Export) seal(t *testing.T) {
	t.Helper()
	var err error
	e.Record, err = e.Decoded.Encode()
	must(t, err)
	id := ID(e.Record)
	e.ReceiptID = id[:]
	e.relink()
}

func (e *Export) relink() {
	link := e.Chain.compute([32]byte(e.ReceiptID), &e.Source, &e.Destination)
	e.Chain.Link = link[:]
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// TestEveryCheckFires gives a check's name to every way in which an export can be wrong.
func TestEveryCheckFires(t *testing.T) {
	raw, v := golden(t)
	elsewhere := newRig(t)
	foreign, err := ParseExport(export(t, elsewhere.entry(t, elsewhere.migrate(t))))
	must(t, err)
	for _, c := range []struct {
		name   string
		change func(e *Export, v *Verifier)
		check  CheckName
		// only: nothing else is wrong.
		only bool
	}{
		{"another id", func(e *Export, _ *Verifier) { e.ReceiptID = flip(e.ReceiptID); e.relink() }, CheckID, false},
		{"a mode without a root", func(_ *Export, v *Verifier) { v.Roots = map[tee.Mode]dcap.RootPin{tee.ModeIntel: dcap.IntelRoot()} }, CheckMode, false},
		{"a policy for the other mode", func(_ *Export, v *Verifier) { v.Policy = changed(t, v, `"mode":"simulated"`, `"mode":"intel"`) }, CheckMode, true},
		{"another context", func(e *Export, _ *Verifier) { e.Decoded.Transcript.Ctx = flip(e.Decoded.Transcript.Ctx); e.seal(t) }, CheckCtx, false},
		{"another th1", func(e *Export, _ *Verifier) { e.Decoded.Transcript.TH1 = flip(e.Decoded.Transcript.TH1); e.seal(t) }, CheckTH1, false},
		{"another th2", func(e *Export, _ *Verifier) { e.Decoded.Transcript.TH2 = flip(e.Decoded.Transcript.TH2); e.seal(t) }, CheckTH2, false},
		{"another th3", func(e *Export, _ *Verifier) { e.Decoded.Transcript.TH3 = flip(e.Decoded.Transcript.TH3); e.seal(t) }, CheckTH3, false},
		{"another session id", func(e *Export, _ *Verifier) { e.Decoded.SessionID = flip(e.Decoded.SessionID); e.seal(t) }, CheckSession, false},
		{"another VM", func(e *Export, _ *Verifier) { e.Decoded.InstanceID = strings.Replace(vm, "c11", "c12", 1); e.seal(t) }, CheckCtx, false},
		{"another nonce", func(e *Export, _ *Verifier) { e.Decoded.Source.Nonce = flip(e.Decoded.Source.Nonce); e.seal(t) }, CheckTH1, false},
		{"another seed", func(e *Export, _ *Verifier) { e.Decoded.Source.Sealed = flip(e.Decoded.Source.Sealed); e.seal(t) }, CheckTH2, false},
		{"another nonce of the exchange", func(e *Export, _ *Verifier) {
			e.Decoded.Exchange.Nonce2 = flip(e.Decoded.Exchange.Nonce2)
			e.seal(t)
		}, CheckTH3, false},
		{"an end before the beginning", func(e *Export, _ *Verifier) { e.Decoded.Times.Concluded = began.Add(-time.Hour); e.seal(t) }, CheckTimes, false},
		{"armed after the end", func(e *Export, _ *Verifier) { e.Decoded.Times.Armed = began.Add(time.Hour); e.seal(t) }, CheckTimes, false},
		{"another outcome", func(e *Export, _ *Verifier) { e.Decoded.Outcome = Outcome{Aborted, "ABORTED"}; e.seal(t) }, CheckSignature.Of(source), false},
		{"another size of the state", func(e *Export, _ *Verifier) { e.Decoded.State[0].PlaintextBytes++; e.seal(t) }, CheckSignature.Of(destination), false},
		{"another link", func(e *Export, _ *Verifier) { e.Chain.Link = flip(e.Chain.Link) }, CheckLink, true},
		{"another previous link", func(e *Export, _ *Verifier) { e.Chain.Previous = flip(e.Chain.Previous) }, CheckLink, true},
		{"something before the first link", func(e *Export, _ *Verifier) { e.Chain.Previous = flip(e.Chain.Previous); e.relink() }, CheckLink, true},
		{"another number", func(e *Export, _ *Verifier) { e.Chain.Number++ }, CheckLink, true},
		{"another time in the chain", func(e *Export, _ *Verifier) { e.Chain.At = e.Chain.At.Add(time.Second) }, CheckLink, true},
		{"the chain of a stranger", func(e *Export, _ *Verifier) { e.Chain.Host = "compute3"; e.relink() }, CheckLink, true},
		{"another quote of the source", func(e *Export, _ *Verifier) { e.Source.Evidence = foreign.Source.Evidence }, CheckEvidence.Of(source), false},
		{"the quotes exchanged", func(e *Export, _ *Verifier) {
			e.Source.Evidence, e.Destination.Evidence = e.Destination.Evidence, e.Source.Evidence
		}, CheckBinding.Of(source), false},
		{"the sides' keys exchanged", func(e *Export, _ *Verifier) {
			s, d := &e.Decoded.Source, &e.Decoded.Destination
			s.SignPublic, d.SignPublic = d.SignPublic, s.SignPublic
			e.seal(t)
		}, CheckBinding.Of(destination), false},
		{"a key that no quote binds", func(e *Export, _ *Verifier) {
			e.Decoded.Source.SignPublic = flip(e.Decoded.Source.SignPublic)
			e.seal(t)
		}, CheckBinding.Of(source), false},
		{"an altered quote", func(e *Export, _ *Verifier) { e.Destination.Evidence = flip(e.Destination.Evidence) }, CheckQuote.Of(destination), false},
		{"another log of the source", func(e *Export, _ *Verifier) { e.Source.Log = flip(e.Source.Log) }, CheckLog.Of(source), true},
		{"another log of the destination", func(e *Export, _ *Verifier) { e.Destination.Log = flip(e.Destination.Log) }, CheckLog.Of(destination), true},
		{"no collateral", func(e *Export, _ *Verifier) { e.Collateral = []Artefacts{} }, CheckQuote.Of(source), false},
		{"collateral of another authority", func(e *Export, _ *Verifier) {
			e.Collateral = foreign.Collateral
			e.Source.Collateral, e.Destination.Collateral = foreign.Source.Collateral, foreign.Source.Collateral
		}, CheckQuote.Of(destination), false},
		{"another root", func(_ *Export, v *Verifier) { v.Roots = elsewhere.roots }, CheckQuote.Of(source), false},
		{"judged after the collateral's time", func(_ *Export, v *Verifier) { v.At = began.AddDate(1, 0, 0) }, CheckQuote.Of(source), false},
		{"a policy for another enclave", func(_ *Export, v *Verifier) {
			v.Policy = changed(t, v, fmt.Sprintf("%x", sha256.Sum256([]byte("enclave"))), strings.Repeat("0", 64))
		}, CheckPolicy.Of(source), false},
		{"a platform that is not enrolled", func(_ *Export, v *Verifier) { v.Policy = changed(t, v, `"compute2"`, `"compute3"`) }, CheckPolicy.Of(destination), true},
		{"no policy", func(_ *Export, v *Verifier) { v.Policy = nil }, CheckPolicy.Of(destination), false},
		{"another finding", func(e *Export, _ *Verifier) { e.Decoded.Destination.Found.TCBStatus = "OutOfDate"; e.seal(t) }, CheckFinding.Of(destination), false},
		{"another signature of the source", func(e *Export, _ *Verifier) { e.Source.Signature = flip(e.Source.Signature); e.relink() }, CheckSignature.Of(source), false},
		{"another signature of the destination", func(e *Export, _ *Verifier) {
			e.Destination.Signature = flip(e.Destination.Signature)
			e.relink()
		}, CheckSignature.Of(destination), false},
		{"the signatures exchanged", func(e *Export, _ *Verifier) {
			e.Source.Signature, e.Destination.Signature = e.Destination.Signature, e.Source.Signature
			e.relink()
		}, CheckSignature.Of(source), false},
		{"a composer that did not sign", func(e *Export, _ *Verifier) { e.Source.Signature = nil; e.relink() }, CheckSigned, true},
		{"no signature", func(e *Export, _ *Verifier) { e.Source.Signature, e.Destination.Signature = nil, nil; e.relink() }, CheckSigned, true},
		{"signatures of another migration", func(e *Export, _ *Verifier) {
			e.Source.Signature, e.Destination.Signature = foreign.Source.Signature, foreign.Destination.Signature
			e.relink()
		}, CheckSignature.Of(destination), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := ParseExport(raw)
			must(t, err)
			v := v
			c.change(e, &v)
			again, err := e.Encode()
			must(t, err)
			r, err := v.Verify(again)
			must(t, err)
			if r.Accepted {
				t.Fatal("accepted")
			}
			if found := r.named(c.check); len(found) != 1 || found[0].Passed || found[0].Found == "" {
				t.Errorf("check %q did not fire: %+v", c.check, r.Failed())
			}
			if c.only && len(r.Failed()) != 1 {
				t.Errorf("more fired than expected: %+v", r.Failed())
			}
		})
	}
}

func changed(t *testing.T, v *Verifier, from, to string) *policy.Loaded {
	t.Helper()
	text := strings.Replace(string(v.Policy.Raw), from, to, 1)
	if text == string(v.Policy.Raw) {
		t.Fatalf("the policy has no %s", from)
	}
	return loadPolicy(t, text)
}

func TestTheZeroVerifierAcceptsNothing(t *testing.T) {
	raw, _ := golden(t)
	if r, err := (Verifier{}).Verify(raw); err != nil || r.Accepted {
		t.Errorf("found %+v, %v", r, err)
	}
}

// TestAnyByteOfTheRecordCounts flips a bit of every byte. What comes out is no record any more, or one that nobody has signed; every sixteenth of the
// latter is verified as a whole, for each takes milliseconds.
func TestAnyByteOfTheRecordCounts(t *testing.T) {
	raw, v := golden(t)
	e, err := ParseExport(raw)
	must(t, err)
	record, parsed := e.Record, 0
	for i := 0; i < len(record); i += stride {
		e.Record = bytes.Clone(record)
		e.Record[i] ^= 1
		if e.Decoded, err = ParseRecord(e.Record); err != nil {
			continue
		}
		if err := e.consistent(e.Decoded); !errors.Is(err, ErrExport) {
			t.Errorf("byte %d: found %v, expected %v", i, err, ErrExport)
		}
		if parsed++; parsed%16 != 0 {
			continue
		}
		again, err := e.Encode()
		must(t, err)
		r, err := v.Verify(again)
		must(t, err)
		if r.Accepted || r.SignedBy != "" || r.named(CheckID)[0].Passed {
			t.Errorf("byte %d: found %+v", i, r)
		}
	}
	if parsed < 1000/stride {
		t.Errorf("%d of %d altered records are still records, expected more", parsed, len(record))
	}
	t.Logf("%d bytes, %d of them leave a record", len(record), parsed)
}

func TestAReceiptOfOneSignatureIsThatSidesWordAlone(t *testing.T) {
	rig := newRig(t)
	e := rig.migrate(t)
	for _, c := range []struct {
		name     string
		composer *View
		drop     func(*Entry)
		signedBy SignedBy
	}{
		{"the destination did not sign", e.vs, func(n *Entry) { n.DestinationSignature = nil }, SignedBySource},
		{"the destination alone has ended it", e.vd, func(n *Entry) { n.SourceSignature = nil }, SignedByDestination},
	} {
		t.Run(c.name, func(t *testing.T) {
			entry := rig.entry(t, e)
			record, err := Compose(c.composer)
			must(t, err)
			entry.Record = record
			entry.SourceSignature, err = e.s.SignReceipt(record)
			must(t, err)
			entry.DestinationSignature, err = e.d.SignReceipt(record)
			must(t, err)
			c.drop(entry)
			r, err := rig.verifier().Verify(export(t, entry))
			must(t, err)
			if !r.Accepted || r.SignedBy != c.signedBy {
				t.Errorf("found %s, %+v", r.SignedBy, r.Failed())
			}
		})
	}
}

func TestAFindingByOtherCollateralIsNotComparedAndSaidSo(t *testing.T) {
	rig := newRig(t)
	e := rig.migrate(t)
	e.vs.Own = &Finding{TCBStatus: "SWHardeningNeeded", Advisories: []string{}, EvaluationDataNumber: 17, Collateral: make([]byte, 32)}
	e.vd.Peer = e.vs.Own
	r, err := rig.verifier().Verify(export(t, rig.entry(t, e)))
	must(t, err)
	if !r.Accepted || !slices.Equal(r.OtherCollateral, []string{roleSource}) {
		t.Errorf("found %v, %+v", r.OtherCollateral, r.Failed())
	}
}

func TestAnotherPolicyThatAcceptsBothIsSaidToBeAnother(t *testing.T) {
	raw, v := golden(t)
	v.Policy = changed(t, &v, `"policy_svn":7`, `"policy_svn":8`)
	r, err := v.Verify(raw)
	must(t, err)
	if !r.Accepted || r.SourcePolicy || r.DestinationPolicy {
		t.Errorf("found %+v", r)
	}
}

func TestALargeLogIsNamedByItsDigest(t *testing.T) {
	rig := newRig(t)
	entry := rig.entry(t, rig.migrate(t))
	entry.SourceLog = nil
	r, err := rig.verifier().Verify(export(t, entry))
	must(t, err)
	if !r.Accepted || len(r.named(CheckLog.Of(source))) != 0 || len(r.named(CheckLog.Of(destination))) != 1 {
		t.Errorf("found %+v", r)
	}
	if kept(make([]byte, MaxLog+1)) != nil || kept(make([]byte, MaxLog)) == nil {
		t.Error("the bound of a log that is kept is another")
	}
}

func TestWhatIsNoExport(t *testing.T) {
	raw, v := golden(t)
	text := string(raw)
	for name, changed := range map[string]string{
		"nothing":                  "",
		"cut short":                text[:len(text)-3],
		"without its last newline": strings.TrimSuffix(text, "\n"),
		"something after it":       text + "{}",
		"an unknown key":           strings.Replace(text, "{\n", "{\n \"more\": 1,\n", 1),
		"a key twice":              strings.Replace(text, "{\n", "{\n \"schema\": \""+ExportSchema+"\",\n", 1),
		"other white space":        strings.Replace(text, "{\n", "{\n\n", 1),
		"another schema":           strings.Replace(text, ExportSchema, ExportSchema+"2", 1),
		"another record for the eye": strings.Replace(text, `"result": "committed"`, `"result": "aborted",
   "reason": "ABORTED"`, 1),
		"a record for the eye that is none": strings.Replace(text, `"secrets": 1`, `"secrets": 2`, 1),
		"collateral of another digest":      strings.Replace(text, `"root_ca_crl": "`, `"root_ca_crl": "AAAA`, 1),
		"too long":                          text + strings.Repeat(" ", MaxExport),
	} {
		if changed == text {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := v.Verify([]byte(changed)); !errors.Is(err, ErrExport) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrExport)
		}
	}
	for name, change := range map[string]func(e *Export){
		"a short signature":         func(e *Export) { e.Source.Signature = e.Source.Signature[1:] },
		"no quote":                  func(e *Export) { e.Source.Evidence = nil },
		"a huge quote":              func(e *Export) { e.Destination.Evidence = make([]byte, MaxEvidence+1) },
		"a huge log":                func(e *Export) { e.Destination.Log = make([]byte, MaxLog+1) },
		"a short digest":            func(e *Export) { e.Source.Collateral = e.Source.Collateral[1:] },
		"a short id":                func(e *Export) { e.ReceiptID = e.ReceiptID[1:] },
		"the same collateral twice": func(e *Export) { e.Collateral = append(e.Collateral, e.Collateral[0]) },
		"three sets of collateral":  func(e *Export) { e.Collateral = append(e.Collateral, e.Collateral[0], e.Collateral[0]) },
		"no list of collateral":     func(e *Export) { e.Collateral = nil },
		"number 0":                  func(e *Export) { e.Chain.Number = 0 },
		"a short link":              func(e *Export) { e.Chain.Link = e.Chain.Link[1:] },
		"a host that is none":       func(e *Export) { e.Chain.Host = "" },
		"no time":                   func(e *Export) { e.Chain.At = time.Time{} },
		"no record":                 func(e *Export) { e.Decoded = nil },
	} {
		e, err := ParseExport(raw)
		must(t, err)
		change(e)
		if _, err := e.Encode(); !errors.Is(err, ErrExport) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrExport)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	raw, _ := golden(f)
	e, err := ParseExport(raw)
	must(f, err)
	f.Add(e.Record)
	f.Add([]byte(`{"schema":"safeconduct/receipt/v1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseRecord(raw)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Errorf("found %v", err)
			}
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("read, but written otherwise: %v", err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	raw, v := golden(f)
	accepted, err := v.Verify(raw)
	must(f, err)
	id := accepted.ID
	f.Add(raw)
	f.Add([]byte(`{"schema":"safeconduct/receipt-export/v1","record":"e30="}`))
	f.Fuzz(func(t *testing.T, changed []byte) {
		if r, err := v.Verify(changed); err == nil && r.Accepted && !bytes.Equal(r.ID, id) {
			t.Error("another record is accepted")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	raw, v := golden(b)
	for b.Loop() {
		if r, err := v.Verify(raw); err != nil || !r.Accepted {
			b.Fatal(err)
		}
	}
}
