package collateral

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestValidityIncludesBothItsEndsAndNamesWhatIsNotValid(t *testing.T) {
	v := Validity{NotBefore: day, NotAfter: day.Add(time.Hour), Begins: "tcb_info", Expires: "root_ca_crl"}
	for name, tc := range map[string]struct {
		now      time.Time
		err      error
		artefact string
	}{
		"before it begins":   {day.Add(-time.Second), ErrNotYetValid, "tcb_info"},
		"as it begins":       {day, nil, ""},
		"as it ends":         {day.Add(time.Hour), nil, ""},
		"after it has ended": {day.Add(time.Hour + time.Second), ErrExpired, "root_ca_crl"},
	} {
		err := v.At(tc.now)
		if tc.err == nil {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var e *ValidityError
		if !errors.Is(err, tc.err) || !errors.As(err, &e) || e.Artefact != tc.artefact || !strings.Contains(err.Error(), tc.artefact) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if (Validity{}).At(day) == nil {
		t.Error("the zero Validity is valid")
	}
}

func TestNoArtefactGoesBack(t *testing.T) {
	kept := edition(5, day)
	for i, artefact := range []string{"tcb_info", "qe_identity", "pck_crl", "root_ca_crl"} {
		change := func(v Version) Versions {
			out := kept
			*[]*Version{&out.TCBInfo, &out.QEIdentity, &out.PCKCRL, &out.RootCACRL}[i] = v
			return out
		}
		for name, tc := range map[string]struct {
			found          Version
			valid, expired bool // is it accepted while the kept set is valid, and when it has expired?
		}{
			"the same":                           {Version{5, day}, true, true},
			"a later date":                       {Version{5, day.Add(1)}, true, true},
			"a higher number":                    {Version{6, day}, true, true},
			"a higher number of an earlier date": {Version{6, day.Add(-1)}, true, true},
			"an earlier date":                    {Version{5, day.Add(-1)}, false, true},
			"a lower number":                     {Version{4, day}, false, false},
			"a lower number of a later date":     {Version{4, day.Add(1)}, false, false},
			"a version that nobody vouches for":  {Version{}, false, false},
		} {
			for _, valid := range []bool{true, false} {
				err := notOlder(kept, change(tc.found), valid)
				want := tc.valid
				if !valid {
					want = tc.expired
				}
				var e *RollbackError
				switch {
				case want && err != nil:
					t.Errorf("%s, %s, kept set valid %v: %v", artefact, name, valid, err)
				case !want && (!errors.Is(err, ErrRollback) || !errors.As(err, &e) || e.Artefact != artefact || e.Found != tc.found):
					t.Errorf("%s, %s, kept set valid %v: got %v", artefact, name, valid, err)
				}
			}
		}
	}
}
