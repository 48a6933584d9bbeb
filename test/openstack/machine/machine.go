package machine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Machine is a host by all that its programs can see.
type Machine struct {
	Name string
	// Address on the world's network.
	Address string
	// Root is its file system, seen from the world.
	Root   string
	world  *World
	holder *exec.Cmd
	stdin  io.Closer
	index  int
}

// environment of every command on a machine.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "HOME=/root", "PYTHONWARNINGS=ignore"}

// Bind is a directory of this machine that another shows under a path of its own.
type Bind struct {
	From, To string
	ReadOnly bool
}

// Add makes a machine whose address ends in number.
func (w *World) Add(ctx context.Context, name string, number int, binds ...Bind) (*Machine, error) {
	m := &Machine{Name: name, Address: fmt.Sprintf("%s.%d", w.Network, number), Root: filepath.Join(w.Dir, name, "root"), world: w, index: number}
	if err := m.mount(binds); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := m.start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pid, port := m.holder.Process.Pid, m.Port()
	err := w.ip(ctx, fmt.Sprintf("link add %s type veth peer name eth0 netns %d", port, pid), fmt.Sprintf("link set %s master %s up", port, Bridge))
	if err != nil {
		return nil, err
	}
	for _, args := range []string{"link set lo up", "link set eth0 up", "addr add " + m.Address + "/24 dev eth0"} {
		if _, err := m.Run(ctx, append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Port is the world's end of the machine's cable.
func (m *Machine) Port() string { return fmt.Sprintf("scosv%d", m.index) }

// Unplug takes the machine off the network; Plug puts it back.
func (m *Machine) Unplug(ctx context.Context) error {
	return m.world.ip(ctx, "link set "+m.Port()+" down")
}

// Plug undoes Unplug.
func (m *Machine) Plug(ctx context.Context) error {
	return m.world.ip(ctx, "link set "+m.Port()+" up")
}

// mount builds the root. It is done in the world, so that the world sees all of it: the golden measurement of a host is taken from outside.
func (m *Machine) mount(binds []Bind) error {
	base := filepath.Dir(m.Root)
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, dir := range []string{upper, work, m.Root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", m.world.Lower, upper, work)
	if err := unix.Mount("overlay", m.Root, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay on %s: %w", m.world.Lower, err)
	}
	for _, dir := range []string{"run", "tmp"} {
		if err := unix.Mount("tmpfs", filepath.Join(m.Root, dir), "tmpfs", 0, "mode=1777"); err != nil {
			return err
		}
	}
	for dir, recursive := range map[string]uintptr{"/proc": 0, "/dev": unix.MS_REC, "/sys": 0} {
		if err := unix.Mount(dir, filepath.Join(m.Root, dir), "", unix.MS_BIND|recursive, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	for _, b := range append(binds, Bind{From: m.world.Shared(), To: m.world.Shared()}) {
		if err := m.bind(b); err != nil {
			return fmt.Errorf("%s on %s: %w", b.From, b.To, err)
		}
	}
	id := fmt.Sprintf("%032x\n", m.index)
	if err := m.WriteFile("/etc/machine-id", []byte(id), 0o444); err != nil {
		return err
	}
	return m.WriteFile("/etc/hostname", []byte(m.Name+"\n"), 0o644)
}

func (m *Machine) bind(b Bind) error {
	to := filepath.Join(m.Root, b.To)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(b.From, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !b.ReadOnly {
		return nil
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// start has this program hold the machine's namespaces, and waits until they are made.
func (m *Machine) start() error {
	m.holder = exec.Command("/proc/self/exe", "machine", m.Name, m.Root)
	m.holder.Env = append([]string{roleVariable + "=" + roleMachine}, environment...)
	m.holder.Stderr = os.Stderr
	m.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setpgid:    true,
	}
	out, err := m.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if m.stdin, err = m.holder.StdinPipe(); err != nil {
		return err
	}
	if err := m.holder.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("its namespaces were not made: %q, %w", line, err)
	}
	return nil
}

// hold is the program as a machine: it makes what can only be made from within, and waits for its end.
func hold() int {
	if err := enclose(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintf(os.Stderr, "machine %s: %v\n", os.Args[2], err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // ends with the world
	return 0
}

func enclose(name, root string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	// A sysfs of the machine's own network. There are no cgroups in it: two libvirtd would meet there.
	if err := unix.Mount("sysfs", filepath.Join(root, "sys"), "sysfs", 0, ""); err != nil {
		return fmt.Errorf("/sys: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}

// Command turns a command into one that runs on the machine, with its environment and nothing of ours.
func (m *Machine) Command(args []string) []string {
	in := []string{"nsenter", "--target", strconv.Itoa(m.holder.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--", "/usr/bin/env", "-i"}
	return append(append(in, environment...), args...)
}

// Run runs a command on the machine to its end and returns what it wrote.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	in := m.Command(args)
	c := exec.CommandContext(ctx, in[0], in[1:]...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w: %s", m.Name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// WriteFile writes a file of the machine, and the directories on the way to it.
func (m *Machine) WriteFile(path string, content []byte, mode os.FileMode) error {
	full := filepath.Join(m.Root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	// A file of the tree that is not to be written to is replaced.
	if err := os.Remove(full); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.WriteFile(full, content, mode); err != nil {
		return err
	}
	return os.Chmod(full, mode)
}

// Path of a file of the machine, seen from the world.
func (m *Machine) Path(path string) string { return filepath.Join(m.Root, path) }

// Process of a machine.
type Process struct {
	PID     int
	Command string
}

// Processes of the machine whose command line contains every one of the texts. All machines share one table of processes; the name space of the host
// name tells whose each is.
func (m *Machine) Processes(texts ...string) ([]Process, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/uts", m.holder.Process.Pid))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 { // it has ended
			continue
		}
		command := strings.TrimSpace(string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
		if slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(command, text) }) {
			continue
		}
		if whose, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/uts")); err == nil && whose == own {
			found = append(found, Process{PID: pid, Command: command})
		}
	}
	return found, nil
}
