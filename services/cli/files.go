package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// readFile reads a file that is not larger than it may be.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, advise(err, "check the path and who may read it")
	}
	defer f.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, advise(err, "check the path and who may read it")
	}
	if int64(len(raw)) > most {
		return nil, advise(fmt.Errorf("%s has more than %d bytes", path, most), "check that it is the file you mean")
	}
	return raw, nil
}

// writeNew writes a file that must not be there yet: nothing that holds a key is overwritten. An empty path, or "-", is standard output.
func (a *app) writeNew(path string, mode fs.FileMode, content []byte) error {
	if path == "" || path == "-" {
		_, err := a.Out.Write(content)
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return advise(err, "choose another name, or move "+filepath.Base(path)+" away; nothing is overwritten")
	}
	if err != nil {
		return advise(err, "check the path and who may write there")
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
