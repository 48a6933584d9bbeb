package replay

import (
	"crypto"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
)

// An event log and an IMA list, made here without the code under test; packages bootlog and ima test their forms at length.

type event struct {
	pcr, kind uint32
	data      string
}

func (e event) legacy() []byte {
	b := binary.LittleEndian.AppendUint32(nil, e.pcr)
	b = binary.LittleEndian.AppendUint32(b, e.kind)
	sum := sha1.Sum([]byte(e.data))
	b = append(b, sum[:]...)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(e.data))), e.data...)
}

func (e event) agile() []byte {
	b := binary.LittleEndian.AppendUint32(nil, e.pcr)
	b = binary.LittleEndian.AppendUint32(b, e.kind)
	b = binary.LittleEndian.AppendUint32(b, 2)
	for id, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		d := h.New()
		d.Write([]byte(e.data))
		b = d.Sum(append(b, []byte{0x04, 0x0b}[id], 0))
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(e.data))), e.data...)
}

// boot is the log of a boot, in each of the two formats.
func boot(agile bool) []byte {
	events := []event{{0, 8, "v1"}, {4, 13, "a\x1bb"}, {8, 13, "kernel_cmdline: /vmlinuz ro"}, {7, 0x80000001, variable}}
	for pcr := range uint32(8) {
		events = append(events, event{pcr, 4, "\x00\x00\x00\x00"})
	}
	var b []byte
	if agile {
		spec := event{0, 3, "Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02\x02\x00\x00\x00\x04\x00\x14\x00\x0b\x00\x20\x00\x00"}
		b = spec.legacy()
	}
	for _, e := range events {
		if agile {
			b = append(b, e.agile()...)
			continue
		}
		b = append(b, e.legacy()...)
	}
	return b
}

// variable is SecureBoot, on.
const variable = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c\x0a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
	"S\x00e\x00c\x00u\x00r\x00e\x00B\x00o\x00o\x00t\x00\x01"

// data is template data of the template ima-ng.
func data(path string) []byte {
	digest := "sha256:\x00" + string(make([]byte, 32))
	b := append(binary.LittleEndian.AppendUint32(nil, uint32(len(digest))), digest...)
	return append(append(binary.LittleEndian.AppendUint32(b, uint32(len(path)+1)), path...), 0)
}

// line is an entry of the ASCII list.
func line(pcr int, path string) string {
	return fmt.Sprintf("%2d %x ima-ng sha256:%064d %s\n", pcr, sha1.Sum(data(path)), 0, path)
}

// unknown is an entry of the binary list, of a template that is not known.
func unknown() string {
	sum := sha1.Sum([]byte("data"))
	b := append(binary.LittleEndian.AppendUint32(nil, 10), sum[:]...)
	b = append(binary.LittleEndian.AppendUint32(b, 3), "new"...)
	return string(append(binary.LittleEndian.AppendUint32(b, 4), "data"...))
}

// pcr10 replays paths by hand.
func pcr10(h crypto.Hash, paths ...string) []byte {
	value := make([]byte, h.Size())
	for _, p := range paths {
		d := h.New()
		d.Write(data(p))
		sum := d.Sum(nil)
		d.Reset()
		d.Write(value)
		d.Write(sum)
		value = d.Sum(nil)
	}
	return value
}
