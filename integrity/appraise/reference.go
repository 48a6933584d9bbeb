package appraise

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/keylime"
)

// Digest is a SHA-256 digest; in JSON, 64 lower-case hexadecimal digits.
type Digest [hostlog.DigestSize]byte

// String returns the digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads exactly 64 lower-case hexadecimal digits, without a prefix.
func (d *Digest) UnmarshalText(text []byte) error {
	var v Digest
	if hex.DecodedLen(len(text)) != len(v) || len(text)%2 != 0 {
		return fmt.Errorf("digest: found %.80q, expected 64 hexadecimal digits and no prefix", text)
	}
	if _, err := hex.Decode(v[:], text); err != nil || v.String() != string(text) {
		return fmt.Errorf("digest: found %.80q, expected 64 lower-case hexadecimal digits", text)
	}
	*d = v
	return nil
}

// ReferenceValues say what a host must be made of. The operator's policy embeds them. The zero value accepts no host.
type ReferenceValues struct {
	// Files by the name of their entry in the log.
	Files map[string]File `json:"files"`
	// PCRs are the values accepted for a PCR of the SHA-256 bank, by index. A PCR that is not named here is not judged, whether or not it is in the quote.
	PCRs map[int][]Digest `json:"pcrs,omitempty"`
	// PCRsNotAfter ends the acceptance of a value in PCRs.
	PCRsNotAfter map[int]map[Digest]time.Time `json:"pcrs_not_after,omitempty"`
	TPM          TPM                          `json:"tpm"`
	Boot         Boot                         `json:"boot,omitzero"`
	IMA          IMA                          `json:"ima,omitzero"`
	// Unlisted says what becomes of an entry that Files does not name.
	Unlisted Unlisted `json:"unlisted,omitempty"`
}

// File is what is accepted for one entry.
type File struct {
	// SHA256 are the digests accepted. None: no digest is accepted.
	SHA256 []Digest `json:"sha256,omitempty"`
	// NotAfter ends the acceptance of a digest in SHA256, so that a fleet can roll from one version to the next: the old one is accepted until then.
	NotAfter map[Digest]time.Time `json:"not_after,omitempty"`
	// Required says whether a log without the entry is refused; nil means yes.
	Required *bool `json:"required,omitempty"`
	// AllowAbsent accepts an entry that gives a reason instead of a digest.
	AllowAbsent bool `json:"allow_absent,omitempty"`
}

func (f File) required() bool { return f.Required == nil || *f.Required }

// TPM says what is asked of the host's TPM.
type TPM struct {
	// Required says whether a log without a TPM quote is refused; nil means yes. A quote that is there must verify in any case.
	Required *bool `json:"required,omitempty"`
}

func (t TPM) required() bool { return t.Required == nil || *t.Required }

// Unlisted is what becomes of entries without a reference value.
type Unlisted string

const (
	// UnlistedRefuse refuses the host, as the empty string does.
	UnlistedRefuse Unlisted = "refuse"
	// UnlistedReport accepts the host and names the entries as unjudged.
	UnlistedReport Unlisted = "report"
)

// Validate refuses reference values that can only be a mistake. Appraise calls it too.
func (r *ReferenceValues) Validate() error {
	switch r.Unlisted {
	case "", UnlistedRefuse, UnlistedReport:
	default:
		return fmt.Errorf("reference values: unlisted: found %q, expected %q or %q", string(r.Unlisted), UnlistedRefuse, UnlistedReport)
	}
	for name, f := range r.Files {
		if !hostlog.ValidName(name) {
			return fmt.Errorf("reference values: files: found name %.140q, expected [a-z0-9][a-z0-9/_.-]{0,127}", name)
		}
		if len(f.SHA256) == 0 && !f.AllowAbsent {
			return fmt.Errorf("reference values: files: %s: found neither a digest nor allow_absent, expected either: nothing can match", name)
		}
	}
	if len(r.IMA.RuntimePolicy) > 0 && r.IMA.parsed == nil {
		var err error
		if r.IMA.parsed, err = keylime.Parse(r.IMA.RuntimePolicy); err != nil {
			return fmt.Errorf("reference values: ima.runtime_policy: %w", err)
		}
	}
	for name, f := range r.Files {
		for d := range f.NotAfter {
			if !slices.Contains(f.SHA256, d) {
				return fmt.Errorf("reference values: files: %s: not_after names %s, which sha256 does not", name, d)
			}
		}
	}
	for index, ends := range r.PCRsNotAfter {
		for d := range ends {
			if !slices.Contains(r.PCRs[index], d) {
				return fmt.Errorf("reference values: pcrs_not_after: %d names %s, which pcrs does not", index, d)
			}
		}
	}
	for index, values := range r.PCRs {
		if index < 0 || index > hostlog.MaxPCR {
			return fmt.Errorf("reference values: pcrs: found index %d, expected 0 to %d", index, hostlog.MaxPCR)
		}
		if len(values) == 0 {
			return fmt.Errorf("reference values: pcrs: %d: found no value, expected at least one: nothing can match", index)
		}
	}
	return nil
}

// Generate returns the reference values that accept the host of a golden log, and no other content. It believes the log: take it from a
// host that you trust, over its local socket. It never loosens the TPM requirement: for a golden host without a TPM, set TPM.Required to false by
// hand. The error is a *hostlog.Error.
func Generate(log *v1.IntegrityLog) (*ReferenceValues, error) {
	if err := hostlog.Validate(log); err != nil {
		return nil, err
	}
	r := &ReferenceValues{Files: map[string]File{}}
	for _, e := range log.GetEntries() {
		if e.GetInformation() {
			continue
		}
		if e.GetAbsent() != "" {
			r.Files[e.GetName()] = File{AllowAbsent: true}
			continue
		}
		r.Files[e.GetName()] = File{SHA256: []Digest{Digest(e.GetDigest())}}
	}
	for _, p := range log.GetTpmQuote().GetPcrs() {
		if r.PCRs == nil {
			r.PCRs = map[int][]Digest{}
		}
		r.PCRs[int(p.GetIndex())] = []Digest{Digest(p.GetValue())}
	}
	return r, nil
}

// Merge returns the union of two sets of reference values, for two golden hosts that quote the same PCRs: a host that either accepts is
// accepted. An entry that only one of them has is no longer required, which the result says. A PCR that only one of them judges stays judged. A
// TPM stays required, and unlisted entries refused, unless both agree otherwise; boot log and IMA list are required if either asks for them. Of two
// runtime policies, which cannot be united, a's is kept.
func Merge(a, b *ReferenceValues) *ReferenceValues {
	out := &ReferenceValues{Files: map[string]File{}, Unlisted: UnlistedRefuse}
	for name := range union(a.Files, b.Files) {
		fa, inA := a.Files[name]
		fb, inB := b.Files[name]
		f := File{SHA256: distinct(fa.SHA256, fb.SHA256), AllowAbsent: fa.AllowAbsent || fb.AllowAbsent}
		f.NotAfter = mergedEnds(fa.SHA256, fa.NotAfter, fb.SHA256, fb.NotAfter)
		if !inA || !inB || !fa.required() || !fb.required() {
			f.Required = new(bool)
		}
		out.Files[name] = f
	}
	for index := range union(a.PCRs, b.PCRs) {
		if out.PCRs == nil {
			out.PCRs = map[int][]Digest{}
		}
		out.PCRs[index] = distinct(a.PCRs[index], b.PCRs[index])
		if ends := mergedEnds(a.PCRs[index], a.PCRsNotAfter[index], b.PCRs[index], b.PCRsNotAfter[index]); ends != nil {
			if out.PCRsNotAfter == nil {
				out.PCRsNotAfter = map[int]map[Digest]time.Time{}
			}
			out.PCRsNotAfter[index] = ends
		}
	}
	out.Boot = Boot{Required: a.Boot.Required || b.Boot.Required, SecureBoot: a.Boot.SecureBoot || b.Boot.SecureBoot}
	out.IMA = IMA{
		Required: a.IMA.Required || b.IMA.Required, AllowViolations: a.IMA.AllowViolations && b.IMA.AllowViolations,
		ReportOnly: a.IMA.ReportOnly && b.IMA.ReportOnly, RuntimePolicy: a.IMA.RuntimePolicy,
	}
	if len(out.IMA.RuntimePolicy) == 0 {
		out.IMA.RuntimePolicy = b.IMA.RuntimePolicy
	}
	if !a.TPM.required() && !b.TPM.required() {
		out.TPM.Required = new(bool)
	}
	if a.Unlisted == UnlistedReport && b.Unlisted == UnlistedReport {
		out.Unlisted = UnlistedReport
	}
	return out
}

// mergedEnds are the ends of digests in the union of two lists: the later one where both accept it, and none where one accepts it for good.
func mergedEnds(a []Digest, aEnds map[Digest]time.Time, b []Digest, bEnds map[Digest]time.Time) map[Digest]time.Time {
	var out map[Digest]time.Time
	for _, d := range distinct(a, b) {
		var end time.Time
		forGood := false
		for _, side := range []struct {
			list []Digest
			ends map[Digest]time.Time
		}{{a, aEnds}, {b, bEnds}} {
			if !slices.Contains(side.list, d) {
				continue
			}
			at, bounded := side.ends[d]
			forGood = forGood || !bounded
			if at.After(end) {
				end = at
			}
		}
		if forGood {
			continue
		}
		if out == nil {
			out = map[Digest]time.Time{}
		}
		out[d] = end
	}
	return out
}

// union returns the keys of both maps.
func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	if all == nil {
		all = map[K]V{}
	}
	maps.Copy(all, b)
	return all
}

// distinct returns the digests of both lists, sorted, each once.
func distinct(a, b []Digest) []Digest {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y Digest) int { return slices.Compare(x[:], y[:]) })
	return slices.Compact(all)
}
