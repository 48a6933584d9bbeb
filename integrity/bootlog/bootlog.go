// Package bootlog reads the boot event log that a PC's firmware and boot loaders keep of what they extended into the TPM (TCG PC Client Platform
// Firmware Profile, section 10; /sys/kernel/security/tpm0/binary_bios_measurements), replays it, and compares the outcome with PCR values.
//
// The log is hostile input: the host keeps it. What a quoted PCR covers is the digest of each event and their order, nothing else. The type of an
// event is never covered, and its data only where the digest is over them: see Event.Covered.
//
// Events are parsed by github.com/google/go-eventlog. What it does not do is done here with the standard library: bounds on size and number before
// it sees a byte, the shape of the digest list (it takes a digest algorithm by the low byte of its identifier, and the first of two digests of
// one bank), replay per bank without a PCR value to aim at, the list of all PCRs that differ, and a refusal where it panics. Its workarounds for
// firmware that forgets to log events are not used: such a log does not replay, and is refused. It reads no SHA-512 or SM3 digests, so those banks
// cannot be asked for.
//
// The package verifies no quote, and does not say which events are acceptable.
package bootlog

import (
	"crypto"
	_ "crypto/sha1" //nolint:gosec // a bank that may be asked for; the default is SHA-256
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"slices"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// Bounds of a log.
const (
	// MaxSize in bytes. Firmware reserves 64 KiB or a few times that.
	MaxSize = 1 << 20
	// MaxEvents of a log. A large server has some hundred.
	MaxEvents = 1 << 14
	// maxPCR is the highest PCR of the PC Client platform.
	maxPCR = 23
)

// Log is a parsed log. Nothing in it is true before it has been compared with quoted PCR values.
type Log struct {
	// Banks for which the log has digests, of SHA-1, SHA-256 and SHA-384.
	Banks []crypto.Hash
	// Legacy: the log has the format of TPM 1.2, with SHA-1 only.
	Legacy bool
	// Locality from which the TPM was started, which is the value that PCR 0 starts from: 0, 3 (after a D-RTM) or 4 (H-CRTM).
	Locality byte
	// Events in the order of the log, without the first of a log that is not Legacy, which only describes it.
	Events []Event
}

// Event is one event.
type Event struct {
	// Number counts from 1.
	Number int
	PCR    int
	// Type as in the profile, section 10.4.1. No PCR covers it.
	Type uint32
	// Digests by bank. They are in the PCR of each, unless the event Extends none.
	Digests map[crypto.Hash][]byte
	// Data of the event.
	Data []byte
}

// Types of events that this package looks into (section 10.4.1, table 27).
const (
	typeNoAction     = uint32(tcg.NoAction)
	typeIPL          = uint32(tcg.Ipl)
	typeEventTag     = uint32(tcg.EventTag)
	typeVariable     = uint32(tcg.EFIVariableDriverConfig)
	typeBootVariable = uint32(tcg.EFIVariableBoot)
)

// TypeName is the profile's name of the type ("EV_SEPARATOR"), or its number.
func (e *Event) TypeName() string { return tcg.EventType(e.Type).TCGString() }

// Extends reports whether the event extended its PCR. EV_NO_ACTION does not.
func (e *Event) Extends() bool { return e.Type != typeNoAction }

// Parse reads a log of at most MaxSize bytes. The error is an *Error. Data in the log are copied.
func Parse(raw []byte) (*Log, error) {
	s, err := inspect(raw)
	if err != nil {
		return nil, err
	}
	parsed, err := parse(raw)
	if err != nil {
		return nil, err
	}
	log := &Log{Legacy: s.legacy}
	for _, algorithm := range parsed.Algs {
		log.Banks = append(log.Banks, algorithm.CryptoHash())
		for i, e := range parsed.Events(algorithm) {
			if i == len(log.Events) {
				log.Events = append(log.Events, Event{
					Number: i + 1, PCR: e.Index, Type: uint32(e.Type), Digests: map[crypto.Hash][]byte{}, Data: e.Data,
				})
			}
			if len(e.Digest) > 0 {
				log.Events[i].Digests[algorithm.CryptoHash()] = e.Digest
			}
		}
	}
	if len(log.Events) != s.events {
		return nil, &Error{Check: CheckParser, Found: fmt.Sprintf("%d events parsed", len(log.Events)), Expected: fmt.Sprintf("%d, as counted", s.events)}
	}
	if err := log.startup(); err != nil {
		return nil, err
	}
	return log, nil
}

// parse calls the library, whose panic on hostile input must not end an enclave.
func parse(raw []byte) (*tcg.EventLog, error) {
	return guarded(func() (*tcg.EventLog, error) { return tcg.ParseEventLog(raw, tcg.ParseOpts{}) })
}

func guarded(parse func() (*tcg.EventLog, error)) (log *tcg.EventLog, err error) {
	defer func() {
		if p := recover(); p != nil {
			log, err = nil, &Error{Check: CheckParser, Found: fmt.Sprintf("a panic: %.200v", p), Expected: "a log"}
		}
	}()
	log, err = parse()
	if err != nil {
		// Its errors may quote the whole of an event.
		return nil, &Error{Check: CheckParser, Found: fmt.Sprintf("%.200v", err), Expected: "a log"}
	}
	return log, nil
}

// startupLocality begins the data of the event that says from which locality TPM2_Startup came (section 10.4.5.3).
const startupLocality = "StartupLocality\x00"

// startup finds the locality. Once PCR 0 is extended, its start is past.
func (l *Log) startup() error {
	extended, found := false, false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 0 {
			continue
		}
		if e.Extends() {
			extended = true
			continue
		}
		if len(e.Data) != len(startupLocality)+1 || string(e.Data[:len(startupLocality)]) != startupLocality {
			continue
		}
		l.Locality = e.Data[len(startupLocality)]
		switch {
		case extended || found:
			return &Error{Check: CheckLocality, Event: e.Number, Found: "a startup locality that comes second or late", Expected: "one, before PCR 0 is extended"}
		case !slices.Contains([]byte{0, 3, 4}, l.Locality):
			return &Error{Check: CheckLocality, Event: e.Number, Found: fmt.Sprintf("startup locality %d", l.Locality), Expected: "0, 3 or 4"}
		}
		found = true
	}
	return nil
}

// hashOf is the hash of a bank that go-eventlog knows by this identifier (TCG Algorithm Registry), or 0.
func hashOf(id uint16) crypto.Hash {
	if id > 0xff {
		return 0
	}
	return register.HashAlg(id).CryptoHash()
}

// Check names one thing that is demanded of a log. It is the target for errors.Is: errors.Is(err, bootlog.CheckBank).
type Check string

// The checks.
const (
	// CheckLimit: the log is within MaxSize and MaxEvents.
	CheckLimit Check = "limit"
	// CheckStructure: the log has the form that the profile gives it, to its last byte.
	CheckStructure Check = "structure"
	// CheckParser: the parser agrees.
	CheckParser Check = "parser"
	// CheckLocality: at most one startup locality, in its place.
	CheckLocality Check = "startup locality"
	// CheckBank: the log has digests for the bank that is asked for, in every event.
	CheckBank Check = "bank"
	// CheckQuoted: the quoted values are usable.
	CheckQuoted Check = "quoted values"
)

// Error makes a Check a target for errors.Is.
func (c Check) Error() string { return "boot event log: " + string(c) }

// Error says which check failed, at which event, and on what.
type Error struct {
	Check Check
	// Event counts from 1; 0 where the matter is not one event's.
	Event           int
	Found, Expected string
}

// Error names the check, the event, what was found and what was expected.
func (e *Error) Error() string {
	where := "boot event log: " + string(e.Check)
	if e.Event > 0 {
		where = fmt.Sprintf("boot event log: event %d: %s", e.Event, string(e.Check))
	}
	return fmt.Sprintf("%s: found %s, expected %s", where, e.Found, e.Expected)
}

// Unwrap returns the Check.
func (e *Error) Unwrap() error { return e.Check }
