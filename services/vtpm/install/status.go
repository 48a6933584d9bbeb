package install

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/safeconduct/safeconduct/services/vtpm/cmdline"
)

// Status is what is to be seen on the host.
type Status struct {
	Method Method
	// Daemons of libvirt that run.
	Daemons []Daemon
	// Behind are the VMs whose vTPM runs behind the helper, Bare those whose does not: they cannot be migrated before they are started anew.
	Behind, Bare []VM
}

// Daemon is a running libvirtd or virtqemud.
type Daemon struct {
	Name string
	PID  int
	// SWTPM is what it would start as swtpm.
	SWTPM string
	// Helper says whether that is the helper.
	Helper bool
}

// VM is a running vTPM.
type VM struct {
	// Instance is the VM's UUID; empty if the state's path names none.
	Instance string
	PID      int
}

// Effective says whether every VM that is started from now on gets a helper.
func (s Status) Effective() bool {
	return s.Method != None && !slices.ContainsFunc(s.Daemons, func(d Daemon) bool { return !d.Helper })
}

// Inspect looks at the installation and at what runs.
func (h Host) Inspect() (Status, error) {
	method, err := h.Installed()
	if err != nil {
		return Status{}, err
	}
	s := Status{Method: method}
	processes, err := filepath.Glob(h.path("/proc/[0-9]*"))
	if err != nil {
		return Status{}, err
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(p, "comm"))
		if err != nil {
			continue // it has ended
		}
		if name := strings.TrimSpace(string(comm)); slices.Contains(daemons, name) {
			s.Daemons = append(s.Daemons, h.daemon(p, name, pid))
		}
		h.vtpm(&s, p, pid)
	}
	return s, nil
}

// daemon looks a daemon's swtpm up in its PATH, as libvirt does.
func (h Host) daemon(process, name string, pid int) Daemon {
	d := Daemon{Name: name, PID: pid}
	environment, err := os.ReadFile(filepath.Join(process, "environ"))
	if err != nil {
		return d
	}
	path := stockPath
	for v := range strings.SplitSeq(string(environment), "\x00") {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		candidate := filepath.Join(dir, "swtpm")
		if !h.exists(candidate) {
			continue
		}
		d.SWTPM = candidate
		d.Helper, _ = h.ours(candidate) // what cannot be read is not ours
		return d
	}
	return d
}

// vtpm notes a process that is a VM's vTPM as libvirt started it: the helper, or a swtpm without one. A swtpm behind the helper has no control socket of
// its own.
func (h Host) vtpm(s *Status, process string, pid int) {
	raw, err := os.ReadFile(filepath.Join(process, "cmdline"))
	args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	if err != nil || len(args) < 2 || filepath.Base(args[0]) != "swtpm" {
		return
	}
	call, err := cmdline.Parse(args[1:])
	if err != nil || !call.Behind {
		return
	}
	exe, err := os.Readlink(filepath.Join(process, "exe"))
	vm := VM{Instance: call.Instance, PID: pid}
	if err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == filepath.Base(Helper) {
		s.Behind = append(s.Behind, vm)
		return
	}
	s.Bare = append(s.Bare, vm)
}
