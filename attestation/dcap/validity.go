package dcap

import (
	"crypto/x509"
	"fmt"
	"time"
)

// period is when an artefact is valid, both ends included (RFC 5280, section 4.1.2.5; nextUpdate likewise).
type period struct {
	artefact Artefact
	from, to time.Time
}

func certPeriod(artefact Artefact, c *x509.Certificate) period {
	return period{artefact, c.NotBefore, c.NotAfter}
}

func (c *crl) period() period { return period{c.artefact, c.list.ThisUpdate, c.list.NextUpdate} }

func (p *preamble) period(artefact Artefact) period {
	return period{artefact, p.IssueDate, p.NextUpdate}
}

// window is the intersection of periods: from the latest beginning to the earliest end, and which artefact it is that begins or ends (of
// several at the same moment, the first in the list).
type window struct {
	from, to        time.Time
	begins, expires Artefact
}

func intersect(periods []period) window {
	var w window
	for _, p := range periods {
		if w.begins == "" || p.from.After(w.from) {
			w.from, w.begins = p.from, p.artefact
		}
		if w.expires == "" || p.to.Before(w.to) {
			w.to, w.expires = p.to, p.artefact
		}
	}
	return w
}

// contains says whether everything is valid at now. Of several artefacts that are not, it names the one that has been so for longest.
func (w window) contains(now time.Time) error {
	switch {
	case now.After(w.to):
		return failed(CheckValidity, w.expires, fmt.Sprintf("valid until %s, and now is %s", stamp(w.to), stamp(now)), "a later one")
	case now.Before(w.from):
		return failed(CheckValidity, w.begins, fmt.Sprintf("valid from %s, and now is %s", stamp(w.from), stamp(now)), "an earlier one, or a right clock")
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
