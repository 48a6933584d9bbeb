package vm

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFlippingABitBehindAMagic(t *testing.T) {
	stream := []byte("before SCST and behind, SCST again")
	for _, c := range []struct {
		name    string
		skip    int
		want    string
		flipped bool
	}{
		{"the byte behind it", 0, "before SCST!and behind, SCST again", true},
		{"a later byte", 5, "before SCST and cehind, SCST again", true},
		{"a byte that does not come", 1000, string(stream), false},
	} {
		for size := 1; size <= len(stream); size++ {
			f := FlipBitAfter([]byte("SCST"), c.skip)
			var got []byte
			for at := 0; at < len(stream); at += size {
				piece := bytes.Clone(stream[at:min(at+size, len(stream))])
				got = append(got, f.Mutate(int64(at), piece)...)
			}
			got = append(got, f.Final()...)
			if string(got) != c.want || f.Flipped() != c.flipped {
				t.Errorf("%s, in pieces of %d: %q, flipped %v, expected %q, %v", c.name, size, got, f.Flipped(), c.want, c.flipped)
			}
		}
	}
	none := FlipBitAfter([]byte("SCST"), 0)
	if got := append(none.Mutate(0, []byte("no magic SCS")), none.Final()...); string(got) != "no magic SCS" || none.Flipped() {
		t.Errorf("without the magic: %q, flipped %v", got, none.Flipped())
	}
}

func TestARelayPassesRecordsAndChanges(t *testing.T) {
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	destination, err := net.Listen("unix", filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer destination.Close()
	r := &Relay{
		Listen: "unix:" + filepath.Join(dir, "src"), Forward: "unix:" + filepath.Join(dir, "dst"),
		Capture: filepath.Join(dir, "capture"), Mutator: FlipBitAfter([]byte("SCST"), 0),
	}
	if err := r.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	source, err := net.Dial("unix", filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	inner, err := destination.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{source, inner} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	// The return path works both ways at once.
	if _, err := inner.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 4)
	if _, err := io.ReadFull(source, back); err != nil || string(back) != "back" {
		t.Fatalf("the source gets %q (%v)", back, err)
	}
	if _, err := source.Write([]byte("forward SCST0")); err != nil {
		t.Fatal(err)
	}
	if err := source.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(inner)
	if err != nil || string(got) != "forward SCST1" {
		t.Errorf("the destination gets %q (%v), expected the last bit changed", got, err)
	}
	inner.Close()
	if _, err := io.ReadAll(source); err != nil {
		t.Error(err)
	}
	source.Close()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if captured, err := os.ReadFile(r.Capture); err != nil || !bytes.Equal(captured, got) {
		t.Errorf("captured %q (%v), expected what the destination got", captured, err)
	}
}

func TestARelayEndsWithOpenConnections(t *testing.T) {
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	destination, err := net.Listen("unix", filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer destination.Close()
	r := &Relay{Listen: "unix:" + filepath.Join(dir, "src"), Forward: "unix:" + filepath.Join(dir, "dst")}
	if err := r.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	source, err := net.Dial("unix", filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	inner, err := destination.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the relay does not close")
	}
}

func TestEndpointsThatAreNone(t *testing.T) {
	for _, uri := range []string{"", "tcp", "tcp:", "udp:1.2.3.4:5", "/path"} {
		if _, _, err := endpoint(uri); err == nil {
			t.Errorf("%q is accepted", uri)
		}
	}
}
