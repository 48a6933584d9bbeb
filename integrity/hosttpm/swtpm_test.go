package hosttpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/safeconduct/safeconduct/integrity/tpmquote"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

func open(t testing.TB, address string) *TPM {
	t.Helper()
	tpm, err := Open(address)
	if err != nil {
		t.Fatal(err)
	}
	return tpm
}

func akOf(t testing.TB, tpm *TPM) []byte {
	t.Helper()
	ak, err := tpm.AKPublic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ak
}

func TestARealTPMQuotesAndTheQuoteVerifies(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	ak := akOf(t, tpm)
	qualifying := sha256.Sum256([]byte("this exchange"))
	// More than the eight values that one TPM2_PCR_Read returns, in no order.
	pcrs := []int{16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 23}
	q, err := tpm.Quote(t.Context(), qualifying, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q.GetAkPublic(), ak) {
		t.Error("the key that quoted is not the key for enrolment")
	}
	s, err := tpmquote.Verify(q, ak, qualifying)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.PCRs) != len(pcrs) || s.FirmwareVersion == 0 || len(s.QualifiedSigner) != 34 {
		t.Errorf("statement %+v", s)
	}
	if pcrs[0] != 16 {
		t.Error("the caller's list was sorted in place")
	}
}

func TestTheAttestationKeyIsTheSameEachTimeAndOfOneTPMOnly(t *testing.T) {
	address := swtpmtest.Start(t)
	first := akOf(t, open(t, address))
	if !bytes.Equal(first, akOf(t, open(t, address))) {
		t.Error("the same TPM gave two keys")
	}
	if bytes.Equal(first, akOf(t, open(t, swtpmtest.Start(t)))) {
		t.Error("two TPMs gave the same key")
	}
}

func TestAnExtendedPCRShowsInTheNextQuote(t *testing.T) {
	address := swtpmtest.Start(t)
	tpm := open(t, address)
	quote := func() [32]byte {
		q, err := tpm.Quote(t.Context(), [32]byte{}, []int{10})
		if err != nil {
			t.Fatal(err)
		}
		return [32]byte(q.GetPcrs()[0].GetValue())
	}
	before := quote()
	event := sha256.Sum256([]byte("event"))
	swtpmtest.Extend(t, address, 10, event)
	if want := sha256.Sum256(append(before[:], event[:]...)); quote() != want {
		t.Error("the quote does not have the extended value")
	}
}

func TestConcurrentCallersEachGetTheirOwnQuote(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	ak := akOf(t, tpm)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			qualifying := [32]byte{byte(i)}
			q, err := tpm.Quote(t.Context(), qualifying, []int{0, 7})
			if err == nil {
				_, err = tpmquote.Verify(q, ak, qualifying)
			}
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// A TPM has room for three transient objects. A process that is killed leaves its key in one without a resource manager.
func TestKeysThatAKilledPredecessorLeftBehindAreRemovedAndNoOthers(t *testing.T) {
	address := swtpmtest.Start(t)
	var storage tpm2.TPMHandle
	swtpmtest.Do(t, address, func(tpm transport.TPM) error {
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
		if err != nil {
			return err
		}
		storage = rsp.ObjectHandle
		for {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template())}).Execute(tpm); err != nil {
				if errors.Is(err, tpm2.TPMRCObjectMemory) {
					return nil // full
				}
				return err
			}
		}
	})
	if _, err := open(t, address).Quote(t.Context(), [32]byte{}, []int{0}); err != nil {
		t.Fatal(err)
	}
	swtpmtest.Do(t, address, func(tpm transport.TPM) error {
		_, err := tpm2.ReadPublic{ObjectHandle: storage}.Execute(tpm)
		return err
	})
}

func TestAFullTPMWithoutOurKeysIsAnErrorAndKeepsItsObjects(t *testing.T) {
	address := swtpmtest.Start(t)
	swtpmtest.Do(t, address, func(tpm transport.TPM) error {
		for {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(tpm); err != nil {
				if errors.Is(err, tpm2.TPMRCObjectMemory) {
					return nil
				}
				return err
			}
		}
	})
	if _, err := open(t, address).AKPublic(t.Context()); !errors.Is(err, tpm2.TPMRCObjectMemory) {
		t.Errorf("got %v, want TPM_RC_OBJECT_MEMORY", err)
	}
}

// meddler runs something after each TPM2_PCR_Read.
type meddler struct {
	transport.TPM
	afterRead func(transport.TPM) error
}

func (m *meddler) Send(command []byte) ([]byte, error) {
	response, err := m.TPM.Send(command)
	if err == nil && bytes.Equal(command[6:10], []byte{0, 0, 1, 0x7e}) { // TPM_CC_PCR_Read
		err = m.afterRead(m.TPM)
	}
	return response, err
}

func TestAPCRThatChangesBetweenReadingAndQuotingIsReadAgainAFewTimes(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	for name, tc := range map[string]struct {
		extensions int
		want       error
	}{
		"once":         {1, nil},
		"all the time": {1 << 30, ErrPCRsMoving},
	} {
		t.Run(name, func(t *testing.T) {
			reads := 0
			err := tpm.withKey(t.Context(), func(plain transport.TPM, ak *attestationKey) error {
				m := &meddler{plain, func(tpm transport.TPM) error {
					if reads++; reads > tc.extensions {
						return nil
					}
					_, err := tpm2.PCRExtend{
						PCRHandle: tpm2.AuthHandle{Handle: 16, Auth: tpm2.PasswordAuth(nil)},
						Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
					}.Execute(tpm)
					return err
				}}
				_, err := settledQuote(m, ak, [32]byte{}, []int{16})
				return err
			})
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if want := min(tc.extensions+1, quoteAttempts); reads != want {
				t.Errorf("%d reads, want %d", reads, want)
			}
		})
	}
}

// liar alters a byte of each signature.
type liar struct{ transport.TPM }

func (l liar) Send(command []byte) ([]byte, error) {
	response, err := l.TPM.Send(command)
	if err == nil && bytes.Equal(command[6:10], []byte{0, 0, 1, 0x58}) { // TPM_CC_Quote
		response[len(response)-8] ^= 1 // the signature ends five bytes before the response does
	}
	return response, err
}

func TestAQuoteThatDoesNotVerifyIsNotHandedOut(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	err := tpm.withKey(t.Context(), func(plain transport.TPM, ak *attestationKey) error {
		_, err := settledQuote(liar{plain}, ak, [32]byte{}, []int{0})
		return err
	})
	if !errors.Is(err, ErrProtocol) || !errors.Is(err, tpmquote.CheckSignature) {
		t.Errorf("got %v, want ErrProtocol because of the signature", err)
	}
}

func TestACallThatIsCancelledDoesNotSpoilTheNext(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		err := tpm.withKey(ctx, func(transport.TPM, *attestationKey) error {
			cancel()
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want a cancelled context", err)
		}
	}
	if _, err := tpm.Quote(t.Context(), [32]byte{}, []int{0}); err != nil {
		t.Fatal(err)
	}
}

func TestWaitingForTheTPMEndsWithTheContext(t *testing.T) {
	tpm := open(t, swtpmtest.Start(t))
	err := tpm.withKey(t.Context(), func(transport.TPM, *attestationKey) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := tpm.Quote(ctx, [32]byte{}, []int{0})
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for the tpm") {
		t.Errorf("got %v, want a deadline while waiting", err)
	}
}

func BenchmarkQuote(b *testing.B) {
	tpm := open(b, swtpmtest.Start(b))
	for b.Loop() {
		if _, err := tpm.Quote(b.Context(), [32]byte{}, []int{0, 1, 2, 3, 4, 5, 6, 7}); err != nil {
			b.Fatal(err)
		}
	}
}
