package bootlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/google/go-eventlog/tcg"
)

// Covered returns the part of the event's data that its digest in a bank is over (0 means SHA-256), or nil where the digest is of something else, such as
// an image. Only that part is true once the PCR has been compared; the type of the event still is not.
//
// Most events are hashed as they stand. GRUB hashes a command or command line without the "kernel_cmdline: " before it (older ones: "grub_kernel_cmdline ")
// and the NUL after it; some firmware hashes a boot variable's value alone; a tagged event may be hashed without its tag.
func (e *Event) Covered(bank crypto.Hash) []byte {
	if bank == 0 {
		bank = crypto.SHA256
	}
	digest, ok := e.Digests[bank]
	if !ok || !e.Extends() {
		return nil
	}
	candidates := [][]byte{e.Data}
	switch e.Type {
	case typeIPL:
		text := bytes.TrimRight(e.Data, "\x00")
		_, command, _ := bytes.Cut(text, []byte(": "))
		_, older, _ := bytes.Cut(text, []byte(" "))
		candidates = append(candidates, text, command, older)
	case typeBootVariable:
		if v, ok := e.variable(); ok {
			candidates = append(candidates, v.VariableData)
		}
	case typeEventTag:
		candidates = append(candidates, e.Data[min(8, len(e.Data)):])
	}
	for _, c := range candidates {
		h := bank.New()
		h.Write(c)
		if len(c) > 0 && bytes.Equal(h.Sum(nil), digest) {
			return c
		}
	}
	return nil
}

// variable reads UEFI_VARIABLE_DATA (section 10.2.6). The library reserves what the lengths claim, so they are checked first.
func (e *Event) variable() (tcg.UEFIVariableData, bool) {
	const head, most = 32, MaxSize
	if len(e.Data) < head {
		return tcg.UEFIVariableData{}, false
	}
	name, value := binary.LittleEndian.Uint64(e.Data[16:]), binary.LittleEndian.Uint64(e.Data[24:])
	if name > most || value > most || head+2*name+value > uint64(len(e.Data)) {
		return tcg.UEFIVariableData{}, false
	}
	v, err := tcg.ParseUEFIVariableData(bytes.NewReader(e.Data))
	return v, err == nil
}

// maxText bounds what Text returns, in bytes before escaping.
const maxText = 512

// Text describes the data for the operator's eyes: printable ASCII, of bounded length, empty where there is nothing to show. It is the host's word,
// unless Covered says otherwise.
func (e *Event) Text() string {
	switch tcg.EventType(e.Type) {
	case tcg.Ipl, tcg.Action, tcg.EFIAction, tcg.OmitBootDeviceEvents, tcg.PostCode, tcg.SCRTMVersion, tcg.NoAction, tcg.CompactHash:
		return printable(text(e.Data))
	case tcg.EFIVariableDriverConfig, tcg.EFIVariableBoot, tcg.EFIVariableBoot2, tcg.EFIVariableAuthority:
		v, ok := e.variable()
		if !ok {
			return ""
		}
		shown := v.VariableData[:min(len(v.VariableData), 32)]
		return printable(fmt.Sprintf("%s-%s (%d bytes) %s", v.VarName(), v.Header.VariableName.String(), len(v.VariableData), hex.EncodeToString(shown)))
	case tcg.Separator:
		return hex.EncodeToString(e.Data[:min(len(e.Data), 32)])
	default:
		return ""
	}
}

// text reads ASCII or UTF-16, up to its end or first NUL.
func text(data []byte) string {
	data = data[:min(len(data), 2*maxText)]
	if len(data) >= 2 && data[0] != 0 && data[1] == 0 {
		units := make([]uint16, 0, len(data)/2)
		for i := 0; i+1 < len(data); i += 2 {
			unit := binary.LittleEndian.Uint16(data[i:])
			if unit == 0 {
				break
			}
			units = append(units, unit)
		}
		return string(utf16.Decode(units))
	}
	s, _, _ := strings.Cut(string(data), "\x00")
	return s
}

func printable(s string) string {
	quoted := strconv.QuoteToASCII(s[:min(len(s), maxText)])
	return quoted[1 : len(quoted)-1]
}

// SecureBoot is what the log says of UEFI Secure Boot.
type SecureBoot string

// The states.
const (
	// SecureBootUnknown: the log has no such event, or one that its digest does not cover, or several that differ.
	SecureBootUnknown SecureBoot = ""
	// SecureBootDisabled and SecureBootEnabled: as PCR 7 covers it.
	SecureBootDisabled SecureBoot = "disabled"
	SecureBootEnabled  SecureBoot = "enabled"
)

// globalVariable is EFI_GLOBAL_VARIABLE, as the library writes it.
const globalVariable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// SecureBoot reads the state from the variable SecureBoot in PCR 7 (section 3.3.4.8), in a bank (0 means SHA-256). It is true only if PCR 7 matched.
func (l *Log) SecureBoot(bank crypto.Hash) SecureBoot {
	state := SecureBootUnknown
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 7 || e.Type != typeVariable || len(e.Covered(bank)) != len(e.Data) {
			continue
		}
		v, ok := e.variable()
		if !ok || v.VarName() != "SecureBoot" || v.Header.VariableName.String() != globalVariable {
			continue
		}
		// Firmware that has no such variable measures it with no value.
		now := SecureBootDisabled
		if len(v.VariableData) > 0 && v.VariableData[0] == 1 {
			now = SecureBootEnabled
		}
		if state != SecureBootUnknown && state != now {
			return SecureBootUnknown
		}
		state = now
	}
	return state
}

// isCommandLine reports whether GRUB says that the event is the command line of a kernel.
func isCommandLine(data []byte) bool {
	return bytes.HasPrefix(data, []byte("kernel_cmdline: ")) || bytes.HasPrefix(data, []byte("grub_kernel_cmdline "))
}

// CommandLines returns the kernel command lines that GRUB measured into PCR 8, in a bank (0 means SHA-256), as far as their digests cover them. They are
// true only if PCR 8 matched; and then that a line was the kernel's, and not another command of GRUB's, is still the host's word.
func (l *Log) CommandLines(bank crypto.Hash) []string {
	var lines []string
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 8 || e.Type != typeIPL || !isCommandLine(e.Data) {
			continue
		}
		if line := e.Covered(bank); line != nil {
			lines = append(lines, strings.TrimRight(string(line), "\x00"))
		}
	}
	return lines
}
