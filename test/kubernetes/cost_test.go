package kubernetes

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/kubernetes/cluster"
)

const (
	// costMigrations is how many migrations are measured, one after the other; each carries costBytes through the tunnel.
	costMigrations = 10
	costBytes      = 128 << 20
)

// usage of a process since its start.
type usage struct {
	peak int64 // bytes of memory, at the most so far
	cpu  time.Duration
}

func usageOf(pid int) (u usage, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for _, line := range strings.Split(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return u, err
			}
			u.peak = kib << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	return u, nil
}

// cost measures what migrations need of a node, and that the chart's requests and limits are above it. The figures of docs/kubernetes.md are this step's.
func (r *rig) cost(ctx context.Context, t *testing.T) {
	programs := map[string]string{"safeconduct": "/usr/bin/safeconductd", "tunnel": "/usr/bin/safeconduct-tunnel"}
	before := map[string]usage{}
	each := func(do func(key string, u usage)) {
		for _, n := range r.Nodes {
			for container, program := range programs {
				pid, err := process(n, program)
				must(t, err)
				u, err := usageOf(pid)
				must(t, err)
				do(container+" of "+n.Name, u)
			}
		}
	}
	each(func(key string, u usage) { before[key] = u })
	for i := range costMigrations {
		r.carry(ctx, t, fmt.Sprintf("0c6f1d3e-0000-4000-8000-0000000001%02d", i), r.Nodes[i%2], r.Nodes[1-i%2])
	}
	limits := r.limits(t)
	each(func(key string, u usage) {
		t.Logf("%s: at the most %d MiB; %d ms of CPU time a migration of %d MiB", key, u.peak>>20,
			(u.cpu-before[key].cpu).Milliseconds()/costMigrations, costBytes>>20)
		container, _, _ := strings.Cut(key, " ")
		if most := limits[container]; u.peak > most {
			t.Errorf("%s needs %d MiB, and has a limit of %d", key, u.peak>>20, most>>20)
		}
	})
}

// limits of memory by container, as the chart has them.
func (r *rig) limits(t *testing.T) map[string]int64 {
	raw, err := os.ReadFile(filepath.Join(r.source, "charts", "safeconduct", "values.yaml"))
	must(t, err)
	var v struct {
		Pod struct {
			Resources map[string]struct {
				Limits map[string]string `json:"limits"`
			} `json:"resources"`
		} `json:"pod"`
	}
	must(t, yaml.Unmarshal(raw, &v))
	out := map[string]int64{}
	for container, res := range v.Pod.Resources {
		q, err := resource.ParseQuantity(res.Limits["memory"])
		must(t, err)
		out[container] = q.Value()
	}
	return out
}

// carry is a migration with a stream of random bytes in QEMU's place.
func (r *rig) carry(ctx context.Context, t *testing.T, instance string, source, destination *cluster.Node) {
	t.Helper()
	m := v1.NewMigrationServiceClient(dial(t, source))
	s, err := establish(ctx, m, instance, destination.Name)
	must(t, err)
	arrives := filepath.Join(destination.Run, "safeconduct", "tunnel", instance+".sock")
	l, err := new(net.ListenConfig).Listen(ctx, "unix", arrives)
	must(t, err)
	defer func() { _ = l.Close() }()
	must(t, os.Chmod(arrives, 0o666))
	_, err = m.Arm(ctx, &v1.ArmRequest{InstanceId: instance, DestinationHost: destination.Name, MigrationId: instance, ReturnPath: true, WithoutVtpm: true})
	must(t, err)
	leaves := filepath.Join(source.Run, "safeconduct", "tunnel", instance+".sock")
	must(t, cluster.Until(ctx, 10*time.Second, "the tunnel's socket for QEMU", func() error { _, err := os.Stat(leaves); return err }))
	var group errgroup.Group
	group.Go(func() error {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, conn)
		if err == nil && n != costBytes {
			err = fmt.Errorf("%d bytes came, expected %d", n, costBytes)
		}
		return errors.Join(err, conn.Close())
	})
	group.Go(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", leaves)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		chunk := make([]byte, 1<<20)
		_, _ = rand.Read(chunk)
		for range costBytes / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return errors.Join(err, conn.Close())
			}
		}
		return conn.Close()
	})
	must(t, group.Wait())
	_, err = m.Commit(ctx, &v1.CommitRequest{SessionId: s.GetSessionId()})
	must(t, err)
}
