package config

import (
	_ "embed"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Example is a configuration with every key, commented.
//
//go:embed example.yaml
var Example string

// EnvPrefix begins every variable of the environment that is looked at.
const EnvPrefix = "SAFECONDUCTD_"

// Override is a key that the environment may replace: what differs between nodes that share a file, and what one changes to find a fault. Nothing that
// decides whom this node trusts is among them.
type Override struct {
	Variable, Key, Use string
}

// Overrides are all of them.
func Overrides() []Override {
	return []Override{
		{EnvPrefix + "HOST", "host", "one file for all nodes, such as in a DaemonSet"},
		{EnvPrefix + "PEER_LISTEN", "peer.listen", "the same"},
		{EnvPrefix + "HTTP_LISTEN", "http.listen", "the same"},
		{EnvPrefix + "LOG_LEVEL", "log.level", "to find a fault"},
		{EnvPrefix + "LOG_FORMAT", "log.format", "a terminal"},
	}
}

// override puts the environment's values in, and returns which variable each key is from. A variable with our prefix that is none of ours is an error.
func (c *Config) override(environ []string) (map[string]string, error) {
	from := map[string]string{}
	var problems []error
	for _, e := range environ {
		variable, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(variable, EnvPrefix) {
			continue
		}
		key := ""
		var known []string
		for _, o := range Overrides() {
			known = append(known, o.Variable)
			if o.Variable == variable {
				key = o.Key
			}
		}
		if key == "" {
			reason := "is no variable that replaces a key"
			if near := nearest(variable, known); near != "" {
				reason += fmt.Sprintf("; did you mean %s?", near)
			}
			problems = append(problems, &Problem{Key: variable, Reason: reason})
			continue
		}
		field(reflect.ValueOf(c).Elem(), key).SetString(value)
		from[key] = variable
	}
	return from, errors.Join(problems...)
}

// field finds the field of a dotted key.
func field(v reflect.Value, key string) reflect.Value {
	name, rest, more := strings.Cut(key, ".")
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == name {
			if !more {
				return v.Field(i)
			}
			return field(v.Field(i), rest)
		}
	}
	panic("there is no key " + key) // a test finds every key of Overrides
}
