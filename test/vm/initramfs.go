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

// BuildInitramfs writes an initramfs (newc, gzip) in which the binary, which must be static, is PID 1.
func BuildInitramfs(guestBinary, out string) (err error) {
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
	if err := archive.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(init))}); err != nil {
		return err
	}
	if _, err := archive.Write(init); err != nil {
		return err
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
