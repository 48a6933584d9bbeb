// Package transcript hashes the exact bytes that two parties have exchanged, under a label that says what the hash is for.
//
// A hash covers a label and a list of fields. The label and every field are preceded by their length, so that one sequence of
// bytes is the encoding of one list only: moving a byte from a field to its neighbour, splitting a field or dropping an empty one changes
// the hash. Labels keep the hashes of different purposes apart. The specification is docs/protocol.md, "Rules of encoding".
//
// Non-goals: it does not know what the fields mean, it keeps no running state, and it is no MAC. A secret has no place in a field.
package transcript

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"
)

// Size384 and Size512 are the sizes of the hashes in bytes.
const (
	Size384 = sha512.Size384
	Size512 = sha512.Size
)

// H384 is SHA-384 over label and fields, each preceded by its length as 8 bytes, big-endian. A nil field and an empty one are the
// same.
func H384(label string, fields ...[]byte) [Size384]byte {
	h := sha512.New384()
	write(h, label, fields)
	return [Size384]byte(h.Sum(nil))
}

// H512 is H384 with SHA-512: its 64 bytes fill the report data of an SGX quote.
func H512(label string, fields ...[]byte) [Size512]byte {
	h := sha512.New()
	write(h, label, fields)
	return [Size512]byte(h.Sum(nil))
}

// write never fails: a hash.Hash returns no error.
func write(h hash.Hash, label string, fields [][]byte) {
	writeField(h, []byte(label))
	for _, field := range fields {
		writeField(h, field)
	}
}

func writeField(h hash.Hash, field []byte) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(field)))
	h.Write(length[:])
	h.Write(field)
}
