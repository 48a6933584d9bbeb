package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// frame is an Ethernet frame with a TCP segment from one port to another.
func frame(from, to uint16, seq uint32, flags byte, data []byte) []byte {
	f := make([]byte, 14+20+20, 54+len(data))
	binary.BigEndian.PutUint16(f[12:], etherIPv4)
	ip, tcp := f[14:], f[34:]
	ip[0], ip[9] = 0x45, protoTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(data)))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(tcp, from)
	binary.BigEndian.PutUint16(tcp[2:], to)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, flags
	return append(f, data...)
}

func capture(frames ...[]byte) []byte {
	c := make([]byte, pcapHeader)
	binary.LittleEndian.PutUint32(c, 0xa1b2c3d4)
	binary.LittleEndian.PutUint32(c[20:], linkEthernet)
	for _, f := range frames {
		record := make([]byte, pcapRecord)
		binary.LittleEndian.PutUint32(record[8:], uint32(len(f)))
		binary.LittleEndian.PutUint32(record[12:], uint32(len(f)))
		c = append(append(c, record...), f...)
	}
	return c
}

func TestConnectionsArePutTogether(t *testing.T) {
	const start = 0xfffffffe // the numbers wrap
	other := frame(7, 8, 100, 0, []byte("the other connection"))
	for name, tc := range map[string]struct {
		frames [][]byte
		want   []string
	}{
		"in order": {[][]byte{frame(1, 2, start, flagSYN, nil), frame(1, 2, start+1, 0, []byte("abc")), other, frame(1, 2, 2, 0, []byte("def"))},
			[]string{"abcdef", "the other connection"}},
		"out of order":              {[][]byte{frame(1, 2, start, flagSYN, nil), frame(1, 2, 2, 0, []byte("def")), frame(1, 2, start+1, 0, []byte("abc"))}, []string{"abcdef"}},
		"sent twice":                {[][]byte{frame(1, 2, 9, 0, []byte("abc")), frame(1, 2, 9, 0, []byte("abcde")), frame(1, 2, 11, 0, []byte("cdef"))}, []string{"abcdef"}},
		"both directions":           {[][]byte{frame(1, 2, 5, 0, []byte("there")), frame(2, 1, 5, 0, []byte("back"))}, []string{"there", "back"}},
		"ports that are used again": {[][]byte{frame(1, 2, 5, flagSYN, nil), frame(1, 2, 6, 0, []byte("a")), frame(1, 2, 99, flagSYN, nil), frame(1, 2, 100, 0, []byte("b"))}, []string{"a", "b"}},
		"what is no TCP":            {[][]byte{make([]byte, 60), frame(1, 2, 5, 0, []byte("x"))[:50]}, nil},
	} {
		flows, err := Flows(capture(tc.frames...))
		if err != nil || len(flows) != len(tc.want) {
			t.Errorf("%s: %d connections, %v", name, len(flows), err)
			continue
		}
		for i, f := range flows {
			if string(f.Data) != tc.want[i] {
				t.Errorf("%s: %s carried %q, expected %q", name, f.From, f.Data, tc.want[i])
			}
		}
	}
}

func TestACaptureThatIsNotWholeIsAnError(t *testing.T) {
	if _, err := Flows(capture(frame(1, 2, 5, 0, []byte("abc")), frame(1, 2, 9, 0, []byte("x")))); !errors.Is(err, ErrGap) {
		t.Errorf("a missing segment: %v", err)
	}
	whole := capture(frame(1, 2, 5, 0, []byte("abc")))
	for n := range whole {
		if n == pcapHeader {
			continue // a capture of nothing
		}
		if _, err := Flows(whole[:n]); !errors.Is(err, ErrCapture) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

func FuzzFlows(f *testing.F) {
	f.Add(capture(frame(1, 2, 5, flagSYN, nil), frame(1, 2, 6, 0, []byte("abc"))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		flows, err := Flows(raw)
		total := 0
		for _, flow := range flows {
			total += len(flow.Data)
		}
		if err == nil && total > len(raw) {
			t.Errorf("%d bytes came out of %d", total, len(raw))
		}
	})
}

func TestASearchFindsWhatIsThereAndNothingElse(t *testing.T) {
	s, err := NewSearch(32)
	if err != nil {
		t.Fatal(err)
	}
	marker, absent := random(100, 1), random(100, 2)
	for _, p := range [][]byte{marker, absent, make([]byte, 40)} {
		if err := s.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(random(31, 3)); err == nil {
		t.Error("a plaintext shorter than a window is searched for")
	}
	s.Scan(bytes.Join([][]byte{random(1000, 4), marker[10:60], make([]byte, 33)}, []byte("x")))
	if got, want := s.Found(marker), (Found{Total: 69, Distinct: 69, HighEntropy: 69, Found: 19, HighEntropyFound: 19}); got != want {
		t.Errorf("%+v, expected %+v", got, want)
	}
	if got := s.Leaked(marker); len(got) != 19 || got[0] != string(marker[10:42]) {
		t.Errorf("%d windows leaked", len(got))
	}
	if got := s.Found(absent); got.Found != 0 || got.Total != 69 {
		t.Errorf("%+v, expected that nothing is found", got)
	}
	if got, want := s.Found(make([]byte, 40)), (Found{Total: 9, Distinct: 1, Found: 9}); got != want {
		t.Errorf("%+v, expected %+v", got, want)
	}
}
