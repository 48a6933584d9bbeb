// Package hosttpm asks the host's TPM 2.0 for quotes over its PCRs (TPM 2.0 Library, Part 3).
//
// The attestation key is a primary key of the endorsement hierarchy, made from a fixed template: the TPM derives the same key from the
// same seed each time, so that nothing is stored, in the TPM or beside it. TPM2_Clear does not change it. The package keeps no connection and no
// object in the TPM between calls. It verifies each quote that it hands out, but believing one is for package tpmquote, on the other host.
package hosttpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
)

// OperationTimeout bounds one call when its context has no earlier deadline. A discrete TPM makes a primary key in well under a second.
const OperationTimeout = 15 * time.Second

// maxPCR is the last PCR of the PC Client platform.
const maxPCR = 23

// quoteAttempts bounds how often a quote is made again because PCRs changed between reading and quoting. IMA extends PCR 10 in bursts.
const quoteAttempts = 5

// Errors that a caller may want to tell apart. A TPM's own response codes are tpm2.TPMRC in the chain.
var (
	// ErrAddress: the address is not of a known form.
	ErrAddress = errors.New("not an address of a tpm")
	// ErrUnreachable: nothing answers at the address.
	ErrUnreachable = errors.New("tpm not reachable")
	// ErrProtocol: what answers does not speak as a TPM.
	ErrProtocol = errors.New("not a tpm's answer")
	// ErrBusy: the TPM kept asking to try again.
	ErrBusy = errors.New("tpm busy")
	// ErrPCRSelection: the PCRs asked for are none, out of range, repeated, or not in the TPM's SHA-256 bank.
	ErrPCRSelection = errors.New("pcr selection not possible")
	// ErrPCRsMoving: PCRs changed each time between reading and quoting.
	ErrPCRsMoving = errors.New("pcrs keep changing")
)

// TPM is a host's TPM. It is safe for concurrent use; calls run one after the other.
type TPM struct {
	network, path string
	// turn is held by the call that talks to the TPM; a channel, so that waiting for it ends with the context.
	turn chan struct{}
	// wait passes the time between two tries; a test seam.
	wait func(context.Context, time.Duration) error
}

// Open returns the TPM at address: "device:/dev/tpmrm0", "unix:/path" (swtpm socket --server type=unixio) or "tcp:host:port" (swtpm
// --server type=tcp). It does not connect: each call does, so that a TPM that is restarted is found again. Use the resource manager's device, not /dev/tpm0.
// The error is ErrAddress.
func Open(address string) (*TPM, error) {
	kind, path, _ := strings.Cut(address, ":")
	switch kind {
	case "device", "unix":
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%w: found %q, expected an absolute path after %q", ErrAddress, address, kind+":")
		}
	case "tcp":
		if host, port, err := net.SplitHostPort(path); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("%w: found %q, expected tcp:HOST:PORT", ErrAddress, address)
		}
	default:
		return nil, fmt.Errorf("%w: found %q, expected device:PATH, unix:PATH or tcp:HOST:PORT", ErrAddress, address)
	}
	return &TPM{network: kind, path: path, turn: make(chan struct{}, 1), wait: sleep}, nil
}

// AKPublic returns the attestation key's TPMT_PUBLIC, about 90 bytes, for enrolment.
func (t *TPM) AKPublic(ctx context.Context) ([]byte, error) {
	var public []byte
	err := t.withKey(ctx, func(_ transport.TPM, ak *attestationKey) error {
		public = ak.public
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tpm: attestation key: %w", err)
	}
	return public, nil
}

// Quote returns a quote by the attestation key over qualifying and over PCRs of the SHA-256 bank, with the values that it covers. The
// quote has been verified against those values.
func (t *TPM) Quote(ctx context.Context, qualifying [32]byte, pcrs []int) (*v1.TpmQuote, error) {
	pcrs, err := normalised(pcrs)
	if err != nil {
		return nil, fmt.Errorf("tpm: quote: %w", err)
	}
	var quote *v1.TpmQuote
	err = t.withKey(ctx, func(tpm transport.TPM, ak *attestationKey) error {
		var err error
		quote, err = settledQuote(tpm, ak, qualifying, pcrs)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tpm: quote: %w", err)
	}
	return quote, nil
}

// normalised returns pcrs sorted.
func normalised(pcrs []int) ([]int, error) {
	pcrs = slices.Clone(pcrs)
	slices.Sort(pcrs)
	if len(pcrs) == 0 {
		return nil, fmt.Errorf("%w: found no PCR, expected at least one", ErrPCRSelection)
	}
	if pcrs[0] < 0 || pcrs[len(pcrs)-1] > maxPCR || len(slices.Compact(slices.Clone(pcrs))) != len(pcrs) {
		return nil, fmt.Errorf("%w: found %v, expected each of 0 to %d at most once", ErrPCRSelection, pcrs, maxPCR)
	}
	return pcrs, nil
}

// settledQuote reads the PCRs and quotes them, again if one was extended in between.
func settledQuote(tpm transport.TPM, ak *attestationKey, qualifying [32]byte, pcrs []int) (*v1.TpmQuote, error) {
	for range quoteAttempts {
		values, err := readPCRs(tpm, pcrs)
		if err != nil {
			return nil, err
		}
		quote, err := ak.quote(tpm, qualifying, pcrs)
		if err != nil {
			return nil, err
		}
		quote.Pcrs = values
		_, err = tpmquote.Verify(quote, ak.public, qualifying)
		if err == nil {
			return quote, nil
		}
		if !errors.Is(err, tpmquote.CheckPCRDigest) {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
	}
	return nil, fmt.Errorf("%w: after %d attempts", ErrPCRsMoving, quoteAttempts)
}

// readPCRs reads the SHA-256 bank. A TPM returns at most eight values a command, and may return fewer.
func readPCRs(tpm transport.TPM, pcrs []int) ([]*v1.PcrValue, error) {
	var out []*v1.PcrValue
	for rest := pcrs; len(rest) > 0; {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(rest)}.Execute(tpm)
		if err != nil {
			return nil, fmt.Errorf("reading PCRs: %w", err)
		}
		got := selectedOf(rsp.PCRSelectionOut)
		values := rsp.PCRValues.Digests
		if len(got) == 0 {
			return nil, fmt.Errorf("%w: no PCR %v in the SHA-256 bank", ErrPCRSelection, rest)
		}
		if len(got) != len(values) || len(got) > len(rest) || !slices.Equal(got, rest[:len(got)]) {
			return nil, fmt.Errorf("%w: found PCRs %v with %d values, expected the first of %v", ErrProtocol, got, len(values), rest)
		}
		for i, index := range got {
			out = append(out, &v1.PcrValue{Bank: "sha256", Index: uint32(index), Value: values[i].Buffer})
		}
		rest = rest[len(got):]
	}
	return out, nil
}

func selection(pcrs []int) tpm2.TPMLPCRSelection {
	var octets [3]byte
	for _, p := range pcrs {
		octets[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: octets[:]}}}
}

// selectedOf lists the PCRs of the SHA-256 bank in a selection, ascending.
func selectedOf(s tpm2.TPMLPCRSelection) []int {
	var out []int
	for _, bank := range s.PCRSelections {
		if bank.Hash != tpm2.TPMAlgSHA256 {
			continue
		}
		for i := range len(bank.PCRSelect) * 8 {
			if bank.PCRSelect[i/8]&(1<<(i%8)) != 0 {
				out = append(out, i)
			}
		}
	}
	return out
}
