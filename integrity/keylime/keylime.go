// Package keylime reads Keylime's runtime policies as they are, and judges entries of an IMA measurement list by them, so that an operator who has
// reference values for Keylime has them for Safeconduct.
//
// What it can honour it does as Keylime does: digests by path, excludes with the meaning of Python's re.match, keyrings, ignored keyrings, ima-buf.
// What it cannot honour it refuses by name when the policy is read, so that nothing is judged by half of a policy: patterns that Go's RE2 cannot
// express, a device-mapper policy, verification keys. Where Keylime is silent, it is strict: an entry that nothing names is refused, buffers included,
// and so is a SHA-1 digest of a file.
//
// It replays no list and verifies no quote: package ima does, and what is judged here counts only if that went well.
package keylime

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/safeconduct/safeconduct/integrity/ima"
)

// Bounds of a policy.
const (
	// MaxSize in bytes: 100,000 paths with a SHA-256 each have about 15 MB.
	MaxSize = 64 << 20
	// MaxPatterns is the number of excludes; each is tried with each path that no digest names.
	MaxPatterns = 1000
)

// ErrPolicy says that something is no runtime policy, or has a part that cannot be honoured.
var ErrPolicy = errors.New("runtime policy not usable")

// Policy is a runtime policy. It is immutable and may be used concurrently.
type Policy struct {
	digests, keyrings, buffers map[string][]string // of raw digests
	ignored                    []string
	ignoreAll                  bool
	excludes                   []*regexp.Regexp
}

// document is the policy as Keylime writes it (keylime/ima/types.py, RuntimePolicyType).
type document struct {
	Meta             json.RawMessage     `json:"meta"`
	Release          json.RawMessage     `json:"release"`
	Digests          map[string][]string `json:"digests"`
	Excludes         []string            `json:"excludes"`
	Keyrings         map[string][]string `json:"keyrings"`
	IMA              *section            `json:"ima"`
	Buffers          map[string][]string `json:"ima-buf"`
	VerificationKeys json.RawMessage     `json:"verification-keys"`
}

type section struct {
	IgnoredKeyrings []string        `json:"ignored_keyrings"`
	LogHashAlg      string          `json:"log_hash_alg"`
	DMPolicy        json.RawMessage `json:"dm_policy"`
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrPolicy, fmt.Errorf(format, args...))
}

// Parse reads a runtime policy. The error is ErrPolicy and names the key, the path or the pattern.
func Parse(raw []byte) (*Policy, error) {
	if len(raw) > MaxSize {
		return nil, refused("%d bytes, more than %d", len(raw), MaxSize)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var d document
	if err := dec.Decode(&d); err != nil {
		return nil, refused("%w", err)
	}
	if dec.More() {
		return nil, refused("something follows the document")
	}
	if err := unsupported(&d); err != nil {
		return nil, err
	}
	p := new(Policy)
	for _, part := range []struct {
		name string
		from map[string][]string
		to   *map[string][]string
	}{{"digests", d.Digests, &p.digests}, {"keyrings", d.Keyrings, &p.keyrings}, {"ima-buf", d.Buffers, &p.buffers}} {
		var err error
		if *part.to, err = decode(part.name, part.from); err != nil {
			return nil, err
		}
	}
	if d.IMA != nil {
		p.ignored, p.ignoreAll = d.IMA.IgnoredKeyrings, slices.Contains(d.IMA.IgnoredKeyrings, "*")
	}
	return p, p.compile(d.Excludes)
}

// unsupported refuses what would be judged otherwise than Keylime does.
func unsupported(d *document) error {
	empty := func(raw json.RawMessage) bool {
		return slices.Contains([]string{"", "null", `""`, "[]", "{}"}, string(bytes.TrimSpace(raw)))
	}
	if !empty(d.VerificationKeys) {
		return refused("verification-keys: files are judged by their digests, not by signatures; list their digests and leave the keys out")
	}
	if d.IMA != nil && !empty(d.IMA.DMPolicy) {
		return refused("ima.dm_policy: a device-mapper policy is not supported; list the buffers under ima-buf")
	}
	return nil
}

// decode reads digests, which carry no algorithm: their length is that of one.
func decode(part string, from map[string][]string) (map[string][]string, error) {
	to := make(map[string][]string, len(from))
	for _, name := range slices.Sorted(maps.Keys(from)) {
		to[name] = nil // listed, if without a digest
		for _, text := range from[name] {
			if algorithm, rest, prefixed := strings.Cut(text, ":"); prefixed {
				return nil, refused("%s: %.100q: digest %.80q has a prefix %.20q, which Keylime's schema does not allow; write %.80s", part, name, text, algorithm, rest)
			}
			raw, err := hex.DecodeString(text)
			if err != nil || !slices.Contains([]int{20, 32, 48, 64}, len(raw)) {
				return nil, refused("%s: %.100q: %.80q is no digest in hexadecimal of SHA-1, SHA-256, SHA-384 or SHA-512", part, name, text)
			}
			to[name] = append(to[name], string(raw))
		}
	}
	return to, nil
}

// compile gives patterns the meaning of Python's re.match: they match from the beginning, and need not reach the end.
func (p *Policy) compile(patterns []string) error {
	if len(patterns) > MaxPatterns {
		return refused("excludes: %d patterns, more than %d", len(patterns), MaxPatterns)
	}
	for i, pattern := range patterns {
		if pattern == "" {
			continue // as Keylime: nothing
		}
		re, err := regexp.Compile(`\A(?:` + pattern + `)`)
		if err != nil {
			return refused("excludes[%d]: RE2 cannot express the pattern %q: %w", i, pattern, err)
		}
		p.excludes = append(p.excludes, re)
	}
	return nil
}

// Objection is what speaks against an entry. Its texts are printable.
type Objection struct{ Found, Expected string }

// Judge judges one entry that is no violation. nil means that the policy accepts it.
func (p *Policy) Judge(e *ima.Entry) *Objection {
	if e.Opaque {
		return &Objection{fmt.Sprintf("entry %d of template %q", e.Number, e.Template), "a template whose fields are known"}
	}
	if len(e.Buffer) > 0 {
		return p.buffer(e)
	}
	if accepted, listed := p.digests[e.Path]; listed {
		return oneOf(e, accepted)
	}
	for _, re := range p.excludes {
		if re.MatchString(e.Path) {
			return nil
		}
	}
	return &Objection{described(e), "a file that the runtime policy lists or excludes"}
}

// buffer judges what was measured without being a file: keys, command lines.
func (p *Policy) buffer(e *ima.Entry) *Objection {
	if p.ignoreAll || slices.Contains(p.ignored, e.Path) {
		return nil
	}
	if accepted, listed := p.keyrings[e.Path]; listed {
		return oneOf(e, accepted)
	}
	if accepted, listed := p.buffers[e.Path]; listed {
		return oneOf(e, accepted)
	}
	return &Objection{described(e), "a buffer or keyring that the runtime policy lists or ignores"}
}

func oneOf(e *ima.Entry, accepted []string) *Objection {
	if len(e.Digest) == 20 {
		return &Objection{described(e), "a digest of SHA-256 or better: start the kernel with ima_hash=sha256"}
	}
	if slices.Contains(accepted, string(e.Digest)) {
		return nil
	}
	const shown = 4
	var texts []string
	for _, d := range accepted[:min(shown, len(accepted))] {
		texts = append(texts, hex.EncodeToString([]byte(d)))
	}
	if len(accepted) > shown {
		texts = append(texts, fmt.Sprintf("or %d more", len(accepted)-shown))
	}
	if len(texts) == 0 {
		texts = append(texts, "no digest")
	}
	return &Objection{described(e), strings.Join(texts, ", ")}
}

func described(e *ima.Entry) string {
	return fmt.Sprintf("entry %d, %.20s:%x", e.Number, e.DigestAlgorithm, e.Digest)
}

// Paths is the number of paths that have digests, and Excludes that of patterns: for the operator's eyes.
func (p *Policy) Paths() int { return len(p.digests) }

// Excludes is the number of patterns.
func (p *Policy) Excludes() int { return len(p.excludes) }
