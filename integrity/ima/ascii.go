package ima

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // only its size
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strconv"
)

// ascii reads an entry of the ASCII list (ima_ascii_measurements_show): PCR, template hash, template name, and the fields, with one space between and
// a line break at the end. It rebuilds the template data.
func (l *list) ascii(e *Entry) (bool, *Error) {
	line, more, err := l.nextLine()
	if err != nil || !more {
		return false, err
	}
	pcr, line, ok1 := bytes.Cut(bytes.TrimPrefix(line, []byte(" ")), []byte(" "))
	recorded, line, ok2 := bytes.Cut(line, []byte(" "))
	name, line, ok3 := bytes.Cut(line, []byte(" "))
	n, bad := strconv.ParseUint(string(pcr), 10, 8)
	if !ok1 || !ok2 || !ok3 || bad != nil || len(recorded) != hex.EncodedLen(sha1.Size) {
		return false, malformed("a PCR, a SHA-1 template hash, a template name and its fields", "a line that begins %.80q", l.line)
	}
	e.PCR = int(n)
	if _, err := hex.Decode(e.Recorded[:], recorded); err != nil {
		return false, malformed("hexadecimal digits", "template hash %q", recorded)
	}
	if err := l.setTemplate(e, name); err != nil {
		return false, err
	}
	if len(l.fields) == 0 {
		return false, &Error{Check: CheckTemplate, Found: strconv.Quote(l.template), Expected: "a known template, or the binary list"}
	}
	values, err := split(line, l.fields)
	if err != nil {
		return false, err
	}
	if l.data, err = encode(l.data[:0], l.fields, values); err != nil {
		return false, err
	}
	e.Data = l.data
	return true, nil
}

// nextLine reads a line without its line break into l.line.
func (l *list) nextLine() ([]byte, bool, *Error) {
	l.line = l.line[:0]
	for {
		part, err := l.in.ReadSlice('\n')
		if len(l.line)+len(part) > l.limits.EntryBytes+1 {
			return nil, false, l.tooLarge()
		}
		l.line = append(l.line, part...)
		switch {
		case err == nil:
			l.line = l.line[:len(l.line)-1]
			return l.line, true, nil
		case errors.Is(err, io.EOF) && len(l.line) == 0:
			return nil, false, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			// Among them the end of the list without a line break: the kernel ends every line, so this one was cut.
			return nil, false, broken(err)
		}
	}
}

// split cuts a line into the values of its fields. Only a path may have spaces in it (on kernels that did not yet replace them), so the fields
// before the path are cut from the left and those after it from the right.
func split(line []byte, fields []field) ([maxFields][]byte, *Error) {
	var values [maxFields][]byte
	path := slices.IndexFunc(fields, func(f field) bool { return f == fieldName || f == fieldLegacyName })
	if path < 0 {
		path = len(fields) - 1
	}
	rest, found := line, true
	for i := 0; i < path && found; i++ {
		values[i], rest, found = bytes.Cut(rest, []byte(" "))
	}
	for i := len(fields) - 1; i > path && found; i-- {
		space := bytes.LastIndexByte(rest, ' ')
		if found = space >= 0; found {
			values[i], rest = rest[space+1:], rest[:space]
		}
	}
	values[path] = rest
	if !found {
		return values, malformed(strconv.Itoa(len(fields))+" fields with a space before each", "%.80q", line)
	}
	return values, nil
}

// encode appends the template data of the fields' values.
func encode(data []byte, fields []field, values [maxFields][]byte) ([]byte, *Error) {
	if fields[0] == fieldLegacyDigest {
		digest, err := hex.DecodeString(string(values[0]))
		if err != nil {
			return nil, malformed("hexadecimal digits", "digest %.80q", values[0])
		}
		return appendLegacy(data, digest, values[1])
	}
	for i, f := range fields {
		start := len(data)
		data = append(data, 0, 0, 0, 0)
		value := values[i]
		switch f {
		case fieldName:
			data = append(append(data, value...), 0)
			value = nil
		case fieldDigest, fieldTypedDigest, fieldModuleDigest:
			if colon := bytes.LastIndexByte(value, ':'); colon >= 0 {
				data = append(append(data, value[:colon+1]...), 0)
				value = value[colon+1:]
			}
		default: // the digits of the bytes
		}
		var err error
		if data, err = hex.AppendDecode(data, value); err != nil {
			return nil, malformed("hexadecimal digits", "field %s with %.80q", f, value)
		}
		binary.LittleEndian.PutUint32(data[start:], uint32(len(data)-start-4))
	}
	return data, nil
}
