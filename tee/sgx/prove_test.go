package sgx

import (
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/safeconduct/safeconduct/tee"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errUnsupported = errors.New("OE_UNSUPPORTED")

func TestNothingButAnEnclaveOnHardwareOpens(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*processor)
		env    map[string]string
		// says is in the error; empty for an enclave that opens. key: the error is tee.ErrUnusableKey too.
		says string
		key  bool
	}{
		"an enclave on hardware":                            {},
		"an enclave whose host sets other variables of EGo": {env: map[string]string{"OE_IS_ENCLAVE": "1", "EDG_CWD": "/"}},
		"an ordinary process": {
			change: func(p *processor) { p.reportErr = errUnsupported }, says: "an ordinary process",
		},
		"an ordinary process with the variable set to something else": {
			change: func(p *processor) { p.reportErr = errUnsupported }, env: map[string]string{"OE_IS_ENCLAVE": "0"}, says: "an ordinary process",
		},
		"an enclave in simulation": {
			change: func(p *processor) { p.reportErr = errUnsupported }, env: map[string]string{"OE_IS_ENCLAVE": "1"}, says: "an enclave in simulation",
		},
		"a report that comes with an error": {
			change: func(p *processor) { p.reportErr = errors.New("OE_VERIFY_FAILED") }, says: "OE_VERIFY_FAILED",
		},
		"a report call that panics": {
			change: func(p *processor) { p.panicking = "self report" }, says: "the call panicked: index out of range",
		},
		"the zero report": {
			change: func(p *processor) { p.self = identity{} }, says: "all-zero measurement",
		},
		"a report without an enclave": {
			change: func(p *processor) { p.self.mrEnclave = [32]byte{} }, says: "all-zero measurement",
		},
		"a report without a signer": {
			change: func(p *processor) { p.self.mrSigner = [32]byte{} }, says: "all-zero measurement",
		},
		"a debug enclave": {
			change: func(p *processor) { p.self.debug = true }, says: "a debug enclave",
		},
		"an enclave that a MarbleRun coordinator prepared": {
			env: map[string]string{"EDG_EGO_PREMAIN": "1"}, says: "MarbleRun",
		},
		"one whose coordinator emptied the variable that tells": {
			env: map[string]string{"EDG_EGO_PREMAIN": ""}, says: "MarbleRun",
		},
		"an all-zero seal key id": {
			change: func(p *processor) { p.onKey = zeroKey("seal key id") }, says: "seal key id", key: true,
		},
		"no seal key id": {
			change: func(p *processor) { p.onKey = failing("seal key id") }, says: "no seal key id",
		},
		"a seal key id call that panics": {
			change: func(p *processor) { p.panicking = "seal key id" }, says: "the call panicked",
		},
		"an all-zero product key": {
			change: func(p *processor) { p.onKey = zeroKey("product seal key") }, says: "product seal key", key: true,
		},
		"a product key that is too short": {
			change: func(p *processor) { p.onKey = cutKey("product seal key") }, says: "found 15 bytes, expected 16", key: true,
		},
		"no product key": {
			change: func(p *processor) { p.onKey = failing("product seal key") }, says: "gives no sealing keys",
		},
		"a product key call that panics": {
			change: func(p *processor) { p.panicking = "product seal key" }, says: "the call panicked",
		},
		"a product key by a request that is not for one": {
			change: func(p *processor) { p.onRequest = func(r []byte) { r[2] = 3 } }, says: "key policy: found 0x3, expected 0x2", key: true,
		},
		"a product key by a request without a random key id": {
			change: func(p *processor) { p.onRequest = func(r []byte) { clear(r[40:72]) } }, says: "key id is all zero", key: true,
		},
		"an all-zero unique key": {
			change: func(p *processor) { p.onKey = zeroKey("unique seal key") }, says: "unique seal key", key: true,
		},
		"no unique key": {
			change: func(p *processor) { p.onKey = failing("unique seal key") }, says: "gives no sealing keys",
		},
		"one key for every request": {
			change: func(p *processor) { p.sameKeys = true }, says: "keys of different requests are equal", key: true,
		},
		"another key each time for one request": {
			change: func(p *processor) { p.forgetful = true }, says: "one request gave two keys", key: true,
		},
		"no key for a request that had one": {
			change: func(p *processor) { p.onKey = failing("seal key") }, says: "gives no sealing keys",
		},
		"an all-zero key for a request that had another": {
			change: func(p *processor) { p.onKey = zeroKey("seal key") }, says: "all zero", key: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcessor(t)
			if tc.change != nil {
				tc.change(p)
			}
			e, err := open(p, env(tc.env), Options{})
			if tc.says == "" {
				if err != nil || e.Mode() != tee.ModeIntel || e.MREnclave() != p.self.mrEnclave || e.MRSigner() != p.self.mrSigner {
					t.Fatalf("got %v, %v", e, err)
				}
				return
			}
			var hardware *HardwareError
			if e != nil || !errors.Is(err, tee.ErrNoHardware) || !errors.As(err, &hardware) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %v, %v, want ErrNoHardware that says %q", e, err, tc.says)
			}
			if hardware.Found == "" || hardware.Remedy == "" {
				t.Errorf("the error does not say what was found and what to do: %v", err)
			}
			if errors.Is(err, tee.ErrUnusableKey) != tc.key {
				t.Errorf("ErrUnusableKey: got %v, want %v", !tc.key, tc.key)
			}
		})
	}
}

func zeroKey(name string) func(string, []byte) ([]byte, error) {
	return onlyFor(name, func([]byte) ([]byte, error) { return make([]byte, tee.SealKeySize), nil })
}

func cutKey(name string) func(string, []byte) ([]byte, error) {
	return onlyFor(name, func(key []byte) ([]byte, error) { return key[1:], nil })
}

// failing returns a key with its error, as a careless library would.
func failing(name string) func(string, []byte) ([]byte, error) {
	return onlyFor(name, func(key []byte) ([]byte, error) { return key, errors.New("OE_FAILURE") })
}

func onlyFor(name string, f func([]byte) ([]byte, error)) func(string, []byte) ([]byte, error) {
	return func(n string, key []byte) ([]byte, error) {
		if n == name {
			return f(key)
		}
		return key, nil
	}
}

func TestADebugEnclaveOpensOnlyWhereItIsAccepted(t *testing.T) {
	p := newProcessor(t)
	p.self.debug = true
	if e, err := open(p, env(nil), Options{}); e != nil || !errors.Is(err, tee.ErrNoHardware) {
		t.Errorf("without the option: got %v, %v", e, err)
	}
	if _, err := open(p, env(nil), Options{AcceptDebugEnclaveWhoseMemoryTheHostCanRead: true}); err != nil {
		t.Errorf("with the option: %v", err)
	}
	p.reportErr = errUnsupported
	if _, err := open(p, env(nil), Options{AcceptDebugEnclaveWhoseMemoryTheHostCanRead: true}); !errors.Is(err, tee.ErrNoHardware) {
		t.Errorf("the option lets a simulation pass: %v", err)
	}
}

func TestTheErrorForAnOrdinaryProcessCanBeActedUpon(t *testing.T) {
	p := newProcessor(t)
	p.reportErr = errUnsupported
	_, err := open(p, env(nil), Options{})
	for _, want := range []string{"no hardware enclave", "ordinary process", "ego run", "/dev/sgx_enclave", "OE_SIMULATION"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if !errors.Is(err, errUnsupported) {
		t.Error("what EGo said is lost")
	}
}
