// Package appraise judges a host's integrity log against reference values: is this host made of what the operator accepts?
//
// It lists everything that speaks against a host, not the first thing only, so that an operator can mend it in one go. It does not check the
// enclave's signature over the log (the handshake does), and what a digest means is no matter to it. The zero value of everything here refuses.
package appraise

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
)

// Expectation is what this node knows of the log that it asked for.
type Expectation struct {
	// Host that the log must be about.
	Host string
	// Qualifying data that the TPM quote must be over.
	Qualifying [32]byte
	// AKPublic is the enrolled attestation key of the host's TPM (TPMT_PUBLIC); empty if none is enrolled.
	AKPublic []byte
	// Now is this node's time.
	Now time.Time
	// Previous is what the TPM said when this host was last accepted in the same session; nil for the first time. A TPM that was reset
	// or whose clock went back since then has lost what it measured.
	Previous *tpmquote.Statement
	// Fetch brings the log's attachments; nil when they cannot be had any more.
	Fetch Fetch
	// MaxAge bounds the distance between Now and the time of the log, either way: the clock of the log is the other host's. Zero accepts none.
	MaxAge time.Duration
}

// Appraise judges a log. It never returns nil.
func Appraise(log *v1.IntegrityLog, refs *ReferenceValues, want Expectation) *Verdict {
	v := &Verdict{judged: true}
	if err := hostlog.Validate(log); err != nil {
		found, expected := err.Error(), "a log of version 1"
		var detail *hostlog.Error
		if errors.As(err, &detail) && detail.Found != "" {
			found, expected = detail.Field+": "+detail.Found, detail.Expected
		}
		v.against(Mismatch{
			Item: "log", Kind: KindLogInvalid, Cause: err, Found: found, Expected: expected,
			Remedy: "run the same release of Safeconduct on both nodes",
		})
		return v // nothing in it can be named with confidence
	}
	if !v.referenceUsable(refs) {
		return v
	}
	v.origin(log, want)
	v.entries(log, refs, want.Now)
	v.missing(log, refs)
	v.tpm(log.GetTpmQuote(), refs, want)
	if v.TPM != nil {
		v.attachments(log, v.TPM, refs, want.Fetch)
	} else if refs.IMA.Required || refs.Boot.Required || refs.Boot.SecureBoot {
		v.against(Mismatch{
			Item: "tpm", Kind: KindTPMMissing, Found: "no verified TPM quote", Expected: "a quote that covers boot log and IMA list",
			Remedy: "set integrity.tpm in that node's configuration",
		})
	}
	return v
}

func (v *Verdict) against(m Mismatch) { v.Mismatches = append(v.Mismatches, m) }

// referenceUsable refuses reference values that would accept anything, or nothing by mistake.
func (v *Verdict) referenceUsable(refs *ReferenceValues) bool {
	m := Mismatch{Item: "policy", Kind: KindReferenceInvalid, Remedy: "generate reference values from a golden host and put them into the policy"}
	if refs == nil || len(refs.Files) == 0 && len(refs.PCRs) == 0 {
		m.Found, m.Expected = "no reference values", "at least one"
		v.against(m)
		return false
	}
	if err := refs.Validate(); err != nil {
		m.Found, m.Expected, m.Cause = err.Error(), "valid reference values", err
		v.against(m)
		return false
	}
	return true
}

// origin checks whose log it is, and of when.
func (v *Verdict) origin(log *v1.IntegrityLog, want Expectation) {
	if log.GetHost() != want.Host {
		v.against(Mismatch{
			Item: "host", Kind: KindWrongHost, Found: log.GetHost(), Expected: want.Host,
			Remedy: "set host in that node's configuration to the name under which its peers know it",
		})
	}
	at := log.GetMeasuredAt().AsTime()
	// Sub saturates, so that a time far away cannot wrap into the bound; its smallest value has no negation, hence two comparisons.
	if age := want.Now.Sub(at); age > want.MaxAge || age < -want.MaxAge {
		v.against(Mismatch{
			Item: "measured_at", Kind: KindStale,
			Found:    fmt.Sprintf("%s, %s before now", at.Format(time.RFC3339), age.Round(time.Millisecond)),
			Expected: fmt.Sprintf("within %s of now", want.MaxAge),
			Remedy:   "synchronise the clocks of both hosts, then measure again",
		})
	}
}

// entries judges each entry of the log.
func (v *Verdict) entries(log *v1.IntegrityLog, refs *ReferenceValues, now time.Time) {
	for _, e := range log.GetEntries() {
		name := e.GetName()
		ref, listed := refs.Files[name]
		switch {
		case !listed && (refs.Unlisted == UnlistedReport || e.GetInformation()):
			v.Unjudged = append(v.Unjudged, name)
		case !listed:
			v.against(Mismatch{
				Item: name, Kind: KindUnlisted, Found: describe(e), Expected: "only entries with a reference value",
				Remedy: "add a reference value, remove the item from that node's configuration, or set unlisted to report",
			})
		case e.GetAbsent() != "" && !ref.AllowAbsent:
			v.against(Mismatch{
				Item: name, Kind: KindAbsent, Found: describe(e), Expected: accepted(ref.SHA256),
				Remedy: "install it on that host, correct its path, or set allow_absent for it",
			})
		case e.GetAbsent() == "" && slices.Contains(ref.SHA256, Digest(e.GetDigest())) && ended(ref.NotAfter, Digest(e.GetDigest()), now):
			v.against(Mismatch{
				Item: name, Kind: KindDigest, Found: fmt.Sprintf("%s, accepted until %s", describe(e), ref.NotAfter[Digest(e.GetDigest())].UTC().Format(time.RFC3339)),
				Expected: accepted(ref.SHA256), Remedy: "finish the upgrade on that host: the time for the old version is over",
			})
		case e.GetAbsent() == "" && !slices.Contains(ref.SHA256, Digest(e.GetDigest())):
			v.against(Mismatch{
				Item: name, Kind: KindDigest, Found: describe(e), Expected: accepted(ref.SHA256),
				Remedy: "install an accepted version on that host, or, if this one is to be trusted, add its digest",
			})
		default:
			v.Matched = append(v.Matched, name)
		}
	}
}

// missing looks for required entries that the log leaves out.
func (v *Verdict) missing(log *v1.IntegrityLog, refs *ReferenceValues) {
	present := make(map[string]bool, len(log.GetEntries()))
	for _, e := range log.GetEntries() {
		present[e.GetName()] = true
	}
	for _, name := range slices.Sorted(maps.Keys(refs.Files)) {
		if ref := refs.Files[name]; !present[name] && ref.required() {
			v.against(Mismatch{
				Item: name, Kind: KindMissing, Found: "no entry", Expected: accepted(ref.SHA256),
				Remedy: "add the item to integrity.items of that node's configuration, or set required to false for it",
			})
		}
	}
}

// tpm judges the quote. One that is there must verify, whether or not it is required.
func (v *Verdict) tpm(q *v1.TpmQuote, refs *ReferenceValues, want Expectation) {
	if refs.TPM.required() && len(refs.PCRs) == 0 {
		v.against(Mismatch{
			Item: "policy", Kind: KindReferenceInvalid, Found: "a TPM is required, and no PCR is judged", Expected: "reference values for PCRs",
			Remedy: "generate reference values from a golden host with a TPM, or set tpm.required to false",
		})
	}
	if q == nil {
		if refs.TPM.required() {
			v.against(Mismatch{
				Item: "tpm", Kind: KindTPMMissing, Found: "no TPM quote", Expected: "a quote by the host's TPM",
				Remedy: "set integrity.tpm in that node's configuration, or set tpm.required to false",
			})
		}
		return
	}
	if len(want.AKPublic) == 0 {
		v.against(Mismatch{
			Item: "tpm", Kind: KindTPMNotEnrolled, Found: "a TPM quote", Expected: "an attestation key enrolled for " + want.Host,
			Remedy: "enrol the attestation key of that host's TPM",
		})
		return
	}
	statement, err := tpmquote.Verify(q, want.AKPublic, want.Qualifying)
	if err != nil {
		v.against(quoteMismatch(err))
		return
	}
	v.TPM = statement
	v.continuity(statement, want.Previous)
	v.pcrs(statement, refs, want.Now)
}

// continuity compares the TPM's counters with those of the last accepted quote by the same key. For a key outside the endorsement hierarchy the TPM
// adds a constant of its own to the two counts (TPM 2.0 Library, Part 1, section 36.7), so only their being equal says something.
func (v *Verdict) continuity(now, before *tpmquote.Statement) {
	if before == nil {
		return
	}
	found := fmt.Sprintf("reset %d, restart %d, clock %d ms", now.ResetCount, now.RestartCount, now.Clock)
	expected := fmt.Sprintf("reset %d, restart %d, clock %d ms or later", before.ResetCount, before.RestartCount, before.Clock)
	if now.ResetCount != before.ResetCount || now.RestartCount != before.RestartCount || now.Clock < before.Clock {
		v.against(Mismatch{
			Item: "tpm", Kind: KindTPMReset, Found: found, Expected: expected,
			Remedy: "the host or its TPM was restarted since it was accepted: establish a new session",
		})
	}
}

func quoteMismatch(err error) Mismatch {
	m := Mismatch{
		Item: "tpm", Kind: KindTPMQuote, Cause: err, Found: err.Error(), Expected: "a quote that verifies",
		Remedy: "check the TPM of that host, then enrol its attestation key again if the TPM or its mainboard was replaced",
	}
	var detail *tpmquote.Error
	if errors.As(err, &detail) {
		m.Found, m.Expected = string(detail.Check)+": "+detail.Found, detail.Expected
	}
	return m
}

// pcrs judges the values of a quote that has been verified.
func (v *Verdict) pcrs(s *tpmquote.Statement, refs *ReferenceValues, now time.Time) {
	for _, index := range slices.Sorted(maps.Keys(refs.PCRs)) {
		item := fmt.Sprintf("pcr/%d", index)
		value, quoted := s.PCRs[index]
		switch {
		case !quoted:
			v.against(Mismatch{
				Item: item, Kind: KindPCR, Found: "not in the quote", Expected: accepted(refs.PCRs[index]),
				Remedy: "add the PCR to integrity.pcrs of that node's configuration",
			})
		case slices.Contains(refs.PCRs[index], Digest(value)) && ended(refs.PCRsNotAfter[index], Digest(value), now):
			v.against(Mismatch{
				Item: item, Kind: KindPCR, Found: fmt.Sprintf("%x, accepted until %s", value, refs.PCRsNotAfter[index][Digest(value)].UTC().Format(time.RFC3339)),
				Expected: accepted(refs.PCRs[index]), Remedy: "finish the upgrade on that host: the time for the old version is over",
			})
		case !slices.Contains(refs.PCRs[index], Digest(value)):
			v.against(Mismatch{
				Item: item, Kind: KindPCR, Found: hex.EncodeToString(value[:]), Expected: accepted(refs.PCRs[index]),
				Remedy: "find out what was started on that host since the golden log; reboot it into the accepted software, or add the value",
			})
		default:
			v.Matched = append(v.Matched, item)
		}
	}
	for _, index := range slices.Sorted(maps.Keys(s.PCRs)) {
		if _, judged := refs.PCRs[index]; !judged {
			v.Unjudged = append(v.Unjudged, fmt.Sprintf("pcr/%d", index))
		}
	}
}

// ended says whether the time of an accepted value is over.
func ended(ends map[Digest]time.Time, d Digest, now time.Time) bool {
	at, bounded := ends[d]
	return bounded && now.After(at)
}

func describe(e *v1.IntegrityEntry) string {
	if e.GetAbsent() != "" {
		return "absent: " + e.GetAbsent()
	}
	return hex.EncodeToString(e.GetDigest())
}

// accepted lists digests for a message, the first few of them.
func accepted(digests []Digest) string {
	const shown = 4
	if len(digests) == 0 {
		return "no digest: absent only"
	}
	var parts []string
	for _, d := range digests[:min(shown, len(digests))] {
		parts = append(parts, d.String())
	}
	if len(digests) > shown {
		parts = append(parts, fmt.Sprintf("or %d more", len(digests)-shown))
	}
	return strings.Join(parts, ", ")
}
