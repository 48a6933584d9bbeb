package vm

import (
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cavaliergopher/cpio"
)

// MarkerFile is where the initramfs holds a marker: a file that the guest never reads, and has in its memory all the same.
const MarkerFile = "marker"

// BuildInitramfs writes an initramfs (newc, gzip) in which the binary, which must be static, is PID 1. A marker that is not empty is a file in it.
func BuildInitramfs(guestBinary, out string, marker []byte) (err error) {
	init, err := os.ReadFile(guestBinary)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	compressed, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	archive := cpio.NewWriter(compressed)
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := archive.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	for _, file := range []struct {
		name string
		mode cpio.FileMode
		data []byte
	}{{"init", 0o755, init}, {MarkerFile, 0o600, marker}} {
		if len(file.data) == 0 {
			continue
		}
		if err := archive.WriteHeader(&cpio.Header{Name: file.name, Mode: cpio.TypeReg | file.mode, Size: int64(len(file.data))}); err != nil {
			return err
		}
		if _, err := archive.Write(file.data); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), compressed.Close())
}

// FindKernel returns the newest Debian cloud kernel of this machine.
func FindKernel() (string, error) {
	kernels, err := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if err != nil {
		return "", err
	}
	if len(kernels) == 0 {
		return "", fmt.Errorf("no /boot/vmlinuz-*-cloud-amd64: install linux-image-cloud-amd64")
	}
	return slices.Max(kernels), nil
}
