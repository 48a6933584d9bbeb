package bootlog

import (
	"bytes"
	"crypto"
	"fmt"
	"maps"
	"slices"
)

// Replay returns the value to which each PCR comes that the log has events for, in one bank; 0 means SHA-256. A log without that bank, or with an
// event that has no digest for it, is an *Error with CheckBank.
func (l *Log) Replay(bank crypto.Hash) (map[int][]byte, error) {
	if bank == 0 {
		bank = crypto.SHA256
	}
	if !slices.Contains(l.Banks, bank) {
		return nil, &Error{Check: CheckBank, Found: fmt.Sprintf("a log with %v", l.Banks), Expected: bank.String()}
	}
	pcrs := map[int][]byte{}
	h := bank.New()
	for i := range l.Events {
		e := &l.Events[i]
		if !e.Extends() {
			continue
		}
		digest, ok := e.Digests[bank]
		if !ok {
			return nil, &Error{Check: CheckBank, Event: e.Number, Found: "no digest", Expected: "one for " + bank.String()}
		}
		if pcrs[e.PCR] == nil {
			pcrs[e.PCR] = l.initial(e.PCR, bank)
		}
		h.Reset()
		h.Write(pcrs[e.PCR])
		h.Write(digest)
		pcrs[e.PCR] = h.Sum(pcrs[e.PCR][:0])
	}
	return pcrs, nil
}

// initial is the value of a PCR before its first event: zero, but for the locality in PCR 0 (PC Client Platform TPM Profile, section 4.6.2). The PCRs of
// a D-RTM, 17 to 22, also start at zero once they can be extended.
func (l *Log) initial(pcr int, bank crypto.Hash) []byte {
	value := make([]byte, bank.Size())
	if pcr == 0 {
		value[len(value)-1] = l.Locality
	}
	return value
}

// Comparison of a log with the quoted values of one bank. All the lists are sorted.
type Comparison struct {
	// Matched PCRs have the value to which the log replays.
	Matched []int
	// Mismatches are all the PCRs that have another.
	Mismatches []Mismatch
	// Uncovered PCRs were quoted, and are not for this log to explain: it has no events for them, and they belong to the operating system.
	Uncovered []int
	// Unquoted PCRs have events in the log, and no quoted value. Nothing is known of those events.
	Unquoted []int
}

// Mismatch is a PCR whose value the log does not explain.
type Mismatch struct {
	PCR int
	// Events of the log for this PCR.
	Events int
	// Replayed is the value to which the log comes; Quoted is the PCR's.
	Replayed, Quoted []byte
}

// firmwarePCRs are 0 to 9: firmware and boot loaders extend them, and log what they do. Where the log has no event for one of them, it must not have
// been extended at all. The kernel and user space extend the others (IMA has 10, systemd 11 to 15), with logs of their own.
const firmwarePCRs = 10

// OK reports whether values were compared and no PCR differs.
func (c *Comparison) OK() bool { return c != nil && len(c.Matched) > 0 && len(c.Mismatches) == 0 }

// Compare replays a bank (0 means SHA-256) and compares it with all the quoted values. The error is an *Error: CheckBank, or CheckQuoted where there
// is no value to compare with or one is of another size. A difference is not an error: see Comparison.OK.
func (l *Log) Compare(bank crypto.Hash, quoted map[int][]byte) (*Comparison, error) {
	replayed, err := l.Replay(bank)
	if err != nil {
		return nil, err
	}
	if bank == 0 {
		bank = crypto.SHA256
	}
	if len(quoted) == 0 {
		return nil, &Error{Check: CheckQuoted, Found: "no value", Expected: "at least one"}
	}
	c := new(Comparison)
	for _, pcr := range slices.Sorted(maps.Keys(quoted)) {
		value := quoted[pcr]
		if len(value) != bank.Size() || pcr < 0 || pcr > maxPCR {
			return nil, &Error{
				Check: CheckQuoted, Found: fmt.Sprintf("PCR %d of %d bytes", pcr, len(value)),
				Expected: fmt.Sprintf("PCR 0 to %d of %d bytes", maxPCR, bank.Size()),
			}
		}
		have, logged := replayed[pcr]
		if !logged && pcr >= firmwarePCRs {
			c.Uncovered = append(c.Uncovered, pcr)
			continue
		}
		if !logged {
			have = l.initial(pcr, bank)
		}
		if bytes.Equal(have, value) {
			c.Matched = append(c.Matched, pcr)
			continue
		}
		c.Mismatches = append(c.Mismatches, Mismatch{PCR: pcr, Events: l.count(pcr), Replayed: have, Quoted: bytes.Clone(value)})
	}
	for _, pcr := range slices.Sorted(maps.Keys(replayed)) {
		if _, ok := quoted[pcr]; !ok {
			c.Unquoted = append(c.Unquoted, pcr)
		}
	}
	return c, nil
}

func (l *Log) count(pcr int) int {
	n := 0
	for i := range l.Events {
		if e := &l.Events[i]; e.PCR == pcr && e.Extends() {
			n++
		}
	}
	return n
}
