package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// yamlOf writes a JSON document as YAML, in the same order. Every string is double-quoted, as JSON quotes it: in YAML that means the same
// (YAML 1.2, section 7.3.1), and no text of a peer's can turn into structure, a number or a control character.
func yamlOf(raw []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var b strings.Builder
	if err := yamlValue(dec, &b, 0, false); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return []byte(strings.TrimLeft(b.String(), "\n ")), nil
}

// yamlValue writes the value that comes next, after the key or the dash that it belongs to. An object after a dash begins on its line.
func yamlValue(dec *json.Decoder, b *strings.Builder, depth int, dash bool) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return yamlCollection(dec, b, depth, dash, " {}", func() error {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, err := encode(key)
			if text, _ := key.(string); plainKey(text) {
				name = []byte(text)
			}
			fmt.Fprintf(b, "%s:", name)
			return err
		})
	case json.Delim('['):
		return yamlCollection(dec, b, depth, false, " []", func() error {
			b.WriteByte('-')
			return nil
		})
	}
	scalar, err := encode(token)
	fmt.Fprintf(b, " %s", scalar)
	return err
}

// yamlCollection writes the members of an object or array, each on a line of its own after its label.
func yamlCollection(dec *json.Decoder, b *strings.Builder, depth int, inline bool, empty string, label func() error) error {
	if !dec.More() {
		b.WriteString(empty)
	}
	for ; dec.More(); inline = false {
		if inline {
			b.WriteByte(' ')
		} else {
			b.WriteString("\n" + strings.Repeat("  ", depth))
		}
		if err := label(); err != nil {
			return err
		}
		if err := yamlValue(dec, b, depth+1, empty == " []"); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// plainKey says whether a name means the same without quotes: all of ours do.
func plainKey(name string) bool {
	for i, r := range name {
		if (r < 'a' || r > 'z') && (i == 0 || !strings.ContainsRune("_-0123456789", r)) {
			return false
		}
	}
	switch name {
	case "", "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return false
	}
	return true
}
