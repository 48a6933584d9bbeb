package bootlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"unicode/utf16"
)

// written is an event to be put into a log, made here without the code under test.
type written struct {
	pcr  uint32
	kind uint32
	data []byte
	// hashed is what the digests are over, if not data.
	hashed []byte
}

// Identifiers of the TCG Algorithm Registry.
const (
	algSHA1   = 0x0004
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
)

var hashes = map[uint16]crypto.Hash{algSHA1: crypto.SHA1, algSHA256: crypto.SHA256, algSHA384: crypto.SHA384, algSHA512: crypto.SHA512}

func (w written) digest(h crypto.Hash) []byte {
	if w.kind == typeNoAction {
		return make([]byte, h.Size())
	}
	in := w.hashed
	if in == nil {
		in = w.data
	}
	d := h.New()
	d.Write(in)
	return d.Sum(nil)
}

func le32(b []byte, values ...uint32) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func le16(b []byte, values ...uint16) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// legacy is TCG_PCR_EVENT.
func (w written) legacy() []byte {
	b := append(le32(nil, w.pcr, w.kind), w.digest(crypto.SHA1)...)
	return append(le32(b, uint32(len(w.data))), w.data...)
}

// agile is TCG_PCR_EVENT2.
func (w written) agile(algorithms ...uint16) []byte {
	b := le32(nil, w.pcr, w.kind, uint32(len(algorithms)))
	for _, a := range algorithms {
		b = append(le16(b, a), w.digest(hashes[a])...)
	}
	return append(le32(b, uint32(len(w.data))), w.data...)
}

// header is the first event of a log with several banks. Each algorithm is followed by its size.
func header(algorithms ...uint16) []byte {
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	data = le16(le32(data, uint32(len(algorithms)/2)), algorithms...)
	return written{kind: typeNoAction, data: append(data, 0)}.legacy()
}

// both is a log with SHA-1 and SHA-256 digests.
func both(events ...written) []byte {
	b := header(algSHA1, 20, algSHA256, 32)
	for _, e := range events {
		b = append(b, e.agile(algSHA1, algSHA256)...)
	}
	return b
}

// sha1Only is a log in the format of TPM 1.2.
func sha1Only(events ...written) []byte {
	var b []byte
	for _, e := range events {
		b = append(b, e.legacy()...)
	}
	return b
}

// variable is UEFI_VARIABLE_DATA in EFI_GLOBAL_VARIABLE.
func variable(name string, value []byte) []byte {
	b := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	units := utf16.Encode([]rune(name))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	return append(le16(b, units...), value...)
}

const (
	evSeparator = 4
	evAction    = 5
	evVersion   = 8
	evTag       = 6
	evIPL       = 13
	evVariable  = 0x80000001
	evBoot      = 0x80000002
	evImage     = 0x80000003
)

func separators() []written {
	var all []written
	for pcr := range uint32(8) {
		all = append(all, written{pcr: pcr, kind: evSeparator, data: []byte{0, 0, 0, 0}})
	}
	return all
}

func secureBoot(value ...byte) written {
	return written{pcr: 7, kind: evVariable, data: variable("SecureBoot", value)}
}

func locality(n byte) written {
	return written{kind: typeNoAction, data: append([]byte("StartupLocality\x00"), n)}
}

func grub(prefix, command string) written {
	return written{pcr: 8, kind: evIPL, data: []byte(prefix + command + "\x00"), hashed: []byte(command)}
}

// ordinary is the log of a boot.
func ordinary() []written {
	all := []written{
		{pcr: 0, kind: evVersion, data: []byte("v\x001\x00\x00\x00")},
		secureBoot(1),
		{pcr: 4, kind: evImage, data: []byte("a device path"), hashed: []byte("the image")},
	}
	return append(append(all, separators()...), grub("kernel_cmdline: ", "/vmlinuz ro quiet"), grub("grub_cmd: ", "boot"))
}

// replayed extends by hand, in one bank.
func replayed(h crypto.Hash, start byte, pcr uint32, events ...written) []byte {
	value := make([]byte, h.Size())
	if pcr == 0 {
		value[len(value)-1] = start
	}
	for _, e := range events {
		if e.pcr == pcr && e.kind != typeNoAction {
			d := h.New()
			d.Write(bytes.Join([][]byte{value, e.digest(h)}, nil))
			value = d.Sum(nil)
		}
	}
	return value
}

func quotedOf(h crypto.Hash, start byte, events []written, pcrs ...int) map[int][]byte {
	out := map[int][]byte{}
	for _, pcr := range pcrs {
		out[pcr] = replayed(h, start, uint32(pcr), events...)
	}
	return out
}
