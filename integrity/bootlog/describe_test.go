package bootlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

func TestWhatADigestCovers(t *testing.T) {
	boot := variable("Boot0001", []byte("option"))
	lying := variable("Boot0001", []byte("option"))
	binary.LittleEndian.PutUint64(lying[24:], 1<<62)
	for name, c := range map[string]struct {
		event written
		want  string
	}{
		"an event as it stands":                    {written{kind: evSeparator, data: []byte("WBCL")}, "WBCL"},
		"an image":                                 {written{kind: evImage, data: []byte("path"), hashed: []byte("image")}, ""},
		"GRUB's command line":                      {grub("kernel_cmdline: ", "/vmlinuz ro"), "/vmlinuz ro"},
		"GRUB's command line with a colon":         {grub("grub_cmd: ", "echo a: b"), "echo a: b"},
		"an older GRUB's":                          {grub("grub_kernel_cmdline ", "/vmlinuz ro"), "/vmlinuz ro"},
		"a path without its NUL":                   {written{kind: evIPL, data: []byte("MokList\x00"), hashed: []byte("MokList")}, "MokList"},
		"a file that GRUB loaded":                  {written{kind: evIPL, data: []byte("/vmlinuz\x00"), hashed: []byte("content")}, ""},
		"a boot variable whole":                    {written{kind: evBoot, data: boot}, string(boot)},
		"a boot variable's value":                  {written{kind: evBoot, data: boot, hashed: []byte("option")}, "option"},
		"a boot variable whose length lies":        {written{kind: evBoot, data: lying, hashed: []byte("option")}, ""},
		"another type of event, hashed as GRUB's":  {written{kind: evAction, data: []byte("a: b\x00"), hashed: []byte("b")}, ""},
		"a tagged event without its tag":           {written{kind: evTag, data: []byte("tag.len.content"), hashed: []byte("content")}, "content"},
		"a tagged event shorter than a tag":        {written{kind: evTag, data: []byte("tag"), hashed: []byte("content")}, ""},
		"an event that extends nothing":            {written{kind: typeNoAction, data: nil}, ""},
		"a digest of nothing, for data with a tag": {written{kind: evTag, data: []byte("12345678"), hashed: []byte{}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := parsed(t, both(c.event)).Events[0]
			for _, bank := range []crypto.Hash{0, crypto.SHA1, crypto.SHA256} {
				if got := string(e.Covered(bank)); got != c.want {
					t.Errorf("bank %d: found %q, expected %q", bank, got, c.want)
				}
			}
			if e.Covered(crypto.SHA384) != nil {
				t.Error("a bank that the log does not have covers something")
			}
		})
	}
}

func TestTextIsPrintableAndBounded(t *testing.T) {
	for name, c := range map[string]struct {
		event Event
		want  string
	}{
		"ASCII up to NUL":        {Event{Type: evAction, Data: []byte("Exit Boot\x00rest")}, "Exit Boot"},
		"UTF-16":                 {Event{Type: evVersion, Data: []byte("v\x001\x00\x00\x00x\x00")}, "v1"},
		"terminal escapes":       {Event{Type: evIPL, Data: []byte("a\x1b[31mb\n\xff")}, `a\x1b[31mb\n\xff`},
		"a separator":            {Event{Type: evSeparator, Data: []byte{0, 0, 0, 0xff}}, "000000ff"},
		"a variable":             {Event{Type: evVariable, Data: variable("SecureBoot", []byte{1})}, "SecureBoot-" + globalVariable + " (1 bytes) 01"},
		"half a variable":        {Event{Type: evVariable, Data: variable("SecureBoot", []byte{1})[:40]}, ""},
		"no variable":            {Event{Type: evVariable, Data: []byte("short")}, ""},
		"an image":               {Event{Type: evImage, Data: []byte("path")}, ""},
		"no data":                {Event{Type: evIPL}, ""},
		"a type nobody knows":    {Event{Type: 0x12345, Data: []byte("x")}, ""},
		"the signature of a log": {Event{Type: typeNoAction, Data: []byte("StartupLocality\x00\x03")}, "StartupLocality"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.event.Text(); got != c.want {
				t.Errorf("found %q, expected %q", got, c.want)
			}
		})
	}
	for _, long := range []string{strings.Repeat("\x01", 1<<20), strings.Repeat("\x01\x00", 1<<19)} {
		if got := (&Event{Type: evIPL, Data: []byte(long)}).Text(); len(got) > 4*maxText || len(got) < maxText {
			t.Errorf("a text of %d bytes", len(got))
		}
	}
	if a, b := (&Event{Type: evSeparator}).TypeName(), (&Event{Type: 0x12345}).TypeName(); a != "EV_SEPARATOR" || b != "EventType(0x00012345)" {
		t.Errorf("type names %q and %q", a, b)
	}
}

func TestSecureBootIsBelievedOnlyWhereItIsCovered(t *testing.T) {
	lie := secureBoot(1)
	lie.hashed = secureBoot(0).data
	elsewhere := secureBoot(1)
	elsewhere.pcr = 1
	other := secureBoot(1)
	other.data[0] ^= 1
	for name, c := range map[string]struct {
		events []written
		want   SecureBoot
	}{
		"on":                     {[]written{secureBoot(1)}, SecureBootEnabled},
		"off":                    {[]written{secureBoot(0)}, SecureBootDisabled},
		"no value":               {[]written{secureBoot()}, SecureBootDisabled},
		"said twice":             {[]written{secureBoot(1), secureBoot(1)}, SecureBootEnabled},
		"contradicted":           {[]written{secureBoot(0), secureBoot(1)}, SecureBootUnknown},
		"no event":               {separators(), SecureBootUnknown},
		"data of another digest": {[]written{lie}, SecureBootUnknown},
		"in another PCR":         {[]written{elsewhere}, SecureBootUnknown},
		"another vendor's":       {[]written{other}, SecureBootUnknown},
		"another variable":       {[]written{{pcr: 7, kind: evVariable, data: variable("SecureBoat", []byte{1})}}, SecureBootUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parsed(t, both(c.events...)).SecureBoot(0); got != c.want {
				t.Errorf("found %q, expected %q", got, c.want)
			}
		})
	}
}

func TestCommandLinesAreBelievedOnlyWhereTheyAreCovered(t *testing.T) {
	lie := grub("kernel_cmdline: ", "/vmlinuz ima_policy=tcb")
	lie.hashed = []byte("/vmlinuz")
	elsewhere := grub("kernel_cmdline: ", "x")
	elsewhere.pcr = 9
	l := parsed(t, both(grub("grub_cmd: ", "kernel_cmdline: x"), grub("kernel_cmdline: ", "/a"), lie, elsewhere, grub("grub_kernel_cmdline ", "/b")))
	if got := l.CommandLines(0); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("found %q", got)
	}
	if got := l.CommandLines(crypto.SHA384); got != nil {
		t.Errorf("in a bank that the log does not have: %q", got)
	}
	if !bytes.Contains(grub("kernel_cmdline: ", "/a").data, []byte("/a\x00")) {
		t.Error("the tests' own GRUB writes no NUL")
	}
}
