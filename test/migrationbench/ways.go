package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/safeconduct/safeconduct/test/cluster"
)

// way is one way from QEMU to QEMU.
type way struct {
	name string
	// connections of the migration: 1 without multifd, else so many of multifd beside the one that is always there.
	connections int
	// tls is the name of a cipher, or empty.
	tls   string
	route func(context.Context, *bench, *way) (*route, error)
}

// route is a way that is open for one migration.
type route struct {
	listen, connect string // migration URIs
	between         []int  // processes whose CPU time counts
	done            func(context.Context) error
	stop            func()
}

func (r *route) close() {
	if r.stop != nil {
		r.stop()
	}
}

// names of the ways that the table compares with.
const (
	wayTLS       = "TLS, default cipher"
	wayTLSAES    = "TLS, AES-128-GCM"
	wayUnixRelay = "plain relay"
	wayTunnel    = "tunnel"
)

func (b *bench) ways() ([]*way, error) {
	all := []*way{
		{name: "TCP", connections: 1, route: direct("tcp")},
		{name: "unix socket", connections: 1, route: direct("unix")},
		{name: wayTLS, connections: 1, tls: "default", route: direct("tcp")},
		{name: wayTLSAES, connections: 1, tls: "aes128", route: direct("tcp")},
		{name: wayTLSAES + ", 4 connections", connections: 4, tls: "aes128", route: direct("tcp")},
		{name: wayUnixRelay, connections: 1, route: relayed},
		{name: wayUnixRelay + ", 4 connections", connections: 4, route: relayed},
		{name: wayTunnel, connections: 1, route: tunnelled},
		{name: wayTunnel + ", 2 connections", connections: 2, route: tunnelled},
		{name: wayTunnel + ", 4 connections", connections: 4, route: tunnelled},
	}
	var chosen []*way
	for _, w := range all {
		yes, err := b.selected(w.name)
		if err != nil {
			return nil, err
		}
		if yes {
			chosen = append(chosen, w)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no way matches %q", b.only)
	}
	return chosen, nil
}

func direct(network string) func(context.Context, *bench, *way) (*route, error) {
	return func(_ context.Context, b *bench, _ *way) (*route, error) {
		if network == "unix" {
			uri := "unix:" + filepath.Join(b.dir, fmt.Sprintf("direct-%d", b.runs))
			return &route{listen: uri, connect: uri}, nil
		}
		address, err := freePort()
		return &route{listen: "tcp:" + address, connect: "tcp:" + address}, err
	}
}

// relayed has two plain relays where the tunnels would be: from a unix socket to TCP, and back.
func relayed(ctx context.Context, b *bench, _ *way) (*route, error) {
	address, err := freePort()
	if err != nil {
		return nil, err
	}
	path := func(end string) string { return "unix:" + filepath.Join(b.dir, fmt.Sprintf("%s-%d", end, b.runs)) }
	r := &route{listen: path("into"), connect: path("from")}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var stops []func()
	r.stop = func() {
		for _, stop := range stops {
			stop()
		}
	}
	for _, ends := range [][2]string{{r.connect, "tcp:" + address}, {"tcp:" + address, r.listen}} {
		log := filepath.Join(b.dir, fmt.Sprintf("relay-%d-%d.log", b.runs, len(stops)))
		p, err := cluster.Start(log, nil, self, "--relay-from", ends[0], "--relay-to", ends[1])
		if err != nil {
			r.stop()
			return nil, err
		}
		stops, r.between = append(stops, p.Stop), append(r.between, p.PID())
		if err := cluster.Until(ctx, "the relay listens", func() error {
			if raw, err := os.ReadFile(log); err != nil || len(raw) == 0 {
				return errors.Join(errors.New("its log is empty"), err)
			}
			return nil
		}); err != nil {
			r.stop()
			return nil, err
		}
	}
	return r, nil
}

func tunnelled(ctx context.Context, b *bench, _ *way) (*route, error) {
	commit, err := b.arm(ctx)
	if err != nil {
		return nil, err
	}
	h := b.cluster.Hosts
	return &route{
		listen: "unix:" + h[1].TunnelSocket(instance), connect: "unix:" + h[0].TunnelSocket(instance),
		between: []int{h[0].Tunnel.PID(), h[1].Tunnel.PID()}, done: commit,
	}, nil
}

// relayBuffer is as large as a record of the tunnel.
const relayBuffer = 256 << 10

// plainRelay passes on every connection, in the order in which they come, with the reads and writes that the tunnel makes and without its work in between.
func plainRelay(ctx context.Context, from, to string) error {
	fromNetwork, fromAddress, _ := strings.Cut(from, ":")
	toNetwork, toAddress, _ := strings.Cut(to, ":")
	l, err := new(net.ListenConfig).Listen(ctx, fromNetwork, fromAddress)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	fmt.Println("listening")
	var all sync.WaitGroup
	defer all.Wait()
	for {
		in, err := l.Accept()
		if err != nil {
			return nil // the end
		}
		out, err := new(net.Dialer).DialContext(ctx, toNetwork, toAddress)
		if err != nil {
			return errors.Join(err, in.Close())
		}
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			all.Go(func() { pass(way[0], way[1]) })
		}
	}
}

func pass(from, to net.Conn) {
	buf := make([]byte, relayBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it may be gone
	}
}

// median of some values; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
