package place

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/services/version"
	"github.com/safeconduct/safeconduct/services/vtpm/install"
)

const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// helperMarker is the directory that says that the helper of a host was placed by us.
const helperMarker = "/var/lib/safeconduct-helper"

// Command is the command line of safeconduct-place.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "safeconduct-place",
		Short: "Put on a Kubernetes node what the chart's pods need there, and take it away",
		Long: `Put on a Kubernetes node what the chart's pods need there, and take it away.

It runs in the chart's init containers and hooks, as root with few capabilities, and has nothing to do anywhere else.`,
		Version: version.Version, SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(directoriesCommand(), helperCommand(), cleanCommand(), pauseCommand(), awaitCommand())
	return c
}

func directoriesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "directories UID:GID:MODE:PATH...", Short: "Make directories with exactly this owner and mode", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, a := range args {
				d, err := parseDirectory(a)
				if err != nil {
					return err
				}
				if err := Directory(d.path, d.uid, d.gid, d.mode); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

type directory struct {
	uid, gid int
	mode     fs.FileMode
	path     string
}

func parseDirectory(s string) (directory, error) {
	wrong := fmt.Errorf("%q, expected UID:GID:MODE:PATH such as 64061:64061:0750:/run/safeconduct", s)
	parts := strings.SplitN(s, ":", 4)
	if len(parts) != 4 || !filepath.IsAbs(parts[3]) || filepath.Clean(parts[3]) == "/" {
		return directory{}, wrong
	}
	uid, err1 := strconv.ParseUint(parts[0], 10, 31)
	gid, err2 := strconv.ParseUint(parts[1], 10, 31)
	mode, err3 := strconv.ParseUint(parts[2], 8, 32)
	if errors.Join(err1, err2, err3) != nil || mode > 0o7777 {
		return directory{}, wrong
	}
	m := fs.FileMode(mode & 0o777)
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o5000 != 0 {
		return directory{}, wrong
	}
	return directory{int(uid), int(gid), m, filepath.Clean(parts[3])}, nil
}

func helperCommand() *cobra.Command {
	var from, dir, root, settings string
	c := &cobra.Command{
		Use: "helper (--directory DIR | --host ROOT)", Short: "Place the swtpm helper for libvirt in containers, or for libvirt as a service of the host", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var text []byte
			if settings != "" {
				var err error
				if text, err = os.ReadFile(settings); err != nil {
					return err
				}
			}
			switch {
			case (dir == "") == (root == ""):
				return errors.New("give --directory or --host, and not both")
			case dir != "":
				return Helper(from, dir, text)
			}
			program, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := enter(root); err != nil {
				return err
			}
			if len(text) > 0 {
				if err := os.MkdirAll("/etc/safeconduct", 0o755); err != nil { //nolint:gosec // swtpm's user reads its settings
					return err
				}
				if err := replace("/etc/safeconduct/"+SettingsName, text, 0o644); err != nil {
					return err
				}
			}
			return InstallOnHost(cmd.Context(), program, install.Local(), helperMarker)
		},
	}
	c.Flags().StringVar(&from, "from", "/usr/bin/"+HelperName, "the helper's executable, in this container")
	c.Flags().StringVar(&dir, "directory", "", "directory of the host, as mounted here, that libvirt's containers mount too")
	c.Flags().StringVar(&root, "host", "", "the host's root directory, as mounted here")
	c.Flags().StringVar(&settings, "settings", "", "the helper's settings, a file of this container")
	return c
}

// enter makes a host's root directory this process's own: what is run from then on are the host's programs.
func enter(root string) error {
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("entering the host's root directory %s: %w", root, err)
	}
	// systemctl would otherwise do nothing in what it takes for an image.
	return errors.Join(os.Chdir("/"), os.Setenv("SYSTEMD_IGNORE_CHROOT", "1"), os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
}

func cleanCommand() *cobra.Command {
	var dir, root string
	var trees []string
	c := &cobra.Command{
		Use: "clean", Short: "Take away the helper and directories of ours", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, t := range trees {
				if err := empty(t); err != nil {
					return err
				}
			}
			if dir != "" {
				if err := RemoveHelper(dir); err != nil {
					return err
				}
			}
			if root == "" {
				return nil
			}
			if err := enter(root); err != nil {
				return err
			}
			return RemoveFromHost(cmd.Context(), install.Local(), helperMarker)
		},
	}
	c.Flags().StringVar(&dir, "directory", "", "as that of helper")
	c.Flags().StringVar(&root, "host", "", "as that of helper")
	c.Flags().StringArrayVar(&trees, "tree", nil, "directory that is removed with all that is in it")
	return c
}

// empty removes a directory with all that is in it. The name must be ours: a value with a mistake must not cost a host.
func empty(dir string) error {
	if base := filepath.Base(filepath.Clean(dir)); base != "safeconduct" {
		return fmt.Errorf("%s: refused: only directories named safeconduct are removed", dir)
	}
	return os.RemoveAll(dir)
}

func pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause", Short: "Wait for SIGTERM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			<-ctx.Done()
			return nil
		},
	}
}

func awaitCommand() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use: "await NAMESPACE NAME", Short: "Wait until a DaemonSet is ready on each of its nodes", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, err := InCluster(serviceAccount, os.Getenv)
			if err != nil {
				return err
			}
			ctx, stop := context.WithTimeout(cmd.Context(), timeout)
			defer stop()
			return cluster.AwaitDaemonSet(ctx, args[0], args[1], time.Second)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 4*time.Minute, "how long to wait")
	return c
}
