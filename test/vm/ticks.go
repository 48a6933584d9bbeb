package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Tick is one line of the guest: what its vTPM held. The digests are in hexadecimal.
type Tick struct {
	N, NV             uint64
	PCR, Unseal, Held string
	// Err is what failed in the guest, empty if nothing did.
	Err string
}

// Ticks returns the ticks on the VM's console so far. A line that is still being written is left out.
func (v *VM) Ticks() ([]Tick, error) {
	b, err := os.ReadFile(v.Config.Serial)
	if err != nil {
		return nil, err
	}
	return ParseTicks(b), nil
}

// ParseTicks finds the guest's ticks in its console.
func ParseTicks(console []byte) []Tick {
	var ticks []Tick
	for line := range bytes.Lines(console) {
		if t, ok := parseTick(string(line)); ok {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// TicksAcross returns the ticks of a guest that was on one VM after the other. A migration may cut a line in two; the guest's console goes on where it
// was cut.
func TicksAcross(vms ...*VM) ([]Tick, error) {
	var console []byte
	for _, v := range vms {
		b, err := os.ReadFile(v.Config.Serial)
		if err != nil {
			return nil, err
		}
		console = append(console, b...)
	}
	return ParseTicks(console), nil
}

func parseTick(line string) (t Tick, ok bool) {
	if !strings.HasSuffix(line, "\n") {
		return t, false
	}
	_, line, found := strings.Cut(line, "SC tick=")
	if !found {
		return t, false
	}
	fields := strings.Fields("tick=" + line)
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "tick":
			t.N, err = strconv.ParseUint(value, 10, 64)
		case "nv":
			t.NV, err = strconv.ParseUint(value, 10, 64)
		case "pcr":
			t.PCR = value
		case "unseal":
			t.Unseal = value
		case "held":
			t.Held = value
		case "err":
			t.Err = value
		}
		if err != nil {
			return Tick{}, false
		}
	}
	return t, len(fields) >= 5
}

// WaitTick waits until the guest has reached tick n on this VM, and returns the first that is not before it.
func (v *VM) WaitTick(ctx context.Context, n uint64) (Tick, error) {
	return poll(ctx, fmt.Sprintf("tick %d on %s", n, v.Config.Name), func() (Tick, bool, error) {
		select {
		case <-v.done:
			return Tick{}, false, fmt.Errorf("waiting for tick %d on %s: QEMU has ended: %s", n, v.Config.Name, v.Log())
		default:
		}
		ticks, err := v.Ticks()
		if err != nil && !os.IsNotExist(err) {
			return Tick{}, false, err
		}
		for _, t := range ticks {
			if t.N >= n {
				return t, true, nil
			}
		}
		return Tick{}, false, nil
	})
}

// Panic returns the guest kernel's last words, if it has panicked or oopsed.
func (v *VM) Panic() string {
	b, err := os.ReadFile(v.Config.Serial)
	if err != nil {
		return ""
	}
	for _, sign := range []string{"Kernel panic", "Corrupted page table", "BUG:", "Oops", "general protection fault"} {
		if i := bytes.Index(b, []byte(sign)); i >= 0 {
			return string(b[i:min(len(b), i+300)])
		}
	}
	return ""
}

// CheckTicks says whether the ticks, on one console or on several in the order in which the guest was there, are those of one vTPM that was never
// lost, copied, reset or rolled back: numbers and counter go up by one together, PCR 23 is the chain of all ticks, both ways to the secret yield the
// same, always, and nothing failed.
func CheckTicks(ticks []Tick) error {
	if len(ticks) == 0 {
		return fmt.Errorf("the guest has not ticked")
	}
	first := ticks[0]
	pcr := make([]byte, 32)
	for n, i := uint64(1), 0; i < len(ticks); n++ {
		pcr = ExtendTick(pcr, n)
		if n < first.N {
			continue
		}
		t := ticks[i]
		want := Tick{N: n, NV: first.NV + n - first.N, PCR: hex.EncodeToString(pcr), Unseal: first.Unseal, Held: first.Unseal}
		if t != want || len(t.Unseal) != 64 {
			return fmt.Errorf("tick %d of %d: found %+v, expected %+v", i+1, len(ticks), t, want)
		}
		i++
	}
	return nil
}

// ExtendTick returns the value of PCR 23 after tick n, from its value before.
func ExtendTick(pcr []byte, n uint64) []byte {
	event := sha256.Sum256(binary.BigEndian.AppendUint64(nil, n))
	next := sha256.Sum256(append(append([]byte(nil), pcr...), event[:]...))
	return next[:]
}
