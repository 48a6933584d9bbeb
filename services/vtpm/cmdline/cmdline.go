// Package cmdline reads the command line with which libvirt starts swtpm, and rewrites it for a swtpm that runs behind the helper: the control
// socket becomes the helper's, everything else stays as it is, in its order, options of a swtpm newer than this code included. Likewise that of
// swtpm_setup, whose key becomes the helper's.
//
// It was written against swtpm 0.7.1 to 0.10.1 (swtpm(8)) and what libvirt 9.0 to 12 build (qemu_tpm.c, qemuTPMEmulatorBuildCommand). Non-goals: to
// check what swtpm checks itself.
package cmdline

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// MaxArgument bounds one argument, in bytes; MaxArguments their number. libvirt needs twenty, of a few hundred bytes.
const (
	MaxArgument  = 8192
	MaxArguments = 256
)

// ErrUnsupported says that swtpm cannot run behind the helper this way.
var ErrUnsupported = errors.New("not supported behind safeconduct-swtpm")

// Call is a command line of swtpm, without the program's name.
type Call struct {
	// Behind says that this is a TPM for a VM: its control channel is a unix socket, which belongs behind the helper. Everything else
	// (--print-capabilities, swtpm_setup's own use of swtpm, chardev, cuse) is for swtpm as it is.
	Behind bool
	// Ctrl is the control socket.
	Ctrl Socket
	// State is the path of the state directory or, with StateFile, of the file, and Instance the UUID of the VM in it: empty if there is none.
	State, Instance string
	StateFile       bool
	// Incoming: swtpm waits for a migration (libvirt says so for shared storage only).
	Incoming bool
	// HasKey: --key is given, so the state at rest is encrypted under a key of the caller's.
	HasKey bool
	// TPM2 is false for a TPM 1.2.
	TPM2 bool
	// KeyFDs are the descriptors that carry keys and passphrases.
	KeyFDs []int
	// PIDFile is where the process id is to be written, if libvirt does not write it itself; PIDFD likewise, -1 if not given.
	PIDFile string
	PIDFD   int
	// LogFile is swtpm's log; empty if it has none of its own.
	LogFile string

	rest []string // everything that swtpm gets as it is
	keys []span   // of rest: the options --key
}

// span is a part of the arguments, and the descriptors that it names.
type span struct {
	from, to int
	fds      []int
}

// Socket is where and how the control socket is made.
type Socket struct {
	Path string
	Mode fs.FileMode
	// UID and GID of the socket; -1: the process's.
	UID, GID int
}

// defaultSocketMode is swtpm's.
const defaultSocketMode = 0o770

// grammar is which options a program has: long ones, true with an argument, of which getopt_long takes an unambiguous beginning for the whole; and short
// ones that stand for long ones.
type grammar struct {
	long  map[string]bool
	short map[string]string
}

// swtpm's options. Short ones that are not here have no meaning for the helper.
var swtpm = grammar{long: map[string]bool{
	"port": true, "fd": true, "terminate": false, "daemon": false, "ctrl": true, "migration-key": true, "log": true, "key": true, "locality": true,
	"pid": true, "tpmstate": true, "server": true, "flags": true, "runas": true, "tpm2": false, "seccomp": true, "print-capabilities": false,
	"print-states": false, "print-profiles": false, "print-info": true, "profile": true, "migration": true, "help": false, "version": false,
	"chroot": true, "locality-flags": true,
}, short: map[string]string{
	"-d": "daemon", "-h": "help", "-v": "version", "-p": "port", "-f": "fd", "-r": "runas", "-R": "chroot", "-i": "print-info", "-t": "terminate",
}}

// asks are options with which swtpm prints something and ends.
var asks = []string{"print-capabilities", "print-states", "print-profiles", "print-info", "help", "version"}

// Parse reads a command line. Errors: ErrUnsupported, and for arguments that swtpm would not take either.
func Parse(args []string) (*Call, error) {
	c := &Call{PIDFD: -1, Ctrl: Socket{Mode: defaultSocketMode, UID: -1, GID: -1}}
	if err := checkSize(args); err != nil {
		return nil, err
	}
	if len(args) == 0 || args[0] != "socket" {
		c.rest = args
		return c, nil
	}
	c.rest = []string{"socket"}
	asked, daemon := false, false
	for i := 1; i < len(args); i++ {
		name, value, consumed := swtpm.option(args[i:])
		var keep bool
		var err error
		switch {
		case slices.Contains(asks, name):
			asked, keep = true, true
		case name == "daemon":
			daemon, keep = true, true
		default:
			keep, err = c.take(name, value)
		}
		if err != nil {
			return nil, fmt.Errorf("swtpm's --%s %s: %w", name, value, err)
		}
		if keep {
			from := len(c.rest)
			c.rest = append(c.rest, args[i:min(len(args), i+consumed)]...)
			if name == "key" {
				fds, _ := keyFDs(split(value)) // read before
				c.keys = append(c.keys, span{from, len(c.rest), fds})
			}
		}
		i += consumed - 1
	}
	if asked || c.Ctrl.Path == "" {
		return &Call{PIDFD: -1, rest: args}, nil
	}
	if daemon {
		return nil, fmt.Errorf("--daemon: %w: the process that is started has to stay; libvirt 9 and later do not ask for it", ErrUnsupported)
	}
	c.Behind = true
	return c, nil
}

func checkSize(args []string) error {
	if len(args) > MaxArguments || slices.ContainsFunc(args, func(a string) bool { return len(a) > MaxArgument }) {
		return fmt.Errorf("more than %d arguments, or one of more than %d bytes", MaxArguments, MaxArgument)
	}
	return nil
}

// option reads the option at the beginning of args: its long name, its value, and how many arguments it takes.
func (g grammar) option(args []string) (name, value string, consumed int) {
	arg := args[0]
	long, isLong := strings.CutPrefix(arg, "--")
	switch {
	case isLong:
		consumed = 1
		if n, v, ok := strings.Cut(long, "="); ok {
			return g.complete(n), v, 1
		}
		name = g.complete(long)
	case g.short[arg] != "":
		name, consumed = g.short[arg], 1
	default:
		return "", "", 1
	}
	if g.long[name] && len(args) > 1 {
		return name, args[1], 2
	}
	return name, "", consumed
}

// complete finds the long option that a name begins.
func (g grammar) complete(name string) string {
	if _, ok := g.long[name]; ok || name == "" {
		return name
	}
	found := name
	for o := range g.long {
		if strings.HasPrefix(o, name) {
			if found != name {
				return name // ambiguous: swtpm refuses it
			}
			found = o
		}
	}
	return found
}

// take notes what concerns the helper. keep is false for what swtpm is not to get.
func (c *Call) take(name, value string) (keep bool, err error) {
	fields := split(value)
	switch name {
	case "ctrl":
		return c.takeCtrl(fields)
	case "tpmstate":
		c.takeState(fields)
	case "migration":
		_, c.Incoming = fields["incoming"]
	case "tpm2":
		c.TPM2 = true
	case "key", "migration-key":
		c.HasKey = c.HasKey || name == "key"
		err = c.takeKey(fields)
	case "log":
		c.LogFile = fields["file"]
	case "pid":
		return false, c.takePID(fields)
	}
	return true, err
}

// split reads swtpm's comma-separated name=value list. It has no escapes.
func split(value string) map[string]string {
	fields := map[string]string{}
	for part := range strings.SplitSeq(value, ",") {
		name, v, _ := strings.Cut(part, "=")
		fields[name] = v
	}
	return fields
}

func (c *Call) takeCtrl(fields map[string]string) (keep bool, err error) {
	if fields["type"] != "unixio" || fields["path"] == "" {
		return true, nil // TCP, or a descriptor: whoever passes one is at the other end of it
	}
	c.Ctrl.Path = fields["path"]
	if v, ok := fields["mode"]; ok {
		mode, err := strconv.ParseUint(v, 8, 9)
		if err != nil {
			return false, fmt.Errorf("mode %q is no file mode", v)
		}
		c.Ctrl.Mode = fs.FileMode(mode)
	}
	for key, to := range map[string]*int{"uid": &c.Ctrl.UID, "gid": &c.Ctrl.GID} {
		v, ok := fields[key]
		if !ok {
			continue
		}
		if *to, err = strconv.Atoi(v); err != nil || *to < 0 {
			return false, fmt.Errorf("%s %q is not a number, which it has to be: %w", key, v, ErrUnsupported)
		}
	}
	return false, nil
}

func (c *Call) takeState(fields map[string]string) {
	c.State = fields["dir"]
	if uri := fields["backend-uri"]; uri != "" {
		c.State, c.StateFile = location(uri)
	}
	c.Instance = instanceOf(c.State)
}

// location reads the place of a state: a path, dir://PATH or file://PATH.
func location(uri string) (path string, file bool) {
	scheme, path, found := strings.Cut(uri, "://")
	if !found {
		return uri, false
	}
	return path, scheme == "file"
}

// instanceOf finds the VM's UUID in the path of its state: the last directory that is one, as in /var/lib/libvirt/swtpm/UUID/tpm2.
func instanceOf(state string) string {
	for p := path.Clean("/" + state); p != "/"; p = path.Dir(p) {
		if id, err := uuid.Parse(path.Base(p)); err == nil && id.String() == path.Base(p) {
			return path.Base(p)
		}
	}
	return ""
}

func (c *Call) takeKey(fields map[string]string) error {
	fds, err := keyFDs(fields)
	c.KeyFDs = append(c.KeyFDs, fds...)
	return err
}

// keyFDs are the descriptors that a key's fields name.
func keyFDs(fields map[string]string) (fds []int, err error) {
	for _, name := range []string{"fd", "pwdfd"} {
		if v, ok := fields[name]; ok {
			fd, err := descriptor(v)
			if err != nil {
				return nil, fmt.Errorf("%s %w", name, err)
			}
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

func descriptor(v string) (int, error) {
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 0 {
		return 0, fmt.Errorf("%q is no descriptor", v)
	}
	return fd, nil
}

// DropKey leaves swtpm without the caller's --key, for the helper brings another, and returns the descriptors that nothing names any more.
func (c *Call) DropKey() (unused []int) {
	for i := len(c.keys) - 1; i >= 0; i-- {
		k := c.keys[i]
		c.rest = slices.Delete(c.rest, k.from, k.to)
		for _, fd := range k.fds {
			at := slices.Index(c.KeyFDs, fd)
			c.KeyFDs = slices.Delete(c.KeyFDs, at, at+1)
			unused = append(unused, fd)
		}
	}
	c.keys, c.HasKey = nil, false
	return slices.DeleteFunc(unused, func(fd int) bool { return slices.Contains(c.KeyFDs, fd) })
}

func (c *Call) takePID(fields map[string]string) error {
	c.PIDFile = fields["file"]
	if v, ok := fields["fd"]; ok {
		fd, err := descriptor(v)
		if err != nil {
			return fmt.Errorf("fd %w", err)
		}
		c.PIDFD = fd
	}
	return nil
}

// Args are swtpm's arguments when it runs behind the helper with its control channel on an inherited descriptor; extra are added at the end.
func (c *Call) Args(ctrlFD int, extra ...string) []string {
	return slices.Concat(c.rest, []string{"--ctrl", "type=unixio,clientfd=" + strconv.Itoa(ctrlFD)}, extra)
}
