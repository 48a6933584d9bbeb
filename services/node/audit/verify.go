package audit

import (
	"errors"
	"fmt"
	"path/filepath"
)

// What can be wrong with a log; test with errors.Is.
var (
	// ErrMalformed: a line that the service does not write.
	ErrMalformed = errors.New("malformed")
	// ErrEdited: a record is not the one that the next one was chained to.
	ErrEdited = errors.New("edited")
	// ErrMissing: records are missing, at the beginning or in between.
	ErrMissing = errors.New("records are missing")
	// ErrTruncated: the log ends before the head that is known.
	ErrTruncated = errors.New("cut off at the end")
)

// Damage is what is wrong, and where.
type Damage struct {
	File string
	// Line from 1; 0 for the whole file.
	Line int
	Err  error
	Why  string
}

func (d *Damage) Error() string {
	where := ""
	if d.File != "" {
		where = filepath.Base(d.File) + ": "
	}
	if d.Line > 0 {
		where = fmt.Sprintf("%s line %d: ", filepath.Base(d.File), d.Line)
	}
	return fmt.Sprintf("%s%v: %s", where, d.Err, d.Why)
}

// Unwrap returns one of the errors above.
func (d *Damage) Unwrap() error { return d.Err }

// Report is what Verify read.
type Report struct {
	Files   int
	Records uint64
	// First is the sequence of the oldest record that is kept: 1 unless older ones were pruned.
	First uint64
	// Head is the last record.
	Head Head
	// Lost counts records that could not be written, and that gaps own up to.
	Lost uint64
	// Partial says that the last line is cut short, as by a power cut; what is whole verifies.
	Partial bool
	// Anchored says that the log reaches the head that was asked for, and holds it.
	Anchored bool
}

// Verify reads a whole log and checks that it is one chain. With a head, which the node tells or an auditor noted, it also checks that the log holds that
// very record: what comes after it may be later. Errors: *Damage, with what was read up to there in the Report; those of the file system.
func Verify(dir string, anchor *Head) (*Report, error) {
	all, err := segments(dir)
	if err != nil {
		return &Report{}, err
	}
	w := &walker{anchor: anchor}
	if err := w.walk(all); err != nil {
		return &w.report, err
	}
	return &w.report, w.conclude()
}

// walker follows a chain through its files.
type walker struct {
	anchor *Head
	report Report
	// started is set with the first record; before it, expected is not known.
	started bool
	// cutoff is what the first record is chained to, and pruned whether a record owns up to that.
	cutoff Head
	pruned bool
}

func (w *walker) walk(all []segment) error {
	for i, s := range all {
		w.report.Files++
		count := 0
		_, err := lines(s.path, func(n int, line []byte) error {
			count++
			return w.take(s, n, line)
		})
		if errors.Is(err, errPartial) && i == len(all)-1 {
			w.report.Partial = true
			err = nil
		}
		if errors.Is(err, errPartial) {
			err = &Damage{File: s.path, Line: count + 1, Err: ErrMalformed, Why: err.Error()}
		}
		if err != nil {
			return err
		}
		if count == 0 && i != len(all)-1 {
			return &Damage{File: s.path, Err: ErrMissing, Why: "an empty file amid the log"}
		}
	}
	return nil
}

func (w *walker) take(s segment, n int, line []byte) error {
	r, err := parse(line)
	if err != nil {
		return &Damage{File: s.path, Line: n, Err: ErrMalformed, Why: err.Error()}
	}
	head := &w.report.Head
	switch {
	case !w.started:
		w.started, w.report.First, w.cutoff = true, r.Sequence, Head{r.Sequence - 1, r.Previous}
		if r.Sequence == 1 && r.Previous != (Digest{}) {
			return &Damage{File: s.path, Line: n, Err: ErrEdited, Why: "the first record of all is chained to another"}
		}
	case r.Sequence != head.Sequence+1:
		return &Damage{File: s.path, Line: n, Err: ErrMissing, Why: fmt.Sprintf("record %d follows record %d", r.Sequence, head.Sequence)}
	case r.Previous != head.Digest:
		return &Damage{File: s.path, Line: n, Err: ErrEdited, Why: fmt.Sprintf("record %d is not the one that record %d is chained to", head.Sequence, r.Sequence)}
	}
	if n == 1 && r.Sequence != s.first {
		return &Damage{File: s.path, Line: n, Err: ErrMissing, Why: fmt.Sprintf("it begins with record %d, not with the one that it is named after", r.Sequence)}
	}
	*head = Head{r.Sequence, digestOf(line)}
	w.report.Records++
	w.report.Lost += r.Lost
	if r.Through != nil && *r.Through == w.cutoff {
		w.pruned = true
	}
	if w.anchor != nil && w.anchor.Sequence == head.Sequence {
		if w.anchor.Digest != head.Digest {
			return &Damage{File: s.path, Line: n, Err: ErrEdited, Why: fmt.Sprintf("record %d is not the one of the head that is known", r.Sequence)}
		}
		w.report.Anchored = true
	}
	return nil
}

// conclude checks the two ends.
func (w *walker) conclude() error {
	head := w.report.Head
	if w.anchor != nil && head.Sequence < w.anchor.Sequence {
		return &Damage{Err: ErrTruncated, Why: fmt.Sprintf("it ends with record %d; the head that is known is record %d", head.Sequence, w.anchor.Sequence)}
	}
	if w.started && w.cutoff.Sequence > 0 && !w.pruned {
		return &Damage{Err: ErrMissing, Why: fmt.Sprintf("it begins with record %d, and no record says that those before it were pruned", w.report.First)}
	}
	if w.anchor != nil && w.anchor.Sequence > 0 && !w.report.Anchored && w.anchor.Sequence != w.cutoff.Sequence {
		return &Damage{Err: ErrMissing, Why: fmt.Sprintf("it begins with record %d, after the head that is known, record %d", w.report.First, w.anchor.Sequence)}
	}
	if w.anchor != nil && w.cutoff == *w.anchor {
		w.report.Anchored = true
	}
	return nil
}
