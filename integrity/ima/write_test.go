package ima

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// written is an entry as the kernel would write it, made here without the code under test.
type written struct {
	pcr       int
	template  string
	data      []byte
	violation bool
	// text are the fields as the ASCII list shows them.
	text string
	// legacyName is set for the template "ima", whose binary form is not its data.
	legacyName string
}

func (w written) recorded() (sum [20]byte) {
	if !w.violation {
		sum = sha1.Sum(w.data)
	}
	return sum
}

// binary is ima_measurements_show, little-endian.
func (w written) binary() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(w.pcr))
	sum := w.recorded()
	b = append(b, sum[:]...)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(w.template))), w.template...)
	if w.template == "ima" {
		b = append(b, w.data[:20]...)
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(w.legacyName))), w.legacyName...)
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(w.data))), w.data...)
}

// ascii is ima_ascii_measurements_show.
func (w written) ascii() []byte {
	sum := w.recorded()
	return fmt.Appendf(nil, "%2d %x %s %s\n", w.pcr, sum, w.template, w.text)
}

// lengths puts a length before each field.
func lengths(fields ...string) []byte {
	var b []byte
	for _, f := range fields {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

func digest(n int, seed byte) string { return strings.Repeat(string([]byte{seed}), n) }

func hexed(s string) string { return hex.EncodeToString([]byte(s)) }

func ng(path string, seed byte) written {
	d := digest(32, seed)
	return written{
		pcr: 10, template: "ima-ng", data: lengths("sha256:\x00"+d, path+"\x00"), text: "sha256:" + hexed(d) + " " + path,
	}
}

func violation(path string) written {
	w := ng(path, 0)
	w.violation = true
	return w
}

func sig(path, signature string) written {
	d := digest(32, 7)
	return written{
		pcr: 10, template: "ima-sig", data: lengths("sha256:\x00"+d, path+"\x00", signature),
		text: "sha256:" + hexed(d) + " " + path + " " + hexed(signature),
	}
}

func buf(name, content string) written {
	d := digest(32, 9)
	return written{
		pcr: 10, template: "ima-buf", data: lengths("sha256:\x00"+d, name+"\x00", content),
		text: "sha256:" + hexed(d) + " " + name + " " + hexed(content),
	}
}

func legacy(name string) written {
	d := digest(20, 3)
	return written{
		pcr: 10, template: "ima", data: append([]byte(d+name), make([]byte, 256-len(name))...), text: hexed(d) + " " + name, legacyName: name,
	}
}

func opaque() written {
	return written{pcr: 10, template: "evm-sig", data: lengths("anything", "at all"), text: "sha256:00 /x"}
}

func binaryList(entries ...written) []byte {
	var b []byte
	for _, w := range entries {
		b = append(b, w.binary()...)
	}
	return b
}

func asciiList(entries ...written) []byte {
	var b []byte
	for _, w := range entries {
		b = append(b, w.ascii()...)
	}
	return b
}

// readAll reads a list to its end or first error.
func readAll(t testing.TB, raw []byte, limits Limits) ([]Entry, error) {
	t.Helper()
	var all []Entry
	for e, err := range Entries(bytes.NewReader(raw), limits) {
		if err != nil {
			return all, err
		}
		all = append(all, e.Clone())
	}
	return all, nil
}
