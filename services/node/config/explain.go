package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-playground/validator/v10"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	// Line in the file, from 1; 0 if it has none.
	Line int
	// Key is the dotted path: "peer.listen".
	Key    string
	Reason string
}

func (p *Problem) Error() string {
	where := ""
	if p.Line > 0 {
		where = fmt.Sprintf("line %d: ", p.Line)
	}
	if p.Key != "" {
		where += p.Key + ": "
	}
	return where + p.Reason
}

// explainDecode turns an error of the YAML library into a Problem.
func explainDecode(err error) error {
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		key := unknown.Token.Value
		reason := "unknown key"
		if near := nearest(key, knownKeys(reflect.TypeFor[Config]())); near != "" {
			reason += fmt.Sprintf("; did you mean %q?", near)
		}
		return &Problem{Line: unknown.Token.Position.Line, Key: key, Reason: reason}
	}
	var located yaml.Error
	if errors.As(err, &located) && located.GetToken() != nil {
		return &Problem{Line: located.GetToken().Position.Line, Reason: located.GetMessage()}
	}
	return &Problem{Reason: err.Error()}
}

// validate runs the struct tags and finds each complaint's line, or the variable of the environment that it is from.
func validate(c *Config, raw []byte, from map[string]string) error {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string { return f.Tag.Get("yaml") })
	must := func(err error) {
		if err != nil {
			panic(err) // a tag that cannot be registered is a mistake in this file
		}
	}
	must(v.RegisterValidation("duration", func(fl validator.FieldLevel) bool { _, ok := parseDuration(fl.Field().String()); return ok }))
	must(v.RegisterValidation("filemode", func(fl validator.FieldLevel) bool { _, ok := parseFileMode(fl.Field().String()); return ok }))
	err := v.Struct(c)
	var fields validator.ValidationErrors
	if !errors.As(err, &fields) {
		return err // nil, or a mistake in the tags
	}
	file, perr := parser.ParseBytes(raw, 0)
	if perr != nil {
		return perr
	}
	problems := make([]error, 0, len(fields))
	for _, fe := range fields {
		_, key, _ := strings.Cut(fe.Namespace(), ".")
		if variable := from[key]; variable != "" {
			problems = append(problems, &Problem{Key: variable + ", for " + key, Reason: complaint(fe)})
			continue
		}
		problems = append(problems, &Problem{Line: lineOf(file, key), Key: key, Reason: complaint(fe)})
	}
	return errors.Join(problems...)
}

// lineOf finds the line of a key, or of the nearest parent that the file has.
func lineOf(file *ast.File, key string) int {
	for key != "" {
		if path, err := yaml.PathString("$." + key); err == nil {
			if node, err := path.FilterFile(file); err == nil && node != nil && node.GetToken() != nil {
				return node.GetToken().Position.Line
			}
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
	return 0
}

func complaint(fe validator.FieldError) string {
	got := fmt.Sprintf("%v", fe.Value())
	switch fe.Tag() {
	case "required", "required_if":
		return "is missing"
	case "excluded_if":
		return "is not allowed in this mode"
	case "oneof":
		return fmt.Sprintf("%q is not one of: %s", got, fe.Param())
	case "startswith":
		return fmt.Sprintf("%q does not start with %q", got, fe.Param())
	case "startswith=device:/|startswith=unix:/|startswith=tcp:":
		return fmt.Sprintf("%q is not device:/dev/..., unix:/... or tcp:HOST:PORT", got)
	case "hostname_port|tcp_addr|startswith=unix:/":
		return fmt.Sprintf("%q is not HOST:PORT or unix:PATH", got)
	case "hostname_port|tcp_addr":
		return fmt.Sprintf("%q is not HOST:PORT", got)
	case "duration":
		return fmt.Sprintf("%q is not a duration such as 30s, 5m or 2h", got)
	case "filemode":
		return fmt.Sprintf("%q is not a file mode such as 0660", got)
	case "hostname_rfc1123":
		return fmt.Sprintf("%q is not a host name", got)
	case "gte", "min":
		return fmt.Sprintf("has %s, less than %s", got, fe.Param())
	case "lte", "max":
		return fmt.Sprintf("%s is more, or longer, than %s", got, fe.Param())
	case "unique":
		return "lists something twice"
	}
	return fmt.Sprintf("%q fails the rule %s %s", got, fe.Tag(), fe.Param())
}

// knownKeys lists every key that a configuration may have, at any depth.
func knownKeys(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			keys = append(keys, key)
			keys = append(keys, knownKeys(f.Type)...)
		}
	}
	return keys
}

// nearest returns the known key at an edit distance of at most two, or "".
func nearest(key string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(key, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
