package receipt

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
)

// Sizes in bytes, and bounds.
const (
	kemPublicSize  = 1216
	sealedSeedSize = 1168
	maxHost        = 253
	maxMigrationID = 128
	maxState       = 16
	maxAdvisories  = 256
	maxWord        = 64
	// maxNumber is what every reader of JSON can hold.
	maxNumber = 1 << 53
)

func malformed(field string, found any, expected string) error {
	return fmt.Errorf("%w: %s: found %.200v, expected %s", ErrRecord, field, found, expected)
}

// check checks form: sizes, characters, bounds, and what excludes what.
func (r *Record) check() error {
	switch {
	case r.Schema != Schema:
		return malformed("schema", fmt.Sprintf("%q", r.Schema), Schema)
	case r.Suite != handshake.Suite:
		return malformed("suite", fmt.Sprintf("%q", r.Suite), handshake.Suite)
	case r.Mode != handshake.ModeName(v1.Mode_MODE_INTEL) && r.Mode != handshake.ModeName(v1.Mode_MODE_SIMULATED):
		return malformed("mode", fmt.Sprintf("%q", r.Mode), "intel or simulated")
	case !handshake.IsInstanceID(r.InstanceID):
		return malformed("instance_id", fmt.Sprintf("%q", r.InstanceID), "a UUID in canonical lower case")
	case len(r.MigrationID) > maxMigrationID || !printable(r.MigrationID):
		return malformed("migration_id", fmt.Sprintf("%q", r.MigrationID), "at most 128 printable ASCII characters")
	case r.Source.Host == r.Destination.Host:
		return malformed("destination.host", r.Destination.Host, "another host than the source")
	case string(r.Source.PlatformID) == string(r.Destination.PlatformID):
		return malformed("destination.platform_id", r.Destination.PlatformID, "another platform than the source's")
	case r.ComposedBy != roleSource && r.ComposedBy != roleDestination:
		return malformed("composed_by", fmt.Sprintf("%q", r.ComposedBy), "source or destination")
	}
	if err := sizes(map[string]sized{
		"session_id": {len(r.SessionID), 16}, "attempt_id": {len(r.AttemptID), 16},
		"exchange.nonce1": {len(r.Exchange.Nonce1), 32}, "exchange.nonce2": {len(r.Exchange.Nonce2), 32},
		"exchange.nonce3": {len(r.Exchange.Nonce3), 32}, "exchange.nonce4": {len(r.Exchange.Nonce4), 32},
		"transcript.ctx": {len(r.Transcript.Ctx), 48}, "transcript.th1": {len(r.Transcript.TH1), 48},
		"transcript.th2": {len(r.Transcript.TH2), 48}, "transcript.th3": {len(r.Transcript.TH3), 48},
	}); err != nil {
		return err
	}
	if err := r.Source.check(roleSource); err != nil {
		return err
	}
	if err := r.Destination.check(roleDestination); err != nil {
		return err
	}
	if err := r.checkCounts(); err != nil {
		return err
	}
	if err := r.Outcome.check(); err != nil {
		return err
	}
	return r.checkTimes()
}

const (
	roleSource      = "source"
	roleDestination = "destination"
)

type sized struct{ found, expected int }

func sizes(fields map[string]sized) error {
	for name, s := range fields {
		if s.found != s.expected {
			return malformed(name, fmt.Sprintf("%d bytes", s.found), fmt.Sprintf("%d bytes", s.expected))
		}
	}
	return nil
}

func (s *Side) check(role string) error {
	if !isHost(s.Host) {
		return malformed(role+".host", fmt.Sprintf("%q", s.Host), "a host name")
	}
	if s.PolicySVN > maxNumber {
		return malformed(role+".policy_svn", s.PolicySVN, "at most 2^53")
	}
	if err := sizes(map[string]sized{
		role + ".platform_id": {len(s.PlatformID), 32}, role + ".policy_digest": {len(s.PolicyDigest), 32}, role + ".nonce": {len(s.Nonce), 32},
		role + ".sign_public": {len(s.SignPublic), 32}, role + ".kem_public": {len(s.KEMPublic), kemPublicSize},
		role + ".sealed_seed": {len(s.Sealed), sealedSeedSize}, role + ".evidence": {len(s.Evidence), 48}, role + ".log": {len(s.Log), 48},
	}); err != nil {
		return err
	}
	if s.Found == nil {
		return nil
	}
	return s.Found.check(role + ".found")
}

func (f *Finding) check(where string) error {
	if !isWord(f.TCBStatus) {
		return malformed(where+".tcb_status", fmt.Sprintf("%q", f.TCBStatus), "a status in Intel's words")
	}
	if len(f.Advisories) > maxAdvisories || f.Advisories == nil || !all(f.Advisories, isWord) {
		return malformed(where+".advisories", len(f.Advisories), "a list of at most 256 names of advisories")
	}
	return sizes(map[string]sized{where + ".collateral": {len(f.Collateral), 32}})
}

func (r *Record) checkCounts() error {
	if r.State == nil || len(r.State) > maxState {
		return malformed("state", len(r.State), "a list of at most 16 blobs")
	}
	for _, b := range r.State {
		if !slices.Contains([]string{statePermanent, stateVolatile, stateSave}, b.Type) {
			return malformed("state", fmt.Sprintf("type %q", b.Type), "permanent, volatile or savestate")
		}
		if b.PlaintextBytes > maxNumber || b.CiphertextBytes > maxNumber {
			return malformed("state", "a size of more than 2^53", "less")
		}
	}
	if r.ImageBytes > maxNumber {
		return malformed("image_bytes", r.ImageBytes, "at most 2^53")
	}
	return nil
}

func (o Outcome) check() error {
	_, known := v1.Reason_value["REASON_"+o.Reason]
	switch {
	case o.Result == Committed && o.Reason == "":
		return nil
	case o.Result == Aborted && known:
		return nil
	}
	return malformed("outcome", fmt.Sprintf("%q, %q", o.Result, o.Reason), "committed, or aborted with the name of a reason")
}

func (r *Record) checkTimes() error {
	t := &r.Times
	for name, at := range map[string]time.Time{
		"times.established": t.Established, "times.judged": t.Judged, "times.armed": t.Armed, "times.concluded": t.Concluded,
	} {
		if at.IsZero() && name == "times.armed" {
			continue
		}
		if _, offset := at.Zone(); offset != 0 || at.Nanosecond() != 0 || at.Year() < 2020 || at.Year() > 9999 {
			return malformed(name, at, "a time in UTC, to the second")
		}
	}
	if t.Armed.IsZero() != (r.MigrationID == "") {
		return malformed("times.armed", t.Armed, "a time if, and only if, there is a migration id")
	}
	if r.Outcome.Result == Committed && t.Armed.IsZero() {
		return malformed("times.armed", t.Armed, "a time, as the migration was committed")
	}
	return nil
}

func all(words []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(words, func(s string) bool { return !ok(s) })
}

func isWord(s string) bool {
	return s != "" && len(s) <= maxWord && strings.Trim(s, letters+digits+"-_") == ""
}

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

func isHost(s string) bool {
	return s != "" && len(s) <= maxHost && strings.Trim(s, letters+digits+"-._") == ""
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < '!' || c > '~' })
}
