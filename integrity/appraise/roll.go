package appraise

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Roll returns reference values for a fleet that goes from one version to the next: all that next accepts, and until the given time what old
// accepts too. Everything else (what is required, whether a TPM is, IMA and boot) is next's.
func Roll(old, next *ReferenceValues, until time.Time) *ReferenceValues {
	out := *next
	out.Files, out.PCRs, out.PCRsNotAfter = maps.Clone(next.Files), maps.Clone(next.PCRs), maps.Clone(next.PCRsNotAfter)
	if out.Files == nil {
		out.Files = map[string]File{}
	}
	for name, was := range old.Files {
		f, listed := out.Files[name]
		if !listed {
			f.Required = new(bool) // next does not know it
			f.AllowAbsent = was.AllowAbsent
		}
		f.SHA256, f.NotAfter = rolled(was.SHA256, was.NotAfter, f.SHA256, f.NotAfter, until)
		out.Files[name] = f
	}
	for name, f := range out.Files {
		if _, known := old.Files[name]; !known {
			f.Required = new(bool) // hosts of the old version do not have it
			out.Files[name] = f
		}
	}
	for index, was := range old.PCRs {
		values, judged := out.PCRs[index]
		if !judged {
			continue // next does not judge it
		}
		ends := out.PCRsNotAfter[index]
		out.PCRs[index], ends = rolled(was, old.PCRsNotAfter[index], values, ends, until)
		if len(ends) > 0 {
			if out.PCRsNotAfter == nil {
				out.PCRsNotAfter = map[int]map[Digest]time.Time{}
			}
			out.PCRsNotAfter[index] = ends
		}
	}
	return &out
}

// rolled is the union of two lists of digests in which those of the old one end at until, or earlier if they did.
func rolled(old []Digest, oldEnds map[Digest]time.Time, next []Digest, nextEnds map[Digest]time.Time, until time.Time) ([]Digest, map[Digest]time.Time) {
	ends := maps.Clone(nextEnds)
	for _, d := range old {
		if slices.Contains(next, d) {
			continue
		}
		end := until
		if was, bounded := oldEnds[d]; bounded && was.Before(until) {
			end = was
		}
		if ends == nil {
			ends = map[Digest]time.Time{}
		}
		ends[d] = end
	}
	return distinct(old, next), ends
}

// Change is one difference between two sets of reference values.
type Change struct {
	// Item is the name of an entry, "pcr/N", or the setting.
	Item string `json:"item"`
	// What is "added", "removed" (a thing that is judged), "accepts" or "no longer accepts" (a digest), or "changed" (a setting).
	What string `json:"what"`
	// Value is the digest, or what the setting was and is.
	Value string `json:"value,omitempty"`
}

// Diff lists what next changes, sorted by item.
func Diff(old, next *ReferenceValues) []Change {
	var out []Change
	add := func(item, what, value string) { out = append(out, Change{item, what, value}) }
	digests := func(item string, was, is []Digest) {
		for _, d := range is {
			if !slices.Contains(was, d) {
				add(item, "accepts", d.String())
			}
		}
		for _, d := range was {
			if !slices.Contains(is, d) {
				add(item, "no longer accepts", d.String())
			}
		}
	}
	for name := range union(old.Files, next.Files) {
		was, knew := old.Files[name]
		is, knows := next.Files[name]
		switch {
		case !knew:
			add(name, "added", "")
		case !knows:
			add(name, "removed", "")
		case was.required() != is.required():
			add(name, "changed", fmt.Sprintf("required: %t to %t", was.required(), is.required()))
		case was.AllowAbsent != is.AllowAbsent:
			add(name, "changed", fmt.Sprintf("allow_absent: %t to %t", was.AllowAbsent, is.AllowAbsent))
		}
		digests(name, was.SHA256, is.SHA256)
	}
	for index := range union(old.PCRs, next.PCRs) {
		item := fmt.Sprintf("pcr/%d", index)
		_, knew := old.PCRs[index]
		_, knows := next.PCRs[index]
		switch {
		case !knew:
			add(item, "added", "")
		case !knows:
			add(item, "removed", "")
		}
		digests(item, old.PCRs[index], next.PCRs[index])
	}
	setting := func(item string, was, is any) {
		if was != is {
			add(item, "changed", fmt.Sprintf("%v to %v", was, is))
		}
	}
	setting("tpm.required", old.TPM.required(), next.TPM.required())
	setting("unlisted", cmp.Or(old.Unlisted, UnlistedRefuse), cmp.Or(next.Unlisted, UnlistedRefuse))
	setting("boot", old.Boot, next.Boot)
	setting("ima.required", old.IMA.Required, next.IMA.Required)
	setting("ima.allow_violations", old.IMA.AllowViolations, next.IMA.AllowViolations)
	setting("ima.report_only", old.IMA.ReportOnly, next.IMA.ReportOnly)
	if !slices.Equal(old.IMA.RuntimePolicy, next.IMA.RuntimePolicy) {
		add("ima.runtime_policy", "changed", fmt.Sprintf("%d to %d bytes", len(old.IMA.RuntimePolicy), len(next.IMA.RuntimePolicy)))
	}
	slices.SortStableFunc(out, func(a, b Change) int { return cmp.Or(cmp.Compare(a.Item, b.Item), cmp.Compare(a.What, b.What)) })
	return out
}
