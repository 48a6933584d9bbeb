package sgx

import (
	"errors"
	"fmt"

	"github.com/safeconduct/safeconduct/tee"
)

// HardwareError says why this process is not taken for an enclave on hardware. It wraps tee.ErrNoHardware.
type HardwareError struct {
	// Found says what was found, Remedy what an operator can do.
	Found, Remedy string
	cause         error
}

// Error implements error.
func (e *HardwareError) Error() string {
	return fmt.Sprintf("%v: found %s; expected an SGX enclave on hardware; %s", tee.ErrNoHardware, e.Found, e.Remedy)
}

// Unwrap returns tee.ErrNoHardware and what EGo said, if it said anything.
func (e *HardwareError) Unwrap() []error {
	if e.cause == nil {
		return []error{tee.ErrNoHardware}
	}
	return []error{tee.ErrNoHardware, e.cause}
}

// The variables that the diagnosis looks at. The host may set them to anything: they word a refusal, or cause one.
const (
	// envIsEnclave is "1" under EGo, in simulation too.
	envIsEnclave = "OE_IS_ENCLAVE"
	// envMarble makes EGo ask a MarbleRun coordinator, which the host names and nobody verifies, for files, environment and arguments. EGo
	// hands it through to us, and a coordinator can change its value but not take it away.
	envMarble = "EDG_EGO_PREMAIN"
)

// Remedies, worded for an operator.
const (
	remedyRun = "start it with \"ego run\" on a host with SGX enabled in its firmware, /dev/sgx_enclave and /dev/sgx_provision, and without " +
		"OE_SIMULATION; to try things out without hardware use the simulated build, which protects nothing"
	remedySign     = "sign it with \"debug\": false (deploy/enclave/enclave.json)"
	remedyMarble   = "start it with \"ego run\", not \"ego marblerun\", and without " + envMarble + " in its environment"
	remedyPlatform = "the processor or the EGo runtime does not work as specified: do not use this host; see docs/enclave.md"
)

// prove asks the processor for everything that only hardware can answer, and returns the enclave's identity. Errors: *HardwareError, and
// errors that wrap tee.ErrUnusableKey.
func prove(hw hardware, lookupEnv func(string) (string, bool), o Options) (identity, error) {
	self, err := guarded("self report", hw.selfReport)
	if err != nil {
		return identity{}, noReport(err, lookupEnv)
	}
	if _, set := lookupEnv(envMarble); set {
		return identity{}, &HardwareError{Found: "an enclave whose files and environment a MarbleRun coordinator of the host may have written", Remedy: remedyMarble}
	}
	switch zero := [32]byte{}; {
	case self.mrEnclave == zero || self.mrSigner == zero:
		return identity{}, &HardwareError{Found: "a report with an all-zero measurement", Remedy: remedyPlatform}
	case self.debug && !o.AcceptDebugEnclaveWhoseMemoryTheHostCanRead:
		return identity{}, &HardwareError{Found: "a debug enclave, whose memory its host can read", Remedy: remedySign}
	}
	return self, proveKeys(hw, self)
}

// noReport tells an ordinary process from an enclave in simulation. It decides nothing: there is no enclave either way.
func noReport(err error, lookupEnv func(string) (string, bool)) error {
	found := "an ordinary process (no report of the processor: " + err.Error() + ")"
	if v, _ := lookupEnv(envIsEnclave); v == "1" {
		found = "an enclave in simulation, or one that its processor gives no report (" + envIsEnclave + "=1; " + err.Error() + ")"
	}
	return &HardwareError{Found: found, Remedy: remedyRun, cause: err}
}

// proveKeys checks that sealing keys are what the processor makes of their requests: none is zero, no two are equal, and a request gives
// the same key again.
func proveKeys(hw hardware, self identity) error {
	id, err := guarded("seal key id", hw.sealKeyID)
	if err != nil {
		return &HardwareError{Found: "no seal key id (" + err.Error() + ")", Remedy: remedyPlatform, cause: err}
	}
	idKey, err := tee.NewSealKey(id)
	if err != nil {
		return fmt.Errorf("seal key id: %w", unusable(err))
	}
	product, request, err := newProductKey(hw, self)
	if err != nil {
		return unusable(err)
	}
	defer product.Clear()
	answer, err := guarded("unique seal key", func() (keyAnswer, error) { return pair(hw.uniqueKey()) })
	if err != nil {
		return unusable(err)
	}
	defer clear(answer.key)
	unique, err := tee.NewSealKey(answer.key)
	if err != nil {
		return fmt.Errorf("unique seal key: %w", unusable(err))
	}
	defer unique.Clear()
	again, err := recoverKey(hw, request)
	if err != nil {
		return unusable(err)
	}
	defer again.Clear()
	switch {
	case product.Equal(unique), product.Equal(idKey), unique.Equal(idKey):
		return unusable(fmt.Errorf("%w: keys of different requests are equal", tee.ErrUnusableKey))
	case !product.Equal(again):
		return unusable(fmt.Errorf("%w: one request gave two keys", tee.ErrUnusableKey))
	}
	return nil
}

// unusable makes a failure of a key at Open what it means there: no hardware. tee.ErrUnusableKey stays visible.
func unusable(err error) error {
	found := "a processor that gives no sealing keys"
	if errors.Is(err, tee.ErrUnusableKey) {
		found = "sealing keys that no processor makes"
	}
	return &HardwareError{Found: found + " (" + err.Error() + ")", Remedy: remedyPlatform, cause: err}
}
