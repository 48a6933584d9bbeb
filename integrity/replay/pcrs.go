package replay

import (
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// PCRs are PCR values: by bank, then by index. Nil means that there are none to compare with.
type PCRs map[crypto.Hash]map[int][]byte

// Bounds of a file of PCR values: its size in bytes, and the highest index.
const (
	maxPCRsSize = 64 << 10
	maxPCR      = 23
)

// PCRsError says what in a file of PCR values is not as it must be.
type PCRsError struct {
	// Field such as "banks.SHA256.7"; "file" for all of it.
	Field           string
	Found, Expected string
}

// Error names the field, what was found and what was expected.
func (e *PCRsError) Error() string {
	return fmt.Sprintf("pcr values: %s: found %s, expected %s", e.Field, e.Found, e.Expected)
}

// ParsePCRs reads a file of PCR values, of at most 64 KiB:
//
//	{"banks": {"SHA256": {"0": "24af52a4...", "7": "..."}, "SHA1": {...}}}
//
// The name of a bank is SHA1, SHA256, SHA384 or SHA512, in either case. "origin" and "licence" may stand beside "banks", for people. The error is a
// *PCRsError, or the reader's.
func ParsePCRs(r io.Reader) (PCRs, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxPCRsSize+1))
	if err != nil {
		return nil, fmt.Errorf("pcr values: %w", err)
	}
	if len(raw) > maxPCRsSize {
		return nil, &PCRsError{"file", "a larger one", fmt.Sprintf("at most %d bytes", maxPCRsSize)}
	}
	var file struct {
		Origin  string                       `json:"origin"`
		Licence string                       `json:"licence"`
		Banks   map[string]map[string]string `json:"banks"`
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, &PCRsError{"file", fmt.Sprintf("%.200v", err), `{"banks": {"SHA256": {"0": "hexadecimal digits"}}}`}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, &PCRsError{"file", "more after the object", "one object"}
	}
	pcrs := PCRs{}
	for _, name := range slices.Sorted(maps.Keys(file.Banks)) {
		if err := pcrs.bank(name, file.Banks[name]); err != nil {
			return nil, err
		}
	}
	if len(pcrs) == 0 {
		return nil, &PCRsError{"banks", "no bank", "at least one"}
	}
	return pcrs, nil
}

func (p PCRs) bank(name string, values map[string]string) error {
	field := fmt.Sprintf("banks.%.20q", name)
	i := slices.IndexFunc(banks(), func(h crypto.Hash) bool { return bankName(h) == strings.ToLower(name) })
	if i < 0 {
		return &PCRsError{field, "a bank that is not known", "SHA1, SHA256, SHA384 or SHA512"}
	}
	h := banks()[i]
	if p[h] != nil || len(values) == 0 {
		return &PCRsError{field, fmt.Sprintf("%d values, and a bank of this name %t", len(values), p[h] != nil), "each bank once, with a value"}
	}
	p[h] = map[int][]byte{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		index, err := strconv.Atoi(key)
		if err != nil || index < 0 || index > maxPCR || strconv.Itoa(index) != key {
			return &PCRsError{field, fmt.Sprintf("index %.20q", key), fmt.Sprintf("0 to %d", maxPCR)}
		}
		value, err := hex.DecodeString(values[key])
		if err != nil || len(value) != h.Size() {
			return &PCRsError{field + "." + key, fmt.Sprintf("%.140q", values[key]), fmt.Sprintf("%d hexadecimal digits", 2*h.Size())}
		}
		p[h][index] = value
	}
	return nil
}

// banks are the banks that have a name.
func banks() []crypto.Hash {
	return []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}
}
