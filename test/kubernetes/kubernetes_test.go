// Package kubernetes installs the chart on a real cluster of two nodes and puts it through its life. Each step needs those before it.
//
// Not run here: a network between pods, cert-manager and other CSI drivers, kube-proxy, real SGX (a device plugin hands out names), libvirt and Nova.
package kubernetes

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/test/kubernetes/cluster"
)

func TestTheChartsLifeOnTwoNodes(t *testing.T) {
	if os.Getenv("SAFECONDUCT_E2E") == "" {
		t.Skip("set SAFECONDUCT_E2E=1, as root: make e2e-kubernetes")
	}
	source, err := filepath.Abs("../..")
	must(t, err)
	r := &rig{source: source, tools: filepath.Join(source, "build", "tools"), scratch: t.TempDir()}
	dir, err := os.MkdirTemp("/tmp", "scos") // short: unix sockets are below
	must(t, err)
	bin := os.Getenv("SAFECONDUCT_KUBERNETES_BIN")
	if bin == "" {
		bin = filepath.Join(source, "build", "kubernetes")
	}
	r.Cluster = cluster.New(dir, bin)
	t.Cleanup(func() {
		if t.Failed() {
			r.keepLogs(t)
		}
		if err := r.Close(); err != nil {
			t.Errorf("teardown: %v", err)
		}
	})
	// Whoever interrupts the run gets the teardown too.
	whole, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for i, step := range []struct {
		name string
		run  func(context.Context, *testing.T)
	}{
		{"both builds become images", r.images},
		{"two nodes start", r.startNodes},
		{"the nodes get simulated processors, the fleet a policy", r.prepare},
		{"a device plugin and Node Feature Discovery's labels are rehearsed", r.rehearseSGX},
		{"the chart is installed", r.install},
		{"the pods run without privileges", r.confinement},
		{"the helper is on the hosts", r.helperIsPlaced},
		{"helm test", r.helmTest},
		{"preflight both ways, from the pods", r.preflight},
		{"a migration's handshake between the pods, up to the receipt", r.migration},
		{"what migrations cost a node", r.cost},
		{"another build is rolled out under load", r.upgrade},
		{"a pod that is killed hard leaves no socket that blocks its successor", r.killHard},
		{"a drain refuses new sessions and waits for open ones", r.drain},
		{"the upgrade is rolled back", r.rollback},
		{"a bad value is refused before anything changes", r.badUpgrade},
		{"the chart is uninstalled and the hosts are clean", r.uninstall},
	} {
		begun := time.Now()
		name := fmt.Sprintf("%03d %s", (i+1)*10, step.name)
		if !t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(whole, 6*time.Minute)
			defer cancel()
			step.run(ctx, t)
		}) {
			t.Fatalf("stopped at step %s", name)
		}
		t.Logf("%s: %.1f s", name, time.Since(begun).Seconds())
	}
	for _, not := range []string{
		"a network between pods (CNI): every pod here is on its host's", "cert-manager's controller and other CSI drivers: certificates.source is none",
		"real SGX: the device plugin hands out names, the mode is simulated", "kube-proxy and a cluster's DNS", "libvirt, QEMU and Nova in pods: make e2e-openstack has them",
	} {
		t.Log("not run: " + not)
	}
}

// keepLogs prints the ends of all logs.
func (r *rig) keepLogs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{{"get", "pods,ds,jobs", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", "openstack", "logs", "-l", "application=safeconduct", "--all-containers", "--prefix", "--tail=30"}} {
		out, err := r.Kubectl(ctx, args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	for _, n := range r.Nodes {
		logs, _ := filepath.Glob(filepath.Join(n.Dir, "*.log"))
		for _, l := range logs {
			raw, err := os.ReadFile(l)
			t.Logf("%s of %s: %v\n%s", filepath.Base(l), n.Name, err, raw[max(0, len(raw)-3000):])
		}
	}
}

func (r *rig) startNodes(ctx context.Context, t *testing.T) {
	must(t, r.Start(ctx))
	must(t, r.StartKubernetes(ctx))
	r.importImages(ctx, t)
}

// rehearseSGX does what Intel's device plugin and Node Feature Discovery do on nodes with SGX, but for the SGX.
func (r *rig) rehearseSGX(ctx context.Context, t *testing.T) {
	plugin := filepath.Join(r.scratch, "sgxplugin")
	c := []string{"env", "CGO_ENABLED=0", "go", "build", "-o", plugin, "./sgxplugin"}
	run(ctx, t, c[0], c[1:]...)
	for _, n := range r.Nodes {
		must(t, r.Spawn(n, "sgxplugin", plugin))
		r.kubectl(ctx, t, "label", "node", n.Name, "openstack-compute-node=enabled", "intel.feature.node.kubernetes.io/sgx=true")
		r.kubectl(ctx, t, "taint", "node", n.Name, "sgx.intel.com/epc=true:NoSchedule")
		r.kubectl(ctx, t, "patch", "node", n.Name, "--subresource=status", "--type=merge", "-p", `{"status":{"capacity":{"sgx.intel.com/epc":"8Gi"}}}`)
		must(t, cluster.Until(ctx, time.Minute, "the device plugin's resource", func() error {
			out, err := r.Kubectl(ctx, "get", "node", n.Name, "-o", `jsonpath={.status.allocatable.sgx\.intel\.com/enclave}`)
			if err != nil || out != "10" {
				return fmt.Errorf("%q %w", out, err)
			}
			return nil
		}))
	}
}

func (r *rig) install(ctx context.Context, t *testing.T) {
	notes := r.helm(ctx, t, "install", "sc", filepath.Join(r.source, "charts", "safeconduct"), "--create-namespace", "-f", r.values, "--wait", "--timeout", "4m")
	if !strings.Contains(notes, "SIMULATED") {
		t.Errorf("the notes do not say that it is a simulation: %s", notes)
	}
	r.expectMeasurement(ctx, t, "a")
}

func (r *rig) expectMeasurement(ctx context.Context, t *testing.T, tag string) {
	t.Helper()
	for _, n := range r.Nodes {
		must(t, cluster.Until(ctx, time.Minute, n.Name, func() error {
			s, err := v1.NewAdminServiceClient(dial(t, n)).GetStatus(ctx, &v1.GetStatusRequest{})
			if err != nil {
				return err
			}
			if got := [32]byte(s.GetAttested().GetMrenclave()); got != r.measurements[tag] || !s.GetAcceptedByOwnPolicy() {
				return fmt.Errorf("runs %x, accepted %v: %v; expected build %s, %x", got, s.GetAcceptedByOwnPolicy(), s.GetOwnRefusal(), tag, r.measurements[tag])
			}
			return nil
		}))
	}
}

// confinement looks at the processes themselves, not at what was asked for.
func (r *rig) confinement(_ context.Context, t *testing.T) {
	for _, n := range r.Nodes {
		for program, user := range map[string]string{"/usr/bin/safeconductd": "64061", "/usr/bin/safeconduct-tunnel": "64062"} {
			pid, err := process(n, program)
			must(t, err)
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			must(t, err)
			found := map[string]string{}
			for _, line := range strings.Split(string(raw), "\n") {
				if key, value, ok := strings.Cut(line, ":"); ok {
					found[key] = strings.Join(strings.Fields(value), " ")
				}
			}
			for key, expected := range map[string]string{
				"Uid": strings.Join(slices.Repeat([]string{user}, 4), " "), "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000",
				"NoNewPrivs": "1", "Seccomp": "2",
			} {
				if found[key] != expected {
					t.Errorf("%s of %s on %s is %q, expected %q", key, program, n.Name, found[key], expected)
				}
			}
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
			must(t, err)
			if root := strings.Fields(string(mounts)); len(root) < 6 || root[4] != "/" || !strings.HasPrefix(root[5], "ro") {
				t.Errorf("the root of %s is mounted %v", program, root[:6])
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/var/run/secrets/kubernetes.io/serviceaccount/token", pid)); err == nil {
				t.Errorf("%s has a token of Kubernetes' API", program)
			}
		}
	}
}

func (r *rig) helperIsPlaced(ctx context.Context, t *testing.T) {
	for _, n := range r.Nodes {
		dir := filepath.Join(n.Lib, "safeconduct-helper")
		out := run(ctx, t, n.Enter("/var/lib/safeconduct-helper/safeconduct-swtpm", "--version")[0], n.Enter("/var/lib/safeconduct-helper/safeconduct-swtpm", "--version")[1:]...)
		if !strings.Contains(out, "safeconduct-swtpm") {
			t.Errorf("the helper on %s says %q", n.Name, out)
		}
		settings, err := os.ReadFile(filepath.Join(dir, "helper.yaml"))
		must(t, err)
		if !strings.Contains(string(settings), "node_timeout: 400ms") {
			t.Errorf("settings are %q", settings)
		}
	}
}

func (r *rig) helmTest(ctx context.Context, t *testing.T) {
	out := r.helm(ctx, t, "test", "sc", "--timeout", "2m")
	if n := strings.Count(out, "Phase:          Succeeded"); n != 2 {
		t.Errorf("%d tests succeeded, expected 2: %s", n, out)
	}
}

func (r *rig) preflight(ctx context.Context, t *testing.T) {
	for i, n := range r.Nodes {
		peer := r.Nodes[1-i]
		out := r.kubectl(ctx, t, "exec", r.pod(ctx, t, n), "-c", "safeconduct", "--", "/usr/bin/safeconduct", "preflight", peer.Name)
		if !strings.Contains(out, "SIMULATED") || !strings.Contains(out, "accepted") {
			t.Errorf("%s", out)
		}
	}
}

func establish(ctx context.Context, c v1.MigrationServiceClient, instance, peer string) (*v1.Session, error) {
	stream, err := c.Establish(ctx, &v1.EstablishRequest{InstanceId: instance, PeerHost: peer, Role: v1.Role_ROLE_SOURCE})
	if err != nil {
		return nil, err
	}
	var s *v1.Session
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if m.GetSession() != nil {
			s = m.GetSession()
		}
	}
}

func (r *rig) migration(ctx context.Context, t *testing.T) {
	const instance = "0c6f1d3e-0000-4000-8000-000000000001"
	source, destination := r.Nodes[0], r.Nodes[1]
	conn := dial(t, source)
	m := v1.NewMigrationServiceClient(conn)
	s, err := establish(ctx, m, instance, destination.Name)
	must(t, err)
	_, err = m.Arm(ctx, &v1.ArmRequest{InstanceId: instance, DestinationHost: destination.Name, MigrationId: "kubernetes-1", ReturnPath: true, WithoutVtpm: true})
	must(t, err)
	socket := filepath.Join(source.Run, "safeconduct", "tunnel", instance+".sock")
	must(t, cluster.Until(ctx, 10*time.Second, "the tunnel's socket for QEMU", func() error { _, err := os.Stat(socket); return err }))
	done, err := m.Commit(ctx, &v1.CommitRequest{SessionId: s.GetSessionId()})
	must(t, err)
	if done.GetSession().GetState() != v1.SessionState_SESSION_STATE_COMMITTED {
		t.Errorf("the session is %v", done.GetSession().GetState())
	}
	for _, n := range r.Nodes {
		list, err := v1.NewReceiptServiceClient(dial(t, n)).ListReceipts(ctx, &v1.ListReceiptsRequest{})
		must(t, err)
		if len(list.GetReceipts()) != 1 {
			t.Errorf("%s has %d receipts, expected one", n.Name, len(list.GetReceipts()))
		}
	}
}

// load makes handshakes between both nodes, both ways, one after the other each, until its end, and counts how they ended by node.
func (r *rig) load(ctx context.Context, t *testing.T) (stop func() map[string]int) {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	var lock sync.Mutex
	ended := map[string]int{}
	for i, n := range r.Nodes {
		client, peer := v1.NewAttestationServiceClient(dial(t, n)), r.Nodes[1-i].Name
		wait.Go(func() {
			for ctx.Err() == nil {
				call, end := context.WithTimeout(ctx, 30*time.Second)
				resp, err := client.Preflight(call, &v1.PreflightRequest{PeerHost: peer})
				end()
				if ctx.Err() != nil {
					return
				}
				lock.Lock()
				ended[outcome(resp, err)]++
				lock.Unlock()
				if err != nil { // nobody is there: do not spin
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		})
	}
	return func() map[string]int { cancel(); wait.Wait(); return ended }
}

// outcome of a handshake in a word.
func outcome(resp *v1.PreflightResponse, err error) string {
	switch {
	case err == nil && resp.GetAccepted():
		return "accepted"
	case err == nil:
		return strings.TrimPrefix(resp.GetRefusal().GetReason().String(), "REASON_")
	case status.Code(err) == codes.Unavailable:
		return "nobody answers on the socket"
	default:
		return strings.TrimPrefix(rpcerror.Refusal(err).Reason.String(), "REASON_") + ": " + err.Error()
	}
}

// duringARollOut is how a handshake may end while nodes are drained and replaced: that the node drains, that it is away.
var duringARollOut = []string{"accepted", "DRAINING", "PEER_UNAVAILABLE", "RESTARTED", "nobody answers on the socket"}

func (r *rig) rollOut(ctx context.Context, t *testing.T, change func()) {
	t.Helper()
	stop := r.load(ctx, t)
	change()
	r.kubectl(ctx, t, "rollout", "status", "daemonset/sc-safeconduct", "--timeout=4m")
	ended := stop()
	t.Logf("handshakes during the roll-out: %v", ended)
	for _, how := range slices.Sorted(maps.Keys(ended)) {
		if !slices.Contains(duringARollOut, how) {
			t.Errorf("%d handshakes ended with: %s", ended[how], how)
		}
	}
	if ended["accepted"] == 0 {
		t.Error("no handshake was accepted")
	}
	if ended["DRAINING"] == 0 && ended["PEER_UNAVAILABLE"] == 0 && ended["nobody answers on the socket"] == 0 {
		t.Error("nothing was replaced under load")
	}
	for i, n := range r.Nodes {
		resp, err := v1.NewAttestationServiceClient(dial(t, n)).Preflight(ctx, &v1.PreflightRequest{PeerHost: r.Nodes[1-i].Name})
		if how := outcome(resp, err); how != "accepted" {
			t.Errorf("after it, %s: %s", n.Name, how)
		}
	}
}

func (r *rig) upgrade(ctx context.Context, t *testing.T) {
	r.rollOut(ctx, t, func() {
		r.helm(ctx, t, "upgrade", "sc", filepath.Join(r.source, "charts", "safeconduct"), "-f", r.values, "--set", "images.tags.safeconduct=safeconduct.test/node:b")
	})
	r.expectMeasurement(ctx, t, "b")
}

func (r *rig) rollback(ctx context.Context, t *testing.T) {
	r.rollOut(ctx, t, func() { r.helm(ctx, t, "rollback", "sc", "1") })
	r.expectMeasurement(ctx, t, "a")
}

func (r *rig) killHard(ctx context.Context, t *testing.T) {
	n := r.Nodes[1]
	pid, err := process(n, "/usr/bin/safeconductd")
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	must(t, cluster.Until(ctx, time.Minute, "the container's successor", func() error {
		now, err := process(n, "/usr/bin/safeconductd")
		if err == nil && now == pid {
			err = fmt.Errorf("%d is there", pid)
		}
		return err
	}))
	r.expectMeasurement(ctx, t, "b")
	old := r.pod(ctx, t, n)
	r.kubectl(ctx, t, "delete", "pod", old, "--force", "--grace-period=0")
	must(t, cluster.Until(ctx, 2*time.Minute, "the pod's successor", func() error {
		out, err := r.Kubectl(ctx, "-n", "openstack", "get", "pods", "-l", "application=safeconduct,component=compute", "--field-selector", "spec.nodeName="+n.Name,
			"-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		if err != nil || !strings.Contains(out, "=True") || strings.Contains(out, old) {
			return fmt.Errorf("%q %w", out, err)
		}
		return nil
	}))
	r.expectMeasurement(ctx, t, "b")
}

func (r *rig) drain(ctx context.Context, t *testing.T) {
	const instance = "0c6f1d3e-0000-4000-8000-000000000002"
	n, peer := r.Nodes[0], r.Nodes[1]
	m := v1.NewMigrationServiceClient(dial(t, n))
	s, err := establish(ctx, m, instance, peer.Name)
	must(t, err)
	old := r.pod(ctx, t, n)
	// Deleting the pod runs the hook, which waits for the session.
	r.kubectl(ctx, t, "delete", "pod", old, "--wait=false")
	must(t, cluster.Until(ctx, 20*time.Second, "the drain", func() error {
		resp, err := v1.NewAttestationServiceClient(dial(t, peer)).Preflight(ctx, &v1.PreflightRequest{PeerHost: n.Name})
		if how := outcome(resp, err); how != "DRAINING" && how != "PEER_UNAVAILABLE" {
			return fmt.Errorf("a handshake with it ends: %s", how)
		}
		return nil
	}))
	if now, err := m.Get(ctx, &v1.GetRequest{SessionId: s.GetSessionId()}); err != nil || now.GetSession().GetState() != v1.SessionState_SESSION_STATE_APPRAISED {
		t.Errorf("the open session is %v, %v", now.GetSession().GetState(), err)
	}
	_, err = m.Abort(ctx, &v1.AbortRequest{SessionId: s.GetSessionId(), Reason: "the test is done with it"})
	must(t, err)
	begun := time.Now()
	r.kubectl(ctx, t, "wait", "--for=delete", "pod/"+old, "--timeout=25s")
	t.Logf("the pod was gone %.1f s after the last session ended", time.Since(begun).Seconds())
	r.kubectl(ctx, t, "rollout", "status", "daemonset/sc-safeconduct", "--timeout=2m")
	r.expectMeasurement(ctx, t, "b")
}

func (r *rig) badUpgrade(ctx context.Context, t *testing.T) {
	before := r.kubectl(ctx, t, "get", "daemonset", "sc-safeconduct", "-o", "jsonpath={.metadata.generation}")
	_, err := r.Tool(ctx, filepath.Join(r.tools, "helm"), "-n", "openstack", "upgrade", "sc", filepath.Join(r.source, "charts", "safeconduct"), "-f", r.values,
		"--set", "network.node.port=99999")
	if err == nil || !strings.Contains(err.Error(), "/network/node/port") {
		t.Errorf("%v", err)
	}
	if after := r.kubectl(ctx, t, "get", "daemonset", "sc-safeconduct", "-o", "jsonpath={.metadata.generation}"); after != before {
		t.Errorf("the daemonset went from generation %s to %s", before, after)
	}
}

func (r *rig) uninstall(ctx context.Context, t *testing.T) {
	r.helm(ctx, t, "uninstall", "sc", "--wait", "--timeout", "4m")
	must(t, cluster.Until(ctx, 2*time.Minute, "left in the cluster", func() error {
		out, err := r.Kubectl(ctx, "-n", "openstack", "get", "all,configmaps,serviceaccounts,roles,rolebindings", "-l", "application=safeconduct", "-o", "name")
		if err != nil || strings.TrimSpace(out) != "" {
			return fmt.Errorf("%q %w", out, err)
		}
		return nil
	}))
	for _, n := range r.Nodes {
		for _, gone := range []string{filepath.Join(n.Run, "safeconduct"), filepath.Join(n.Lib, "safeconduct-helper")} {
			if _, err := os.Lstat(gone); !os.IsNotExist(err) {
				t.Errorf("%s: %s is left behind: %v", n.Name, gone, err)
			}
		}
		if pid, err := process(n, "/usr/bin/safeconductd"); err == nil {
			t.Errorf("%s: safeconductd runs, pid %s", n.Name, strconv.Itoa(pid))
		}
		if _, err := os.Stat(filepath.Join(n.Lib, "safeconduct", "sealed")); err != nil {
			t.Errorf("%s: the sealed state is gone: %v", n.Name, err)
		}
	}
}
