package replay

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/safeconduct/safeconduct/integrity/ima"
)

// IMA replays an IMA list, binary or ASCII, in the banks SHA-1 and SHA-256 and in those that PCR 10 is given for. With values it looks for the prefix
// that comes to PCR 10 in all their banks, and judges that only. SHA-256 must be among them, unless o.AllowSHA1.
func IMA(r io.Reader, pcrs PCRs, o Options) *Result {
	out := newResult(KindIMA)
	want := out.wanted(pcrs, o)
	var replayed []crypto.Hash
	for _, h := range banks() {
		if h == crypto.SHA1 || h == crypto.SHA256 || want[h] != nil {
			replayed = append(replayed, h)
		}
	}
	replayer, err := ima.NewReplayer(replayed...)
	if err != nil {
		out.imaProblem(err)
		return out.done()
	}
	if len(want) > 0 && replayer.Holds(want) {
		out.add(Problem{
			Kind: ProblemNotCompared, PCR: imaPCR(), Found: "zero", Expected: "a PCR that was extended",
			Message: "PCR 10 was never extended: the kernel measured nothing",
		})
		want = nil
	}
	out.measurements(r, replayer, want)
	for h, values := range replayer.Registers() {
		out.bank(h, values)
	}
	if len(want) > 0 && out.Prefix == nil {
		out.noPrefix(want)
	}
	return out.done()
}

// measurements reads the list, and replays it up to the end of the prefix that comes to the values wanted.
func (r *Result) measurements(in io.Reader, replayer *ima.Replayer, want ima.Registers) {
	var e ima.Entry // one for all: the loop's own would be allocated for each turn
	for next, err := range ima.Entries(in, ima.Limits{}) {
		switch {
		case r.Prefix != nil && err != nil:
			r.Prefix.IgnoredError = err.Error() // no problem: what follows the prefix is not judged
		case r.Prefix != nil:
			r.Prefix.Ignored++
			r.Entries++
		case err != nil:
			r.imaProblem(err)
		default:
			e = next
			r.Entries++
			r.entry(&e, want)
			if replayer.Extend(&e); len(want) > 0 && replayer.Holds(want) {
				r.Prefix = &Prefix{Entries: e.Number}
			}
		}
	}
}

func imaPCR() *int { return new(ima.PCR) }

// wanted are the values of PCR 10.
func (r *Result) wanted(pcrs PCRs, o Options) ima.Registers {
	if pcrs == nil {
		return nil
	}
	want := ima.Registers{}
	for h, values := range pcrs {
		if v, ok := values[ima.PCR]; ok {
			want[h] = map[int][]byte{ima.PCR: v}
		}
	}
	if len(want) == 0 {
		r.add(Problem{
			Kind: ProblemNotCompared, PCR: imaPCR(), Found: "no value of PCR 10", Expected: "one",
			Message: "the PCR values have none for PCR 10, which an IMA list extends",
		})
		return nil
	}
	r.required("PCR 10", want[crypto.SHA256] != nil, o)
	return want
}

// entry notes what is wrong with an entry of the prefix, or of a list without one.
func (r *Result) entry(e *ima.Entry, want ima.Registers) {
	if e.Violation {
		r.Violations++
	}
	if e.Opaque {
		r.add(Problem{
			Kind: ProblemTemplate, Entry: e.Number, Found: quote(e.Template), Expected: "a known template",
			Message: fmt.Sprintf("entry %d has a template that is not known", e.Number),
		})
	}
	if !e.RecordedMatches() {
		r.add(Problem{
			Kind: ProblemTemplateHash, Entry: e.Number, Bank: bankName(crypto.SHA1), Found: hex.EncodeToString(e.Recorded[:]), Expected: "the hash of the entry",
			Message: fmt.Sprintf("entry %d (%.200s) does not have the template hash that the list gives", e.Number, quote(e.Path)),
		})
	}
	if len(want) > 0 && e.PCR != ima.PCR {
		pcr := e.PCR
		r.add(Problem{
			Kind: ProblemPCR, Entry: e.Number, PCR: &pcr, Found: fmt.Sprintf("PCR %d", pcr), Expected: fmt.Sprintf("PCR %d", ima.PCR),
			Message: fmt.Sprintf("entry %d extends another PCR than %d, so nothing vouches for it", e.Number, ima.PCR),
		})
	}
}

// noPrefix says to what the list comes instead, in each bank.
func (r *Result) noPrefix(want ima.Registers) {
	for _, h := range banks() {
		if want[h] == nil {
			continue
		}
		r.add(Problem{
			Kind: ProblemPrefix, PCR: imaPCR(), Bank: bankName(h), Found: r.Banks[bankName(h)][ima.PCR], Expected: hex.EncodeToString(want[h][ima.PCR]),
			Message: fmt.Sprintf("no prefix of the list comes to PCR %d in the banks given; found is what the %d entries read come to", ima.PCR, r.Entries),
		})
	}
}

func (r *Result) imaProblem(err error) {
	p := Problem{
		Kind:    kindOf(err, map[error]ProblemKind{ima.CheckLimit: ProblemLimit, ima.CheckRead: ProblemRead, ima.CheckTemplate: ProblemTemplate}),
		Message: err.Error(),
	}
	var detail *ima.Error
	if errors.As(err, &detail) {
		p.Entry, p.Found, p.Expected = detail.Entry, detail.Found, detail.Expected
	}
	r.add(p)
}
