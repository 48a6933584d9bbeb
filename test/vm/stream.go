package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The parts of QEMU's migration stream that matter here (migration/savevm.c, docs/devel/migration.rst), integers big-endian:
//
//	stream  = "QEVM" || version 3 (4) || parts || end 0x00 || description of the machine's state
//	part    = 0x04 (a full section) || section id (4) || length of name (1) || name || instance (4) || version (4) || state || footer
//	footer  = 0x7e || section id (4)
//
// A section's state has no length: only its device knows where it ends. The tpm-emulator's state (backends/tpm/tpm_emulator.c,
// vmstate_tpm_emulator) says so itself:
//
//	state   = permanent || volatile || savestate       each: flags (4) || size (4) || size bytes
//
// So the section is found by its name with the type byte before it, read to its end by its own sizes, and believed only if the footer with the same
// section id follows. A RAM page cannot imitate it by chance.
const (
	streamMagic    = "QEVM"
	sectionFull    = 0x04
	sectionFooter  = 0x7e
	vtpmSection    = "tpm-emulator"
	maxSectionBlob = 8 << 20
)

// ErrNoVTPMSection says that the stream has no whole tpm-emulator section.
var ErrNoVTPMSection = errors.New("no tpm-emulator section in the migration stream")

// Blob is one state blob as it is in the stream.
type Blob struct {
	// Type is swtpm's number: 1 permanent, 2 volatile, 3 savestate.
	Type  int
	Flags uint32
	// Offset in the stream, and the bytes from there.
	Offset int
	Data   []byte
}

// Section is the vTPM's part of a migration stream.
type Section struct {
	// Offset of the section's type byte in the stream; Data is everything from there up to and including the footer.
	Offset int
	Data   []byte
	Blobs  []Blob
}

// FindVTPMSection finds the vTPM in a migration stream that was captured without encryption of the stream as a whole.
func FindVTPMSection(stream []byte) (*Section, error) {
	if !bytes.HasPrefix(stream, []byte(streamMagic)) {
		return nil, fmt.Errorf("%w: it begins with %.8x, expected %x: it is encrypted, or no migration", ErrNoVTPMSection, stream, streamMagic)
	}
	name := append([]byte{byte(len(vtpmSection))}, vtpmSection...)
	why := ErrNoVTPMSection
	for from := 0; ; {
		i := bytes.Index(stream[from:], name)
		if i < 0 {
			return nil, why
		}
		at := from + i - 5 // the type byte and the section id come before the name
		if at >= 0 && stream[at] == sectionFull {
			s, err := parseVTPMSection(stream, at)
			if err == nil {
				return s, nil
			}
			why = fmt.Errorf("%w: at offset %d: %w", ErrNoVTPMSection, at, err)
		}
		from += i + 1
	}
}

func parseVTPMSection(stream []byte, at int) (*Section, error) {
	pos := at + 1
	word := func() (uint32, error) {
		if len(stream)-pos < 4 {
			return 0, errors.New("the stream ends in it")
		}
		pos += 4
		return binary.BigEndian.Uint32(stream[pos-4:]), nil
	}
	id, err := word()
	if err != nil {
		return nil, err
	}
	pos += 1 + len(vtpmSection) + 8 // name, instance, version
	s := &Section{Offset: at}
	for t := 1; t <= 3; t++ {
		flags, err := word()
		if err != nil {
			return nil, err
		}
		size, err := word()
		if err != nil {
			return nil, err
		}
		if size > maxSectionBlob || len(stream)-pos < int(size) {
			return nil, fmt.Errorf("blob %d has %d bytes, expected %d at most", t, size, min(maxSectionBlob, len(stream)-pos))
		}
		s.Blobs = append(s.Blobs, Blob{Type: t, Flags: flags, Offset: pos, Data: stream[pos : pos+int(size)]})
		pos += int(size)
	}
	footer := append([]byte{sectionFooter}, binary.BigEndian.AppendUint32(nil, id)...)
	if !bytes.HasPrefix(stream[pos:], footer) {
		return nil, fmt.Errorf("behind the blobs is %.5x, expected the footer %x", stream[pos:], footer)
	}
	s.Data = stream[at : pos+len(footer)]
	return s, nil
}
