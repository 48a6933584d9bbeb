package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// format is how results are printed.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// String, Set and Type implement pflag.Value.
func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON, formatYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("%q is not table, json or yaml", s)
}

// show prints a result: the document for machines, or what table writes for people.
func (a *app) show(document any, table func(*sheet)) error {
	if a.format == formatTable {
		s := &sheet{w: a.Out}
		table(s)
		return s.err
	}
	raw, err := encode(document)
	if err != nil {
		return err
	}
	if a.format == formatYAML {
		raw, err = yamlOf(raw) // by way of JSON, so that both have the same names and escapes
	} else if err == nil {
		var b bytes.Buffer
		err = json.Indent(&b, raw, "", "  ")
		raw = append(b.Bytes(), '\n')
	}
	if err == nil {
		_, err = a.Out.Write(raw)
	}
	return err
}

// event prints one result of a stream: in JSON one line each, in YAML one document each.
func (a *app) event(document any, table func(*sheet)) error {
	switch a.format {
	case formatJSON:
		raw, err := encode(document)
		if err == nil {
			_, err = a.Out.Write(append(raw, '\n'))
		}
		return err
	case formatYAML:
		if _, err := io.WriteString(a.Out, "---\n"); err != nil {
			return err
		}
	case formatTable:
	}
	return a.show(document, table)
}

// encode makes JSON of one line. What is not printable is escaped: machines read the same, terminals obey nothing.
func encode(document any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(document); err != nil {
		return nil, err
	}
	out := make([]byte, 0, b.Len())
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) { // such a rune stands in a string, and nowhere else
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	return out, nil
}

// sheet is text for people. Whatever it prints goes through clean: found and expected values come from peers. It keeps the first error.
type sheet struct {
	w   io.Writer
	err error
}

// line prints one line.
func (s *sheet) line(format string, args ...any) {
	if s.err == nil {
		_, s.err = io.WriteString(s.w, strings.TrimRight(clean(fmt.Sprintf(format, args...)), " ")+"\n")
	}
}

// blank prints an empty line.
func (s *sheet) blank() { s.line("") }

// field prints a name and a value, unless there is no value.
func (s *sheet) field(name, value string) {
	if value != "" {
		s.line("%-14s %s", name, value)
	}
}

// rows prints columns under a header.
func (s *sheet) rows(header []string, rows [][]string) {
	if s.err != nil {
		return
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = clean(orElse(cell, "-"))
		}
		if _, s.err = fmt.Fprintln(t, strings.Join(cells, "\t")); s.err != nil {
			return
		}
	}
	if s.err = t.Flush(); s.err != nil {
		return
	}
	for text := range strings.Lines(b.String()) {
		s.line("%s", strings.TrimSuffix(text, "\n"))
	}
}

// clean escapes what could move a terminal's cursor, colour it, or turn the direction of a line.
func clean(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return b.String()
}

// hexOf is bytes as lower-case hex; nothing for none.
func hexOf(b []byte) string { return hex.EncodeToString(b) }

// stamp is a time in UTC; nothing for none.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return stampTime(t.AsTime())
}

func stampTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// took is a duration for people, to three digits or so.
func took(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	v := d.AsDuration()
	switch {
	case v >= time.Second:
		return v.Round(10 * time.Millisecond).String()
	case v >= time.Millisecond:
		return v.Round(100 * time.Microsecond).String()
	}
	return v.Round(time.Microsecond).String()
}

// millis is a duration for machines, in milliseconds.
func millis(d *durationpb.Duration) float64 {
	return float64(d.AsDuration().Microseconds()) / 1000
}

// enumName is the name of a protobuf enum value for people and machines: SESSION_STATE_ARMED is armed.
func enumName(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
