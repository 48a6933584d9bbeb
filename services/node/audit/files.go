package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

var fileName = regexp.MustCompile(`^audit-([0-9]{12})\.jsonl$`)

// segment is one file of the log.
type segment struct {
	path string
	// first is the sequence of its first record.
	first uint64
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("audit-%012d.jsonl", first))
}

// segments lists the files of a log, the oldest first. Other names are not ours.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []segment
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s is no regular file", filepath.Join(dir, e.Name()))
		}
		first, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, segment{filepath.Join(dir, e.Name()), first})
	}
	slices.SortFunc(all, func(a, b segment) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	return all, nil
}

// errPartial says that a file ends within a line: a write that was cut short, or whose end was cut off.
var errPartial = errors.New("the last line has no end")

// lines calls f with every line of a file, and returns the size of those that are whole. The slice is valid during the call only.
func lines(path string, f func(number int, line []byte) error) (whole int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r := bufio.NewReaderSize(file, MaxLine+2)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return whole, nil
		case errors.Is(err, io.EOF):
			return whole, errPartial
		case errors.Is(err, bufio.ErrBufferFull):
			return whole, &Damage{File: path, Line: n, Err: ErrMalformed, Why: fmt.Sprintf("a line of more than %d bytes", MaxLine)}
		case err != nil:
			return whole, err
		}
		if err := f(n, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return whole, err
		}
		whole += int64(len(line))
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
