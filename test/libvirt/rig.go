// Package libvirt runs two hosts with a real libvirtd each on one machine, in namespaces of their own, with a node service and the helper in swtpm's
// place, and migrates VMs between them.
//
// It needs root and Debian 12's libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients, qemu-system-x86, swtpm, swtpm-tools and ovmf. KVM is not
// used.
package libvirt

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/test/cluster"
	"github.com/safeconduct/safeconduct/test/vm"
)

//go:embed host-init.sh
var hostInit []byte

// Options of a Rig; the zero value is a good one.
type Options struct {
	// Unprotected hosts have no helper in swtpm's place.
	Unprotected bool
	// EditPolicy changes the policy before it is signed.
	EditPolicy func(*policy.Policy)
	// HelperSettings is the text of each host's helper.yaml; empty: none.
	HelperSettings string
	// NodeConfig is YAML that is added to each node service's configuration.
	NodeConfig string
	// SWTPMRoot, per host, is the root directory of another Debian suite, whose swtpm the helper runs; empty: this system's.
	SWTPMRoot [2]string
	// Tunnel: each host has a tunnel, through which every migration goes. It runs as a user of its own, whose group is QEMU's.
	Tunnel bool
	// Marker is put into each guest's memory; empty: none.
	Marker []byte
	// Memory that each VM's guest fills with a random pattern, and the VM's whole memory, in MiB; 0: 160 and no pattern.
	MemoryMiB int
}

// Rig is the two hosts.
type Rig struct {
	Dir     string
	Cluster *cluster.Cluster
	Hosts   [2]*Host
	options Options
	kernel  string
	initrd  string
	closers []func()
	serial  int
}

// Host is one of them.
type Host struct {
	*cluster.Host
	Netns, IP string
	dir       string
	uuid      string
	unshare   *cluster.Process
	init      int // the pid of its PID 1
}

// Start brings the hosts up. bin is the directory of the built binaries, guest the built guest program.
func Start(ctx context.Context, bin, guest string, o Options) (_ *Rig, err error) {
	r := &Rig{options: o}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.Dir, err = os.MkdirTemp("", "sc-lv-"); err != nil {
		return nil, err
	}
	// QEMU and swtpm run as users of their own and look into it.
	if err := os.Chmod(r.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := qemuUser(ctx); err != nil {
		return nil, err
	}
	if r.kernel, err = r.readable(vm.FindKernel()); err != nil {
		return nil, err
	}
	r.initrd = filepath.Join(r.Dir, "initrd")
	if err := vm.BuildInitramfs(guest, r.initrd, r.options.Marker); err != nil {
		return nil, err
	}
	own := filepath.Join(r.Dir, "bin")
	if err := copyTree(bin, own); err != nil {
		return nil, err
	}
	r.Cluster = &cluster.Cluster{Bin: own, Dir: filepath.Join(r.Dir, "nodes"), EditPolicy: o.EditPolicy}
	if err := os.Mkdir(r.Cluster.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "host-init.sh"), hostInit, 0o755); err != nil {
		return nil, err
	}
	if err := r.network(ctx); err != nil {
		return nil, err
	}
	for i := range r.Hosts {
		if err := r.host(ctx, i); err != nil {
			return nil, err
		}
	}
	if err := r.Cluster.Prepare(ctx); err != nil {
		return nil, err
	}
	for _, h := range r.Hosts {
		if err := r.Cluster.StartNode(ctx, h.Host, ""); err != nil {
			return nil, err
		}
		if o.Tunnel {
			if err := r.startTunnel(ctx, h); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// Close ends everything, whatever state it is in.
func (r *Rig) Close() {
	if r.Cluster != nil {
		r.Cluster.Close()
	}
	for i := len(r.closers) - 1; i >= 0; i-- {
		r.closers[i]()
	}
	if os.Getenv("SAFECONDUCT_KEEP") == "" && r.Dir != "" {
		_ = os.RemoveAll(r.Dir) // what is left in /tmp does no harm
	}
}

// qemuUser makes the user that libvirt's QEMU runs as, where Debian's libvirt-daemon-system has not.
func qemuUser(ctx context.Context) error {
	if _, err := user.Lookup("libvirt-qemu"); err == nil {
		return nil
	}
	return run(ctx, "useradd", "--system", "--user-group", "-M", "-d", "/var/lib/libvirt", "-s", "/usr/sbin/nologin", "libvirt-qemu")
}

// readable copies a file that only root may read to where QEMU may.
func (r *Rig) readable(path string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	to := filepath.Join(r.Dir, filepath.Base(path))
	return to, os.WriteFile(to, raw, 0o644)
}

func copyTree(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := cluster.CopyExecutable(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), nil); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (r *Rig) netns(i int) string { return fmt.Sprintf("sc-lv-%d-%d", os.Getpid(), i+1) }

// network joins the two hosts by a wire.
func (r *Rig) network(ctx context.Context) error {
	for i := range r.Hosts {
		ns := r.netns(i)
		if err := run(ctx, "ip", "netns", "add", ns); err != nil {
			return err
		}
		r.closers = append(r.closers, func() { _ = run(context.WithoutCancel(ctx), "ip", "netns", "del", ns) })
	}
	a, b := r.netns(0), r.netns(1)
	if err := run(ctx, "ip", "-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b); err != nil {
		return err
	}
	for i, ns := range []string{a, b} {
		for _, args := range [][]string{
			{"addr", "add", address(i) + "/24", "dev", "wire"}, {"link", "set", "wire", "up"}, {"link", "set", "lo", "up"},
		} {
			if err := run(ctx, "ip", append([]string{"-n", ns}, args...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

func address(i int) string { return fmt.Sprintf("10.203.78.%d", i+1) }

// host brings one up: its namespaces and its libvirtd.
func (r *Rig) host(ctx context.Context, i int) error {
	name := fmt.Sprintf("compute%d", i+1)
	h := &Host{Netns: r.netns(i), IP: address(i), dir: filepath.Join(r.Dir, name), uuid: uuid.NewString()}
	r.Hosts[i] = h
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return err
	}
	tss, err := user.Lookup("tss")
	if err != nil {
		return err
	}
	h.Host = &cluster.Host{
		Name: name, Peer: h.IP + ":7443", Socket: "/run/safeconduct/node.sock", SWTPM: cluster.RealSWTPM,
		LocalConfig: "  socket_mode: \"0666\"\n  callers:\n    CryptoService: [" + tss.Uid + "]\n" + tunnelCallers, Config: r.options.NodeConfig,
		Enter: h.Enter, EnterForks: true,
	}
	if r.options.Tunnel {
		h.TunnelAddress, h.TunnelDir, h.TunnelConfig = h.IP+":7444", "/run/safeconduct/tunnel", filepath.Join(h.dir, "tunnel.yaml")
		h.TunnelAs = []string{"setpriv", "--reuid", tunnelUID, "--regid", "libvirt-qemu", "--clear-groups", "--no-new-privs"}
	}
	r.Cluster.Hosts = append(r.Cluster.Hosts, h.Host)
	if err := r.writeConfig(h); err != nil {
		return err
	}
	if h.unshare, err = cluster.Start(filepath.Join(h.dir, "host.out"), nil, "ip", "netns", "exec", h.Netns,
		"unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
		filepath.Join(r.Dir, "host-init.sh"), name, h.dir, h.uuid, filepath.Join(h.dir, "bin")); err != nil {
		return err
	}
	r.closers = append(r.closers, h.unshare.Kill)
	if err := cluster.Until(ctx, name+"'s first process", func() error { h.init, err = h.unshare.Child(); return err }); err != nil {
		return err
	}
	h.Reach = h.path("/run/safeconduct/node.sock")
	return h.AwaitLibvirtd(ctx)
}

// writeConfig writes libvirt's configuration, and puts the helper in swtpm's place.
func (r *Rig) writeConfig(h *Host) error {
	bin := filepath.Join(h.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if !r.options.Unprotected {
		for _, program := range []string{"swtpm", "swtpm_setup"} {
			if err := os.Symlink(filepath.Join(r.Cluster.Bin, "safeconduct-swtpm"), filepath.Join(bin, program)); err != nil {
				return err
			}
		}
	}
	files := map[string]string{
		// The network exists on this machine only.
		"libvirtd.conf": fmt.Sprintf("host_uuid = %q\nlisten_tls = 0\nlisten_tcp = 1\ntcp_port = \"16509\"\nlisten_addr = %q\nauth_tcp = \"none\"\n"+
			"unix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nlog_level = 2\nlog_outputs = \"2:file:%s\"\n", h.uuid, h.IP, filepath.Join(h.dir, "libvirtd.log")),
		"qemu.conf": "user = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\ndynamic_ownership = 1\nsecurity_driver = \"none\"\nnamespaces = [ ]\n" +
			"cgroup_controllers = [ ]\nstdio_handler = \"file\"\nremember_owner = 0\nswtpm_user = \"tss\"\nswtpm_group = \"tss\"\n",
		// TCG migrates reliably with one thread only (see package vm), which libvirt has no word for.
		"qemu": "#!/bin/bash\nargs=()\nfor a in \"$@\"; do [ \"$a\" = tcg ] && a=tcg,thread=single; args+=(\"$a\"); done\n" +
			"exec /usr/bin/qemu-system-x86_64 \"${args[@]}\"\n",
	}
	settings := r.options.HelperSettings
	if root := r.options.SWTPMRoot[len(r.Cluster.Hosts)-1]; root != "" {
		tools := filepath.Join(h.dir, "tools")
		if err := os.Mkdir(tools, 0o755); err != nil {
			return err
		}
		files["tools/swtpm"] = foreign(root, "/usr/bin/swtpm")
		files["tools/swtpm_setup"] = "#!/bin/sh\nexec /usr/bin/swtpm_setup \"$@\"\n"
		settings += "tools: " + tools + "\n"
	}
	if settings != "" {
		files["helper.yaml"] = settings
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// foreign is a program that becomes one of another suite's root directory, with that suite's own loader and libraries.
func foreign(root, program string) string {
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	return fmt.Sprintf("#!/bin/sh\nexec %s --library-path %s:%s/swtpm %s \"$@\"\n", filepath.Join(lib, "ld-linux-x86-64.so.2"), lib, lib, filepath.Join(root, program))
}

// path is where a path of the host's is found from outside.
func (h *Host) path(p string) string { return fmt.Sprintf("/proc/%d/root%s", h.init, p) }

// Enter turns a command into one that runs on the host.
func (h *Host) Enter(args []string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(h.init), "-m", "-u", "-i", "-n", "-p", "--"}, args...)
}

// Run runs a command on the host and returns what it printed.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	args = h.Enter(args)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", h.Name, strings.Join(args[8:], " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// Virsh runs virsh on the host.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	return h.Run(ctx, append([]string{"virsh", "-q"}, args...)...)
}

// AwaitLibvirtd waits until the host's libvirtd answers.
func (h *Host) AwaitLibvirtd(ctx context.Context) error {
	return cluster.Until(ctx, h.Name+"'s libvirtd", func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := h.Virsh(ctx, "version")
		return err
	})
}

// KillLibvirtd ends libvirtd, which is started again at once. The VMs run on.
func (h *Host) KillLibvirtd(ctx context.Context) error {
	_, err := h.Run(ctx, "bash", "-c", "kill -9 $(cat /run/libvirtd.test.pid)")
	return err
}
