package pccs

import (
	"errors"
	"fmt"
)

// What can be wrong with an answer, wrapped by *Error.
var (
	// ErrTransport: there was none, or not all of it. The error wraps the cause.
	ErrTransport = errors.New("no answer")
	// ErrStatus: another status than 200. Error.Status says which.
	ErrStatus = errors.New("refused")
	// ErrRedirect: it leads elsewhere.
	ErrRedirect = errors.New("redirection refused")
	// ErrTooLarge: it exceeds the artefact's limit.
	ErrTooLarge = errors.New("answer too large")
	// ErrContent: it is empty, lacks its issuer chain, or is in no known encoding.
	ErrContent = errors.New("not what was asked for")
	// ErrChains: TCB info and QE identity come under different signing chains.
	ErrChains = errors.New("answers do not belong together")
)

// Error says which artefact could not be had, from where, and why.
type Error struct {
	// Artefact is the name of its file, as in package collateral. URL has no query.
	Artefact, URL string
	// Status is that of the answer, 0 if there was none.
	Status int
	// Kind is one of the errors of this package, Err the detail.
	Kind, Err error
}

func (e *Error) Error() string {
	status := ""
	if e.Status != 0 {
		status = fmt.Sprintf(", status %d", e.Status)
	}
	return fmt.Sprintf("fetching %s from %s: %v%s: %v", e.Artefact, e.URL, e.Kind, status, e.Err)
}

// Unwrap returns the kind and the detail.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }
