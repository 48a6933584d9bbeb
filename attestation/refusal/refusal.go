// Package refusal is the one error type that says no: a typed reason that can cross the wire, with what was found, what was
// expected and what to do about it.
//
// Everything that appraises, in this module, returns a *Refusal when it refuses. Services turn it into a gRPC status
// for a local caller, who may know everything, and into a bare "refused" for a peer that has not been appraised, who
// may know nothing (Blunt).
//
// Reasons are safeconduct.v1.Reason: their numbers and names are never reused.
package refusal

import (
	"errors"
	"fmt"
	"strings"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// MaxText bounds each text of a refusal that came from a peer, in bytes.
const MaxText = 1024

// Refusal is a typed no. The zero value means an internal error.
type Refusal struct {
	Reason v1.Reason
	// Message is one sentence: what happened and why. Lower case, without a full stop.
	Message string
	// Item names the thing refused: a file, a check, a field.
	Item            string
	Found, Expected string
	// Remedy says what to do; empty means Remedies[Reason].
	Remedy string
	// Cause is for errors.Is and the local log; it never crosses the wire.
	Cause error
}

// New returns a refusal with a formatted message; %w is honoured as the cause.
func New(reason v1.Reason, format string, args ...any) *Refusal {
	err := fmt.Errorf(format, args...)
	return &Refusal{Reason: reason, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// On names the item that was refused.
func (r *Refusal) On(item string) *Refusal { r.Item = item; return r }

// Want records what was found and what was expected.
func (r *Refusal) Want(found, expected string) *Refusal {
	r.Found, r.Expected = found, expected
	return r
}

// Do replaces the reason's usual remedy.
func (r *Refusal) Do(remedy string) *Refusal { r.Remedy = remedy; return r }

// Error is the operator's line: reason, message, item, found, expected.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(Name(r.Reason))
	b.WriteString(": ")
	b.WriteString(r.Message)
	if r.Item != "" && !strings.Contains(r.Message, r.Item) {
		fmt.Fprintf(&b, " [%s]", r.Item)
	}
	if r.Found != "" || r.Expected != "" {
		fmt.Fprintf(&b, " (found %s, expected %s)", orNothing(r.Found), orNothing(r.Expected))
	}
	return b.String()
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

// Is makes errors.Is(err, &Refusal{Reason: x}) ask for the reason alone.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Message == "" && t.Reason == r.Reason
}

// Because returns a target for errors.Is that matches any refusal with this reason.
func Because(reason v1.Reason) error { return &Refusal{Reason: reason} }

// From returns the refusal in err's chain; an error without one becomes REASON_INTERNAL with err as its cause. nil stays nil.
func From(err error) *Refusal {
	if err == nil {
		return nil
	}
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return &Refusal{Reason: v1.Reason_REASON_INTERNAL, Message: err.Error(), Cause: err}
}

// Name is the reason without its prefix: "TCB_NOT_ACCEPTED".
func Name(reason v1.Reason) string { return strings.TrimPrefix(reason.String(), "REASON_") }

// Proto is the refusal as a local caller sees it.
func (r *Refusal) Proto() *v1.Refusal {
	if r == nil {
		return nil
	}
	return &v1.Refusal{
		Reason: r.Reason, Message: r.Message, Item: r.Item,
		Found: r.Found, Expected: r.Expected, Remedy: r.RemedyText(),
	}
}

// RemedyText is the remedy of this refusal, or the usual one of its reason.
func (r *Refusal) RemedyText() string {
	if r.Remedy != "" {
		return r.Remedy
	}
	return Remedies(r.Reason)
}

// Attributes are what a log says of any error, for slog: why, and of a refusal its reason and what to do.
func Attributes(err error) []any {
	fields := []any{"why", err}
	if r, ok := errors.AsType[*Refusal](err); ok {
		fields = append(fields, "reason", Name(r.Reason), "do", r.RemedyText())
	}
	return fields
}

// FromProto is the inverse of Proto, with texts cut to MaxText: they may come from a peer.
func FromProto(p *v1.Refusal) *Refusal {
	if p == nil {
		return nil
	}
	return &Refusal{
		Reason: p.GetReason(), Message: cut(p.GetMessage()), Item: cut(p.GetItem()),
		Found: cut(p.GetFound()), Expected: cut(p.GetExpected()), Remedy: cut(p.GetRemedy()),
	}
}

func cut(s string) string {
	if len(s) > MaxText {
		s = s[:MaxText] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// Blunt is what a peer that has not been appraised may know: that it is refused. Reasons that it could have seen for itself
// (it sent something malformed, it named a node that is not there) are passed on.
func Blunt(err error) *v1.Refused {
	switch reason := From(err).Reason; reason {
	case v1.Reason_REASON_PROTOCOL_VIOLATION, v1.Reason_REASON_SUITE_MISMATCH, v1.Reason_REASON_MODE_MISMATCH,
		v1.Reason_REASON_SAME_NODE, v1.Reason_REASON_LIMIT_EXCEEDED, v1.Reason_REASON_DRAINING:
		return &v1.Refused{Reason: reason}
	default:
		return &v1.Refused{Reason: v1.Reason_REASON_PEER_REFUSED}
	}
}
