//go:build sgx && cgo

package sgx

import (
	"errors"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/tee"
)

// These run EGo itself, in an ordinary process: go test -tags sgx. They pin what EGo v1.9.0 does where there is no enclave.

func TestOutsideAnEnclaveOpenRefuses(t *testing.T) {
	t.Setenv("OE_IS_ENCLAVE", "")
	for _, o := range []Options{{}, {AcceptDebugEnclaveWhoseMemoryTheHostCanRead: true}} {
		e, err := Open(o)
		if e != nil || !errors.Is(err, tee.ErrNoHardware) || !strings.Contains(err.Error(), "an ordinary process") || !strings.Contains(err.Error(), "OE_UNSUPPORTED") {
			t.Errorf("got %v, %v", e, err)
		}
	}
	t.Setenv("OE_IS_ENCLAVE", "1")
	if _, err := Open(Options{}); !errors.Is(err, tee.ErrNoHardware) || !strings.Contains(err.Error(), "an enclave in simulation") {
		t.Errorf("got %v", err)
	}
}

func TestOutsideAnEnclaveEGoSealsUnderAnAllZeroKeyAndWeDoNot(t *testing.T) {
	key, request, err := ego{}.productKey()
	if err != nil || string(key) != string(make([]byte, tee.SealKeySize)) {
		t.Fatalf("EGo does something else now: %x, %v", key, err)
	}
	if _, _, err := newProductKey(ego{}, identity{}); !errors.Is(err, tee.ErrUnusableKey) {
		t.Errorf("got %v, want ErrUnusableKey", err)
	}
	// The request is EGo's own: its layout and masks are the ones that we accept.
	if err := checkRequest(request, identity{}); err != nil {
		t.Errorf("EGo's request is refused: %v", err)
	}
	if _, err := recoverKey(ego{}, request); !errors.Is(err, tee.ErrUnusableKey) {
		t.Errorf("got %v, want ErrUnusableKey", err)
	}
	if _, unique, err := (ego{}).uniqueKey(); err != nil || checkRequest(unique, identity{}) == nil {
		t.Errorf("a request by MRENCLAVE is taken for one by MRSIGNER: %v", err)
	}
}

func TestOutsideAnEnclaveThereIsNoQuoteAndNoPanic(t *testing.T) {
	e := &Enclave{hw: ego{}, quoting: make(chan struct{}, maxQuotes)}
	if raw, err := e.Quote(t.Context(), reportData()); raw != nil || !errors.Is(err, ErrQuote) || !strings.Contains(err.Error(), "OE_UNSUPPORTED") {
		t.Errorf("got %d bytes, %v", len(raw), err)
	}
	if _, err := (ego{}).keyOf(nil); err == nil {
		t.Error("a key for nothing")
	}
}
