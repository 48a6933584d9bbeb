package collateral

import (
	"errors"
	"fmt"
	"time"
)

// Errors of a Cache, besides those of its Source, its Check and the file system.
var (
	// ErrExpired and ErrNotYetValid, wrapped by *ValidityError: an artefact is not valid any more, or not yet.
	ErrExpired     = errors.New("expired")
	ErrNotYetValid = errors.New("not valid yet")
	// ErrRollback, wrapped by *RollbackError: an older issue than the one that is kept.
	ErrRollback = errors.New("older than what is kept")
	// ErrRejected: the Check did not accept it.
	ErrRejected = errors.New("collateral not accepted")
	// ErrOffline: there is no Source to ask.
	ErrOffline = errors.New("no source of collateral is configured")
	// ErrBusy: too many fetches are under way.
	ErrBusy = errors.New("too many fetches under way")
	// ErrFull: there are MaxKeys entries, all valid.
	ErrFull = errors.New("collateral cache is full")
	// ErrUnknown: the cache has nothing under this key.
	ErrUnknown = errors.New("no collateral is kept for this kind of platform")
	// ErrClosed: the Cache is closed.
	ErrClosed = errors.New("collateral cache is closed")
)

// Version tells issues of one artefact apart: by the number that its publisher counts up (tcbEvaluationDataNumber, CRL number), and among
// equals by the date. Numbers alone would not do: every CRL that Intel has published bears number 1.
type Version struct {
	Number uint64
	Issued time.Time
}

// Versions of the four artefacts that are issued again and again. The zero Version of an artefact that nobody vouches for is below every
// other.
type Versions struct {
	TCBInfo, QEIdentity, PCKCRL, RootCACRL Version
}

// Validity is what a Check found out of collateral that it accepted.
type Validity struct {
	// The collateral is valid from NotBefore, when Begins is the last artefact to become so, to NotAfter, when Expires is the first to
	// expire; both ends included.
	NotBefore, NotAfter time.Time
	Begins, Expires     string
	Versions            Versions
}

// At says whether the collateral is valid at a time. Error: *ValidityError.
func (v Validity) At(now time.Time) error {
	switch {
	case now.After(v.NotAfter):
		return &ValidityError{Artefact: v.Expires, Limit: v.NotAfter, Now: now, Err: ErrExpired}
	case now.Before(v.NotBefore):
		return &ValidityError{Artefact: v.Begins, Limit: v.NotBefore, Now: now, Err: ErrNotYetValid}
	}
	return nil
}

// ValidityError says which artefact is not valid now, and until or from when it is. Artefacts are named as in package dcap: files without
// their suffix, and certificates.
type ValidityError struct {
	Artefact   string
	Limit, Now time.Time
	// Err is ErrExpired or ErrNotYetValid.
	Err error
}

func (e *ValidityError) Error() string {
	bound := "valid until"
	if errors.Is(e.Err, ErrNotYetValid) {
		bound = "valid from"
	}
	return fmt.Sprintf("%s: %v: found %s %s, expected it valid now, at %s", e.Artefact, e.Err, bound, stamp(e.Limit), stamp(e.Now))
}

// Unwrap returns Err.
func (e *ValidityError) Unwrap() error { return e.Err }

// RollbackError says which artefact is older than the one that is kept. It wraps ErrRollback.
type RollbackError struct {
	Artefact    string
	Found, Kept Version
}

func (e *RollbackError) Error() string {
	return fmt.Sprintf("%s: %v: found number %d of %s, expected at least number %d of %s", e.Artefact, ErrRollback, e.Found.Number,
		stamp(e.Found.Issued), e.Kept.Number, stamp(e.Kept.Issued))
}

// Unwrap returns ErrRollback.
func (e *RollbackError) Unwrap() error { return ErrRollback }

// UnavailableError is why Get has nothing valid to give.
type UnavailableError struct {
	Key Key
	// Have says what is wrong with what is kept: *ValidityError, or ErrUnknown if there is nothing.
	Have error
	// Fetch says why nothing better could be had.
	Fetch error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("collateral %v: %v; fetching it: %v", e.Key, e.Have, e.Fetch)
}

// Unwrap returns both causes.
func (e *UnavailableError) Unwrap() []error { return []error{e.Have, e.Fetch} }

// notOlder refuses a set of which any artefact goes back. Numbers never do, whatever became of the old set. Dates do not while the old set is
// valid; once it is not, a set that mixes new with old (from a PCCS whose parts are refreshed one by one) is better than none.
func notOlder(kept, found Versions, keptValid bool) error {
	for _, a := range []struct {
		artefact    string
		kept, found Version
	}{
		{"tcb_info", kept.TCBInfo, found.TCBInfo},
		{"qe_identity", kept.QEIdentity, found.QEIdentity},
		{"pck_crl", kept.PCKCRL, found.PCKCRL},
		{"root_ca_crl", kept.RootCACRL, found.RootCACRL},
	} {
		if a.found.Number < a.kept.Number || (keptValid && a.found.Number == a.kept.Number && a.found.Issued.Before(a.kept.Issued)) {
			return &RollbackError{Artefact: a.artefact, Found: a.found, Kept: a.kept}
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
