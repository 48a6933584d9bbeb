package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/safeconduct/safeconduct/test/vm"
)

// console collects what a guest says, on every host that it has been on, as it says it: the source's file is gone as soon as the server is.
type console struct {
	server *server
	stop   chan struct{}
	done   chan struct{}
	mu     sync.Mutex
	// seen are the ticks and said the latest content of the file, by host; under the name shared if both hosts have the same file.
	seen map[string]map[uint64]vm.Tick
	said map[string][]byte
	// pcrs are PCR 23 after each tick, as it must be.
	pcrs [][]byte
	err  error
}

// follow reads the console of a server on all hosts until it is closed.
func follow(c *cloud, s *server) *console {
	k := &console{server: s, stop: make(chan struct{}), done: make(chan struct{}), seen: map[string]map[uint64]vm.Tick{}, said: map[string][]byte{}}
	files := map[string]*watched{}
	for _, h := range c.computes {
		files[h.Name] = &watched{path: h.Path(filepath.Join(localStorage, s.id, "console.log"))}
	}
	files[storageShared] = &watched{path: filepath.Join(c.world.Shared(), "instances", s.id, "console.log")}
	go func() {
		defer close(k.done)
		for {
			for host, f := range files {
				f.read(func(content []byte, err error) { k.add(host, content, err) })
			}
			select {
			case <-k.stop:
				return
			case <-time.After(30 * time.Millisecond): // ticks are 300 ms apart
			}
		}
	}()
	return k
}

// add takes the present content of a host's file. Where two QEMU share one, the second begins to write at its head while the first goes on at its end,
// with nothing in between: all that counts is which ticks were ever in it.
func (k *console) add(host string, content []byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = errors.Join(k.err, err)
	k.said[host] = content
	if k.seen[host] == nil {
		k.seen[host] = map[uint64]vm.Tick{}
	}
	for _, t := range vm.ParseTicks(bytes.ReplaceAll(content, []byte{0}, []byte{'\n'})) {
		if t.Err == "" && len(t.PCR)+len(t.Unseal)+len(t.Held) != 3*64 {
			continue // the end of what one wrote met what another had written
		}
		if host == storageShared && t.Err == "" && t.PCR != k.chain(t.N) {
			continue // likewise; if it is the vTPM's fault, so is every tick from here on, and the guest is taken to stand still
		}
		if other, ok := k.seen[host][t.N]; ok && other != t {
			k.err = errors.Join(k.err, fmt.Errorf("tick %d was twice on the console of %s, and not the same: %+v and %+v", t.N, host, other, t))
		}
		k.seen[host][t.N] = t
	}
}

// chain is PCR 23 after tick n, in hexadecimal. The caller holds mu.
func (k *console) chain(n uint64) string {
	const most = 1 << 16 // a number that two lines made together
	for n <= most && uint64(len(k.pcrs)) <= n {
		last := make([]byte, 32)
		if i := len(k.pcrs); i > 0 {
			last = vm.ExtendTick(k.pcrs[i-1], uint64(i))
		}
		k.pcrs = append(k.pcrs, last)
	}
	if n > most {
		return ""
	}
	return hex.EncodeToString(k.pcrs[n])
}

func (k *console) close() {
	if k == nil {
		return
	}
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	<-k.done
}

// copy of the latest content of each host's file.
func (k *console) copy() map[string][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.said)
}

// last tick on a host.
func (k *console) last(host string) (last uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range []string{host, storageShared} {
		for n := range k.seen[name] {
			last = max(last, n)
		}
	}
	return last, k.err
}

// counter is the highest value of the vTPM's NV counter so far.
func (k *console) counter() (highest uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ticks := range k.seen {
		for _, t := range ticks {
			highest = max(highest, t.NV)
		}
	}
	return highest, k.err
}

// advance waits until the guest has ticked n more times on a host.
func (k *console) advance(ctx context.Context, host string, n int) error {
	before, err := k.last(host)
	if err != nil {
		return err
	}
	return k.await(ctx, fmt.Sprintf("%s does not tick on %s", k.server.name, host), func() (bool, error) {
		now, err := k.last(host)
		return now >= before+uint64(n), err
	})
}

// says waits for a text on a host's console.
func (k *console) says(ctx context.Context, host, text string) error {
	return k.await(ctx, fmt.Sprintf("%s does not say %q on %s", k.server.name, text, host), func() (bool, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return bytes.Contains(k.said[host], []byte(text)) || bytes.Contains(k.said[storageShared], []byte(text)), k.err
	})
}

func (k *console) await(ctx context.Context, what string, holds func() (bool, error)) error {
	return await(ctx, fast, 2*time.Minute, what, func() (bool, error) {
		if words := k.panicked(); words != "" {
			return false, fmt.Errorf("the guest's kernel has failed: %s", words)
		}
		return holds()
	})
}

// panicked returns the guest kernel's last words. QEMU's emulation of a processor, which a machine without KVM needs, may break a guest's memory when it
// migrates; that is none of ours.
func (k *console) panicked() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, text := range k.said {
		for _, sign := range []string{"Kernel panic", "Corrupted page table", "BUG:", "Oops", "general protection fault"} {
			if i := strings.Index(string(text), sign); i >= 0 {
				return string(text[i:min(len(text), i+300)])
			}
		}
	}
	return ""
}

// continuous says whether all ticks so far are those of one vTPM. A line that a migration cut in two is missing on both consoles; what is in
// the next shows that nothing else is.
func (k *console) continuous() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	byNumber := map[uint64]vm.Tick{}
	for host, ticks := range k.seen {
		for n, t := range ticks {
			if other, ok := byNumber[n]; ok && other != t {
				return fmt.Errorf("tick %d was on two hosts, and not the same: %+v and %+v (%s)", n, other, t, host)
			}
			byNumber[n] = t
		}
	}
	all := make([]vm.Tick, 0, len(byNumber))
	for _, t := range byNumber {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b vm.Tick) int { return int(a.N) - int(b.N) })
	return errors.Join(k.err, oneTPM(all))
}

// oneTPM checks each unbroken run of ticks, and that the runs are of the same counter and the same secret.
func oneTPM(all []vm.Tick) error {
	if len(all) == 0 {
		return errors.New("the guest has not ticked")
	}
	first, begin, missing := all[0], 0, 0
	for i := 1; i <= len(all); i++ {
		if i < len(all) && all[i].N == all[i-1].N+1 {
			continue
		}
		if err := vm.CheckTicks(all[begin:i]); err != nil {
			return err
		}
		run := all[begin]
		if run.NV-first.NV != run.N-first.N || run.Unseal != first.Unseal {
			return fmt.Errorf("tick %d: found counter %d and secret %.8s, expected %d and %.8s", run.N, run.NV, run.Unseal, first.NV+run.N-first.N, first.Unseal)
		}
		if begin > 0 {
			missing += int(run.N - all[begin-1].N - 1)
		}
		begin = i
	}
	if missing > len(all)/4 {
		return fmt.Errorf("%d of %d ticks are missing on the consoles", missing, missing+len(all))
	}
	return nil
}

// watched is a file that may be made, cut to nothing, removed and made again. It is held open: its last words are read after its end.
type watched struct {
	path string
	file *os.File
}

func (w *watched) read(take func(content []byte, err error)) {
	if w.file != nil {
		take(io.ReadAll(io.NewSectionReader(w.file, 0, 1<<30)))
	}
	now, err := os.Stat(w.path)
	if w.file != nil {
		if held, heldErr := w.file.Stat(); err == nil && heldErr == nil && os.SameFile(held, now) {
			return
		}
		_ = w.file.Close() // only read
		w.file = nil
	}
	if err != nil {
		return // not there, or not yet
	}
	if w.file, err = os.Open(w.path); err != nil {
		w.file = nil // gone again
	}
}
