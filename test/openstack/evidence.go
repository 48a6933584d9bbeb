package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// evidence keeps, of each server of a scenario that has failed, what its guest has said on every host and what its QEMU is at: they are gone when the
// server is deleted.
func (c *cloud) evidence(ctx context.Context, number string) error {
	var errs []error
	for _, s := range c.servers {
		dir := filepath.Join(c.options.out, "failed", number+"-"+s.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if s.console != nil {
			for host, said := range s.console.copy() {
				errs = append(errs, os.WriteFile(filepath.Join(dir, "console-"+host), said, 0o644))
			}
		}
		for _, h := range c.computes {
			for _, command := range []string{"info status", "info registers", "info migrate", "info chardev"} {
				out, err := h.Run(ctx, "virsh", "qemu-monitor-command", "--hmp", s.id, command)
				if err == nil { // most often it is on one of the hosts only
					errs = append(errs, os.WriteFile(filepath.Join(dir, h.Name+"-"+strings.ReplaceAll(command, " ", "-")), []byte(out), 0o644))
				}
			}
		}
	}
	return errors.Join(errs...)
}
