// Package cluster runs a real Kubernetes of two nodes on this machine: kubelet, containerd and runc in network, mount, UTS and PID namespaces of each node,
// one control plane beside the first. When a node's first process ends, the kernel ends everything on it.
//
// Non-goals: kube-proxy, DNS, a network between pods that are not on their host's. The chart needs none of them.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Cluster is both nodes.
type Cluster struct {
	// Dir holds everything; short, for unix sockets. Bin has Kubernetes' programs.
	Dir, Bin string
	Nodes    []*Node
	sysctls  map[string]string
	children []*exec.Cmd
}

// Node is one of them.
type Node struct {
	Name, Address string
	// Dir is the host's directory; Run and Lib are its /run and /var/lib.
	Dir, Run, Lib string
	netns         string
	init          int
}

// New prepares two nodes.
func New(dir, bin string) *Cluster {
	c := &Cluster{Dir: dir, Bin: bin}
	for i := range 2 {
		n := &Node{Name: fmt.Sprintf("compute%d", i+1), Address: fmt.Sprintf("10.77.0.%d", i+1), Dir: filepath.Join(dir, strconv.Itoa(i+1)), netns: fmt.Sprintf("scos-k8s-%d", i+1)}
		n.Run, n.Lib = filepath.Join(n.Dir, "run"), filepath.Join(n.Dir, "lib")
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// serviceIP of the API server, without kube-proxy: an address of the first node.
const serviceIP = "10.96.0.1"

// kernelSettings are what kubelet changes for the whole machine; Close puts them back.
var kernelSettings = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// Run runs a command here.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Start brings the nodes up, with nothing running on them but their first process.
func (c *Cluster) Start(ctx context.Context) error {
	c.sysctls = map[string]string{}
	for _, k := range kernelSettings {
		if raw, err := os.ReadFile("/proc/sys/" + k); err == nil {
			c.sysctls[k] = strings.TrimSpace(string(raw))
		}
	}
	a, b := c.Nodes[0], c.Nodes[1]
	for _, n := range c.Nodes {
		if err := addNamespace(ctx, n.netns); err != nil {
			return err
		}
	}
	steps := [][]string{
		{"ip", "link", "add", "kube1", "netns", a.netns, "type", "veth", "peer", "name", "kube1", "netns", b.netns},
		{"ip", "-n", a.netns, "address", "add", a.Address + "/24", "dev", "kube1"},
		{"ip", "-n", b.netns, "address", "add", b.Address + "/24", "dev", "kube1"},
		{"ip", "-n", a.netns, "link", "set", "lo", "up"}, {"ip", "-n", b.netns, "link", "set", "lo", "up"},
		{"ip", "-n", a.netns, "link", "set", "kube1", "up"}, {"ip", "-n", b.netns, "link", "set", "kube1", "up"},
		{"ip", "-n", a.netns, "address", "add", serviceIP + "/32", "dev", "lo"},
		{"ip", "-n", a.netns, "route", "add", "default", "via", b.Address},
		{"ip", "-n", b.netns, "route", "add", "default", "via", a.Address},
	}
	for _, s := range steps {
		if _, err := Run(ctx, s[0], s[1:]...); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := c.startNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

// addNamespace makes a network namespace, in the place of one that a run which was killed has left. One that is in use is another run's.
func addNamespace(ctx context.Context, name string) error {
	if _, err := os.Stat("/run/netns/" + name); err == nil {
		if pids, err := Run(ctx, "ip", "netns", "pids", name); err != nil || strings.TrimSpace(pids) != "" {
			return errors.Join(fmt.Errorf("network namespace %s is in use by another run, processes %s", name, strings.Fields(pids)), err)
		}
		if _, err := Run(ctx, "ip", "netns", "delete", name); err != nil {
			return err
		}
	}
	_, err := Run(ctx, "ip", "netns", "add", name)
	return err
}

// startNode makes the namespaces. The host's /run and /var/lib are directories of ours; everything else is this machine's.
func (c *Cluster) startNode(n *Node) error {
	for _, d := range []string{n.Run, n.Lib, filepath.Join(n.Lib, "kubelet"), filepath.Join(n.Dir, "log"), filepath.Join(n.Dir, "cni")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	ready := filepath.Join(n.Dir, "ready")
	script := fmt.Sprintf(`set -e
mount --make-rshared /
hostname %[1]s
mkdir -p %[2]s/log/pods %[2]s/log/containers
mount --bind %[3]s /var/lib
mount --bind %[2]s/log /var/log
mount --bind %[4]s /run
touch %[5]s
exec sleep infinity`, n.Name, n.Dir, n.Lib, n.Run, ready)
	cmd := exec.Command("nsenter", "--net=/run/netns/"+n.netns, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child",
		"--propagation", "private", "sh", "-c", script)
	cmd.Stderr = os.Stderr
	// If this process dies, so does the node.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.children = append(c.children, cmd)
	return Until(context.Background(), 20*time.Second, "namespaces", func() error {
		if _, err := os.Stat(ready); err != nil {
			return err
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err != nil {
			return err
		}
		n.init, err = strconv.Atoi(strings.Fields(string(raw) + " x")[0])
		return err
	})
}

// Enter is a command on a node.
func (n *Node) Enter(args ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(n.init), "-m", "-n", "-u", "-i", "-p", "--"}, args...)
}

// Spawn runs a program on a node in the background, with a log of its own.
func (c *Cluster) Spawn(n *Node, name string, args ...string) error {
	log, err := os.Create(filepath.Join(n.Dir, name+".log"))
	if err != nil {
		return err
	}
	full := n.Enter(args...)
	cmd := exec.Command(full[0], full[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, log.Close())
	}
	c.children = append(c.children, cmd)
	return log.Close()
}

// Close ends everything and puts the machine back as it was.
func (c *Cluster) Close() error {
	var problems []error
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range c.Nodes {
		if n.init != 0 {
			_ = syscall.Kill(n.init, syscall.SIGKILL) // PID 1 of its namespace: the kernel ends the rest
		}
	}
	for _, p := range c.children {
		_ = syscall.Kill(p.Process.Pid, syscall.SIGKILL) // it may have ended
		_ = p.Wait()
	}
	for _, n := range c.Nodes {
		if _, err := os.Stat("/run/netns/" + n.netns); err == nil {
			_, err := Run(ctx, "ip", "netns", "delete", n.netns)
			problems = append(problems, err)
		}
	}
	for k, v := range c.sysctls {
		if raw, err := os.ReadFile("/proc/sys/" + k); err == nil && strings.TrimSpace(string(raw)) != v {
			problems = append(problems, os.WriteFile("/proc/sys/"+k, []byte(v), 0o644))
		}
	}
	problems = append(problems, c.removeCgroups(), os.RemoveAll(c.Dir))
	return errors.Join(problems...)
}

// cgroup is that of all containers here.
const cgroup = "scos-k8s"

func (c *Cluster) removeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroup)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/" + cgroup); err == nil {
		roots = append(roots, "/sys/fs/cgroup/"+cgroup)
	}
	return Until(context.Background(), 10*time.Second, "cgroups", func() error {
		var problems []error
		for _, root := range roots {
			var all []string
			_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, p)
				}
				return nil
			})
			for i := len(all) - 1; i >= 0; i-- {
				if err := os.Remove(all[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
					problems = append(problems, err)
				}
			}
		}
		return errors.Join(problems...)
	})
}

// Until polls for a condition of another process.
func Until(ctx context.Context, most time.Duration, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}

// Init is the pid, on this machine, of the node's first process.
func (n *Node) Init() int { return n.init }
