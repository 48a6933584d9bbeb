package ima

import (
	"crypto/sha1" //nolint:gosec // only its size
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// headSize of an entry of the binary list, in bytes: PCR, template hash and the length of the template name.
const headSize = 4 + sha1.Size + 4

// binary reads an entry of the binary list (ima_measurements_show): u32 PCR, 20 bytes of template hash, u32 length and template name, u32 length and
// template data. The template "ima" has no length of the data, and its digest none either.
func (l *list) binary(e *Entry) (bool, *Error) {
	if _, err := l.in.Peek(1); errors.Is(err, io.EOF) {
		return false, nil
	}
	head := l.head[:]
	if _, err := io.ReadFull(l.in, head); err != nil {
		return false, broken(err)
	}
	pcr := binary.LittleEndian.Uint32(head)
	if pcr > maxPCR {
		return false, malformed(fmt.Sprintf("0 to %d, little-endian", maxPCR), "PCR %#x", pcr)
	}
	e.PCR = int(pcr)
	e.Recorded = [sha1.Size]byte(head[4:])
	size := binary.LittleEndian.Uint32(head[4+sha1.Size:])
	if size > maxTemplateName {
		return false, malformed(fmt.Sprintf("1 to %d", maxTemplateName), "a template name of %d bytes", size)
	}
	name, err := l.take(&l.line, size)
	if err != nil {
		return false, err
	}
	if err := l.setTemplate(e, name); err != nil {
		return false, err
	}
	if e.Template == legacyTemplate {
		return true, l.binaryLegacy(e)
	}
	if size, err = l.length(); err != nil {
		return false, err
	}
	e.Data, err = l.take(&l.data, size)
	return true, err
}

func (l *list) binaryLegacy(e *Entry) *Error {
	var digest [sha1.Size]byte
	if _, err := io.ReadFull(l.in, digest[:]); err != nil {
		return broken(err)
	}
	size, err := l.length()
	if err != nil {
		return err
	}
	if size >= legacyNameSize {
		return malformed(fmt.Sprintf("less than %d", legacyNameSize), "a name of %d bytes", size)
	}
	name, err := l.take(&l.line, size)
	if err != nil {
		return err
	}
	l.data, err = appendLegacy(l.data[:0], digest[:], name)
	e.Data = l.data
	return err
}

func (l *list) length() (uint32, *Error) {
	b := l.head[:4]
	if _, err := io.ReadFull(l.in, b); err != nil {
		return 0, broken(err)
	}
	return binary.LittleEndian.Uint32(b), nil
}

// take reads size bytes into a buffer. The buffer grows with what is read, not with what is claimed.
func (l *list) take(buffer *[]byte, size uint32) ([]byte, *Error) {
	if uint64(size) > uint64(l.limits.EntryBytes) {
		return nil, l.tooLarge()
	}
	b := (*buffer)[:0]
	for len(b) < int(size) {
		n := min(int(size)-len(b), 64<<10)
		b = slices.Grow(b, n)
		got, err := io.ReadFull(l.in, b[len(b):len(b)+n])
		if b = b[:len(b)+got]; err != nil {
			return nil, broken(err)
		}
	}
	*buffer = b
	return b, nil
}
