package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// streamWith is a migration stream with a vTPM section around the given blobs, among memory.
func streamWith(memory []byte, perm, vol []byte) []byte {
	b := append([]byte("QEVM\x00\x00\x00\x03"), memory...)
	b = append(b, sectionFull, 0, 0, 0, 9, byte(len(vtpmSection)))
	b = append(b, vtpmSection...)
	b = append(b, make([]byte, 8)...)
	for i, blob := range [][]byte{perm, vol, nil} {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
		b = binary.BigEndian.AppendUint32(b, uint32(len(blob)))
		b = append(b, blob...)
	}
	return append(b, sectionFooter, 0, 0, 0, 9, 0)
}

func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestTheVTPMSectionIsFoundByItsOwnSizes(t *testing.T) {
	perm, vol := random(500, 1), random(900, 2)
	for name, memory := range map[string][]byte{
		"nothing before it":               nil,
		"memory before it":                make([]byte, 5000),
		"memory that names the device":    append(append(make([]byte, 100), byte(len(vtpmSection))), vtpmSection...),
		"memory that imitates a section":  streamWith(nil, random(40, 3), nil)[8:60],
		"memory that names it at its end": append([]byte{sectionFull}, vtpmSection...),
	} {
		stream := streamWith(memory, perm, vol)
		s, err := FindVTPMSection(stream)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Offset != 8+len(memory) || s.Offset+len(s.Data) != len(stream)-1 {
			t.Errorf("%s: section at %d, %d bytes, in a stream of %d", name, s.Offset, len(s.Data), len(stream))
		}
		if len(s.Blobs) != 3 || !bytes.Equal(s.Blobs[0].Data, perm) || !bytes.Equal(s.Blobs[1].Data, vol) || len(s.Blobs[2].Data) != 0 {
			t.Errorf("%s: blobs are not those that were sent", name)
		}
		if b := s.Blobs[1]; !bytes.Equal(stream[b.Offset:b.Offset+900], vol) || b.Type != 2 || b.Flags != 1 {
			t.Errorf("%s: blob 2 is at %d, type %d, flags %d", name, b.Offset, b.Type, b.Flags)
		}
	}
}

func TestStreamsWithoutAWholeVTPMSection(t *testing.T) {
	whole := streamWith(nil, random(50, 1), random(60, 2))
	wrongFooter := bytes.Clone(whole)
	wrongFooter[len(wrongFooter)-2]++
	hugeBlob := bytes.Clone(whole)
	hugeBlob[8+6+len(vtpmSection)+8+4] = 0xff
	cases := map[string][]byte{
		"an encrypted stream":       random(1000, 3),
		"an empty stream":           nil,
		"a stream without a vTPM":   []byte("QEVM\x00\x00\x00\x03 and memory"),
		"a footer of another id":    wrongFooter,
		"a blob longer than it all": hugeBlob,
	}
	for n := 8; n < len(whole)-1; n += 7 {
		cases["cut short after "+string(rune('0'+n%10))+" and more"] = whole[:n]
	}
	for name, stream := range cases {
		if s, err := FindVTPMSection(stream); !errors.Is(err, ErrNoVTPMSection) {
			t.Errorf("%s: %+v, %v, expected %v", name, s, err, ErrNoVTPMSection)
		}
	}
}

func TestWindowsOfThePlaintextAreFoundWhereTheyAre(t *testing.T) {
	perm, vol := random(500, 1), append(random(300, 2), make([]byte, 100)...)
	zeros := make([]byte, 4096)
	for _, c := range []struct {
		name                string
		stream              []byte
		inSection, inStream int
		highEntropyInStream int
	}{
		{"in clear: all", streamWith(zeros, perm, vol), 369, 369, 281},
		{"encrypted: only what zeros in memory share with it", streamWith(zeros, perm, random(400, 7)), 0, 69, 0},
		{"encrypted, with no such memory: none", streamWith(nil, perm, random(400, 7)), 0, 0, 0},
		{"encrypted, but a copy in the guest's memory", streamWith(vol[:100], perm, random(400, 7)), 0, 69, 69},
		{"one window leaks into the section", streamWith(nil, perm, append(random(368, 7), vol[40:72]...)), 1, 1, 1},
	} {
		w, err := SearchWindows(c.stream, vol, 32)
		if err != nil {
			t.Fatal(err)
		}
		if w.Total != 369 || w.Distinct != 301 || w.InSection != c.inSection || w.InStream != c.inStream || w.HighEntropyInStream != c.highEntropyInStream {
			t.Errorf("%s: %+v, expected %d in the section, %d in the stream, %d of high entropy", c.name, w, c.inSection, c.inStream, c.highEntropyInStream)
		}
	}
}

func TestASearchThatCanProveNothingIsAnError(t *testing.T) {
	stream := streamWith(nil, random(50, 1), random(60, 2))
	if _, err := SearchWindows(stream, random(31, 3), 32); err == nil {
		t.Error("a plaintext shorter than a window is searched for")
	}
	if _, err := SearchWindows(random(100, 1), random(60, 2), 32); !errors.Is(err, ErrNoVTPMSection) {
		t.Errorf("%v, expected %v", err, ErrNoVTPMSection)
	}
}

func FuzzFindVTPMSection(f *testing.F) {
	f.Add(streamWith(nil, []byte("permanent"), []byte("volatile")))
	f.Add([]byte("QEVM\x00\x00\x00\x03\x04\x00\x00\x00\x01\x0ctpm-emulator"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		s, err := FindVTPMSection(stream)
		if err != nil {
			return
		}
		for _, b := range s.Blobs {
			if !bytes.Equal(stream[b.Offset:b.Offset+len(b.Data)], b.Data) {
				t.Errorf("blob %d is not where it says", b.Type)
			}
		}
	})
}
