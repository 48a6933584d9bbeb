//go:build !sgx || !cgo

package sgx

import (
	"errors"
	"testing"

	"github.com/safeconduct/safeconduct/tee"
)

func TestABuildWithoutSGXOpensNothing(t *testing.T) {
	if e, err := Open(Options{AcceptDebugEnclaveWhoseMemoryTheHostCanRead: true}); e != nil || !errors.Is(err, tee.ErrNoHardware) {
		t.Errorf("got %v, %v", e, err)
	}
}
