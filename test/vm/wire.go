package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Wire is tcpdump on a network interface: all that crosses it, whoever sends it.
type Wire struct {
	file   string
	cmd    *exec.Cmd
	stderr output
}

// output is what a process has written so far. It is safe for concurrent use.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// TapWire starts to capture TCP on an interface of a network namespace (ip netns; empty: the present one) to a file. It returns once the capture runs.
func TapWire(ctx context.Context, netns, iface, file string) (*Wire, error) {
	// A packet may be as large as a segment that the kernel has not cut yet; the buffer holds what comes while the disk is busy.
	args := []string{"tcpdump", "-i", iface, "-w", file, "-s", "0", "-B", "262144", "--immediate-mode", "-U", "-Z", "root", "-n", "tcp"}
	if netns != "" {
		args = append([]string{"ip", "netns", "exec", netns}, args...)
	}
	w := &Wire{file: file, cmd: exec.CommandContext(ctx, args[0], args[1:]...)}
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is the caller's to handle
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("tcpdump: %w", err)
	}
	_, err := poll(ctx, "tcpdump to listen", func() (string, bool, error) {
		said := w.stderr.String()
		return said, strings.Contains(said, "listening on"), nil
	})
	if err != nil {
		return nil, errors.Join(err, w.cmd.Process.Kill(), w.cmd.Wait())
	}
	return w, nil
}

// counts are what tcpdump says of itself when it ends, and whenever it is asked (SIGUSR1).
var counts = regexp.MustCompile(`(?s).*?(\d+) packets? captured.*?(\d+) packets? received by filter.*?(\d+) packets? dropped by kernel`)

// Stop ends the capture, when it has taken in all that has crossed so far, and returns what every TCP connection carried, each direction by itself. A
// capture that is not whole is an error.
func (w *Wire) Stop(ctx context.Context) ([]Flow, error) {
	before := 0
	_, err := poll(ctx, "tcpdump to take in what has crossed", func() (string, bool, error) {
		said := w.stderr.String()[before:]
		if m := counts.FindStringSubmatch(said); m != nil && m[1] == m[2] {
			return said, true, nil
		}
		before += len(said)
		return said, false, w.cmd.Process.Signal(syscall.SIGUSR1)
	})
	if err := errors.Join(err, w.cmd.Process.Signal(os.Interrupt), w.cmd.Wait()); err != nil {
		return nil, fmt.Errorf("tcpdump: %w: %s", err, &w.stderr)
	}
	said := w.stderr.String()
	if m := counts.FindStringSubmatch(said[strings.LastIndex(said[:strings.LastIndex(said, "captured")], "\n")+1:]); m == nil || m[3] != "0" {
		return nil, fmt.Errorf("tcpdump lost packets: %s", said)
	}
	raw, err := os.ReadFile(w.file)
	if err != nil {
		return nil, err
	}
	return Flows(raw)
}

// Flow is what one direction of a TCP connection carried.
type Flow struct {
	// From and To are addresses with ports.
	From, To string
	Data     []byte
}

// Errors of a capture.
var (
	// ErrCapture: the bytes are no capture of Ethernet by tcpdump.
	ErrCapture = errors.New("not a capture of Ethernet frames (pcap)")
	// ErrGap: a part of a connection is missing in it.
	ErrGap = errors.New("the capture has a gap")
)

// Sizes and numbers of the formats (pcap: draft-ietf-opsawg-pcap; RFC 791, RFC 9293).
const (
	pcapHeader   = 24
	pcapRecord   = 16
	linkEthernet = 1
	etherHeader  = 14
	etherIPv4    = 0x0800
	protoTCP     = 6
	flagSYN      = 2
)

// direction is one direction of a connection while it is put together.
type direction struct {
	flow  Flow
	next  uint32
	known bool
	// ahead are segments that came before one that they follow.
	ahead []segment
}

type segment struct {
	seq  uint32
	data []byte
}

// Flows puts the connections of a capture together (IPv4 only), in the order in which they begin.
func Flows(capture []byte) ([]Flow, error) {
	if len(capture) < pcapHeader || binary.LittleEndian.Uint32(capture) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(capture[20:]) != linkEthernet {
		return nil, fmt.Errorf("%w: it begins with %.24x", ErrCapture, capture)
	}
	all, order := map[string]*direction{}, []*direction(nil)
	for rest := capture[pcapHeader:]; len(rest) > 0; {
		if len(rest) < pcapRecord {
			return nil, fmt.Errorf("%w: it ends in a record's header", ErrCapture)
		}
		size, whole := binary.LittleEndian.Uint32(rest[8:]), binary.LittleEndian.Uint32(rest[12:])
		if size != whole || uint64(len(rest)-pcapRecord) < uint64(size) {
			return nil, fmt.Errorf("%w: a record of %d bytes of %d, and %d are there", ErrCapture, size, whole, len(rest)-pcapRecord)
		}
		frame := rest[pcapRecord : pcapRecord+int(size)]
		rest = rest[pcapRecord+int(size):]
		from, to, flags, s, ok := parseSegment(frame)
		if !ok {
			continue
		}
		key := from + ">" + to
		d := all[key]
		if d == nil || flags&flagSYN != 0 && d.known && s.seq+1 != d.next { // new, or its ports are used again
			d = &direction{flow: Flow{From: from, To: to}}
			all[key], order = d, append(order, d)
		}
		if !d.known {
			d.next, d.known = s.seq, true
			if flags&flagSYN != 0 {
				d.next++
			}
		}
		if flags&flagSYN == 0 {
			d.add(s)
		}
	}
	flows := make([]Flow, 0, len(order))
	for _, d := range order {
		if len(d.ahead) > 0 {
			return nil, fmt.Errorf("%w: from %s to %s, after %d bytes", ErrGap, d.flow.From, d.flow.To, len(d.flow.Data))
		}
		flows = append(flows, d.flow)
	}
	return flows, nil
}

// add appends a segment, and those that waited for it; what was there already is not taken twice.
func (d *direction) add(s segment) {
	if len(s.data) == 0 {
		return
	}
	d.ahead = append(d.ahead, s)
	for again := true; again; {
		again = false
		d.ahead = slices.DeleteFunc(d.ahead, func(s segment) bool {
			old := int32(d.next - s.seq) // bytes of it that are there
			if old < 0 {
				return false
			}
			if int(old) < len(s.data) {
				d.flow.Data = append(d.flow.Data, s.data[old:]...)
				d.next = s.seq + uint32(len(s.data))
				again = true
			}
			return true
		})
	}
}

// parseSegment takes a TCP segment out of an Ethernet frame.
func parseSegment(frame []byte) (from, to string, flags byte, s segment, ok bool) {
	if len(frame) < etherHeader+20 || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return "", "", 0, s, false
	}
	ip := frame[etherHeader:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || ip[9] != protoTCP || header < 20 || total > len(ip) || total < header+20 {
		return "", "", 0, s, false
	}
	tcp := ip[header:total]
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || offset > len(tcp) {
		return "", "", 0, s, false
	}
	address := func(ip []byte, port []byte) string {
		return fmt.Sprintf("%d.%d.%d.%d:%d", ip[0], ip[1], ip[2], ip[3], binary.BigEndian.Uint16(port))
	}
	return address(ip[12:], tcp), address(ip[16:], tcp[2:]), tcp[13], segment{binary.BigEndian.Uint32(tcp[4:]), tcp[offset:]}, true
}
