package ima

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" //nolint:gosec // a bank that may be asked for; the default is SHA-256
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
)

// Registers are PCR values: by bank, then by index.
type Registers map[crypto.Hash]map[int][]byte

// Replayer extends PCRs as the kernel did, from zero.
type Replayer struct {
	banks []bank
}

type bank struct {
	algorithm crypto.Hash
	hash      hash.Hash
	pcrs      map[int][]byte
	digest    []byte
}

// NewReplayer replays the banks given; none means SHA-256. The error is an *Error with CheckBank.
func NewReplayer(banks ...crypto.Hash) (*Replayer, error) {
	if len(banks) == 0 {
		banks = []crypto.Hash{crypto.SHA256}
	}
	r := new(Replayer)
	for _, b := range banks {
		switch b {
		case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
		default:
			return nil, &Error{Check: CheckBank, Found: b.String(), Expected: "SHA-1, SHA-256, SHA-384 or SHA-512"}
		}
		r.banks = append(r.banks, bank{algorithm: b, hash: b.New(), pcrs: map[int][]byte{}, digest: make([]byte, 0, b.Size())})
	}
	return r, nil
}

// Extend extends the entry's PCR in each bank: with the bank's digest of the template data, or with 0xff for a violation.
func (r *Replayer) Extend(e *Entry) {
	for i := range r.banks {
		b := &r.banks[i]
		pcr, ok := b.pcrs[e.PCR]
		if !ok {
			pcr = make([]byte, b.algorithm.Size())
			b.pcrs[e.PCR] = pcr
		}
		if e.Violation {
			b.digest = b.digest[:b.algorithm.Size()]
			for j := range b.digest {
				b.digest[j] = 0xff
			}
		} else {
			b.hash.Reset()
			b.hash.Write(e.Data)
			b.digest = b.hash.Sum(b.digest[:0])
		}
		b.hash.Reset()
		b.hash.Write(pcr)
		b.hash.Write(b.digest)
		b.hash.Sum(pcr[:0])
	}
}

// Registers returns the values of the PCRs that were extended.
func (r *Replayer) Registers() Registers {
	out := Registers{}
	for _, b := range r.banks {
		out[b.algorithm] = map[int][]byte{}
		for i, v := range b.pcrs {
			out[b.algorithm][i] = bytes.Clone(v)
		}
	}
	return out
}

// Holds reports whether the PCRs have the values given. A PCR that was not extended is zero; a bank that is not replayed holds nothing.
func (r *Replayer) Holds(want Registers) bool {
	for algorithm, pcrs := range want {
		i := slices.IndexFunc(r.banks, func(b bank) bool { return b.algorithm == algorithm })
		if i < 0 {
			return false
		}
		for index, value := range pcrs {
			have, ok := r.banks[i].pcrs[index]
			if !ok && (len(value) != algorithm.Size() || len(bytes.Trim(value, "\x00")) != 0) || ok && !bytes.Equal(have, value) {
				return false
			}
		}
	}
	return true
}

// Summary is what a whole list replays to.
type Summary struct {
	Entries, Violations int
	// Mismatched counts entries whose recorded template hash is not that of their data.
	Mismatched int
	// Opaque counts entries of templates that are not known.
	Opaque    int
	Registers Registers
}

// Replay reads a whole list; the banks default to SHA-256. The error is an *Error; the Summary is then of the entries before it.
func Replay(r io.Reader, limits Limits, banks ...crypto.Hash) (Summary, error) {
	replayer, err := NewReplayer(banks...)
	if err != nil {
		return Summary{}, err
	}
	var s Summary
	var e Entry // one for all: the loop's own would be allocated for each turn
	for next, failed := range Entries(r, limits) {
		if failed != nil {
			err = failed
			break
		}
		e = next
		s.count(&e)
		replayer.Extend(&e)
	}
	s.Registers = replayer.Registers()
	return s, err
}

func (s *Summary) count(e *Entry) {
	s.Entries++
	if e.Violation {
		s.Violations++
	}
	if e.Opaque {
		s.Opaque++
	}
	if !e.RecordedMatches() {
		s.Mismatched++
	}
}

// Match is the part of a list that a quote covers.
type Match struct {
	// Entries of the prefix: at least 1.
	Entries int
	// Ignored counts the entries after it: measured after the quote, or made up. Nothing is known of them.
	Ignored int
	// IgnoredErr is the error at which counting them ended, if it did; it does not touch the prefix.
	IgnoredErr error
}

// Prefix finds the shortest prefix of the list after which all the quoted PCRs have the quoted values; there is only one, since a PCR does not come
// back to a value. It reads the list once.
//
// visit is called for each entry up to the match, before it is known that there is one: whatever it concludes counts only if Prefix returns no error.
// Its own error ends the search and is returned as it is. It may be nil.
//
// Every entry of the prefix must extend a quoted PCR, so that all that visit saw is covered. Other errors are an *Error: CheckQuoted, CheckBank,
// CheckPCR, CheckPrefix, or what is wrong with the list.
func Prefix(r io.Reader, limits Limits, quoted Registers, visit func(*Entry) error) (Match, error) {
	replayer, err := replayerFor(quoted)
	if err != nil {
		return Match{}, err
	}
	var m Match
	var e Entry // one for all, as above
	matched := false
	for next, err := range Entries(r, limits) {
		e = next
		switch {
		case matched && err != nil:
			m.IgnoredErr = err
		case matched:
			m.Ignored++
		case err != nil:
			return Match{}, err
		default:
			if err := quotes(quoted, &e); err != nil {
				return Match{}, err
			}
			replayer.Extend(&e)
			if visit != nil {
				if err := visit(&e); err != nil {
					return Match{}, err
				}
			}
			m.Entries++
			matched = replayer.Holds(quoted)
		}
	}
	if !matched {
		return Match{}, &Error{
			Check: CheckPrefix, Found: fmt.Sprintf("%d entries, none of which ends at the quoted values", m.Entries),
			Expected: "a list that replays to them",
		}
	}
	return m, nil
}

// replayerFor checks the quoted values, and replays their banks.
func replayerFor(quoted Registers) (*Replayer, error) {
	values := 0
	for algorithm, pcrs := range quoted {
		for index, value := range pcrs {
			values++
			if index < 0 || index > maxPCR || !algorithm.Available() || len(value) != algorithm.Size() {
				return nil, &Error{
					Check: CheckQuoted, Found: fmt.Sprintf("PCR %d with %d bytes in the bank %v", index, len(value), algorithm),
					Expected: fmt.Sprintf("PCR 0 to %d with a value of the bank's size", maxPCR),
				}
			}
		}
	}
	if values == 0 {
		return nil, &Error{Check: CheckQuoted, Found: "no value", Expected: "at least one"}
	}
	r, err := NewReplayer(slices.Collect(maps.Keys(quoted))...)
	if err != nil {
		return nil, err
	}
	if r.Holds(quoted) {
		return nil, &Error{Check: CheckQuoted, Found: "zero: the kernel measured nothing", Expected: "a PCR that was extended"}
	}
	return r, nil
}

// quotes checks that every bank has the entry's PCR.
func quotes(quoted Registers, e *Entry) error {
	for algorithm, pcrs := range quoted {
		if _, ok := pcrs[e.PCR]; !ok {
			return &Error{
				Check: CheckPCR, Entry: e.Number, Found: fmt.Sprintf("PCR %d, which is not quoted in the bank %v", e.PCR, algorithm),
				Expected: "a quoted PCR",
			}
		}
	}
	return nil
}
