package vm

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// consoleOf is what a guest writes that runs from tick one to tick n, with a counter that begins at 7.
func consoleOf(n uint64) string {
	var b strings.Builder
	b.WriteString("SeaBIOS\r\n[    0.1] SC of something else\r\nSC boot kernel=6.1 uptime=1.5\r\n")
	secret := strings.Repeat("ab", 32)
	pcr := make([]byte, 32)
	for i := uint64(1); i <= n; i++ {
		pcr = ExtendTick(pcr, i)
		fmt.Fprintf(&b, "SC tick=%d nv=%d pcr=%s unseal=%s held=%s\r\n", i, 6+i, hex.EncodeToString(pcr), secret, secret)
	}
	return b.String()
}

func TestTicksOfOneTPMAreInOrder(t *testing.T) {
	console := consoleOf(20)
	ticks := ParseTicks([]byte(console))
	if len(ticks) != 20 || ticks[4].N != 5 || ticks[4].NV != 11 {
		t.Fatalf("%d ticks, fifth %+v", len(ticks), ticks[4])
	}
	if err := CheckTicks(ticks); err != nil {
		t.Error(err)
	}
	if err := CheckTicks(ticks[7:]); err != nil {
		t.Errorf("from the eighth on: %v", err)
	}
	// A migration cuts the console anywhere: what the destination writes continues it.
	for cut := len(console) - 300; cut < len(console); cut++ {
		joined := ParseTicks([]byte(console[:cut] + console[cut:]))
		if len(ParseTicks([]byte(console[:cut])))+1 < len(ticks)-1 || len(joined) != 20 {
			t.Fatalf("cut at %d: %d ticks", cut, len(joined))
		}
	}
}

func TestTicksThatShowALostOrCopiedTPM(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func([]Tick) []Tick
	}{
		{"none at all", func([]Tick) []Tick { return nil }},
		{"a tick is missing", func(ts []Tick) []Tick { return append(ts[:3], ts[4:]...) }},
		{"a tick comes twice, as from two running copies", func(ts []Tick) []Tick { return append(ts[:4], ts[3:]...) }},
		{"the counter fell back", func(ts []Tick) []Tick { ts[5].NV--; return ts }},
		{"the counter went ahead", func(ts []Tick) []Tick { ts[5].NV++; return ts }},
		{"the PCR was reset", func(ts []Tick) []Tick { ts[5].PCR = strings.Repeat("00", 32); return ts }},
		{"another secret was unsealed", func(ts []Tick) []Tick { ts[5].Unseal = strings.Repeat("cd", 32); return ts }},
		{"the held object is another", func(ts []Tick) []Tick { ts[5].Held = strings.Repeat("cd", 32); return ts }},
		{"nothing was ever unsealed", func(ts []Tick) []Tick {
			for i := range ts {
				ts[i].Unseal, ts[i].Held = "", ""
			}
			return ts
		}},
		{"something failed", func(ts []Tick) []Tick { ts[5].Err = "unseal:TPM_RC_FAILURE"; return ts }},
	} {
		if err := CheckTicks(c.change(ParseTicks([]byte(consoleOf(10))))); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

func TestLinesThatAreNoTicks(t *testing.T) {
	for _, line := range []string{
		"", "SC tick=", "SC tick=x nv=1 pcr=a unseal=b held=c\n", "SC tick=1 nv=-1 pcr=a unseal=b held=c\n",
		"SC tick=1 nv=1 pcr=a unseal=b held=c", // still being written
		"SC tick=1 nv=1\n", "SC err=no_such_device\n",
	} {
		if ticks := ParseTicks([]byte(line)); len(ticks) != 0 {
			t.Errorf("%q: %+v", line, ticks)
		}
	}
}

func FuzzParseTicks(f *testing.F) {
	f.Add([]byte(consoleOf(2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tick := range ParseTicks(b) {
			if strings.ContainsAny(tick.PCR+tick.Unseal+tick.Held+tick.Err, " \n") {
				t.Errorf("%+v has more than a word in a field", tick)
			}
		}
	})
}
