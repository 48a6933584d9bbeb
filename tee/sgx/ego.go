//go:build sgx && cgo

package sgx

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/edgelesssys/ego/enclave"

	"github.com/safeconduct/safeconduct/tee"
)

// Open proves that this process is an enclave on hardware and returns it. Errors: *HardwareError, which wraps tee.ErrNoHardware.
func Open(o Options) (*Enclave, error) { return open(ego{}, os.LookupEnv, o) }

// ego is EGo v1.9.0. Nothing of an answer is used when there is an error: the zero report reads as sound.
type ego struct{}

func (ego) selfReport() (identity, error) {
	r, err := enclave.GetSelfReport()
	if err != nil {
		return identity{}, err
	}
	if len(r.UniqueID) != 32 || len(r.SignerID) != 32 || r.SecurityVersion > math.MaxUint16 {
		return identity{}, fmt.Errorf("the report: found measurements of %d and %d bytes and security version %d, expected 32, 32 and %d at most",
			len(r.UniqueID), len(r.SignerID), r.SecurityVersion, math.MaxUint16)
	}
	return identity{
		mrEnclave: [32]byte(r.UniqueID), mrSigner: [32]byte(r.SignerID), isvSVN: uint16(r.SecurityVersion), debug: r.Debug,
	}, nil
}

func (ego) remoteReport(reportData [tee.ReportDataSize]byte) ([]byte, error) {
	return enclave.GetRemoteReport(reportData[:])
}

func (ego) sealKeyID() ([]byte, error)                   { return enclave.GetSealKeyID() }
func (ego) productKey() (key, request []byte, err error) { return enclave.GetRandomProductSealKey() }
func (ego) uniqueKey() (key, request []byte, err error)  { return enclave.GetRandomUniqueSealKey() }

func (ego) keyOf(request []byte) ([]byte, error) {
	if len(request) == 0 {
		return nil, errors.New("empty key request") // EGo would panic
	}
	return enclave.GetSealKey(request)
}
