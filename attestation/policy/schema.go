package policy

import _ "embed"

//go:embed schema.json
var jsonSchema []byte

// JSONSchema returns the JSON Schema (draft 2020-12) of a policy's payload, for editors and pipelines. Parse checks more than a schema can say.
func JSONSchema() []byte { return append([]byte(nil), jsonSchema...) }
