package policy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func compile(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(JSONSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func valid(t *testing.T, s *jsonschema.Schema, raw string) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(raw))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

func TestTheSchemaAcceptsWhatIsAcceptedAndRefusesWhatItCanSee(t *testing.T) {
	s := compile(t)
	if err := valid(t, s, good); err != nil {
		t.Errorf("the example: %v", err)
	}
	for name, change := range map[string][2]string{
		"an unknown key":           {`"tcb":`, `"tbc":`},
		"a key further down":       {`"isv_prod_id"`, `"isv_prodid"`},
		"another schema":           {"policy/v1", "policy/v2"},
		"no version":               {`"policy_svn": 3`, `"policy_svn": 0`},
		"upper-case hex":           {`"mrsigner": "ab`, `"mrsigner": "AB`},
		"a short measurement":      {`"mrenclave": "ab`, `"mrenclave": "`},
		"a rule that names nobody": {`"mrenclave": "` + d32 + `",`, ``},
		"a status that is none":    {`"SWHardeningNeeded"`, `"Fine"`},
		"no duration":              {`"720h"`, `"a month"`},
		"a PCR that is not there":  {`"pcrs": {"0"`, `"pcrs": {"24"`},
	} {
		if !strings.Contains(good, change[0]) {
			t.Fatalf("%s: the example has no %q", name, change[0])
		}
		altered := strings.Replace(good, change[0], change[1], 1)
		if valid(t, s, altered) == nil {
			t.Errorf("%s: the schema accepts it", name)
		}
		if _, err := Parse([]byte(altered)); err == nil {
			t.Errorf("%s: Parse accepts it", name)
		}
	}
}

// TestTheSchemaNamesEveryKeyOfThePolicy walks the Go types and the schema side by side.
func TestTheSchemaNamesEveryKeyOfThePolicy(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(JSONSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	defs := schema["$defs"].(map[string]any)
	resolve := func(n any) map[string]any {
		m, _ := n.(map[string]any)
		for {
			ref, ok := m["$ref"].(string)
			if !ok {
				return m
			}
			m = defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		}
	}
	var walk func(path string, typ reflect.Type, node map[string]any)
	walk = func(path string, typ reflect.Type, node map[string]any) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		text := reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()
		switch {
		case typ.Implements(text) || typ == reflect.TypeFor[json.RawMessage]():
		case typ.Kind() == reflect.Slice:
			walk(path+"[]", typ.Elem(), resolve(node["items"]))
		case typ.Kind() == reflect.Map:
			walk(path+"{}", typ.Elem(), resolve(node["additionalProperties"]))
		case typ.Kind() == reflect.Struct:
			properties, _ := node["properties"].(map[string]any)
			var keys []string
			for f := range typ.Fields() {
				if !f.IsExported() {
					continue
				}
				key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				keys = append(keys, key)
				if properties[key] == nil {
					t.Errorf("the schema has no %s.%s", path, key)
					continue
				}
				walk(path+"."+key, f.Type, resolve(properties[key]))
			}
			for key := range maps.Keys(properties) {
				if !slices.Contains(keys, key) {
					t.Errorf("the policy has no %s.%s", path, key)
				}
			}
			if node["additionalProperties"] != false {
				t.Errorf("the schema lets %s have other keys", path)
			}
		}
	}
	walk("policy", reflect.TypeFor[Policy](), schema)
}

// TestTheExampleInTheManualIsAPolicy keeps docs/policy.md honest.
func TestTheExampleInTheManualIsAPolicy(t *testing.T) {
	manual, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(manual, []byte("```json\n"))
	example, _, closed := bytes.Cut(rest, []byte("```"))
	if !ok || !closed {
		t.Fatal("docs/policy.md has no example")
	}
	if _, err := Parse(example); err != nil {
		t.Errorf("docs/policy.md: %v", err)
	}
	if err := valid(t, compile(t), string(example)); err != nil {
		t.Errorf("docs/policy.md: %v", err)
	}
	for _, key := range []string{"policy_svn", "enrolment", "exported_keys", "max_collateral_age", "not_after", "runtime_policy", "secure_boot", "tolerated_advisories"} {
		if !bytes.Contains(manual, []byte("`"+key)) && !bytes.Contains(manual, []byte("."+key+"`")) {
			t.Errorf("docs/policy.md does not explain %s", key)
		}
	}
}
