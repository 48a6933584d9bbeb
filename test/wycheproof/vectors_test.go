// Package wycheproof runs Project Wycheproof's vectors through the primitives of Go's standard library that Safeconduct uses, each called as
// Safeconduct calls it, and through package keyschedule where a vector fits its interface. What is looked for is not whether Go's library is
// right (its own tests do that) but whether our way of calling it refuses what has to be refused.
package wycheproof

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
)

// unhex is bytes that a file gives in hex.
type unhex []byte

func (b *unhex) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	*b = raw
	return err
}

// vector is what all tests have in common.
type vector struct {
	ID      int      `json:"tcId"`
	Comment string   `json:"comment"`
	Flags   []string `json:"flags"`
	Result  string   `json:"result"`
}

func (v vector) valid() bool          { return v.Result == "valid" }
func (v vector) has(flag string) bool { return slices.Contains(v.Flags, flag) }
func (v vector) String() string       { return fmt.Sprintf("%d %s %v", v.ID, v.Comment, v.Flags) }
func (v vector) common() vector       { return v }

// expects compares what our code did with what a vector that is valid or invalid asks for.
func (v vector) expects(ok bool) error {
	if ok != v.valid() {
		return fmt.Errorf("accepted: %t, but the vector is %s", ok, v.Result)
	}
	return nil
}

// run gives every test of a file to check, with its group, and fails if it is not exactly want tests that check ran: a file that is read wrongly must not
// pass for one that holds. check returns errSkipped for what Safeconduct never calls.
func run[Group any, Test interface{ common() vector }](t *testing.T, file string, want int, check func(Group, Test) error) {
	t.Helper()
	raw, err := fs.ReadFile(wycheproof.TestVectors, file)
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Groups []json.RawMessage `json:"testGroups"`
	}
	if err := json.Unmarshal(raw, &parsed); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, raw := range parsed.Groups {
		var group Group
		var tests struct {
			Tests []Test `json:"tests"`
		}
		if err := json.Unmarshal(raw, &group); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &tests); err != nil {
			t.Fatal(err)
		}
		for _, test := range tests.Tests {
			switch err := check(group, test); {
			case errors.Is(err, errSkipped):
			case err != nil:
				t.Errorf("%s, test %v: %v", file, test.common(), err)
				ran++
			default:
				ran++
			}
		}
	}
	if ran != want {
		t.Errorf("%s: %d tests ran, expected %d", file, ran, want)
	}
}

var errSkipped = errors.New("not what Safeconduct calls")
