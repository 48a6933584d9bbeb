package helper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/vtpm/cmdline"
)

// DropIn is safeconduct-swtpm under the name swtpm, as libvirt starts it: with swtpm's own command line. What belongs to a VM runs behind the helper,
// under the VM's UUID, which is in the path of its state; everything else becomes the real swtpm at once. args are without the program's name.
func DropIn(ctx context.Context, args []string, settings Settings) error {
	call, err := cmdline.Parse(args)
	if err != nil {
		return err
	}
	if !call.Behind {
		return become(settings, "swtpm", args)
	}
	real, err := settings.tool("swtpm")
	if err != nil {
		return err
	}
	// libvirt closes its end of our standard error once swtpm is up; a line written there must not end the VM's TPM.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	log, err := openLog(call.LogFile, &settings.LogLevel)
	if err != nil {
		return err
	}
	defer func() { _ = log.file.Close() }()
	err = Run(ctx, Options{Node: settings.Node, Instance: call.Instance, SWTPM: real, NodeTimeout: settings.NodeTimeout, StateKey: settings.stateKey(call.Instance),
		call: call}, log.Logger)
	if err != nil {
		log.Error("the helper ends", refusal.Attributes(err)...)
	}
	return err
}

// become replaces this process by the real tool, with every descriptor that it has inherited.
func become(settings Settings, name string, args []string) error {
	real, err := settings.tool(name)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", real, unix.Exec(real, append([]string{real}, args...), os.Environ()))
}

// ErrNoTool says that the real swtpm is not to be found.
var ErrNoTool = errors.New("the real tool is not to be found")

// DivertedSuffix is what dpkg-divert adds to the real swtpm's name (safeconduct helper install).
const DivertedSuffix = ".safeconduct-real"

// tool finds the real swtpm or swtpm_setup: never this program, by whatever name.
func (s Settings) tool(name string) (string, error) {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	candidates := []string{filepath.Join(s.Tools, name+DivertedSuffix), filepath.Join(s.Tools, name)}
	for _, path := range candidates {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && os.SameFile(info, own) {
			continue
		}
		return path, err
	}
	return "", fmt.Errorf("%w: neither of %v is %s itself; install the package, or set tools in %s", ErrNoTool, candidates, name, SettingsFile)
}

// logFile is a log that goes to swtpm's own log file.
type logFile struct {
	*slog.Logger
	file *os.File
}

// openLog appends to swtpm's log, which swtpm opens in the same way; without one, to standard error.
func openLog(path string, level slog.Leveler) (*logFile, error) {
	file := os.Stderr
	if path != "" && path != "-" {
		var err error
		file, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600) //nolint:gosec // libvirt names it
		if err != nil {
			return nil, fmt.Errorf("--log: %w", err)
		}
	}
	handler := slog.NewTextHandler(file, &slog.HandlerOptions{Level: level})
	return &logFile{Logger: slog.New(handler).With("program", "safeconduct-swtpm"), file: file}, nil
}
