package vtpm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/services/vtpm/ctrl"
)

func TestEveryCommandWithoutStateIsRelayedAsItIs(t *testing.T) {
	cat := func(head []byte, tail string) []byte { return append(head, tail...) }
	r := newRig(t, &Proxy{})
	for _, c := range []struct {
		name           string
		request, reply []byte
	}{
		{"GET_CAPABILITY", words(1), words(0, 0xffff)},
		{"INIT of a TPM that was not restored", words(2, 0), words(0)},
		{"an INIT that fails", words(2, 0), words(9)},
		{"GET_TPMESTABLISHED", words(4), words(0, 0x01000000)},
		{"SET_LOCALITY", words(5, 0x02000000), words(0)},
		{"HASH_START", words(6), words(0)},
		{"HASH_DATA", cat(words(7, 3), "abc"), words(0)},
		{"HASH_END", words(8), words(0)},
		{"CANCEL_TPM_CMD", words(9), words(0)},
		{"STORE_VOLATILE", words(10), words(0)},
		{"RESET_TPMESTABLISHED", words(11, 0x03000000), words(0x3d)},
		{"STOP", words(14), words(0)},
		{"GET_CONFIG", words(15), words(0, 1)},
		{"SET_BUFFERSIZE", words(17, 4096), words(0, 4096, 2808, 4096)},
		{"GET_INFO", words(18, 0, 1, 0, 0), cat(words(0, 2, 2), "{}")},
		{"LOCK_STORAGE", words(19, 3), words(0)},
		{"SHUTDOWN", words(3), words(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			r.relayed(c.request, c.reply)
		})
	}
}

func TestTheDataChannelIsHandedOn(t *testing.T) {
	var taken atomic.Int32
	r := newRig(t, &Proxy{OnDataChannel: func() error { taken.Add(1); return nil }})
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipeR.Close()
	if _, _, err := r.qemu.WriteMsgUnix(words(16), syscall.UnixRights(int(pipeW.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	pipeW.Close()
	// swtpm takes descriptors from its first recvmsg, which must bring the whole command.
	buf, oob := make([]byte, 100), make([]byte, 100)
	n, oobn, _, _, err := r.swtpm.ReadMsgUnix(buf, oob)
	if err != nil || !bytes.Equal(buf[:n], words(16)) {
		t.Fatalf("swtpm got %x (%v)", buf[:n], err)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages (%v), expected 1", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors (%v), expected 1", len(fds), err)
	}
	r.answer(words(0))
	r.atQEMU(words(0))
	// The proxy has closed its copy before it serves the next command, so that the pipe ends with swtpm's.
	r.relayed(words(1), words(0, 0xffff))
	f := os.NewFile(uintptr(fds[0]), "data")
	if _, err := f.WriteString("TPM command"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got, err := io.ReadAll(pipeR); err != nil || string(got) != "TPM command" {
		t.Errorf("QEMU reads %q (%v)", got, err)
	}
	if n := taken.Load(); n != 1 {
		t.Errorf("OnDataChannel was called %d times, expected once", n)
	}
}

func TestASavedBlobLeavesAsCiphertextOnly(t *testing.T) {
	for _, size := range []int{1, 6188, 1 << 20, ctrl.MaxBlob - 7} {
		p := &reversing{}
		r := newRig(t, &Proxy{Protector: p})
		plain := bytes.Repeat([]byte{0xa5}, size)
		plain[0] = 1
		r.send(get(Volatile))
		r.atSWTPM(get(Volatile))
		go r.answer(blob(2, plain))
		r.atQEMU(blob(2, sealed(plain)))
		r.qemu.Close()
		if err := r.ended(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p.types, []StateType{Volatile}) {
			t.Errorf("protected %v, expected the volatile blob once", p.types)
		}
		if !bytes.Equal(p.plain[0], make([]byte, size)) {
			t.Errorf("%d bytes of plaintext are not wiped", size)
		}
	}
}

func TestABlobThatCannotBeProtectedDoesNotLeave(t *testing.T) {
	failed := words(9, 0, 0, 0) // all 16 bytes, for which QEMU waits
	plain := []byte("plaintext state")
	for _, c := range []struct {
		name      string
		protector Protector
		plain     []byte
	}{
		{"the node refuses", &reversing{protectErr: errors.New("no armed session")}, plain},
		{"there is no protector", nil, plain},
		{"the ciphertext is too long to send", &reversing{}, make([]byte, ctrl.MaxBlob)},
		{"the protector returns nothing", fixed{}, plain},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &Proxy{Protector: c.protector})
			r.send(get(Permanent))
			r.atSWTPM(get(Permanent))
			go r.answer(blob(0, c.plain))
			r.atQEMU(failed)
			r.relayed(words(5, 0), words(0)) // and the VM runs on
		})
	}
}

// fixed is a Protector that returns the same whatever it gets.
type fixed struct{ out []byte }

func (f fixed) Protect(context.Context, StateType, []byte) ([]byte, error)   { return f.out, nil }
func (f fixed) Unprotect(context.Context, StateType, []byte) ([]byte, error) { return f.out, nil }

func TestABlobThatDoesNotExistPassesThrough(t *testing.T) {
	p := &reversing{}
	r := newRig(t, &Proxy{Protector: p})
	r.relayed(get(Savestate), words(0x800, 0, 0, 0))
	r.relayed(get(Volatile), words(0, 0, 0, 0))
	r.send(get(Permanent))
	r.atSWTPM(get(Permanent))
	r.answer(words(10)) // swtpm's bare error, as it sends it before INIT
	r.atQEMU(words(10, 0, 0, 0))
	r.qemu.Close()
	if err := r.ended(); err != nil {
		t.Fatal(err)
	}
	if len(p.types) != 0 {
		t.Errorf("protected %v, expected nothing", p.types)
	}
}

func TestAPieceOfABlobIsRefused(t *testing.T) {
	r := newRig(t, &Proxy{Protector: &reversing{}})
	r.refused(words(12, 1, 1, 5), words(3, 0, 0, 0))
	r.refused(words(12, 1, 0, 0), words(3, 0, 0, 0))
	r.refused(words(12, 1, 4, 0), words(3, 0, 0, 0))
}

func TestARestoredTPMStartsFromBothBlobs(t *testing.T) {
	p := &reversing{}
	r := newRig(t, &Proxy{Protector: p})
	perm, vol := []byte("permanent state"), bytes.Repeat([]byte("volatile "), 200_000)
	r.relayed(words(14), words(0))
	for _, b := range []struct {
		t     StateType
		plain []byte
	}{{Permanent, perm}, {Volatile, vol}} {
		r.send(set(b.t, sealed(b.plain)))
		r.atSWTPM(set(b.t, b.plain))
		r.answer(words(0))
		r.atQEMU(words(0))
	}
	r.relayed(words(2, 1), words(0))
	// A reset of the guest later on.
	r.relayed(words(14), words(0))
	r.relayed(words(2, 0), words(0))
	r.qemu.Close()
	if err := r.ended(); err != nil {
		t.Fatal(err)
	}
	if len(p.plain) != 2 {
		t.Fatalf("%d blobs were decrypted, expected 2", len(p.plain))
	}
	for i, plain := range p.plain {
		if !bytes.Equal(plain, make([]byte, len(plain))) {
			t.Errorf("plaintext of blob %d is not wiped", i+1)
		}
	}
}

func TestABlobReachesSWTPMWithinItsPatience(t *testing.T) {
	// swtpm wants the first 4104 bytes within 500 ms of the header: they must come with it, in one piece.
	r := newRig(t, &Proxy{Protector: &reversing{}})
	plain := bytes.Repeat([]byte("x"), 9482)
	r.send(set(Volatile, sealed(plain)))
	buf := make([]byte, 20_000)
	n, err := r.swtpm.Read(buf)
	if err != nil || n != 16+len(plain) {
		t.Errorf("the first read brings %d bytes (%v), expected all %d", n, err, 16+len(plain))
	}
	r.answer(words(0))
	r.atQEMU(words(0))
}

func TestAfterAFailedRestoreTheTPMDoesNotStart(t *testing.T) {
	perm, vol := []byte("permanent state"), []byte("volatile state")
	restore := func(r *rig, st StateType, plain []byte) {
		r.send(set(st, sealed(plain)))
		r.atSWTPM(set(st, plain))
		r.answer(words(0))
		r.atQEMU(words(0))
	}
	for _, c := range []struct {
		name string
		fail func(r *rig, p *swap)
	}{
		{"the first blob does not decrypt", func(r *rig, _ *swap) {
			r.refused(set(Permanent, []byte("forged")), words(9))
		}},
		{"the second blob does not decrypt", func(r *rig, _ *swap) {
			restore(r, Permanent, perm)
			r.refused(set(Volatile, []byte("forged")), words(9))
		}},
		{"the second blob decrypts to nothing", func(r *rig, p *swap) {
			restore(r, Permanent, perm)
			p.to(fixed{})
			r.refused(set(Volatile, []byte("any")), words(9))
		}},
		{"the second blob decrypts to more than swtpm may take", func(r *rig, p *swap) {
			restore(r, Permanent, perm)
			p.to(fixed{make([]byte, ctrl.MaxBlob+1)})
			r.refused(set(Volatile, []byte("any")), words(9))
		}},
		{"there is no such blob", func(r *rig, _ *swap) {
			r.refused(set(7, sealed(perm)), words(3))
		}},
		{"swtpm refuses a blob", func(r *rig, _ *swap) {
			r.send(set(Permanent, sealed(perm)))
			r.atSWTPM(set(Permanent, perm))
			r.answer(words(0x800))
			r.atQEMU(words(0x800))
		}},
		{"the volatile blob is missing", func(r *rig, _ *swap) {
			restore(r, Permanent, perm)
			r.refused(words(2, 1), words(9))
		}},
		{"the volatile blob is missing and QEMU asks for an ordinary start", func(r *rig, _ *swap) {
			restore(r, Permanent, perm)
			r.refused(words(2, 0), words(9))
		}},
		{"the volatile blob is empty", func(r *rig, _ *swap) {
			restore(r, Permanent, perm)
			r.relayed(set(Volatile, nil), words(0))
			r.refused(words(2, 1), words(9))
		}},
		{"the permanent blob is missing", func(r *rig, _ *swap) {
			restore(r, Volatile, vol)
			r.refused(words(2, 1), words(9))
		}},
		{"both blobs are missing", func(r *rig, _ *swap) {
			r.refused(words(2, 1), words(9))
		}},
		{"swtpm does not start from the blobs", func(r *rig, _ *swap) {
			restore(r, Permanent, perm)
			restore(r, Volatile, vol)
			r.relayed(words(2, 1), words(9))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &swap{p: &reversing{}}
			r := newRig(t, &Proxy{Protector: p})
			c.fail(r, p)
			p.to(&reversing{}) // even for blobs that are in order
			r.refused(words(2, 0), words(9))
			r.refused(words(2, 1), words(9))
			r.refused(set(Volatile, sealed(vol)), words(9))
			r.relayed(words(14), words(0)) // STOP does not make swtpm forget
			r.refused(words(2, 0), words(9))
			// Nor does another control connection.
			r.qemu.Close()
			if err := r.ended(); err != nil {
				t.Fatal(err)
			}
			r.connect()
			r.refused(words(2, 0), words(9))
		})
	}
}

func TestWithoutAProtectorNothingIsRestored(t *testing.T) {
	r := newRig(t, &Proxy{})
	r.refused(set(Permanent, []byte("any")), words(9))
	r.refused(words(2, 1), words(9))
}

func TestSWTPMOutOfStepEndsTheChannel(t *testing.T) {
	for _, c := range []struct {
		name    string
		request []byte
		reply   []byte
		want    error
	}{
		{"a blob in pieces", get(Permanent), append(words(0, 0, 8, 4), "blob"...), ctrl.ErrMalformed},
		{"a blob that is too long", get(Permanent), words(0, 0, ctrl.MaxBlob+1, ctrl.MaxBlob+1), ctrl.ErrTooLong},
		{"a blob that ends early", get(Permanent), append(words(0, 0, 8, 8), "blob"...), ctrl.ErrTruncated},
		{"a reply that ends early", words(2, 0), []byte{0}, ctrl.ErrTruncated},
		{"no reply", set(Permanent, sealed([]byte("state"))), nil, ctrl.ErrTruncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &Proxy{Protector: &reversing{}})
			r.send(c.request)
			if _, err := r.swtpm.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			r.answer(c.reply)
			r.swtpm.Close()
			if err := r.ended(); !errors.Is(err, ErrSWTPM) || !errors.Is(err, c.want) {
				t.Errorf("%v, expected %v and %v", err, ErrSWTPM, c.want)
			}
			if n, err := r.qemu.Read(make([]byte, 100)); err == nil {
				t.Errorf("QEMU still gets %d bytes", n)
			}
		})
	}
}

func TestASilentSWTPMIsGivenUp(t *testing.T) {
	r := newRig(t, &Proxy{ReplyTimeout: time.Millisecond})
	r.send(words(1))
	if err := r.ended(); !errors.Is(err, ErrSWTPM) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, expected %v after the time", err, ErrSWTPM)
	}
}

func TestMalformedCommandsEndTheConnectionAndReachNobody(t *testing.T) {
	for _, c := range []struct {
		name    string
		request []byte
		want    error
	}{
		{"an unknown command", words(20), ctrl.ErrUnknownCommand},
		{"a blob that is too long", words(13, 0, 1, ctrl.MaxBlob+1), ctrl.ErrTooLong},
		{"a command cut short", words(12, 1), ctrl.ErrTruncated},
		{"SET_DATAFD without a descriptor", words(16), ctrl.ErrDescriptors},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &Proxy{Protector: &reversing{}})
			r.send(c.request)
			if err := r.qemu.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := r.ended(); !errors.Is(err, c.want) || errors.Is(err, ErrSWTPM) {
				t.Errorf("%v, expected %v", err, c.want)
			}
			// The next connection finds swtpm in step.
			r.connect()
			r.relayed(words(1), words(0, 0xffff))
		})
	}
}

func TestABareErrorIsPaddedAndNeverTakenForTheNextAnswer(t *testing.T) {
	r := newRig(t, &Proxy{})
	r.send(words(4)) // GET_TPMESTABLISHED: every QEMU reads 8 bytes
	r.atSWTPM(words(4))
	r.answer(words(10))
	r.atQEMU(words(10, 0))
	r.relayed(words(1), words(0, 0xffff))
	r.send(words(17, 0)) // SET_BUFFERSIZE: a newer QEMU would read 4 of the 16
	r.atSWTPM(words(17, 0))
	r.answer(words(10))
	r.atQEMU(words(10, 0, 0, 0))
	if err := r.ended(); err == nil {
		t.Error("the connection goes on behind an answer of which a newer QEMU leaves 12 bytes unread")
	}
	r.connect()
	r.relayed(words(1), words(0, 0xffff))
}

func TestTheAnswerToACommandUnderWayComesBeforeTheEnd(t *testing.T) {
	r := newRig(t, &Proxy{})
	r.send(words(3))
	r.atSWTPM(words(3))
	r.cancel() // as when swtpm has ended, before its answer is relayed
	r.answer(words(0))
	r.atQEMU(words(0))
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, expected %v", err, context.Canceled)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	r := newRig(t, &Proxy{})
	r.relayed(words(1), words(0, 0xffff))
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, expected %v", err, context.Canceled)
	}
}
