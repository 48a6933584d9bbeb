package ima

import (
	"bufio"
	"crypto/sha1" //nolint:gosec // only its size
	"errors"
	"fmt"
	"io"
	"iter"
)

// Entries reads a list, binary or ASCII, entry by entry. The two are told apart by their first byte: a PCR number, or a digit or space. An error is an
// *Error, and the last thing that is yielded. An empty list has no entries.
func Entries(r io.Reader, limits Limits) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		limits := limits.orDefault()
		l := &list{limits: limits, in: bufio.NewReaderSize(&bounded{r: r, left: limits.Bytes, max: limits.Bytes}, 64<<10)}
		next := l.binary
		if first, err := l.in.Peek(1); err == nil && (first[0] == ' ' || first[0] >= '0' && first[0] <= '9') {
			next = l.ascii
		}
		var e Entry // one for all, so that it is allocated once
		for n := 1; ; n++ {
			e = Entry{Number: n}
			more, err := l.read(&e, next)
			if err != nil {
				err.Entry = n
				yield(Entry{}, err)
				return
			}
			if !more || !yield(e, nil) {
				return
			}
		}
	}
}

// list is a list that is being read. Its buffers are used again for each entry.
type list struct {
	limits     Limits
	in         *bufio.Reader
	line, data []byte
	head       [headSize]byte
	// template and fields are of the last entry; nearly all entries of a list have the same.
	template string
	fields   []field
}

// read reads one entry by next, and false at the end of the list.
func (l *list) read(e *Entry, next func(*Entry) (bool, *Error)) (bool, *Error) {
	more, err := next(e)
	if err != nil || !more {
		return false, err
	}
	if e.Number > l.limits.Entries {
		return false, &Error{Check: CheckLimit, Found: "a list that goes on", Expected: fmt.Sprintf("at most %d entries", l.limits.Entries)}
	}
	if e.PCR > maxPCR {
		return false, malformed(fmt.Sprintf("0 to %d", maxPCR), "PCR %d", e.PCR)
	}
	e.Opaque = len(l.fields) == 0
	if !e.Opaque {
		if err := e.decode(l.fields); err != nil {
			return false, err
		}
	}
	// The kernel records zeros for a violation. It never records one for its first entry, boot_aggregate, which is no file: zeros there are a hash that does
	// not match.
	e.Violation = e.Recorded == [sha1.Size]byte{} && e.Path != bootAggregate
	return true, nil
}

// bootAggregate is the name of the entry over the boot PCRs (ima_add_boot_aggregate).
const bootAggregate = "boot_aggregate"

// setTemplate names the entry's template.
func (l *list) setTemplate(e *Entry, name []byte) *Error {
	if len(name) == 0 || len(name) > maxTemplateName {
		return malformed(fmt.Sprintf("1 to %d", maxTemplateName), "a template name of %d bytes", len(name))
	}
	if string(name) != l.template {
		for _, c := range name {
			if c <= ' ' || c > '~' {
				return malformed("printable characters", "template name %.80q", name)
			}
		}
		l.template = string(name)
		l.fields = layout(l.template)
	}
	e.Template = l.template
	return nil
}

func (l *list) tooLarge() *Error {
	return &Error{Check: CheckLimit, Found: "a larger entry", Expected: fmt.Sprintf("at most %d bytes", l.limits.EntryBytes)}
}

// broken is the error for a reader that failed, or a list that ends in mid-entry.
func broken(err error) *Error {
	var limit *Error
	switch {
	case errors.As(err, &limit):
		e := *limit
		return &e
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return malformed("a whole entry", "the end of the list")
	}
	return &Error{Check: CheckRead, Found: err.Error(), Expected: "the list", Cause: err}
}

// bounded fails where a reader gives more than max bytes; io.LimitReader would take that for the end of the list.
type bounded struct {
	r         io.Reader
	left, max int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p))-1 > b.left {
		p = p[:b.left+1] // one more than is allowed, to see whether there is more
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, &Error{Check: CheckLimit, Found: "a list that goes on", Expected: fmt.Sprintf("at most %d bytes", b.max)}
	}
	return n, err
}
