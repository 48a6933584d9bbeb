package replay

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/safeconduct/safeconduct/integrity/bootlog"
)

// EventLog replays a boot event log in all its banks, and compares it with PCR values if there are any. SHA-256 must be among the banks of both,
// unless o.AllowSHA1.
func EventLog(r io.Reader, pcrs PCRs, o Options) *Result {
	out := newResult(KindBoot)
	raw, err := io.ReadAll(io.LimitReader(r, bootlog.MaxSize+1))
	if err != nil {
		out.add(Problem{Kind: ProblemRead, Message: fmt.Sprintf("the log could not be read: %.200v", err)})
		return out.done()
	}
	log, err := bootlog.Parse(raw)
	if err != nil {
		out.bootProblem(0, err)
		return out.done()
	}
	out.Entries = len(log.Events)
	out.required("the log", slices.Contains(log.Banks, crypto.SHA256), o)
	for _, h := range log.Banks {
		values, err := log.Replay(h)
		if err != nil {
			out.bootProblem(h, err)
			continue
		}
		out.bank(h, values)
	}
	if pcrs != nil {
		out.compare(log, pcrs, o)
	}
	out.describe(log, pcrs, o)
	return out.done()
}

func (r *Result) compare(log *bootlog.Log, pcrs PCRs, o Options) {
	r.required("the PCR values", pcrs[crypto.SHA256] != nil, o)
	r.Compared = map[string]Compared{}
	for _, h := range banks() {
		values := pcrs[h]
		if len(values) == 0 || slices.Contains(log.Banks, h) && r.Banks[bankName(h)] == nil {
			continue // nothing to compare with, or a bank that does not replay, as was said
		}
		c, err := log.Compare(h, values)
		if err != nil {
			r.bootProblem(h, err)
			continue
		}
		out := Compared{Matched: c.Matched, Uncovered: c.Uncovered, Unquoted: c.Unquoted}
		for _, m := range c.Mismatches {
			out.Mismatched = append(out.Mismatched, m.PCR)
			r.add(Problem{
				Kind: ProblemPCRMismatch, PCR: &m.PCR, Bank: bankName(h), Found: hex.EncodeToString(m.Replayed), Expected: hex.EncodeToString(m.Quoted),
				Message: fmt.Sprintf("%d events for PCR %d do not come to its value in the bank %s", m.Events, m.PCR, bankName(h)),
			})
		}
		r.Compared[bankName(h)] = out
		if len(c.Matched)+len(c.Mismatches) == 0 {
			r.add(Problem{
				Kind: ProblemNotCompared, Bank: bankName(h), Found: "no PCR that the log has events for", Expected: "at least one",
				Message: "none of the PCR values is one that the log explains",
			})
		}
	}
}

// describe adds what the log says of the boot, in SHA-256 if it can. Where a PCR was compared and does not match, what it covers is not told.
func (r *Result) describe(log *bootlog.Log, pcrs PCRs, o Options) {
	bank := log.Banks[0]
	_, compared := r.Compared[bankName(crypto.SHA256)]
	if slices.Contains(log.Banks, crypto.SHA256) && (compared || pcrs == nil) {
		bank = crypto.SHA256
	}
	holds := func(pcr int) bool { return pcrs == nil || slices.Contains(r.Compared[bankName(bank)].Matched, pcr) }
	if holds(7) {
		r.SecureBoot = string(log.SecureBoot(bank))
	}
	if holds(8) {
		for _, line := range log.CommandLines(bank) {
			r.CommandLines = append(r.CommandLines, quote(line))
		}
	}
	if !o.Events {
		return
	}
	for i := range log.Events {
		e := &log.Events[i]
		out := Event{
			Number: e.Number, PCR: e.PCR, Type: e.TypeName(), Digest: map[string]string{}, Size: len(e.Data),
			Covered: e.Covered(bank) != nil, Text: e.Text(),
		}
		for h, d := range e.Digests {
			out.Digest[bankName(h)] = hex.EncodeToString(d)
		}
		r.Events = append(r.Events, out)
	}
}

func (r *Result) bootProblem(bank crypto.Hash, err error) {
	p := Problem{
		Kind: kindOf(err, map[error]ProblemKind{
			bootlog.CheckLimit: ProblemLimit, bootlog.CheckBank: ProblemBankMissing, bootlog.CheckQuoted: ProblemNotCompared,
		}),
		Message: err.Error(),
	}
	if bank != 0 {
		p.Bank = bankName(bank)
	}
	var detail *bootlog.Error
	if errors.As(err, &detail) {
		p.Entry, p.Found, p.Expected = detail.Event, detail.Found, detail.Expected
	}
	r.add(p)
}
