package tunnel

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkRelay sends data through a pair of relays, plain and tunnelled, with one connection: what "make bench-migration" does, without QEMU. cpu-s/GiB is
// the CPU time of the whole process, the two who send and receive included: on a machine that is not quiet it says more than MB/s.
func BenchmarkRelay(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkRelay(b, nil) })
	b.Run("tunnel", func(b *testing.B) {
		benchmarkRelay(b, func(ctx context.Context, local, between net.Conn, initiator bool, f *flow) error {
			var key, id [32]byte
			key[0] = 1
			remote, err := secure(between, DefaultPatience, key[:], id, initiator)
			if err != nil {
				return err
			}
			return relay(ctx, DefaultPatience, local, remote, f)
		})
	})
}

func cpuTime(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func socketPair(b *testing.B, network, address string) (net.Conn, net.Conn) {
	l, err := net.Listen(network, address)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial(network, l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return a, c
}

func benchmarkRelay(b *testing.B, carry func(ctx context.Context, local, between net.Conn, initiator bool, f *flow) error) {
	const size = 256 << 20
	b.SetBytes(size)
	data := random(2 << 20)
	before := cpuTime(b)
	for b.Loop() {
		dir := b.TempDir()
		out, from := socketPair(b, "unix", filepath.Join(dir, "a"))
		between, toward := socketPair(b, "tcp", "127.0.0.1:0")
		into, in := socketPair(b, "unix", filepath.Join(dir, "b"))
		flows := NewFlows(Limits{PerVM: 2, All: 2}, "simulated", "")
		var all sync.WaitGroup
		for _, end := range []struct {
			local, between net.Conn
			initiator      bool
		}{{from, between, true}, {into, toward, false}} {
			f, err := flows.begin(vm, SessionID{}, Migration, outgoing)
			if err != nil {
				b.Fatal(err)
			}
			if carry == nil {
				all.Go(func() { plainly(end.local, end.between) })
				all.Go(func() { plainly(end.between, end.local) })
				continue
			}
			all.Go(func() {
				if err := carry(b.Context(), end.local, end.between, end.initiator, f); err != nil {
					b.Error(err)
				}
			})
		}
		all.Go(func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{out}) })
		all.Go(func() {
			for sent := 0; sent < size; sent += len(data) {
				_, _ = out.Write(data)
			}
			_ = out.(*net.UnixConn).CloseWrite()
		})
		buf, total := make([]byte, 1<<20), 0
		for {
			n, err := in.Read(buf)
			total += n
			if err != nil {
				break
			}
		}
		if total != size {
			b.Fatalf("%d bytes of %d arrived", total, size)
		}
		_ = in.Close()
		all.Wait()
		_ = out.Close()
	}
	b.ReportMetric((cpuTime(b)-before)/(float64(b.N)*size/(1<<30)), "cpu-s/GiB")
}

func plainly(from, to net.Conn) {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.(closeWriter).CloseWrite()
			return
		}
	}
}
