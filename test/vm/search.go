package vm

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Search looks for all windows of some plaintexts in what was captured. Add the plaintexts, Scan the captures, ask Found.
type Search struct {
	size int
	// windows says of each window whether it was found.
	windows map[string]bool
	// Almost no window of tens of megabytes is one of those: most are ruled out by their ends, before the map is asked.
	maybe [1 << 20]bool
}

// NewSearch returns a search for windows of so many bytes, at least 8.
func NewSearch(size int) (*Search, error) {
	if size < 8 {
		return nil, fmt.Errorf("a window of %d bytes, expected at least 8", size)
	}
	return &Search{size: size, windows: map[string]bool{}}, nil
}

// Add has every window of the plaintext searched for. One that is shorter than a window is an error: its absence would prove nothing.
func (s *Search) Add(plaintext []byte) error {
	if len(plaintext) < s.size {
		return fmt.Errorf("a plaintext of %d bytes has no window of %d", len(plaintext), s.size)
	}
	for i := 0; i+s.size <= len(plaintext); i++ {
		window := plaintext[i : i+s.size]
		if _, known := s.windows[string(window)]; !known {
			s.windows[string(window)] = false
			s.maybe[ends(window)] = true
		}
	}
	return nil
}

// Scan searches one stream of bytes.
func (s *Search) Scan(stream []byte) {
	for i := 0; i+s.size <= len(stream); i++ {
		window := stream[i : i+s.size]
		if !s.maybe[ends(window)] {
			continue
		}
		if found, known := s.windows[string(window)]; known && !found {
			s.windows[string(window)] = true
		}
	}
}

// Found is what a search found of one plaintext.
type Found struct {
	// Total number of windows of the plaintext, one at each byte. Distinct ones among them, and HighEntropy ones among these, which do not occur by
	// chance in bytes that have nothing to do with it.
	Total, Distinct, HighEntropy int
	// Found counts the windows (of Total) that were found, and HighEntropyFound those of HighEntropy.
	Found, HighEntropyFound int
}

// minEntropy, in bits per byte, of a window that chance does not make: 32 bytes drawn at random have about 4.8.
const minEntropy = 3.5

// Found says what was found of a plaintext that was added.
func (s *Search) Found(plaintext []byte) (f Found) {
	seen := map[string]bool{}
	for i := 0; i+s.size <= len(plaintext); i++ {
		window := string(plaintext[i : i+s.size])
		found := s.windows[window]
		f.Total++
		if found {
			f.Found++
		}
		if seen[window] {
			continue
		}
		seen[window] = true
		f.Distinct++
		if entropy(window) >= minEntropy {
			f.HighEntropy++
			if found {
				f.HighEntropyFound++
			}
		}
	}
	return f
}

// Leaked returns the windows of high entropy of a plaintext that were found, in their order.
func (s *Search) Leaked(plaintext []byte) (leaked []string) {
	for i := 0; i+s.size <= len(plaintext); i++ {
		if window := string(plaintext[i : i+s.size]); s.windows[window] && entropy(window) >= minEntropy {
			leaked = append(leaked, window)
		}
	}
	return leaked
}

// Windows is the outcome of a search for the windows of a plaintext in a migration stream.
type Windows struct {
	// Total, Distinct and HighEntropy are those of Found.
	Total, Distinct, HighEntropy int
	// InSection and InStream count the windows (of Total) that occur in the vTPM section and anywhere in the stream, HighEntropyInStream those of
	// HighEntropy. Outside the section they say what the guest's memory gives away: the TPM's command buffer, whatever the guest keeps.
	InSection, InStream, HighEntropyInStream int
}

// SearchWindows looks for every window of size bytes of the plaintext in a captured stream. Bytes alone prove nothing (a page of zeros has all windows
// that are zero), so the vTPM section is searched for every window, and the rest of the stream is reported apart.
func SearchWindows(stream, plaintext []byte, size int) (Windows, error) {
	section, err := FindVTPMSection(stream)
	if err != nil {
		return Windows{}, err
	}
	var found [2]Found
	for i, in := range [][]byte{section.Data, stream} {
		s, err := NewSearch(size)
		if err != nil {
			return Windows{}, err
		}
		if err := s.Add(plaintext); err != nil {
			return Windows{}, err
		}
		s.Scan(in)
		found[i] = s.Found(plaintext)
	}
	all := found[1]
	return Windows{
		Total: all.Total, Distinct: all.Distinct, HighEntropy: all.HighEntropy,
		InSection: found[0].Found, InStream: all.Found, HighEntropyInStream: all.HighEntropyFound,
	}, nil
}

// ends hashes the first and the last four bytes of a window, of which there are eight at least.
func ends(window []byte) uint32 {
	h := binary.LittleEndian.Uint32(window)*0x9e3779b1 ^ binary.LittleEndian.Uint32(window[len(window)-4:])*0x85ebca6b
	return h >> 12
}

// entropy of the bytes of s, in bits per byte.
func entropy(s string) float64 {
	var count [256]int
	for i := range len(s) {
		count[s[i]]++
	}
	var e float64
	for _, n := range count {
		if n > 0 {
			p := float64(n) / float64(len(s))
			e -= p * math.Log2(p)
		}
	}
	return e
}
