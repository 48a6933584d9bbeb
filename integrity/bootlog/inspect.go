package bootlog

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes, and the signature, of the specification identifier event (section 10.4.5.1): the first event of a log with digests of several
// banks, in the format of TPM 1.2.
const (
	legacyHead    = 4 + 4 + 20 + 4
	specIDHead    = 16 + 4 + 4 + 4
	specSignature = "Spec ID Event03\x00"
)

// Bounds of the algorithms that a log declares: their number, and the size of a digest in bytes.
const (
	maxAlgorithms = 16
	maxDigest     = 64
)

// shape is what inspect learns of a log.
type shape struct {
	legacy bool
	events int
}

// inspect walks over the log before the parser sees it, and refuses what is too large or not as the profile has it.
func inspect(raw []byte) (shape, error) {
	if len(raw) == 0 || len(raw) > MaxSize {
		return shape{}, &Error{Check: CheckLimit, Found: fmt.Sprintf("%d bytes", len(raw)), Expected: fmt.Sprintf("1 to %d", MaxSize)}
	}
	w := walker{rest: raw}
	kind, data := w.legacyEvent()
	if w.err != nil {
		return shape{}, w.at(1)
	}
	s := shape{legacy: kind != typeNoAction || len(data) < specIDHead}
	if s.legacy {
		s.events = 1
	} else {
		w.specID(data)
	}
	for w.err == nil && len(w.rest) > 0 {
		if s.events++; s.events > MaxEvents {
			return shape{}, &Error{Check: CheckLimit, Found: "a log that goes on", Expected: fmt.Sprintf("at most %d events", MaxEvents)}
		}
		if s.legacy {
			w.legacyEvent()
		} else {
			w.event()
		}
	}
	if w.err != nil {
		return shape{}, w.at(s.events)
	}
	return s, nil
}

// walker takes fields off a log. After an error it takes nothing.
type walker struct {
	rest  []byte
	sizes map[uint16]int // of the digests declared
	err   *Error
}

func (w *walker) at(event int) error {
	w.err.Event = event
	return w.err
}

func (w *walker) fail(expected, found string, args ...any) {
	if w.err == nil {
		w.err = &Error{Check: CheckStructure, Found: fmt.Sprintf(found, args...), Expected: expected}
	}
}

func (w *walker) take(n uint64) []byte {
	if w.err == nil && n > uint64(len(w.rest)) {
		w.fail(fmt.Sprintf("%d bytes", n), "%d bytes left", len(w.rest))
	}
	if w.err != nil {
		return nil
	}
	b := w.rest[:n]
	w.rest = w.rest[n:]
	return b
}

func (w *walker) u32() uint32 {
	if b := w.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (w *walker) u16() uint16 {
	if b := w.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (w *walker) pcr() {
	if n := w.u32(); n > maxPCR {
		w.fail(fmt.Sprintf("0 to %d", maxPCR), "PCR %#x", n)
	}
}

// legacyEvent is TCG_PCR_EVENT.
func (w *walker) legacyEvent() (kind uint32, data []byte) {
	w.pcr()
	kind = w.u32()
	w.take(20)
	return kind, w.take(uint64(w.u32()))
}

// event is TCG_PCR_EVENT2: the digests are of algorithms that were declared, each at most once.
func (w *walker) event() {
	w.pcr()
	w.u32()
	count := w.u32()
	if uint64(count) > uint64(len(w.sizes)) {
		w.fail(fmt.Sprintf("at most %d", len(w.sizes)), "%d digests", count)
		return
	}
	seen := make(map[uint16]bool, count)
	for range count {
		id := w.u16()
		size, ok := w.sizes[id]
		if w.err == nil && (!ok || seen[id]) {
			w.fail("one digest of each algorithm that the log declares", "another digest of algorithm %#x", id)
		}
		seen[id] = true
		w.take(uint64(size))
	}
	w.take(uint64(w.u32()))
}

// specID is TCG_EfiSpecIDEvent. It is read apart from the rest of the log.
func (w *walker) specID(data []byte) {
	in := walker{rest: data}
	if signature := in.take(16); string(signature) != specSignature {
		in.fail(fmt.Sprintf("%q", specSignature), "signature %q", signature)
	}
	in.take(8) // platform class, version, errata, size of a UINTN
	count := in.u32()
	if count == 0 || count > maxAlgorithms {
		in.fail(fmt.Sprintf("1 to %d", maxAlgorithms), "%d digest algorithms", count)
		count = 0
	}
	w.sizes = make(map[uint16]int, count)
	for range count {
		id, size := in.u16(), int(in.u16())
		if _, twice := w.sizes[id]; in.err == nil && twice {
			in.fail("each digest algorithm once", "algorithm %#x again", id)
		}
		if h := hashOf(id); in.err == nil && (size == 0 || size > maxDigest || id > 0xff || h != 0 && size != h.Size()) {
			in.fail("the size of its digests, and an identifier of one byte", "algorithm %#x of %d bytes", id, size)
		}
		w.sizes[id] = size
	}
	if vendor := in.take(1); vendor != nil {
		in.take(uint64(vendor[0]))
	}
	if len(in.rest) != 0 {
		in.fail("nothing", "%d bytes after the vendor's information", len(in.rest))
	}
	w.err = in.err
}
